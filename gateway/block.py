"""Blocks of code that can be ended from outside, for a cause that is told: a client that left, a limit of time.

`asyncio.timeout` does the same for one cause; these cost a third of it, and every call has two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Block:
    """`with` it. `interrupt` ends it: what it waits for is cancelled, and the cause is raised out of the block."""

    _cause: Exception | None = None
    _task: asyncio.Task[object] | None = None
    _cancelling = 0

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None  # noqa: S101 - whoever can wait is an asyncio task
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over()
        task, self._task = self._task, None
        # As asyncio.timeout does it: a cancellation of ours becomes our exception, another's stays what it is.
        if self._cause is not None and task is not None:
            others = task.uncancel() > self._cancelling
            try:
                if not others and kind is asyncio.CancelledError:
                    raise self._cause from error
            finally:
                self._cause = None  # it knows the frames it is raised through, and they know us

    def over(self) -> None:
        """Called at its end, or before: from now on nothing is to end it."""

    def interrupt(self, cause: Exception) -> None:
        """End the block with `cause`. The first cause stands."""
        if self._cause is None and self._task is not None and not self._task.done():
            self._cause = cause
            self._task.cancel()


class TimeLimit(Block):
    """Ends after `seconds`, with what `cause` makes."""

    def __init__(self, seconds: float, cause: Callable[[], Exception]) -> None:
        self._seconds = seconds
        self._make = cause
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._strike)
        return self

    def over(self) -> None:
        """Lift the limit. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _strike(self) -> None:
        self._timer = None
        self.interrupt(self._make())
