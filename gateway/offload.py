"""Work that grows with the size of a body: done in place where that is small, else in a thread beside the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

LARGE = 256 * 1024  # bytes; reading so many takes less than a millisecond

P = ParamSpec("P")
T = TypeVar("T")


def room(size: int) -> None:
    """Raise MemoryError where there is none for a copy of so many bytes.

    msgspec (0.22) does not ask whether a string found any, and takes the process with it. The bytes are not touched,
    so to ask costs some microseconds.
    """
    if size > LARGE:
        bytearray(2 * size)


async def sized(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, or raises. It must be pure: whoever waits may leave while a thread is still at it."""
    if size <= LARGE:
        return work(*args, **kwargs)
    room(size)
    return await asyncio.to_thread(work, *args, **kwargs)
