"""Between places: what a caller had in one does not shut it, or others, out of another. And who is remembered."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.instances import shares
from gateway.instances.shares import MAX_LAG, Caller, Turns
from tests.instances.shares_desk import USUAL, Desk, names, several

HERE, ALSO_HERE, THERE, ELSEWHERE = range(4)  # wants; the first two on one instance
PLACES = (0, 0, 1, 2)
huge = st.sampled_from([0.0, 50.0, 1e4, 1e7])


@given(amys=huge, bobs=huge, flood=st.integers(20, 60), served=st.integers(0, 19), want=st.sampled_from([0, 1]))
def test_a_newcomer_is_next_though_everybody_had_much_elsewhere(
    amys: float, bobs: float, flood: int, served: int, want: int
) -> None:
    desk = Desk(*PLACES)
    desk.had("amy", amys, THERE)
    desk.had("bob", bobs, ELSEWHERE)
    several(desk, "ab" * flood)
    desk.turns(served)
    desk.now = 1.0
    alone = desk.comes("cat", want=want)
    assert alone in desk.turns(3)  # at most a first call of each


@given(
    much=huge,
    served=st.integers(0, 60),
    weight=st.integers(1, 4),
    want=st.sampled_from([HERE, ALSO_HERE]),
)
def test_whoever_had_much_elsewhere_is_behind_by_the_most_lag_and_no_more(
    much: float, served: int, weight: int, want: int
) -> None:
    desk = Desk(*PLACES)
    for _ in range(400):
        desk.comes("amy", weight=weight)
    desk.turns(served)
    desk.had("bob", much, THERE)
    heavy = desk.comes("bob", want=want)
    assert desk.turns().index(heavy) <= MAX_LAG * weight / USUAL + 2


@given(much=st.tuples(huge, huge), weight=st.integers(1, 3), first=st.sampled_from(["amy", "bob"]))
def test_those_who_all_had_much_elsewhere_share_a_new_place_as_ever(
    much: tuple[float, float], weight: int, first: str
) -> None:
    desk = Desk(*PLACES)
    desk.had("amy", much[0], THERE)
    desk.had("bob", much[1], ELSEWHERE)
    for name in (first, "bob" if first == "amy" else "amy"):
        for _ in range(400):
            desk.comes(name, weight=weight if name == "bob" else 1)
    desk.turns(40 + int(MAX_LAG * weight))
    had = Counter(names(desk.turns(120)))
    assert had["b"] / 120 == pytest.approx(weight / (weight + 1), rel=0.1)


@given(slow=st.integers(1, 10), fast=st.integers(1, 300))
def test_waiting_at_a_slow_place_saves_nothing_up_for_a_fast_one(slow: int, fast: int) -> None:
    desk = Desk(*PLACES)
    several(desk, "b" * 20, THERE)
    desk.turns(slow, place=1)
    several(desk, "a" * (fast + 20))
    desk.turns(fast)
    desk.turns(1, place=1)
    several(desk, "b" * 20)
    both = names(desk.turns(20)).count("a")
    most = 1 + max(0.0, min(MAX_LAG, USUAL * (slow - fast + 1))) / USUAL
    assert 9 <= both <= 11 + most


@given(before=st.integers(1, 100))
def test_callers_of_several_wants_take_turns_on_an_instance_however_new_a_want_is(before: int) -> None:
    desk = Desk(*PLACES)
    several(desk, "a" * (before + 20))
    desk.turns(before)
    several(desk, "b" * 20, ALSO_HERE)
    assert abs(names(desk.turns(20)).count("a") - 10) <= 1


# who there is


def test_callers_that_have_nothing_here_are_forgotten() -> None:
    desk = Desk()
    for number in range(5000):
        desk.comes(f"stranger {number}")
        assert len(desk.turns(1)) == 1
    assert len(desk.callers) == 0


def test_a_place_forgets_those_who_are_not_ahead() -> None:
    turns, regular = Turns(), Caller("regular")
    for number in range(3 * shares.MAX_STARTS):
        for caller in (Caller(f"caller {number}"), regular):
            turns.come_in(caller)
            turns.take(caller, 1.0)
    assert len(turns._starts) <= shares.MAX_STARTS + 1


def test_so_does_one_whose_callers_never_had_to_wait() -> None:
    turns = Turns()
    for number in range(3 * shares.MAX_STARTS):
        turns.take(Caller(f"caller {number}"), 1.0)
        turns.time += 2.0
    assert len(turns._starts) <= shares.MAX_STARTS + 1


def test_what_ends_late_is_no_reason_to_remember_one_who_was_forgotten() -> None:
    turns, away = Turns(), Caller("away")
    for caller in (away, *(Caller(f"caller {number}") for number in range(shares.MAX_STARTS))):
        turns.come_in(caller)
        turns.take(caller, 1.0)
        turns.time += 1.0
    assert turns.start(away) == turns.time, "it is as any newcomer"
    turns.correct(away, 100.0)
    assert turns.start(away) == turns.time


def test_callers_that_reach_their_cap_again_and_again_take_no_more_room_each_time() -> None:
    desk = Desk()
    several(desk, "ab")
    for _ in range(1000):
        for caller in desk.callers:
            desk.callers.allow(caller, 0)
            desk.callers.allow(caller, None)
    (level,) = [one for one in desk.wants[0]._levels if one.callers]
    assert len(level._heap) <= 2 * 2 + 17
    assert names(desk.turns()) == "ab"


def test_what_one_has_running_counts_where_it_comes_in_anew() -> None:
    for seconds, start in ((0.0, 0.0), (30.0, 30.0), (1000.0, MAX_LAG)):
        turns, caller = Turns(), Caller("amy")
        caller.busy = seconds
        turns.come_in(caller)
        assert turns.start(caller) == start
