"""Rows B3 to B5 and C7: whoever is slow, or too many, is let go; the others do not notice."""

from __future__ import annotations

import asyncio
import json
import socket
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, cast

import pytest

from gateway.frontdoor import Protocol
from gateway.simulator import Behaviour
from tests.house import House, ask, request
from tests.journeys.test_reload import reloadable

CHAT = "/v1/chat/completions"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"


def house(behaviour: Behaviour | None = None, **server: Any) -> House:
    return House({"alpha": behaviour or Behaviour()}, {"server": server})


async def test_b3_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with house(head_timeout=0.1) as one, one.wire() as wire:
        assert await wire.rest() == b""
        assert await one.metric("gateway_http_refusals_total", reason="request_timeout") == 1


@pytest.mark.parametrize("part", [b"GET", HEAD, HEAD + b"X-Slow: "], ids=["a request line", "headers", "half a header"])
async def test_b3_a_head_that_does_not_come_to_its_end_is_408(part: bytes) -> None:
    async with house(head_timeout=0.1) as one, one.wire() as wire:
        await wire.send(part)
        answer = await wire.rest()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["code"] == "request_timeout"
        assert (await one.chat()).status == 200


async def test_b3_a_head_that_drips_is_not_given_more_time() -> None:
    async with house(head_timeout=0.2) as one, one.wire() as wire:
        await wire.send(HEAD)
        drip = asyncio.create_task(for_ever(wire.send, b"X", every=0.01))
        assert (await wire.rest()).startswith(b"HTTP/1.1 408 ")
        drip.cancel()
        await asyncio.gather(drip, return_exceptions=True)


async def for_ever(send: Callable[[bytes], Awaitable[None]], data: bytes, every: float = 0.0) -> None:
    while True:
        await send(data)
        await asyncio.sleep(every)


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/messages"])
async def test_b3_a_body_that_does_not_come_to_its_end_is_408_in_the_words_of_its_path(path: str) -> None:
    async with house(body_timeout=0.1) as one, one.wire() as wire:
        await wire.send(f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = await wire.rest()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        assert b"server.body_timeout" in answer


async def test_b3_a_body_slower_than_its_rate_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.frontdoor.protocol.SLOW_AFTER", 0.05)
    async with house(body_rate="1GiB") as one, one.wire() as wire:
        await wire.send(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert b"server.body_rate" in await wire.rest()


async def test_a_body_that_waits_for_its_go_ahead_has_its_time_too() -> None:
    async with house(body_timeout=0.1) as one, one.wire() as wire:
        await wire.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")
        assert (await wire.rest()).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 408 ")


async def test_a_body_that_was_never_asked_for_is_not_waited_for_and_its_connection_ends() -> None:
    async with house() as one, one.wire() as wire:
        await wire.send(b"POST /nowhere HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert b"connection: close" in await wire.until(b"unknown_path")


async def test_what_is_sent_ahead_of_an_answer_is_held_back_beyond_a_bound() -> None:
    async with house() as one, one.wire() as wire:
        one.simulator("alpha").faults.arm("hang_before_first_token", path="/v1")
        first = json.dumps(ask("hello", stream=True)).encode()
        await wire.send(request(CHAT, first))
        await one.until(lambda: bool(one.server.server_state.tasks))
        wire.writer.write(request(CHAT, b" " * 10_000_000))
        (connection,) = cast(set[Protocol], one.server.server_state.connections)
        await one.until(lambda: connection._paused)
        assert len(one.server.server_state.tasks) == 1
        assert len(connection._ahead[0].body) < 1_000_000
        await one.simulator("alpha").stop()  # while a client is held back its departure goes unseen


async def test_c12_whoever_leaves_is_missed_though_another_request_was_sent_ahead() -> None:
    async with house() as one, one.wire() as wire:
        one.simulator("alpha").faults.arm("hang_before_first_token", path="/v1")
        hanging = request(CHAT, json.dumps(ask("hello")).encode())
        await wire.send(hanging + hanging)
        await one.until(lambda: one.engine.pool.instances["alpha"].held == 1)
        wire.leave()
        await one.quiet()
        assert one.last_line()["status"] == 499


async def test_an_idle_connection_is_closed_after_its_time_and_not_while_it_is_answered() -> None:
    async with house(Behaviour(first_token=0.4), keep_alive=0.1, head_timeout=0.1) as one, one.wire() as wire:
        await wire.send(request(CHAT, json.dumps(ask("hello")).encode()))
        await wire.until(b"chat.completion")
        await wire.rest()


async def test_b3_a_thousand_slow_connections_of_each_kind_do_not_disturb_the_others_and_are_let_go() -> None:
    """Those that say nothing, those that begin a head, those that begin a body."""
    kinds = (b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{")
    async with house(head_timeout=30, body_timeout=30) as one, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(one.wire()) for _ in range(999)]
        for number, wire in enumerate(wires):
            await wire.send(kinds[number % 3])
        await one.until(lambda: len(one.server.server_state.tasks) == 333)  # all the bodies that were begun
        assert await one.metric("gateway_client_connections") >= 999
        for stream in (True, False):
            assert (await one.chat("say: fine", stream=stream)).text == "fine"
        reloadable(one).keys = {"server": {"port": 0, "head_timeout": 0.1, "body_timeout": 0.1}}
        assert await one.engine.reload()
        for number, wire in enumerate(wires):
            answer = await wire.rest()
            assert answer[:13] == (b"HTTP/1.1 408 " if number % 3 else b"")


async def test_c7_a_client_that_reads_nothing_is_let_go_and_its_instance_is_free_again() -> None:
    async with House({"alpha": Behaviour(per_second=1e6)}, {"server": {"write_stall": 0.2}}) as one:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, one.address)
        body = json.dumps(ask("x", stream=True, max_tokens=200_000)).encode()
        await loop.sock_sendall(sock, request(CHAT, body))
        await one.until(lambda: one.engine.pool.instances["alpha"].held == 1)
        await one.until(lambda: one.engine.pool.instances["alpha"].in_use == 0)
        assert one.last_line()["status"] == 499
        assert await one.metric("gateway_http_refusals_total", reason="write_stall") == 1
        sock.close()


async def test_what_is_said_to_a_client_is_not_held_back_to_be_sent_with_more() -> None:
    async with house() as one, one.wire() as wire:
        await wire.send(request("/livez", b"", method="GET"))
        await wire.until(b"alive")
        (connection,) = cast(set[Protocol], one.server.server_state.connections)
        assert connection.transport is not None
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# How many


async def test_one_connection_too_many_is_503_and_the_next_after_one_left_is_served() -> None:
    async with house(max_connections=3) as one, one.wire() as first, one.wire() as second, one.wire():
        for wire in (first, second):
            await wire.send(request("/livez", b"", method="GET"))
            await wire.until(b"alive")
        async with one.wire() as fourth:
            answer = await fourth.rest()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer
            assert b"server.max_connections" in answer
        first.leave()
        async with asyncio.timeout(10):
            while (await one.metric("gateway_client_connections")) > 2:
                await asyncio.sleep(0)
        async with one.wire() as fifth:
            await fifth.send(request("/livez", b"", method="GET"))
            await fifth.until(b"alive")


async def test_a_connection_too_many_is_not_kept_though_its_client_goes_on_sending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.frontdoor.protocol.LINGER", 0.05)
    async with house(max_connections=1) as one, one.wire() as first:
        await first.send(request("/livez", b"", method="GET"))
        await first.until(b"alive")
        async with one.wire() as second, asyncio.timeout(10):
            await second.rest()
            with pytest.raises(ConnectionError):
                await for_ever(second.send, b"x", every=0.01)


async def test_one_address_may_not_take_all_connections_unless_it_is_a_trusted_proxys() -> None:
    async with house(max_connections_per_address=1) as one, one.wire() as first:
        await first.send(request("/livez", b"", method="GET"))
        await first.until(b"alive")
        async with one.wire() as second:
            assert b"server.max_connections_per_address" in await second.rest()
    async with house(max_connections_per_address=1, trusted_proxies=["127.0.0.0/8"]) as one, one.wire() as first:
        await first.send(request("/livez", b"", method="GET"))
        await first.until(b"alive")
        assert (await one.chat()).status == 200


# Volume


@pytest.mark.parametrize(
    ("before", "again"),
    [(b"GET / HTTP/1.1\r\n", b"X: y\r\n"), (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
     (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 1000)],
    ids=["headers", "trailers", "a chunk extension"],
)  # fmt: skip
async def test_b4_what_has_no_end_is_not_kept(before: bytes, again: bytes) -> None:
    more = again * (50_000 // len(again))
    async with house() as one, one.wire() as wire:
        await wire.send(before)
        with measured() as memory, pytest.raises(ConnectionError):
            async with asyncio.timeout(10):
                await for_ever(wire.send, more)
        assert memory.peak < 2**20
        assert (await one.chat()).status == 200


class Memory:
    peak = 0  # bytes


@contextmanager
def measured() -> Iterator[Memory]:
    """What Python's objects take at most, beyond what they took before."""
    memory = Memory()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield memory
    finally:
        memory.peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()


@pytest.mark.parametrize("head", [b"Content-Length: 2000\r\n", b"Expect: 100-continue\r\nContent-Length: 2000\r\n"])
async def test_b5_a_body_that_is_announced_too_large_is_413_before_it_is_read(head: bytes) -> None:
    """It is waited for as long as for a head, so that its client comes to read why, and then the connection ends."""
    async with house(max_body=1000, head_timeout=0.1) as one, one.wire() as wire:
        await wire.send(HEAD + head + b"\r\n")
        answer = await wire.rest()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"body_too_large" in answer


async def test_b5_a_body_that_turns_out_too_large_is_413_and_the_connection_goes_on_after_it() -> None:
    async with house(max_body=1000) as one, one.wire() as wire:
        await wire.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"7d0\r\n" + b" " * 2000 + b"\r\n0\r\n\r\n")
        assert (await wire.until(b"body_too_large")).startswith(b"HTTP/1.1 413 ")
        await wire.send(request("/livez", b"", method="GET"))
        await wire.until(b"alive")


async def test_b5_a_body_without_end_is_413_and_ends_the_connection() -> None:
    async with house(max_body=1000, head_timeout=0.2) as one, one.wire() as wire:
        await wire.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"7d0\r\n" + b" " * 2000 + b"\r\n")
        assert (await wire.until(b"body_too_large")).startswith(b"HTTP/1.1 413 ")
        with measured() as memory, pytest.raises(ConnectionError):
            async with asyncio.timeout(10):
                await for_ever(wire.send, b"c350\r\n" + b" " * 50_000 + b"\r\n")
        assert memory.peak < 2**20
