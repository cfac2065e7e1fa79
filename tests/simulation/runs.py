"""Many schedules, one after the other; what breaks a law is made small and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tests.simulation.schedule import Schedule, draw
from tests.simulation.stage import Played, play

T = TypeVar("T")

AGAIN = "make simulate SEED={seed} plays it again, move by move"


@dataclass(slots=True)
class Summary:
    """What many schedules came to; `failed` is the seed of the first that broke a law."""

    schedules: int = 0
    turns: int = 0
    grants: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    failed: int | None = None

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common())
        calls = sum(self.ends.values())
        return f"{self.schedules} schedules, {calls} calls, {self.grants} leases, {self.turns} turns looked at: {ends}"


def run(seeds: Iterable[int], told: Callable[[Summary], None] = lambda _: None) -> Summary:
    """Play until a law is broken; `told` hears after each schedule."""
    summary = Summary()
    for seed in seeds:
        played = play(draw(seed))
        summary.schedules += 1
        summary.turns += played.turns
        summary.grants += played.grants
        summary.ends += played.ends
        if played.broken is not None:
            summary.failed = seed
            return summary
        told(summary)
    return summary


def account(seed: int) -> str:
    """The words for a seed that breaks a law: which one, and the least that still does."""
    schedule = draw(seed)
    played = play(schedule)
    if played.broken is None:
        return f"seed {seed} breaks no law now"
    least = smaller(schedule, played.broken.law)
    return "\n".join(
        [f"seed {seed}: {played.broken}", AGAIN.format(seed=seed), "the least that breaks it:", story(least)]
    )


def story(schedule: Schedule) -> str:
    """A schedule and what came of it, move by move."""
    played = play(schedule)
    verdict = "every law held" if played.broken is None else str(played.broken)
    return "\n".join([str(schedule), "what happened:", *(f"  {line}" for line in played.trace), verdict])


def smaller(schedule: Schedule, law: str) -> Schedule:
    """The same schedule with as few calls and happenings as break the same law."""

    def breaks(tried: Schedule) -> bool:
        played: Played = play(tried)
        return played.broken is not None and played.broken.law == law

    asks = _least(schedule.asks, lambda kept: breaks(replace(schedule, asks=kept)))
    schedule = replace(schedule, asks=asks)
    happenings = _least(schedule.happenings, lambda kept: breaks(replace(schedule, happenings=kept)))
    return replace(schedule, happenings=happenings)


def _least(things: tuple[T, ...], enough: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """What is left when everything is taken away that can be, in ever smaller pieces."""
    size = max(1, len(things) // 2)
    while True:
        at = 0
        while at < len(things):
            kept = things[:at] + things[at + size :]
            if enough(kept):
                things = kept
            else:
                at += size
        if size == 1:
            return things
        size //= 2
