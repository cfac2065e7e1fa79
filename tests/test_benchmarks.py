"""The instruments of `make bench`: a figure is worth what its checks are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.hotpath.contenders import instance
from benchmarks.hotpath.histogram import Histogram
from benchmarks.hotpath.load import Address, Load, Run, Told, drive
from benchmarks.hotpath.upstream import DONE, FIRST, FRAME, HEAD, STOP
from gateway.simulator import Behaviour, Simulator

CALLS = Load(callers=3, calls=4, warm_up=0.05, seconds=0.1)
STREAMS = Load(callers=3, frames=5, calls=2, warm_up=0.05, seconds=0.1)
HANG = 20.0  # seconds


async def told(load: Load, address: Address) -> Told:
    """What came of all its calls."""
    run = Run(load, address)
    run.counting = True
    async with asyncio.timeout(HANG), run:
        await run.until_done()
    return run.told


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Address]:
    """A server that answers every call like that."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}]")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[:2]


def frames(count: int) -> bytes:
    (before, after), stamp = FRAME, b"%016d" % 1
    return HEAD + stamp.join(FIRST) + (before + stamp + after) * (count - 1)


@given(st.lists(st.integers(0, 10**9), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_right_to_three_percent(values: list[int], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = next(rank for rank in range(1, len(values) + 1) if rank >= share * len(values))
    assert histogram.quantile(share) == pytest.approx(sorted(values)[rank - 1], rel=0.032)


async def test_every_call_and_every_frame_is_counted() -> None:
    async with instance() as behind:
        calls = await told(CALLS, behind.address)
        assert (calls.calls, calls.frames, calls.errors) == (12, 0, {})
        paced = await told(replace(STREAMS, interval=2), behind.address)
        assert paced.frames == 3 * 5 + (1 + 3 + 5), "the first streams are of all lengths"
        rushed = await told(replace(STREAMS, frames=300), behind.address)
        assert (rushed.calls, rushed.frames, rushed.errors) == (6, 6 * 300, {})
        assert rushed.delay.total == 6 * 300
        assert rushed.ttft.total == 6


async def test_a_load_with_a_time_tells_what_was_done_in_it() -> None:
    async with instance() as behind:
        found = await drive(replace(CALLS, calls=0), behind.address)
    assert found.calls > 3
    assert found.seconds >= 0.1
    assert not found.errors


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (frames(4) + STOP + DONE, "4 frames of 5"),
        (frames(5) + STOP + b"0\r\n\r\n", "no [DONE]"),
        (frames(5) + STOP, "connection lost"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "status 503"),
        (b"nonsense\r\n\r\n", "not an HTTP answer"),
    ],
)
async def test_wrong_work_is_told(answer: bytes, problem: str) -> None:
    async with answering(answer) as address, Run(replace(STREAMS, callers=1), address) as run:
        async with asyncio.timeout(HANG):
            while not run.told.errors:
                await asyncio.sleep(0.01)
    assert problem in run.told.errors


async def test_an_answer_without_stamps_is_not_taken_for_streamed_work() -> None:
    async with Simulator(Behaviour(parallel=8)) as simulator:
        found = await told(replace(STREAMS, calls=1), (simulator.host, simulator.port))
    assert found.errors == {"0 frames of 5": 3}
