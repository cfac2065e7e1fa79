"""An instance that loads, pushes out, is asked and answers late, in any order: our books of it and what they teach."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gateway.instances.memory import Contents, Memory

SIZES = {"m": 40, "n": 30, "o": 50}


class MemoryMachine(RuleBasedStateMachine):
    """An Ollama that has room for 100 and pushes out what is idle, asked and listened to at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.memory.told(Contents(SIZES, {}), asked=0.0, now=0.0)
        self.really: dict[str, int] = {}
        self.calls: list[str] = []
        self.asked: tuple[float, dict[str, int]] | None = None
        self.now = 1.0

    @rule(model=st.sampled_from(sorted(SIZES)), answered=st.booleans())
    def a_call(self, model: str, *, answered: bool) -> None:
        idle = [name for name in self.really if name not in self.calls]
        while model not in self.really and sum(self.really.values()) + SIZES[model] > 100:
            if not idle:
                return
            del self.really[idle.pop()]
        self.now += 1.0
        self.memory.begin(model, self.now)
        self.really[model] = SIZES[model]
        self.calls.append(model)
        if answered:
            self.memory.answered(model)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def a_call_ends(self, data: st.DataObject) -> None:
        self.now += 1.0
        model = data.draw(st.sampled_from(self.calls))
        self.calls.remove(model)
        self.memory.end(model, self.now)

    @rule()
    def it_is_asked(self) -> None:
        self.now += 1.0
        self.asked = self.now, dict(self.really)

    @precondition(lambda self: self.asked)
    @rule()
    def it_answers(self) -> None:
        self.now += 1.0
        assert self.asked
        asked, loaded = self.asked
        self.memory.told(Contents(SIZES, loaded), asked=asked, now=self.now)
        self.asked = None

    @precondition(lambda self: self.asked is None)
    @rule()
    def it_is_asked_and_answers(self) -> None:
        self.it_is_asked()
        self.it_answers()
        known = {name for name, one in self.memory.residents.items() if not one.loading}
        assert known <= set(self.really)

    @invariant()
    def our_books_are_right(self) -> None:
        for model in SIZES:
            assert self.memory.running(model) == self.calls.count(model)
        assert not any(one.loading and not one.running for one in self.memory.residents.values())
        assert set(self.calls) <= set(self.memory.residents)

    @invariant()
    def what_is_learned_holds_for_such_an_instance(self) -> None:
        assert self.memory.most <= 100
        assert self.memory.too_much is None or self.memory.too_much > 100


@pytest.mark.drawn
def test_what_it_learns_is_true_whenever_it_is_told() -> None:
    run_state_machine_as_test(MemoryMachine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
