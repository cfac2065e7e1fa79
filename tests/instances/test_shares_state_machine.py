"""Callers and their calls may come, go, be served and grow old in any order: what a want says is what a plain look at
all its calls says, and it remembers no more than is there.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.call import Priority
from gateway.instances.line import Waiter, Want
from tests.instances.shares_desk import AGEING, NAMES, USUAL, Desk


class SharesMachine(RuleBasedStateMachine):
    """What a want says is what a plain look at all its calls says, and it remembers no more than is there."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(0, 1)
        self.turn_at: dict[tuple[Want, Priority], float] = {}

    @rule(
        name=st.sampled_from(NAMES),
        priority=st.sampled_from(Priority),
        ago=st.sampled_from([0.0, 0.0, 1.0, 20.0]),
        weight=st.integers(1, 3),
        want=st.integers(0, 1),
    )
    def comes(self, name: str, priority: Priority, ago: float, weight: int, want: int) -> None:
        cap = 2 if name == "eve" else None
        since = max(0.0, self.desk.now - ago)
        self.desk.comes(name, priority, want=want, since=since, weight=weight, cap=cap)

    @precondition(lambda self: self.desk.waiting)
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        self.desk.goes(data.draw(st.sampled_from(self.desk.waiting)))

    @rule(place=st.integers(0, 1))
    def grants(self, place: int) -> None:
        waiter = self.desk.grants(place)
        if waiter is not None:
            self.turn_at[waiter.want, waiter.priority] = self.desk.now

    @precondition(lambda self: self.desk.running)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 1.0, USUAL, 30.0]))
    def ends(self, data: st.DataObject, seconds: float) -> None:
        self.desk.ends(data.draw(st.sampled_from(self.desk.running)), seconds)

    @rule(seconds=st.sampled_from([0.5, 4.0, AGEING]))
    def time_passes(self, seconds: float) -> None:
        self.desk.now += seconds

    @rule(name=st.sampled_from(NAMES), cap=st.integers(0, 3))
    def may_have_so_many(self, name: str, cap: int) -> None:
        for caller in self.desk.callers:
            if caller.name == name:
                self.desk.callers.allow(caller, cap or None)

    @rule(name=st.sampled_from(NAMES))
    def comes_and_goes_a_hundred_times(self, name: str) -> None:
        for _ in range(100):
            self.desk.goes(self.desk.comes(name, cap=2 if name == "eve" else None))

    def start(self, waiter: Waiter) -> float:
        return waiter.want._levels[waiter.priority]._turns.start(waiter.caller)

    def able(self, want: Want) -> dict[Waiter, tuple[int, int, float]]:
        """Who could have a turn now: as what each counts, what it is (the lower has waited for it), where it starts."""
        counts_as: dict[Priority, int] = {}
        for priority in Priority:
            moments = [one.since for one in self.desk.waiting if one.want is want and one.priority == priority]
            since = max(min(moments, default=0.0), self.turn_at.get((want, priority), 0.0))
            counts_as[priority] = max(0, priority - int((self.desk.now - since) // AGEING))
        return {
            one: (counts_as[one.priority], -one.priority, self.start(one))
            for one in self.desk.waiting
            if one.want is want and not one.caller.capped
        }

    @invariant()
    def the_head_is_whoever_a_plain_look_finds(self) -> None:
        for want in self.desk.wants:
            able, turn = self.able(want), want.head(self.desk.now)
            if turn is None:
                assert not able
                continue
            level, head = turn
            assert (level, -head.priority, self.start(head)) == able[head] == min(able.values())
            own = [one.since for one in able if one.caller is head.caller and one.priority == head.priority]
            assert head.since == min(own)

    @invariant()
    def it_knows_who_waits(self) -> None:
        for want in self.desk.wants:
            waiting = [one for one in self.desk.waiting if one.want is want]
            assert want.count == len(waiting) == sum(map(len, want._levels))
            for level in Priority:
                own = [one for one in waiting if one.priority == level]
                assert Counter(dict(want.callers(level))) == Counter(one.caller for one in own)
                for caller, calls in want._levels[level].callers.items():
                    of_caller = [one for one in own if one.caller is caller]
                    assert list(calls) == sorted(of_caller, key=lambda one: one.since)
            assert want.oldest() == min((one.since for one in waiting), default=float("inf"))
            due = min((one.since + one.priority * AGEING for one in waiting), default=float("inf"))
            assert want.due() == due - Priority.NORMAL * AGEING

    @invariant()
    def it_remembers_no_more_than_is_there(self) -> None:
        here = Counter(one.caller for one in self.desk.waiting + self.desk.running)
        assert here == Counter({one: one.waiting + one.running for one in self.desk.callers})
        assert len(self.desk.callers) == len(here)
        for want in self.desk.wants:
            for level in want._levels:
                assert len(level._heap) <= 2 * len(NAMES) + 17
        for caller in self.desk.callers:
            own = {one.want._levels[one.priority] for one in self.desk.waiting if one.caller is caller}
            assert set(caller.levels) == own


@pytest.mark.drawn
def test_anything_may_happen_in_any_order() -> None:
    run_state_machine_as_test(SharesMachine, settings=settings(max_examples=60, stateful_step_count=50, deadline=None))
