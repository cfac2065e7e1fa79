"""Where calls may go: the tiers of a want, and one want for all that may go to the same places."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Config, LineConfig
from gateway.errors import ConnectFailed, ConnectionLost, Refused, UpstreamError
from gateway.instances import line
from gateway.instances.instance import Instance
from gateway.instances.line import Tier, Want, Wants
from gateway.instances.roster import Roster
from tests.instances.shares_desk import AGEING, BATCH, NORMAL, PLACES, Desk, a_want, candidate


def test_the_first_tier_with_a_fit_instance_is_the_one_that_counts() -> None:
    want = a_want(candidate("beta", tier=1), candidate("alpha"), candidate("beta"), candidate("gamma", tier=2))
    first, second, third = want.tiers
    assert (first.mask, second.mask, third.mask) == (0b011, 0b010, 0b100)
    seen = Seen()
    assert seen.tier(want) is first
    seen.is_probed("alpha", ok=False)
    assert seen.places(want) == {"m:latest": 0b010}
    seen.is_probed("beta", ok=False)
    assert seen.tier(want) is third
    seen.is_probed("gamma", ok=False)
    assert seen.tier(want) is None
    seen.is_probed("beta", ok=True)
    assert seen.places(want) == {"m:latest": 0b010}


def test_where_one_model_cools_its_instance_is_left_to_the_others() -> None:
    want, other = a_want(candidate("alpha"), candidate("beta", tier=1)), a_want(candidate("alpha", "n"))
    seen = Seen()
    seen.fails("alpha", NO_MEMORY)
    assert seen.tier(want) is want.tiers[1]
    assert seen.tier(other) is other.tiers[0]


def test_of_what_is_not_fit_the_first_tier_with_a_last_resort_counts() -> None:
    want = a_want(candidate("alpha"), candidate("beta", tier=1), candidate("gamma", tier=1))
    seen = Seen()
    for name in PLACES:
        seen.fails(name, UNREACHABLE if name == "alpha" else LOST)
    assert seen.places(want) == {"m:latest": 0b110}
    seen.tries("beta")
    assert seen.places(want) == {"m:latest": 0b100}, "one at a time"
    seen.fails("gamma", NO_MEMORY)
    seen.tries("gamma")
    assert seen.tier(want) is None
    assert seen.tier(a_want(candidate("alpha"))) is None, "nobody listens there"


class Seen:
    """A roster of real instances, and what they are seen to do."""

    def __init__(self) -> None:
        self.roster, self.instances = a_roster()

    def tier(self, want: Want) -> Tier | None:
        return want.tier(self.roster)

    def places(self, want: Want) -> Mapping[str, int]:
        tier = self.tier(want)
        return tier.models if tier else {}

    def is_probed(self, name: str, *, ok: bool) -> None:
        self.instances[name].observe(ok, "")
        self.roster.update(self.instances[name], 0.0)

    def fails(self, name: str, error: UpstreamError) -> None:
        self.instances[name].breakers.failed(object(), "m:latest", error, 0.0, running=0)
        self.roster.update(self.instances[name], 0.0)

    def tries(self, name: str) -> None:
        self.instances[name].breakers.begin(object(), "m:latest", 0.0)
        self.roster.update(self.instances[name], 0.0)


LOST = ConnectionLost("one", "reset")
UNREACHABLE = ConnectFailed("one", "refused")
NO_MEMORY = Refused("one", 500, "CUDA error: out of memory")


def test_a_tier_knows_who_would_use_which_model_and_who_is_preferred() -> None:
    want = a_want(candidate("alpha", "m", rank=1), candidate("beta", "N"), candidate("gamma", "m:latest", rank=1))
    (tier,) = want.tiers
    assert tier.models == {"m:latest": 0b101, "n:latest": 0b010}
    assert tier.ranks == [0b010, 0b101]
    assert tier.options == {0: want.candidates[0], 1: want.candidates[1], 2: want.candidates[2]}
    assert want.models == ("m:latest", "n:latest")


def test_the_first_of_two_candidates_on_one_instance_counts() -> None:
    (tier,) = a_want(candidate("alpha", "m"), candidate("alpha", "n")).tiers
    assert tier.options[0].model == "m"
    assert tier.models == {"m:latest": 0b001}


def test_instances_outside_the_pool_are_no_tier_until_they_come_in() -> None:
    want = a_want(candidate("alpha"), candidate("delta", tier=1))
    assert [tier.mask for tier in want.tiers] == [0b001]
    want.replace({"delta": 5}.get, AGEING)
    assert [tier.mask for tier in want.tiers] == [1 << 5]


def test_other_settings_hold_for_those_that_wait_already() -> None:
    desk = Desk()
    desk.comes("amy", BATCH)
    desk.now = 1.5
    assert desk.turn() == (BATCH, desk.waiting[0])
    due = desk.wants[0].due()
    desk.wants[0].replace(PLACES.get, 1.0)
    assert desk.turn() == (NORMAL, desk.waiting[0])
    assert desk.wants[0].due() == due - AGEING + 1.0


def a_roster() -> tuple[Roster, dict[str, Instance]]:
    """Whatever fails or is probed does so once for all."""
    keys = {"breaker": {"failures": 1, "connects": 1}, "health": {"fall": 1, "rise": 1}}
    config = Config.model_validate(
        {"instances": [{"name": name, "url": f"http://{name}:1"} for name in PLACES], **keys}
    )
    roster, instances = Roster(), {}
    for one in config.instances:
        instances[one.name] = Instance(one, config, lambda: 0.5)
        roster.add(instances[one.name], 0.0)
    return roster, instances


def some_wants() -> Wants:
    roster, _ = a_roster()
    wants = Wants(roster)
    wants.replace((), LineConfig())
    return wants


def test_whoever_may_go_to_the_same_places_wants_the_same() -> None:
    wants = some_wants()
    first = (candidate("alpha", "m"), candidate("beta", "n", tier=1))
    want = wants.of(first)
    assert wants.of(first) is want
    assert wants.of((candidate("alpha", "M:latest"), candidate("beta", "n", tier=1))) is want
    assert wants.of((candidate("alpha", "m"), candidate("beta", "n"))) is not want
    assert wants.of((candidate("alpha", "m"), candidate("beta", "n", tier=1, rank=1))) is not want


@given(st.lists(st.integers(0, 20), max_size=60), st.integers(1, 8))
def test_no_more_than_the_last_used_wants_are_kept(models: list[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(line, "MAX_WANTS", most)
        wants = some_wants()
        last: dict[int, Want] = {}
        for model in models:
            recent = list(last)[-most:]
            want = wants.of((candidate(model=f"m{model}"),))
            assert (want is last.pop(model, None)) == (model in recent)
            last[model] = want
            assert max(len(wants._by_content), len(wants._by_identity)) <= most


def test_what_is_asked_for_again_and_again_stays_the_same_want() -> None:
    wants = some_wants()
    hot = (candidate(model="hot"),)
    want = wants.of(hot)
    for n in range(2 * line.MAX_WANTS):
        wants.of((candidate(model=f"m{n}"),))
        assert wants.of(hot) is want


def test_where_instances_come_and_go_what_is_waited_for_learns_where_they_are() -> None:
    wants = some_wants()
    beta = (candidate("beta"),)
    wants.of(beta)
    waited_for = a_want(candidate("gamma"))
    wants.replace([waited_for], LineConfig(ageing=7.0))
    assert [tier.mask for tier in waited_for.tiers] == [0b100]
    assert (waited_for.ageing, wants.of(beta).ageing) == (7.0, 7.0)
