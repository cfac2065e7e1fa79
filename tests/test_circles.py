"""What a call held is gone with it, whatever way it ended: nothing of it waits for the garbage collector.

A circle in every twentieth call is memory that grows until the collector comes, and then a pause for all calls.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from gateway.simulator import Behaviour
from tests.house import House, ask

CALLS = 5
QUICK = Behaviour(parallel=8, per_second=0, first_token=0)
PATIENT = {"failures": 1000, "connects": 1000, "calls": 1000}  # no instance is taken out
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def troubled(house: House, kind: str, **details: int) -> AsyncIterator[None]:
    """Both instances fail so, for as long as the block lasts."""
    for simulator in house.simulators.values():
        simulator.faults.arm(kind, path="/v1", times=None, **details)
    try:
        yield
    finally:
        for simulator in house.simulators.values():
            simulator.faults.clear()


async def whole(house: House) -> None:
    assert (await house.post(CHAT, ask("say: a b"))).status == 200


async def streamed(house: House) -> None:
    assert (await house.post(CHAT, ask("say: a b", stream=True))).status == 200


async def refused(house: House) -> None:
    assert (await house.post(CHAT, {"model": 1})).status == 400


async def nowhere(house: House) -> None:
    assert (await house.post("/v1/nothing", {})).status == 404


async def broken_off(house: House) -> None:
    async with troubled(house, "cut", after=2):
        assert b"stream_interrupted" in (await house.post(CHAT, ask("say: a b c d", stream=True))).body


async def failed_everywhere(house: House) -> None:
    async with troubled(house, "reset", after=0):
        assert (await house.post(CHAT, ask("say: a b"))).status == 502


async def left_in_a_stream(house: House) -> None:
    async with troubled(house, "hang_mid_stream", after=2):
        async with house.asking(ask("say: one two three", stream=True)) as wire:
            await wire.until(b"one")
        await house.until(lambda: len(house.app.crowd) == 0)


async def left_before_an_answer(house: House) -> None:
    async with troubled(house, "hang_before_headers"):
        async with house.asking(ask("say: one")):
            await house.until(lambda: any(one.held for one in house.engine.pool.instances.values()))
        await house.until(lambda: len(house.app.crowd) == 0)


@contextmanager
def collecting() -> Iterator[list[object]]:
    """Everything that only the collector found in this block, by its end."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    found: list[object] = []
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    "call",
    [whole, streamed, refused, nowhere, broken_off, failed_everywhere, left_in_a_stream, left_before_an_answer],
    ids=lambda call: call.__name__,
)
async def test_a_call_leaves_no_circle_behind(call: Callable[[House], Awaitable[None]]) -> None:
    async with House({"alpha": QUICK, "beta": QUICK}, {"breaker": PATIENT, "retry": {"backoff": 0}}) as house:
        await call(house)
        await house.quiet()
        with collecting() as found:
            for _ in range(CALLS):
                await call(house)
            await house.quiet()
        ours = [f"{type(one).__module__}.{type(one).__name__}" for one in found]
        assert [one for one in ours if one.startswith("gateway.") and "simulator" not in one] == []
