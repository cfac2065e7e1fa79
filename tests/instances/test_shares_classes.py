"""Between classes: the higher goes first, and no class starves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Priority
from gateway.instances.line import Waiter
from tests.instances.shares_desk import (
    AGEING,
    BATCH,
    INTERACTIVE,
    NAMES,
    NORMAL,
    USUAL,
    Desk,
    names,
    several,
)


def levels(desk: Desk, moments: list[float]) -> list[int]:
    """As what the head counts, at each of these moments."""
    found = []
    for desk.now in moments:
        turn = desk.turn()
        assert turn is not None
        found.append(turn.level)
    return found


def flooded(desk: Desk, callers: tuple[str, ...], calls: int) -> list[tuple[float, Waiter]]:
    """So many calls are served, one at a time, while interactive ones of these callers never end; when each began."""
    begun: list[tuple[float, Waiter]] = []

    def takes(waiter: Waiter) -> float:
        begun.append((desk.now, waiter))
        if waiter.caller.name in callers:
            desk.comes(waiter.caller.name, INTERACTIVE)
        return USUAL

    for name in callers:
        several(desk, name[0] * 2)
    desk.works(1, calls, takes)
    return begun


def test_the_higher_class_goes_first() -> None:
    desk = Desk()
    late = [desk.comes("amy", priority) for priority in (BATCH, NORMAL, INTERACTIVE)]
    assert desk.turns() == late[::-1]


def test_a_class_counts_as_one_better_for_each_period_it_waits() -> None:
    desk = Desk()
    desk.comes("amy", BATCH)
    moments = [0.0, AGEING - 0.1, AGEING, 2 * AGEING - 0.1, 2 * AGEING, 9 * AGEING]
    assert levels(desk, moments) == [BATCH, BATCH, NORMAL, NORMAL, INTERACTIVE, INTERACTIVE]
    assert desk.waiting[0].priority == BATCH


def test_after_its_turn_a_class_counts_as_what_it_is_however_long_its_calls_have_waited() -> None:
    desk = Desk()
    several(desk, "ab", priority=BATCH)
    desk.now = then = 5 * AGEING
    desk.grants()
    moments = [then, then + AGEING - 0.1, then + AGEING, then + 2 * AGEING]
    assert levels(desk, moments) == [BATCH, BATCH, NORMAL, INTERACTIVE]


def test_a_turn_long_ago_does_not_age_a_class_in_which_nobody_waited() -> None:
    desk = Desk()
    desk.comes("amy", BATCH)
    desk.turns()
    desk.now = 9 * AGEING
    desk.comes("amy", BATCH)
    assert levels(desk, [9 * AGEING, 10 * AGEING]) == [BATCH, NORMAL]


def test_a_call_that_waited_before_comes_back_with_what_it_has_waited() -> None:
    desk = Desk()
    desk.comes("amy", BATCH, since=100.0 - AGEING)
    assert levels(desk, [100.0]) == [NORMAL]


@given(st.integers(1, 3), st.integers(1, 2), st.sampled_from([NORMAL, BATCH]))
def test_an_endless_stream_of_higher_calls_leaves_a_class_a_call_per_period_for_each_class_above(
    others: int, own: int, priority: Priority
) -> None:
    desk = Desk()
    for name in NAMES[:own]:
        several(desk, name[0] * 6, priority=priority)
    begun = flooded(desk, NAMES[2 : 2 + others], 100)
    moments = [moment for moment, waiter in begun if waiter.priority == priority]
    period = priority * AGEING
    assert len(moments) >= min(6 * own, 5)
    for before, after in pairwise([0.0, *moments]):
        assert period <= after - before <= period + (others + 1) * USUAL


def test_an_endless_stream_of_the_highest_starves_neither_of_the_other_two() -> None:
    desk = Desk()
    for _ in range(20):
        desk.comes("amy", NORMAL)
        desk.comes("bob", BATCH)
    begun = flooded(desk, ("cat", "dan"), 48)  # 240 s
    assert sum(waiter.priority == NORMAL for _, waiter in begun) >= 0.75 * 240 / AGEING
    assert sum(waiter.priority == BATCH for _, waiter in begun) >= 0.75 * 240 / (2 * AGEING)


@pytest.mark.parametrize("priority", [NORMAL, BATCH])
def test_an_old_flood_is_not_before_a_new_call_of_its_class_though_higher_ones_go_first(priority: Priority) -> None:
    desk = Desk()
    several(desk, "b" * 50, priority=priority)
    served = flooded(desk, ("amy",), 30)
    assert {waiter.caller.name for _, waiter in served} == {"amy", "bob"}
    alone = desk.comes("cat", priority)
    turns = [waiter for _, waiter in flooded(desk, ("amy",), 20) if waiter.priority == priority]
    assert alone in turns[:2]


def test_old_calls_of_one_class_do_not_make_new_ones_of_it_wait_behind_the_rest() -> None:
    """All in line are of one class and grew old together: they take turns as ever."""
    desk = Desk()
    several(desk, "a" * 20, priority=NORMAL)
    desk.now = 4 * AGEING
    several(desk, "bbb", priority=NORMAL)
    assert names(desk.turns(6)) in {"bababa", "ababab"}
