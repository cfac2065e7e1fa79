"""Whose turn it is: between classes, between callers, and between the calls of one caller."""

from __future__ import annotations

from collections import Counter, OrderedDict
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.call import Priority
from gateway.instances.line import Waiter, position
from gateway.instances.shares import _insert
from tests.instances.shares_desk import (
    AGEING,
    BATCH,
    INTERACTIVE,
    NAMES,
    NORMAL,
    Desk,
    names,
    several,
)

# between callers


def test_callers_take_turns_however_many_calls_each_has_in_line() -> None:
    desk = Desk()
    several(desk, "aaaabbc")
    assert names(desk.turns()) == "abcabaa"


def test_a_heavier_caller_takes_more_turns() -> None:
    desk = Desk()
    for _ in range(6):
        desk.comes("amy", weight=2)
        desk.comes("bob", weight=1)
    assert Counter(names(desk.turns(6))) == {"a": 4, "b": 2}


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    weights=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    means=st.lists(st.floats(2, 10), min_size=5, max_size=5),
    slots=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_time_is_shared_by_weight_whatever_calls_were_charged_and_however_many_run_at_once(
    weights: list[int], means: list[float], slots: int, seed: int
) -> None:
    desk, random = Desk(), Random(seed)  # noqa: S311
    share = dict(zip(NAMES, weights, strict=False))
    mean = dict(zip(NAMES, means, strict=True))

    def takes(waiter: Waiter) -> float:
        name = waiter.caller.name
        desk.comes(name, weight=share[name])
        return random.uniform(0, 2) * mean[name]

    for name, weight in share.items():
        for _ in range(2 * slots + 2):
            desk.comes(name, weight=weight)
    desk.works(slots, 200, takes)
    desk.seconds.clear()
    desk.works(slots, 8_000, takes)
    total = sum(desk.seconds.values())
    for name, weight in share.items():
        assert desk.seconds[name] / total == pytest.approx(weight / sum(weights), rel=0.1)


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    weights=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    means=st.lists(st.floats(2, 10), min_size=5, max_size=5),
    slots=st.integers(1, 8),
    wants=st.integers(2, 3),
    seed=st.integers(0, 99),
)
def test_time_is_shared_by_weight_more_loosely_where_one_instance_serves_several_models(
    weights: list[int], means: list[float], slots: int, wants: int, seed: int
) -> None:
    desk, random = Desk(*[0] * wants), Random(seed)  # noqa: S311
    share = dict(zip(NAMES, weights, strict=False))
    mean = dict(zip(NAMES, means, strict=True))

    def takes(waiter: Waiter) -> float:
        name = waiter.caller.name
        desk.comes(name, want=random.randrange(wants), weight=share[name])
        return random.uniform(0, 2) * mean[name]

    for name, weight in share.items():
        for n in range((2 * slots + 2) * wants):
            desk.comes(name, want=n % wants, weight=weight)
    desk.works(slots, 200, takes)
    desk.seconds.clear()
    desk.works(slots, 8_000, takes)
    total = sum(desk.seconds.values())
    for name, weight in share.items():
        assert desk.seconds[name] / total == pytest.approx(weight / sum(weights), rel=0.3)


@given(
    slots=st.integers(1, 16),
    before=st.integers(0, 60),
    seed=st.integers(0, 99),
    usual=st.floats(0.1, 50),
    priority=st.sampled_from(Priority),
    age=st.floats(0, 10 * AGEING),
)
def test_a_flood_of_one_caller_delays_a_call_of_another_by_two_calls_in_each_slot_at_most(
    slots: int, before: int, seed: int, usual: float, priority: Priority, age: float
) -> None:
    """Those that run, and as many again where these were shorter than they were to be; however old the flood is."""
    desk, random = Desk(), Random(seed)  # noqa: S311
    desk.now = age
    for n in range(4 * slots + before):
        desk.comes("amy", priority, since=age * n / (4 * slots + before))
    desk.works(slots, slots + before, lambda _: random.uniform(0, 2 * usual))
    alone = desk.comes("bob", priority)
    begun: list[Waiter] = []

    def takes(waiter: Waiter) -> float:
        begun.append(waiter)
        return usual

    desk.works(slots, 2 * slots, takes)
    assert alone in begun


@given(st.integers(1, 30), st.integers(1, 30))
def test_idling_saves_nothing_up(calls: int, before: int) -> None:
    desk = Desk()
    several(desk, "b" * before)
    desk.turns()  # bob was here, and left
    several(desk, "a" * (calls + 20))
    desk.turns(calls)
    several(desk, "b" * 20)
    both = names(desk.turns(20))
    assert abs(both.count("a") - both.count("b")) <= 2  # one call


@given(st.integers(1, 60), st.floats(0, 20), st.integers(0, 1))
def test_what_one_was_charged_too_much_is_not_saved_up_either(calls: int, took: float, want: int) -> None:
    desk = Desk(0, 0)
    several(desk, "b" * calls)
    for _ in range(calls):
        desk.grants()
    for waiter in list(desk.running):
        desk.ends(waiter, took)
    several(desk, "a" * 400)
    desk.turns(380)  # as much as he had, and more
    several(desk, "b" * 20, want)
    both = names(desk.turns(20))
    assert abs(both.count("a") - both.count("b")) <= 2  # one call


def test_nobody_is_punished_for_time_that_nobody_else_wanted() -> None:
    desk = Desk()
    several(desk, "a" * 50)
    desk.turns(40)
    several(desk, "b" * 10)
    assert 4 <= names(desk.turns(10)).count("a") <= 6


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(Priority), st.booleans()), min_size=1, max_size=40))
def test_whose_turn_it_is_does_not_depend_on_others_that_came_and_left(
    arrivals: list[tuple[str, Priority, bool]],
) -> None:
    """`dan` and `eve` come and leave, all of their calls; the rest go as if they had never been there."""
    orders = []
    for disturbed in (True, False):
        desk = Desk()
        labels: dict[Waiter, int] = {}
        leaving: list[Waiter] = []
        for label, (name, priority, now) in enumerate(arrivals):
            if name not in {"dan", "eve"}:
                labels[desk.comes(name, priority)] = label
            elif disturbed:
                leaving.append(desk.comes(name, priority))
                if now:
                    desk.goes(leaving.pop())
        for waiter in leaving:
            desk.goes(waiter)
        orders.append([labels[waiter] for waiter in desk.turns()])
    assert orders[0] == orders[1]


def test_a_caller_at_its_cap_is_passed_over_and_comes_back_when_a_call_of_its_ends() -> None:
    desk = Desk()
    for _ in range(3):
        desk.comes("amy", cap=1)
    several(desk, "bb")
    first = desk.grants()
    assert first is not None
    assert first.caller.capped
    assert names(desk.turns()) == "bb"
    assert desk.head() is None
    desk.ends(first)
    assert names(desk.turns()) == "aa"


def test_where_all_of_a_class_are_at_their_cap_the_next_class_goes() -> None:
    desk = Desk()
    desk.comes("amy", INTERACTIVE, cap=1)
    desk.comes("amy", INTERACTIVE, cap=1)
    later = desk.comes("bob", BATCH)
    desk.grants()
    assert desk.head() is later


# between the calls of one caller


@given(st.lists(st.integers(0, 14), min_size=1, max_size=20))
def test_a_call_that_was_in_line_before_goes_before_its_callers_later_ones(since: list[int]) -> None:
    desk = Desk()
    desk.now = 14.0
    for moment in since:
        desk.comes(since=float(moment))
    assert [waiter.since for waiter in desk.turns()] == sorted(since)


def test_a_call_that_comes_back_goes_between_those_that_came_before_and_after_it() -> None:
    desk = Desk()
    desk.now = 9.0
    for since in (1.0, 3.0, 5.0, 2.0):
        desk.comes(since=since)
    assert [waiter.since for waiter in desk.turns()] == [1.0, 2.0, 3.0, 5.0]


# what can be said of it


@given(st.lists(st.sampled_from(NAMES[1:]), max_size=30), st.integers(1, 12))
def test_a_position_is_how_many_go_until_then_where_all_weigh_the_same(others: list[str], own: int) -> None:
    desk = Desk()
    for name in others:
        desk.comes(name)
    calls = []
    for _ in range(own):
        desk.now += 1.0
        calls.append(desk.comes("amy"))
    said = [position(waiter, desk.wants) for waiter in calls]
    order = desk.turns()
    assert said == [order.index(waiter) + 1 for waiter in calls]


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(Priority)), min_size=1, max_size=40),
    st.lists(st.integers(1, 5), min_size=5, max_size=5),
)
def test_a_position_is_off_by_a_turn_of_each_other_and_those_of_higher_classes_at_most(
    arrivals: list[tuple[str, Priority]], weights: list[int]
) -> None:
    desk = Desk()
    weight = dict(zip(NAMES, weights, strict=True))
    calls = [desk.comes(name, priority, weight=weight[name]) for name, priority in arrivals]
    said = [position(waiter, desk.wants) for waiter in calls]
    order = desk.turns()
    for waiter, place in zip(calls, said, strict=True):
        higher = sum(one.priority < waiter.priority for one in calls)
        assert abs(place - order.index(waiter) - 1) <= len(NAMES) - 1 + higher


def test_those_of_higher_classes_are_before_it() -> None:
    desk = Desk()
    for name in ("amy", "bob", "bob"):
        desk.comes(name, INTERACTIVE)
    desk.comes("bob", NORMAL)
    call = desk.comes("amy", NORMAL)
    assert position(call, desk.wants) == 5
    assert desk.turns().index(call) == 4


def test_a_caller_whose_turn_took_less_than_was_to_be_expected_has_its_next_one_earlier() -> None:
    desk = Desk()
    first = desk.comes("amy")
    assert desk.grants() is first
    for name, weight in (("bob", 100.0), ("bob", 100.0), ("amy", 1.0)):
        desk.comes(name, weight=weight)
    bobs = desk.grants()
    assert bobs is not None
    assert bobs.caller.name == "bob"
    desk.ends(first, 0.01)
    assert names(desk.turns()) == "ab"


def test_a_call_that_comes_back_to_the_head_of_a_long_line_moves_no_other() -> None:
    class Counted(OrderedDict[Waiter, None]):
        moved = 0

        def move_to_end(self, key: Waiter, last: bool = True) -> None:
            self.moved += 1
            super().move_to_end(key, last)

    desk, calls = Desk(), Counted()
    waiting = [desk.comes("amy", since=float(second)) for second in range(1, 200)]
    for waiter in (*waiting, desk.comes("amy", since=0.0)):
        _insert(waiter, calls)
    assert (next(iter(calls)).since, calls.moved) == (0.0, 1)
