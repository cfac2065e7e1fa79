"""Where work on a body is done."""

from __future__ import annotations

import asyncio
import resource
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.offload import LARGE, beside, give_way, room, sized

MIB = 2**20


async def test_small_bodies_are_worked_on_in_place_and_large_ones_beside_the_loop() -> None:
    here = threading.get_ident()
    assert await sized(LARGE, threading.get_ident) == here
    assert await sized(LARGE + 1, threading.get_ident) != here


@pytest.mark.parametrize("size", [0, LARGE + 1])
async def test_what_the_work_raises_is_raised(size: int) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await sized(size, int, "x")


async def test_arguments_are_handed_over() -> None:
    assert await sized(LARGE + 1, int, "ff", base=16) == 255


BEYOND = 2**61  # bytes: more than any machine has


async def test_work_that_would_find_no_memory_is_not_begun() -> None:
    done: list[str] = []
    with pytest.raises(MemoryError):
        await sized(BEYOND, done.append, "x")
    with pytest.raises(MemoryError):
        room(BEYOND)
    assert not done


def test_to_ask_for_room_uses_none() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    room(256 * MIB)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


@pytest.fixture
def nobody_is_interrupted() -> Iterator[None]:
    """A thread that computes keeps the interpreter for as long as it likes."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("nobody_is_interrupted")
async def test_work_beside_the_loop_gives_way_to_it() -> None:
    turned = threading.Event()

    def work() -> bool:
        end = time.monotonic() + 10
        while not turned.is_set() and time.monotonic() < end:
            give_way()
        return turned.is_set()

    asyncio.get_running_loop().call_soon(turned.set)
    assert await beside(work)
