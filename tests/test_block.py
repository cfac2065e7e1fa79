"""A block that time ends: with its own cause, unless it is over before, or somebody else ends it."""

from __future__ import annotations

import asyncio

import pytest

from gateway.block import Block, TimeLimit


class Struck(Exception):
    pass


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_time_ends_the_block_with_its_cause_and_the_task_goes_on() -> None:
    with pytest.raises(Struck), TimeLimit(0, Struck):
        await for_ever()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_block_that_is_over_in_time_is_left_in_peace() -> None:
    with TimeLimit(0, Struck) as limit:
        limit.over()
        limit.over()
        for _ in range(3):
            await asyncio.sleep(0)


async def test_no_timer_outlives_its_block() -> None:
    with TimeLimit(1000, Struck) as limit:
        pass
    assert limit._timer is None


async def test_of_two_limits_the_one_that_struck_tells_its_cause() -> None:
    with pytest.raises(Struck), TimeLimit(1000, ValueError), TimeLimit(0, Struck):
        await for_ever()
    with pytest.raises(Struck), TimeLimit(0, Struck), TimeLimit(1000, ValueError):
        await for_ever()


async def test_a_cancellation_from_outside_is_no_limit() -> None:
    async def work() -> None:
        with TimeLimit(1000, Struck):
            await for_ever()

    task = asyncio.create_task(work(), name="work")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_block_that_was_left_cannot_be_ended() -> None:
    with Block() as block:
        pass
    block.interrupt(Struck())
    for _ in range(3):
        await asyncio.sleep(0)
