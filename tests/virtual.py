"""An event loop whose time jumps to whatever happens next: an hour of waiting takes as long as its decisions."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Standstill(RuntimeError):
    """Nothing is left to happen, and somebody still waits."""


class _Jump(selectors.DefaultSelector):
    """Waits for nothing: moves the clock on by as long as it was to wait."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.passed = start
        self.between: Callable[[bool], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.between is not None:
            self.between(timeout != 0)
        if timeout is None:
            raise Standstill("nothing is left to happen, and somebody still waits")
        if timeout <= 0:
            return []
        self.passed += timeout
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time` begins at `start` seconds."""

    def __init__(self, start: float = 0.0) -> None:
        self._jump = _Jump(start)
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.passed

    def between_turns(self, look: Callable[[bool], None] | None) -> None:
        """Have `look` called after each turn of the loop, with whether time is to pass before the next one.

        What it raises comes out of whoever runs the loop.
        """
        self._jump.between = look

    def timers(self) -> list[asyncio.TimerHandle]:
        """Those that are set."""
        return [handle for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
