"""Conversations stay together: a tie of instances is broken by the conversation's own name, and nothing else is."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Candidate
from gateway.routing import kept_together

NAMES = ["alpha", "beta", "gamma", "delta"]


def candidates(*names: str, rank: int = 0, tier: int = 0) -> list[Candidate]:
    return [Candidate(instance=name, model="m", rank=rank, tier=tier) for name in names]


def first(conversation: str, *names: str) -> str:
    return min(kept_together(candidates(*names), conversation), key=lambda one: one.rank).instance


@given(conversation=st.text(), order=st.permutations(NAMES))
def test_a_conversation_has_the_same_first_instance_in_whatever_order_they_stand(
    conversation: str, order: list[str]
) -> None:
    assert first(conversation, *order) == first(conversation, *NAMES)


@given(conversation=st.text(), gone=st.sampled_from(NAMES))
def test_only_those_whose_instance_is_gone_move(conversation: str, gone: str) -> None:
    home = first(conversation, *NAMES)
    if home != gone:
        assert first(conversation, *(name for name in NAMES if name != gone)) == home


def test_conversations_are_spread_over_the_instances() -> None:
    homes = Counter(first(f"conversation {number}", *NAMES) for number in range(400))
    assert all(60 <= homes[name] <= 140 for name in NAMES)


@given(conversation=st.text())
def test_an_earlier_rank_stays_earlier_and_tiers_are_not_touched(conversation: str) -> None:
    mixed = [*candidates("alpha", "beta"), *candidates("gamma", rank=1), *candidates("delta", rank=2, tier=1)]
    ranked = {one.instance: one for one in kept_together(mixed, conversation)}
    assert max(ranked["alpha"].rank, ranked["beta"].rank) < ranked["gamma"].rank < ranked["delta"].rank
    assert [ranked[name].tier for name in NAMES] == [0, 0, 0, 1]
