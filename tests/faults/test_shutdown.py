"""Rows L1 and L2 of the fault matrix: the gateway is told to leave, and nobody loses anything by it.

Not ready at once; the door stays open while balancers look away; what was begun, or waits, is finished; what outlasts
the limit is told so in-band; exit status 0.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator import Behaviour, Simulator
from tests.faults.counting import Counted, called, failed, one, series, turned_away
from tests.faults.leaving import slow
from tests.house import MODEL, House, Wire, ask, request
from tests.test_cli import ended, serving

CHAT = "/v1/chat/completions"
SHUT = {"drain_delay": 0}
SECONDS = 30.0  # a limit that no test here waits for
GRACE = 10.0  # seconds; guards against a hang


def leaving(house: House) -> None:
    house.server.handle_exit(signal.SIGTERM, None)


def words(count: int) -> str:
    return "say: " + " ".join(f"w{number}" for number in range(count))


def said(body: bytes) -> str:
    """The text of a stream of chat completions, taken from its bytes."""
    return b"".join(re.findall(rb'"content":"([^"]*)"', body)).decode()


# L1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
def test_l1_an_idle_gateway_is_gone_soon_after_its_delay_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "routes.yaml").write_text(
        "instances: [{name: a, url: 'http://127.0.0.1:1'}]\nserver: {drain_delay: 100ms}\n"
    )
    with serving("serve", cwd=tmp_path) as (process, _, _):
        status, logged = ended(process, number)
    assert status == 0
    assert "drain.begin" in logged
    assert "Traceback" not in logged


async def test_l1_fifty_streams_of_a_real_process_finish_byte_for_byte_while_it_is_not_ready(tmp_path: Path) -> None:
    async with Simulator(Behaviour(parallel=64, per_second=20)) as simulator, AsyncExitStack() as stack:
        config = {
            "instances": [{"name": "alpha", "url": simulator.url, "max_concurrent": 60}],
            "server": {"drain_delay": 1.5},
        }
        (tmp_path / "routes.yaml").write_text(json.dumps(config))
        process, url, _ = await asyncio.to_thread(stack.enter_context, serving("serve", cwd=tmp_path))
        body = request(CHAT, json.dumps(ask(words(40), stream=True)).encode())
        wires = [await stack.enter_async_context(connected(url)) for _ in range(50)]
        for wire in wires:
            await wire.send(body)
        for wire in wires:
            await wire.until(b"data: ")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GRACE):
            while (await fetched(url, "/readyz")).startswith(b"HTTP/1.1 200 "):
                await asyncio.sleep(0)
        late = await fetched(url, CHAT, json.dumps(ask("say: late")).encode())
        assert late.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close\r\n" in late
        assert b'"content":"late"' in late
        expected = words(40).removeprefix("say: ")
        for wire in wires:
            whole = await wire.rest()
            assert (said(whole), whole.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")) == (expected, True)
        _, logged = await asyncio.to_thread(process.communicate, timeout=GRACE)
        assert process.returncode == 0
        assert "Traceback" not in logged
        with pytest.raises(ConnectionRefusedError):
            await fetched(url, "/readyz")


def connected(url: str) -> Any:
    """A raw connection to a gateway in another process."""
    host, port = url.removeprefix("http://").split(":")
    return Connected(host, int(port))


class Connected:
    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    async def __aenter__(self) -> Wire:
        self._wire = Wire(*await asyncio.open_connection(*self._address))
        return self._wire

    async def __aexit__(self, *_: object) -> None:
        self._wire.leave()


async def fetched(url: str, path: str, body: bytes = b"") -> bytes:
    async with connected(url) as wire:
        await wire.send(request(path, body, "Connection: close", method="POST" if body else "GET"))
        data: bytes = await wire.rest()
        return data


async def test_l1_it_is_not_ready_at_once_and_serves_until_the_delay_is_over_but_keeps_no_connection() -> None:
    async with one(server={"drain_delay": SECONDS}) as house, house.wire() as kept:
        await kept.send(request("/readyz", b"", method="GET"))
        await kept.until(b"ready")
        leaving(house)
        assert (await house.get("/readyz")).status == 503
        assert (await house.get("/livez")).status == 200
        assert await house.metric("gateway_draining") == 0  # not scraped yet
        assert "gateway_draining 1.0" in (await house.get("/metrics")).body.decode()
        for stream in (False, True):
            reply = await house.chat("say: still here", stream=stream)
            assert (reply.status, reply.text.strip(), reply.headers["connection"]) == (200, "still here", "close")
        await kept.send(request("/livez", b"", method="GET"))
        assert b"connection: close" in (await kept.rest()).lower()
        leaving(house)


async def test_l1_after_the_delay_nobody_new_comes_in_and_what_runs_or_waits_is_finished() -> None:
    async with one(Behaviour(per_second=40), server=SHUT) as house:
        async with house.asking(ask(words(20), stream=True)) as running, house.asking(ask("say: whole")) as waiting:
            await running.until(b"data: ")
            await house.until(lambda: house.engine.pool.depth == 1)
            leaving(house)
            await house.until(lambda: not house.server.servers[0].is_serving())
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*house.address)
            assert said(await running.rest()) == words(20).removeprefix("say: ")
            assert b'"content":"whole"' in await waiting.rest()
        await house._serving


async def test_l1_a_client_that_reads_slowly_gets_the_rest_of_an_answer_that_is_written_already() -> None:
    async with one(server=SHUT) as house, slow(house, ask("x", max_tokens=30_000)) as wire:
        await house.until(lambda: any(line["event"] == "call.done" for line in house.lines))
        await house.until(lambda: not house.server.server_state.tasks)
        leaving(house)
        connections = house.server.server_state.connections
        await house.until(lambda: all(one.transport.is_closing() for one in connections))
        for _ in range(50):
            await asyncio.sleep(0)  # there is nothing else that it could wait for
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        assert len(body) == int(length[1]) > 100_000
        await house._serving


async def test_l1_idle_connections_are_closed_one_after_another() -> None:
    async with one(server=SHUT) as house, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(house.wire()) for _ in range(30)]
        for wire in wires:
            await wire.send(request("/livez", b"", method="GET"))
            await wire.until(b"alive")
        leaving(house)
        counts = {len(house.server.server_state.connections)}
        while len(house.server.server_state.connections):
            await asyncio.sleep(0)
            counts.add(len(house.server.server_state.connections))
        assert len(counts) > 10
        for wire in wires:
            assert (await wire.rest()).endswith(b"alive")
        await house._serving


# L2

STREAMS = {
    CHAT: (b'"code":"server_shutting_down"', b"[DONE]"),
    "/v1/completions": (b'"code":"server_shutting_down"', b"[DONE]"),
    "/v1/messages": (b"event: error", b"message_stop"),
    "/v1/responses": (b'"code":"server_shutting_down"', b"response.completed"),
    "/api/chat": (b'{"error":"the gateway is shutting down"}\n', b'"done":true'),
    "/api/generate": (b'{"error":"the gateway is shutting down"}\n', b'"done":true'),
}


def endless(path: str) -> dict[str, Any]:
    """A body for an answer that takes minutes."""
    if path == "/v1/responses":
        return {"model": MODEL, "input": "x", "stream": True, "max_output_tokens": 10_000}
    if path in ("/v1/completions", "/api/generate"):
        return {"model": MODEL, "prompt": "x", "stream": True, "max_tokens": 10_000, "options": {"num_predict": 10_000}}
    return ask("x", stream=True, max_tokens=10_000, options={"num_predict": 10_000})


@pytest.mark.parametrize("path", STREAMS)
async def test_l2_a_stream_that_outlasts_the_limit_is_told_in_its_own_words_and_ends_cleanly(path: str) -> None:
    told, end_marker = STREAMS[path]
    async with one(Behaviour(per_second=40), server={**SHUT, "drain_timeout": 0.1}) as house:
        counted = Counted(house)
        async with house.asking(endless(path), path) as wire:
            await wire.until(b"\r\n\r\n")
            leaving(house)
            body = await wire.rest()
        assert body.endswith(b"0\r\n\r\n")
        assert told in body
        assert end_marker not in body
        await house._serving
        cut = series("stream_interruptions", route="by-model", reason="draining")
        assert (counted.moved[failed("draining")], counted.moved[cut]) == (1, 1)


@pytest.mark.parametrize("where", ["at work", "in line", "still sending"])
async def test_l2_a_whole_answer_that_outlasts_the_limit_is_a_503_with_the_time_to_come_back(where: str) -> None:
    async with one(Behaviour(per_second=40), server={**SHUT, "drain_timeout": 0.1}) as house, AsyncExitStack() as stack:
        counted, long = Counted(house), json.dumps(ask("x", max_tokens=10_000)).encode()
        if where == "in line":
            await stack.enter_async_context(house.asking(endless(CHAT)))
            await house.until(lambda: house.simulator("alpha").busy == 1)
        async with house.wire() as wire:
            await wire.send(request(CHAT, long)[: -1 if where == "still sending" else None])
            if where == "at work":
                await house.until(lambda: house.simulator("alpha").busy == 1)
            else:
                await house.until(lambda: len(house.app.crowd) == 1 + (where == "in line"))
            leaving(house)
            reply = await wire.rest()
        assert reply.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"server_shutting_down"' in reply
        assert b"retry-after: 1\r\n" in reply
        await house._serving
        if where == "at work":
            assert counted.moved == {called(503): 1, failed("draining"): 1}
        elif where == "in line":
            assert counted.moved[turned_away("draining")] == 1


async def test_l2_a_second_signal_is_the_end_of_all_waiting() -> None:
    async with one(Behaviour(per_second=40), server={"drain_delay": SECONDS, "drain_timeout": SECONDS}) as house:
        async with house.asking(endless(CHAT)) as wire:
            await wire.until(b"data: ")
            leaving(house)
            assert (await house.get("/livez")).status == 200  # it has not left
            leaving(house)
            assert b"server_shutting_down" in await wire.rest()
        await house._serving


async def test_l2_what_comes_in_on_an_open_connection_after_the_limit_is_turned_away_at_once() -> None:
    async with one(Behaviour(per_second=40), server={**SHUT, "drain_timeout": 0.1}) as house:
        async with house.wire() as wire:
            both = (json.dumps(endless(CHAT)).encode(), json.dumps(ask("x", max_tokens=10_000)).encode())
            await wire.send(b"".join(request(CHAT, body) for body in both))
            await wire.until(b"data: ")
            leaving(house)
            first, _, second = (await wire.rest()).partition(b"\r\n0\r\n\r\n")
        assert b"server_shutting_down" in first
        assert second.startswith(b"HTTP/1.1 503 ")
        await house._serving


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
async def test_l2_a_second_signal_to_a_real_process_ends_its_streams_in_band_with_status_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with Simulator(Behaviour(per_second=20)) as simulator, AsyncExitStack() as stack:
        (tmp_path / "routes.yaml").write_text(json.dumps({"instances": [{"name": "alpha", "url": simulator.url}]}))
        process, url, _ = await asyncio.to_thread(stack.enter_context, serving("serve", cwd=tmp_path))
        wire = await stack.enter_async_context(connected(url))
        await wire.send(request(CHAT, json.dumps(endless(CHAT)).encode()))
        await wire.until(b"data: ")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GRACE):
            while (await fetched(url, "/readyz")).startswith(b"HTTP/1.1 200 "):
                await asyncio.sleep(0)
        process.send_signal(number)
        body = await wire.rest()
        assert b'"code":"server_shutting_down"' in body
        assert body.endswith(b"0\r\n\r\n")
        _, logged = await asyncio.to_thread(process.communicate, timeout=GRACE)
        assert process.returncode == 0
        assert "Traceback" not in logged
