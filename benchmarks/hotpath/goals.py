"""What the gateway has to keep, against nginx in the same run: `must` and `aim`."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.hotpath import memory
from benchmarks.hotpath.outcome import NOTHING, OURS, Outcome
from benchmarks.hotpath.work import HELD, WORKS


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and its bounds."""

    what: str
    value: float | None  # None: not measured in this run
    must: float
    aim: float
    at_least: bool = False

    @property
    def met(self) -> str:
        if self.value is None:
            return "not measured"
        if self._within(self.aim):
            return "aim met"
        return "met" if self._within(self.must) else "NOT MET"

    def _within(self, bound: float) -> bool:
        assert self.value is not None
        return self.value >= bound if self.at_least else self.value <= bound


def goals(outcome: Outcome, idle: dict[str, float]) -> list[Goal]:
    def ratio(name: str, figure: str, *, added: bool = False) -> float | None:
        work = next(work for work in WORKS if work.name == name)
        return outcome.ratio(work, OURS, figure, added=added) if work in outcome.rows else None

    return [
        Goal("CPU per frame, 50 streams", ratio("streams-50", "CPU us/frame"), 1.5, 1.25),
        Goal("CPU per frame, 200 streams", ratio("streams-200", "CPU us/frame"), 1.5, 1.25),
        Goal("CPU per whole call, 64 connections", ratio("calls-64", "CPU us/call"), 3.5, 2.0),
        Goal("added TTFT p50, 200 streams", ratio("streams-200", "TTFT p50 us", added=True), 2.5, 2.0),
        Goal("added TTFT p99, 200 streams", ratio("streams-200", "TTFT p99 us", added=True), 4.0, 2.5),
        Goal("frames/s, as fast as they are taken", ratio("unpaced-50", "frames/s"), 0.5, 0.8, at_least=True),
        Goal("memory of an idle stream", memory.ratio(idle, OURS), 1.2, 0.7),
        Goal("frames/s of 2,000 streams, none wrong, to no gateway", _held(outcome), 0.95, 0.98, at_least=True),
    ]


def _held(outcome: Outcome) -> float | None:
    """The frames that came, against asking the instance directly; 0 where one answer was wrong."""
    if HELD not in outcome.rows:
        return None
    ours, all_ = (outcome.median(HELD, name, "frames/s") or 0.0 for name in (OURS, NOTHING))
    return 0.0 if outcome.errors(HELD, OURS) else ours / max(all_, 1.0)


def table(found: list[Goal]) -> str:
    lines = ["| ratio to nginx | value | must | aim | |", "|---|---|---|---|---|"]
    for goal in found:
        sign, value = "≥" if goal.at_least else "≤", "-" if goal.value is None else f"{goal.value:.2f}"
        lines.append(f"| {goal.what} | {value} | {sign} {goal.must:g} | {sign} {goal.aim:g} | {goal.met} |")
    return "\n".join(lines)
