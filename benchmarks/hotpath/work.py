"""The work that all contenders do, and the figures that come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.hotpath.load import Load, Told

NAIVE = "starlette + httpx"
NOBODY = frozenset[str]()


@dataclass(frozen=True, slots=True)
class Work:
    """One load, and which figures are read from it."""

    name: str
    title: str
    load: Load
    figures: tuple[str, ...]
    without: frozenset[str] = frozenset({NAIVE})  # contenders that cannot carry it
    fills: bool = False  # the core of callers and instance
    once: bool = False  # not in each round: what is asked is whether it holds


_PACED = ("CPU us/frame", "TTFT p50 us", "TTFT p99 us", "delay p50 us", "delay p99 us")

HELD = Work(
    "streams-2000",
    "2,000 streams, 20 frames/s each",
    Load(callers=2000, frames=40, interval=50, warm_up=4.0, seconds=3.0),
    ("CPU us/frame", "frames/s", "errors", "delay p50 us", "delay p99 us"),
    once=True,
)
WORKS = (
    Work(
        "calls-64",
        "Whole answers, 64 connections",
        Load(callers=64, seconds=1.5),
        ("CPU us/call", "calls/s"),
        without=NOBODY,
    ),
    Work(
        "calls-1",
        "Whole answers, one connection",
        Load(callers=1, seconds=1.0, warm_up=0.3),
        ("CPU us/call", "took p50 us", "took p99 us"),
    ),
    Work("streams-1", "One stream, 200 frames/s", Load(callers=1, frames=20, interval=5, seconds=1.5), _PACED),
    Work(
        "streams-50",
        "50 streams, 50 frames/s each",
        Load(callers=50, frames=100, interval=20),
        _PACED,
        without=NOBODY,
    ),
    Work(
        "streams-200", "200 streams, 50 frames/s each", Load(callers=200, frames=100, interval=20, warm_up=0.8), _PACED
    ),
    Work(
        "streams-1000",
        "1,000 streams, 10 frames/s each",
        Load(callers=1000, frames=20, interval=100, warm_up=2.0),
        _PACED,
    ),
    Work(
        "unpaced-50",
        "50 streams, frames as fast as they are taken",
        Load(callers=50, frames=1000),
        ("CPU us/frame", "frames/s", "delay p50 us", "delay p99 us"),
        fills=True,
    ),
    HELD,
)

BUSY, FREE = 0.95, 0.85  # of the contender's core, and of the other: only then the contender is what limits the calls


def _limited(told: Told) -> bool:
    return told.cpu >= BUSY * told.seconds * 1e9 and told.rest <= FREE * told.seconds * 1e9


FIGURES: dict[str, Callable[[Told], float | None]] = {
    "CPU us/call": lambda told: told.cpu / 1e3 / told.calls if told.cpu and told.calls else None,
    "CPU us/frame": lambda told: told.cpu / 1e3 / told.frames if told.cpu and told.frames else None,
    "calls/s": lambda told: told.calls / told.seconds if _limited(told) else None,
    "frames/s": lambda told: told.frames / told.seconds,
    "errors": lambda told: float(sum(told.errors.values())),
    "took p50 us": lambda told: told.took.quantile(0.5),
    "took p99 us": lambda told: told.took.quantile(0.99),
    "TTFT p50 us": lambda told: told.ttft.quantile(0.5),
    "TTFT p99 us": lambda told: told.ttft.quantile(0.99),
    "delay p50 us": lambda told: told.delay.quantile(0.5),
    "delay p99 us": lambda told: told.delay.quantile(0.99),
}
