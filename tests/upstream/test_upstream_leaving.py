"""Whoever leaves, at whatever moment, leaves no socket, timer or object behind."""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.errors import ConnectionLost, UpstreamError
from gateway.upstream import Response
from gateway.upstream.connection import SLICE, Answer
from tests.upstream.scripted import (
    BIG,
    CHUNKED,
    HELLO,
    POST,
    STARTED,
    Peer,
    Script,
    answering,
    ask,
    black_hole,
    once,
    quiet,
    reaching,
    silent,
    speaking,
    until,
)


async def gone(instance_peers: list[Peer]) -> None:
    """The instance saw every connection closed: the bound is generous, the promise is 250 ms (faults.md §4)."""
    async with asyncio.timeout(5):
        await asyncio.gather(*(peer.gone.wait() for peer in instance_peers))


def sockets() -> int:
    """Sockets this process has open, on both sides."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files cannot be counted here")
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


async def cancelled(task: asyncio.Future[tuple[int, bytes]] | asyncio.Future[bytes]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_leaving_while_connecting_closes_the_socket() -> None:
    async with black_hole() as url, reaching(url) as upstream:
        before = sockets()
        task = asyncio.ensure_future(ask(upstream))
        await until(lambda: upstream.busy == 1 and sockets() > before)
        await cancelled(task)
        assert quiet(upstream)
        await until(lambda: sockets() == before)


async def test_leaving_while_the_body_is_sent_closes_the_socket() -> None:
    reading = asyncio.Event()

    async def deaf(peer: Peer) -> None:
        await peer.head()
        reading.set()
        await release.wait()
        await peer.until_gone()

    release = asyncio.Event()
    async with speaking(deaf) as instance, reaching(instance.url) as upstream:
        task = asyncio.ensure_future(ask(upstream, BIG))
        await reading.wait()
        (connection,) = upstream._busy
        await until(lambda: connection._full)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() <= 2 * SLICE
        await cancelled(task)
        assert quiet(upstream)
        release.set()
        await gone(instance.peers)


async def test_leaving_while_waiting_for_the_answer_closes_the_socket() -> None:
    async with speaking(silent()) as instance, reaching(instance.url) as upstream:
        task = asyncio.ensure_future(ask(upstream))
        await until(lambda: bool(instance.peers and instance.peers[0].bodies))
        await cancelled(task)
        assert quiet(upstream)
        await gone(instance.peers)


async def test_leaving_while_reading_closes_the_socket_though_the_block_is_still_open() -> None:
    async with speaking(silent(STARTED)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
            task = asyncio.ensure_future(response.read())
            await asyncio.sleep(0)
            await cancelled(task)
            assert quiet(upstream)
            await gone(instance.peers)
        assert response._timer is None


async def test_leaving_the_block_early_closes_the_socket() -> None:
    async with speaking(silent(STARTED)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
        assert (upstream.idle, upstream.busy) == (0, 0)
        await gone(instance.peers)
        with pytest.raises(ConnectionLost):
            await response.read()


async def test_a_reader_still_waiting_when_the_block_is_left_is_told() -> None:
    async with speaking(silent(STARTED)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
            task = asyncio.ensure_future(response.read())
            await asyncio.sleep(0)
        with pytest.raises(ConnectionLost):
            await task


async def test_leaving_during_the_second_try_of_a_stale_connection_closes_both() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.say(HELLO)
            await peer.request()
        else:
            await peer.until_gone()

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        await ask(upstream)
        task = asyncio.ensure_future(ask(upstream))
        await until(lambda: len(instance.peers) == 2 and bool(instance.peers[1].bodies))
        await cancelled(task)
        assert (upstream.idle, upstream.busy) == (0, 0)
        await gone(instance.peers[1:])


@pytest.mark.drawn
async def test_two_thousand_callers_leaving_at_random_leave_no_socket_behind() -> None:
    chance = random.Random(4)  # noqa: S311 - a seed, so that a failure can be repeated

    async def stream(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(CHUNKED)
            for _ in range(4):
                await asyncio.sleep(0)
                await peer.say(b"5\r\nhello\r\n")
            await peer.say(b"0\r\n\r\n")

    async def leave_after(task: asyncio.Task[tuple[int, bytes]], turns: int) -> bool:
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            return await task == (200, b"hello" * 4)
        return False

    before = sockets()
    async with speaking(stream) as instance, reaching(instance.url) as upstream:
        served = 0
        for _ in range(100):
            tasks = [asyncio.ensure_future(ask(upstream)) for _ in range(20)]
            served += sum(await asyncio.gather(*(leave_after(task, chance.randrange(1, 60)) for task in tasks)))
            assert quiet(upstream)
        assert 100 < served < 1900
        assert await ask(upstream) == (200, b"hello" * 4)
        await until(lambda: instance.open == upstream.idle)
        upstream.close()
        await until(lambda: instance.open == 0)
    await until(lambda: sockets() == before)


@pytest.mark.parametrize("script", [answering(HELLO), silent(STARTED), once(b"junk"), once(STARTED)])
async def test_exchanges_however_they_ended_leave_nothing_for_the_collector(script: Script) -> None:
    async with speaking(script) as instance, reaching(instance.url) as upstream:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                with suppress(UpstreamError):
                    with await upstream.open(POST, connect=5, first=5) as response:
                        await response.read()
                    del response
            await until(lambda: not any(isinstance(thing, Answer | Response) for thing in gc.get_objects()))
        finally:
            gc.enable()
