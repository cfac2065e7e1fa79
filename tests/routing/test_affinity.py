"""Conversations stay together: of the instances on offer the same conversation always goes to the same one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.routing import home, seed

NAMES = ["alpha", "beta", "gamma", "delta"]


def chosen(conversation: str, names: Iterable[str] = NAMES) -> str:
    return home(conversation, {name: seed(name) for name in names})


@given(conversation=st.text(), order=st.permutations(NAMES))
def test_a_conversation_has_the_same_home_in_whatever_order_instances_stand(
    conversation: str, order: list[str]
) -> None:
    assert chosen(conversation, order) == chosen(conversation)


@given(conversation=st.text(), gone=st.sampled_from(NAMES))
def test_only_those_whose_instance_is_gone_move(conversation: str, gone: str) -> None:
    assume(chosen(conversation) != gone)
    assert chosen(conversation, [name for name in NAMES if name != gone]) == chosen(conversation)


def test_conversations_are_spread_over_the_instances() -> None:
    homes = Counter(chosen(f"conversation {number}") for number in range(400))
    assert all(60 <= homes[name] <= 140 for name in NAMES)


def test_conversations_are_spread_over_many_instances_alike() -> None:
    many = [f"gpu{number}" for number in range(100)]
    homes = Counter(chosen(f"conversation {number}", many) for number in range(10_000))
    assert len(homes) == 100
    assert max(homes.values()) < 200


def test_those_of_an_instance_that_leaves_go_to_all_the_others() -> None:
    moved = [f"conversation {number}" for number in range(2000) if chosen(f"conversation {number}") == "alpha"]
    homes = Counter(chosen(conversation, NAMES[1:]) for conversation in moved)
    assert all(homes[name] > len(moved) // 5 for name in NAMES[1:])
