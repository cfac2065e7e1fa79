"""The proxy does what it says, so that a test which passes behind it has met the fault it names."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from tests.faults.proxy import BlackHole, Cut, Flow, HalfClose, Proxy, Reset, Say

LIMIT = 10.0  # seconds; guards against a hang
LONG = bytes(range(256)) * 2048
NO_ANSWER = 0.2  # seconds


@dataclass
class Target:
    """Says back what it hears. Knows what it heard, and how each connection ended."""

    heard: bytearray = field(default_factory=bytearray)
    ended: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
            self.ended.append("fin")
        except ConnectionError:
            self.ended.append("rst")
        writer.close()


class Talk:
    """A client behind the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def says(self, data: bytes, expected: bytes | None = None) -> None:
        """Say it, and hear it back."""
        self.writer.write(data)
        wanted = data if expected is None else expected
        assert await self.reader.readexactly(len(wanted)) == wanted


@asynccontextmanager
async def line() -> AsyncIterator[tuple[Proxy, Target, Talk]]:
    before = asyncio.all_tasks()
    target = Target()
    async with asyncio.timeout(LIMIT):
        server = await asyncio.start_server(target.serve, "127.0.0.1", 0)
        async with Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy, talk(proxy) as talking:
            yield proxy, target, talking
        server.close()
        while asyncio.all_tasks() != before:
            await asyncio.sleep(0)
    assert proxy.open == 0


@asynccontextmanager
async def talk(proxy: Proxy) -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
    try:
        yield Talk(reader, writer)
    finally:
        writer.transport.abort()


async def until(target: Target, ended: str) -> None:
    async with asyncio.timeout(LIMIT):
        while target.ended != [ended]:
            await asyncio.sleep(0)


async def test_without_a_fault_everything_passes_as_it_is_in_both_directions() -> None:
    async with line() as (proxy, target, talking):
        talking.writer.write(LONG)
        assert await talking.reader.readexactly(len(LONG)) == LONG
        assert target.heard == LONG
        assert (proxy.up.passed, proxy.down.passed, proxy.accepted) == (len(LONG), len(LONG), 1)


async def test_an_end_on_either_side_is_passed_on() -> None:
    async with line() as (_, target, talking):
        await talking.says(b"bye")
        talking.writer.write_eof()
        assert await talking.reader.read() == b""
        assert target.ended == ["fin"]


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_pieces_arrive_one_by_one(size: int) -> None:
    async with line() as (proxy, _, talking):
        proxy.downstream = Flow(piece=size)
        talking.writer.write(LONG[:100])
        came: list[bytes] = []
        while sum(map(len, came)) < 100:
            came.append(await talking.reader.read(65536))
        assert b"".join(came) == LONG[:100]
        assert {len(piece) for piece in came[:-1]} == {size}


@pytest.mark.parametrize("slow", [Flow(latency=0.01, piece=10), Flow(rate=1000.0, piece=10)])
async def test_latency_and_bandwidth_hold_each_piece_back(slow: Flow) -> None:
    """Ten pieces of ten bytes: ten times 10 ms, either way."""
    async with line() as (proxy, _, talking):
        proxy.downstream = slow
        now = asyncio.get_running_loop().time
        began = now()
        await talking.says(LONG[:100])
        assert now() - began >= 0.08


@pytest.mark.parametrize("after", [0, 1, 99, 100])
async def test_a_cut_ends_both_sides_after_so_many_bytes(after: int) -> None:
    async with line() as (proxy, target, talking):
        proxy.downstream = Cut(after=after)
        talking.writer.write(LONG[:100])
        assert await talking.reader.read() == LONG[:after]
        await until(target, "fin")


@pytest.mark.parametrize("after", [0, 1, 99, 100])
async def test_a_reset_says_that_nobody_is_there_any_more(after: int) -> None:
    async with line() as (proxy, target, talking):
        proxy.downstream = Reset(after=after)
        talking.writer.write(LONG[:100])
        assert await talking.reader.readexactly(after) == LONG[:after]
        with pytest.raises(ConnectionResetError):
            await talking.reader.read()
        await until(target, "rst")


async def test_upstream_it_happens_to_what_the_client_says() -> None:
    async with line() as (proxy, target, talking):
        proxy.upstream = Cut(after=10)
        talking.writer.write(LONG[:100])
        while not target.ended:
            await asyncio.sleep(0)
        assert target.heard == LONG[:10]


async def test_after_a_half_close_the_other_direction_goes_on() -> None:
    async with line() as (proxy, target, talking):
        proxy.downstream = HalfClose(after=3)
        talking.writer.write(b"hello")
        assert await talking.reader.read() == b"hel"
        talking.writer.write(b", still here")
        while target.heard != b"hello, still here":
            await asyncio.sleep(0)
        assert target.ended == []


async def test_a_black_hole_takes_everything_and_gives_nothing_not_even_an_end() -> None:
    async with line() as (proxy, target, talking):
        proxy.downstream = BlackHole(after=3)
        await talking.says(b"hello", b"hel")
        talking.writer.write(LONG)
        talking.writer.write_eof()
        await until(target, "fin")
        assert target.heard == b"hello" + LONG
        assert proxy.down.passed == 3


@pytest.mark.parametrize("close", [False, True])
async def test_other_bytes_come_in_place_of_what_was_said(close: bool) -> None:
    async with line() as (proxy, _, talking):
        proxy.downstream = Say(after=3, data=b"p me", close=close)
        await talking.says(b"hello", b"help me")
        if close:
            assert await talking.reader.read() == b""


async def test_a_flow_counts_from_when_it_was_set_and_on_each_connection_by_itself() -> None:
    async with line() as (proxy, _, talking):
        await talking.says(LONG[:100])
        proxy.downstream = Cut(after=10, times=2)
        async with talk(proxy) as another:
            for one in (talking, another):
                one.writer.write(LONG[:100])
                assert await one.reader.read() == LONG[:10]
        async with talk(proxy) as third:
            await third.says(LONG)
        assert proxy.down.struck == 2


async def test_a_shut_door_refuses_and_an_open_one_is_the_same_door() -> None:
    async with line() as (proxy, target, talking):
        await talking.says(b"hello")
        for _ in itertools.repeat(None, 2):
            url = proxy.url
            await proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                async with talk(proxy):
                    pass
            await proxy.listen()
            assert proxy.url == url
            async with talk(proxy) as again:
                await again.says(b"hello")
        assert target.ended[0] == "fin"
        with suppress(ConnectionError):
            assert await talking.reader.read() == b""


async def test_a_door_that_ignores_gives_no_answer_at_all_until_it_opens_again() -> None:
    async with line() as (proxy, _, _talking):
        await proxy.ignore()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(NO_ANSWER), talk(proxy):
                pass
        await proxy.listen()
        async with talk(proxy) as again:
            await again.says(b"hello")


async def test_a_target_that_is_gone_ends_the_connection() -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    async with Proxy("127.0.0.1", port) as proxy, talk(proxy) as talking:
        assert await talking.reader.read() == b""
