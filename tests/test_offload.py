"""Where work on a body is done."""

from __future__ import annotations

import threading

import pytest

from gateway.offload import LARGE, room, sized


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
