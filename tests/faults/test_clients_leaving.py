"""Rows C1 to C8, C11 and C12 of the fault matrix: the client leaves, or does not read, or says two things at once.

Whatever it was waiting for: the instance is told at once, nobody is blamed, and all that was held comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.faults.counting import Counted, Series, attempted, called, failed, one, series
from tests.faults.leaving import leave, slow
from tests.house import MODEL, House, Wire, ask, request

WAYS = pytest.mark.parametrize("way", ["fin", "rst"])
KINDS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def asked(house: House) -> int:
    """Calls that alpha heard of."""
    return len([seen for seen in house.simulator("alpha").requests if seen.method == "POST"])


def gone(*, stream: bool, model: str = MODEL) -> dict[Series, int]:
    """What is counted of one client that left: itself, and nothing against anybody."""
    return {called(499, model=model, stream=stream): 1, failed("client_cancelled"): 1}


async def until_logged(house: House) -> dict[str, Any]:
    """The access-log line of the one call that has ended."""
    await house.until(lambda: any(line["event"] == "call.done" for line in house.lines))
    line = house.last_line()
    assert (line["status"], line["reason"]) == (499, "client_cancelled")
    return line


@asynccontextmanager
async def held(house: House) -> AsyncIterator[Wire]:
    """While a stream that does not end has the instance's only place."""
    house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
    async with house.asking(ask("holds", stream=True)) as holder:
        await holder.until(b"data: ")
        yield holder


@contextmanager
def deaf() -> Iterator[dict[str, object]]:
    """An instance whose backlog is full: the kernel lets further connections wait."""
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield {"name": "deaf", "url": f"http://127.0.0.1:{full.getsockname()[1]}", "model": MODEL}


# Hang-ups


@WAYS
@KINDS
async def test_c1_while_it_waits_in_line_no_instance_ever_hears_of_it(way: str, stream: bool) -> None:
    async with one() as house, held(house):
        counted, alpha = Counted(house), house.engine.pool.instances["alpha"]
        async with house.asking(ask("x", stream=stream)) as wire:
            await house.until(lambda: house.engine.pool.depth == 1)
            leave(wire, way)
            await house.until(lambda: house.engine.pool.depth == 0)
        await until_logged(house)
        assert (asked(house), alpha.held, alpha.draining) == (1, 1, 0)
        assert counted.moved == gone(stream=stream, model="none")
        assert await house.metric("gateway_line_wait_seconds_count", route="by-model", result="left") == 1


async def test_c2_while_the_connection_is_made_nothing_counts_as_begun() -> None:
    with deaf() as instance:
        async with House({}, {"instances": [instance], "timeouts": {"connect": 30}}) as house:
            only = house.engine.pool.instances["deaf"]
            for way, stream in (("fin", True), ("rst", True), ("fin", False), ("rst", False)):  # it starts slowly
                counted = Counted(house)
                house.lines.clear()
                async with house.asking(ask("x", stream=stream)) as wire:
                    await house.until(lambda: only.held == 1)
                    leave(wire, way)
                    await house.until(lambda: only.held == 0)
                assert only.draining == 0
                await until_logged(house)
                assert counted.moved == gone(stream=stream)


@WAYS
@KINDS
async def test_c3_while_the_head_is_awaited_its_place_drains_and_then_is_free(way: str, stream: bool) -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("hang_before_headers", path="/v1")
        await leaves_before_the_first_token(house, way, stream=stream)


@WAYS
async def test_c4_while_the_first_token_is_awaited_its_place_drains_and_then_is_free(way: str) -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("hang_before_first_token", path="/v1")
        await leaves_before_the_first_token(house, way, stream=True)


@WAYS
async def test_c6_while_a_whole_answer_is_made_its_place_drains_and_then_is_free(way: str) -> None:
    async with one(Behaviour(per_second=50)) as house:
        await leaves_before_the_first_token(house, way, stream=False)


async def leaves_before_the_first_token(house: House, way: str, *, stream: bool) -> None:
    alpha, counted = house.engine.pool.instances["alpha"], Counted(house)
    async with house.asking(ask("x", stream=stream, max_tokens=10_000)) as wire:
        await house.simulator("alpha").until(lambda: house.simulator("alpha").busy == 1)
        leave(wire, way)
        await house.simulator("alpha").until(lambda: house.seen("alpha").left_at is not None)
    await house.until(lambda: alpha.held == 0)
    assert alpha.draining == 1
    await house.until(lambda: alpha.draining == 0)
    await until_logged(house)
    assert counted.moved == gone(stream=stream)
    assert (await house.chat()).status == 200


@WAYS
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/messages", "/v1/responses"])
async def test_c5_in_the_middle_of_a_stream_its_place_is_free_at_once(way: str, path: str) -> None:
    async with one(Behaviour(per_second=50), line={"drain_grace": 600}) as house:
        alpha, counted = house.engine.pool.instances["alpha"], Counted(house)
        async with house.asking(endless(path), path) as wire:
            await house.until(lambda: house.simulator("alpha").busy == 1)
            await wire.until(b"\r\n\r\n")
            leave(wire, way)
            await house.simulator("alpha").until(lambda: house.seen("alpha").left_at is not None)
        await house.until(lambda: alpha.held == 0)
        assert alpha.draining == 0
        line = await until_logged(house)
        assert sorted(counted.moved.values()) == [1, 1]
        assert (line["path"], counted.moved[failed("client_cancelled")]) == (path, 1)
        assert (await house.chat()).status == 200


def endless(path: str) -> dict[str, Any]:
    body = ask("x", stream=True, max_tokens=10_000)
    if path == "/v1/responses":
        return {"model": MODEL, "input": "x", "stream": True, "max_output_tokens": 10_000}
    if path.startswith("/api"):
        body["options"] = {"num_predict": 10_000}
    return body


# A client that does not read, or closes one side, or asks twice


def kept(house: House) -> int:
    """Bytes that the gateway holds of answers: not yet relayed, and not yet taken by their client."""
    upstreams = [one.upstream for one in house.engine._attached.values()]
    answers = [one.answer for upstream in upstreams for one in upstream._busy if one.answer]
    clients = house.server.server_state.connections
    return sum(one.untaken for one in answers) + sum(one.transport.get_write_buffer_size() for one in clients)


async def test_c7_a_client_that_does_not_read_makes_the_instance_wait_and_costs_less_than_a_mebibyte() -> None:
    clients, tokens = 4, 6_000
    async with one(limit=clients) as house, contextlib.AsyncExitStack() as stack:
        body = ask("x", stream=True, max_tokens=tokens)
        wires = [await stack.enter_async_context(slow(house, body)) for _ in range(clients)]
        upstream = house.engine._attached["alpha"].upstream
        await house.until(lambda: sum(one.paused for one in upstream._busy) == clients)
        assert kept(house) < clients * 2**20
        for wire in wires:
            said = await wire.until(b"data: [DONE]")
            assert said.count(b'"content":"') == tokens


async def test_c7_the_place_is_free_when_the_instance_has_ended_though_the_client_has_yet_to_read() -> None:
    async with one() as house:
        alpha, tokens = house.engine.pool.instances["alpha"], 800
        async with slow(house, ask("x", stream=True, max_tokens=tokens)) as wire:
            await house.simulator("alpha").until(lambda: asked(house) == 1 and house.seen("alpha").finished)
            await house.until(lambda: alpha.held == 0)
            assert len(house.app.crowd) == 1
            assert (await house.chat("say: mine")).text == "mine"
            said = await wire.until(b"data: [DONE]")
        assert said.count(b'"content":"') == tokens
        assert {line["status"] for line in house.lines if line["event"] == "call.done"} == {200}


@pytest.mark.parametrize(
    ("kind", "reason", "code"),
    [
        ("error_in_band", "stream_broken", "stream_interrupted"),
        ("swallowed_error", "stream_broken", "stream_interrupted"),
        ("cut", "upstream_reset", "stream_interrupted"),
        ("reset", "upstream_reset", "stream_interrupted"),
        ("hang_mid_stream", "upstream_timeout_idle", "idle_timeout"),
    ],
)
async def test_c7_what_goes_wrong_frees_the_place_at_once_and_is_told_the_client_when_it_reads(
    kind: str, reason: str, code: str
) -> None:
    async with one(timeouts={"idle": 0.3}) as house:
        alpha, counted = house.engine.pool.instances["alpha"], Counted(house)
        house.simulator("alpha").faults.arm(kind, path="/v1", after=700)
        async with slow(house, ask("x", stream=True, max_tokens=800)) as wire:
            await house.until(lambda: asked(house) == 1 and not house.simulator("alpha").busy)
            await house.until(lambda: alpha.held == 0)
            assert len(house.app.crowd) == 1
            assert counted.moved == {
                attempted("error"): 1,
                series("upstream_errors", instance="alpha", reason=reason): 1,
            }
            assert (await house.chat("say: mine")).text == "mine"
            said = await wire.until(b"0\r\n\r\n")
        assert (said.count(b'"content":"'), said.count(b"[DONE]")) == (700, 0)
        assert b'"code":"%b"' % code.encode() in said
        await house.quiet()
        assert counted.moved[series("upstream_errors", instance="alpha", reason=reason)] == 1


async def test_c7_who_leaves_before_it_read_of_a_failure_takes_nothing_back_of_it() -> None:
    async with one() as house:
        alpha, counted = house.engine.pool.instances["alpha"], Counted(house)
        house.simulator("alpha").faults.arm("error_in_band", path="/v1", after=700)
        async with slow(house, ask("x", stream=True, max_tokens=800)):
            await house.until(lambda: asked(house) == 1 and alpha.held == 0)
        await until_logged(house)
        assert counted.moved[series("upstream_errors", instance="alpha", reason="stream_broken")] == 1
        assert alpha.breaker._failures == 1


@pytest.mark.parametrize("window", ["in line", "before the first token", "in the stream"])
async def test_c8_who_closes_the_sending_side_only_is_taken_for_gone(window: str) -> None:
    async with one(Behaviour(per_second=50), line={"drain_grace": 0.1}) as house, contextlib.AsyncExitStack() as stack:
        alpha = house.simulator("alpha")
        if window == "in line":
            await stack.enter_async_context(held(house))
        elif window == "before the first token":
            alpha.faults.arm("hang_before_first_token", path="/v1")
        counted = Counted(house)
        async with house.asking(ask("x", stream=True, max_tokens=10_000)) as wire:
            if window == "in line":
                await house.until(lambda: house.engine.pool.depth == 1)
            else:
                await house.until(lambda: alpha.busy == 1)
            if window == "in the stream":
                await wire.until(b"data: ")
            leave(wire, "half")
            await until_logged(house)
            assert not (await wire.rest()).endswith(b"[DONE]\n\n")
        assert counted.moved == gone(stream=True, model="none" if window == "in line" else MODEL)


async def test_c11_the_first_of_equal_calls_leaves_and_the_one_call_it_began_serves_the_five_others() -> None:
    async with one() as house:
        alpha, counted = house.simulator("alpha"), Counted(house)
        alpha.behaviour = Behaviour(first_token=0.2)
        body = ask("x", temperature=0)
        async with house.asking(body) as first:
            await alpha.until(lambda: alpha.busy == 1)
            path = "/v1/chat/completions"
            others = [asyncio.create_task(house.post(path, body), name=f"follower {n}") for n in range(5)]
            await house.until(lambda: len(house.app.crowd) == 6)
            first.leave()
            await house.until(lambda: len(house.app.crowd) == 5)
            replies = await asyncio.gather(*others)
        assert asked(house) == 1
        assert {reply.status for reply in replies} == {200}
        assert len({reply.body for reply in replies}) == 1
        assert await house.metric("gateway_cache_requests_total", route="by-model", result="collapsed") == 5
        assert counted.moved[attempted(200)] == 1


async def test_c12_a_second_request_on_the_connection_of_a_stream_is_answered_after_it() -> None:
    async with one(limit=2) as house, house.wire() as wire:
        words = " ".join(f"w{number}" for number in range(200))
        path, bodies = "/v1/chat/completions", (ask(f"say: {words}", stream=True), ask("say: second", stream=True))
        first, second = (json.dumps(body).encode() for body in bodies)
        await wire.send(request(path, first) + request(path, second, "Connection: close"))
        answers = (await wire.rest()).split(b"\r\n0\r\n\r\n")
        assert [len(answer) > 0 for answer in answers] == [True, True, False]
        assert all(answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"[DONE]\n\n") for answer in answers[:2])
        assert [answer.count(b'"content":" w') for answer in answers] == [199, 0, 0]
        assert [answer.count(b'"content":"second"') for answer in answers] == [0, 1, 0]
