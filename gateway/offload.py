"""Work that grows with the size of a body: done in place where that is small, else in a thread beside the loop.

A thread that computes holds the interpreter's lock, and the event loop waits for it, once for each of the callbacks of
a turn. So what takes long in a thread gives way between two of its steps, for long enough that the loop has its turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

LARGE = 256 * 1024  # bytes; reading so many takes less than a millisecond
SPELL, PAUSE = 0.001, 0.002  # seconds that a thread works at a stretch, and for which it then lets others go on

P = ParamSpec("P")
T = TypeVar("T")


_paused: ContextVar[list[float] | None] = ContextVar("paused", default=None)  # when; None where others need not wait


def give_way() -> None:
    """Let others go on, where this is work `beside` the loop that has been at it for a while."""
    paused = _paused.get()
    if paused is not None and time.perf_counter() - paused[0] > SPELL:
        time.sleep(PAUSE)
        paused[0] = time.perf_counter()


async def beside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, or raises, done in a thread."""

    def giving_way() -> T:
        _paused.set([time.perf_counter()])  # in the thread's own copy of the context
        return work(*args, **kwargs)

    return await asyncio.to_thread(giving_way)


def room(size: int) -> None:
    """Raise MemoryError where there is none for a copy of so many bytes.

    msgspec (0.22) does not ask whether a string found any, and takes the process with it. The bytes are not touched,
    so to ask costs some microseconds; those of a bytearray would be.
    """
    if size > LARGE:
        bytes(2 * size)


async def sized(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, or raises. It must be pure: whoever waits may leave while a thread is still at it."""
    if size <= LARGE:
        return work(*args, **kwargs)
    room(size)
    return await beside(work, *args, **kwargs)
