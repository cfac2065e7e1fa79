"""All instances are busy: the line, its bounds, and what a waiting client hears."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.house import MODEL, House, ask

HANG = {"path": "/v1", "after": 1}


def one(limit: int = 1, **config: object) -> House:
    return House({"alpha": Behaviour(parallel=8)}, config, {"alpha": {"max_concurrent": limit}})


async def test_an_instance_is_never_given_more_calls_than_it_can_take() -> None:
    behaviour = Behaviour(parallel=8, first_token=0.002, per_second=2000)
    limits = {"alpha": {"max_concurrent": 2}, "beta": {"max_concurrent": 1}}
    async with House({"alpha": behaviour, "beta": behaviour}, instances=limits, warm=True) as house:
        replies = await asyncio.gather(*(house.chat(f"{n}", stream=n % 2 == 0) for n in range(24)))
        assert {reply.status for reply in replies} == {200}
        assert house.simulator("alpha").peak <= 2
        assert house.simulator("beta").peak <= 1
        assert {reply.instance for reply in replies} == {"alpha", "beta"}


async def test_calls_are_served_in_the_order_they_came() -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("hang_mid_stream", **HANG)
        async with house.asking(ask("x", stream=True)) as holder:
            await holder.until(b"data: ")
            waiting = []
            for number in range(5):
                waiting.append(asyncio.create_task(house.chat(f"say: {number}"), name=f"caller {number}"))
                await house.until(lambda: house.engine.pool.depth == len(waiting))
            holder.leave()
            await asyncio.gather(*waiting)
        served = [json.loads(seen.body)["messages"][0]["content"] for seen in alpha.requests if seen.method == "POST"]
        assert served == ["x"] + [f"say: {number}" for number in range(5)]


async def test_a_waiting_call_takes_whichever_instance_comes_free_first() -> None:
    limits = {"alpha": {"max_concurrent": 1}, "beta": {"max_concurrent": 1}}
    async with House({"alpha": Behaviour(), "beta": Behaviour()}, instances=limits, warm=True) as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("hang_mid_stream", **HANG)
        async with house.asking(ask("x", stream=True)) as first, house.asking(ask("x", stream=True)) as second:
            await first.until(b"data: ")
            await second.until(b"data: ")
            waiting = asyncio.create_task(house.chat(), name="waiting")
            await house.until(lambda: house.engine.pool.depth == 1)
            head = second.seen.decode().lower()
            freed = "alpha" if "x-gateway-instance: alpha" in head else "beta"
            second.leave()
            assert (await waiting).instance == freed
            first.leave()


async def test_a_stream_that_waits_beyond_the_hold_is_committed_and_kept_alive() -> None:
    async with one(stream={"hold": 0.05, "keep_alive": 0.05}) as house:
        house.simulator("alpha").faults.arm("hang_mid_stream", **HANG)
        async with house.asking(ask("x", stream=True)) as holder, house.asking(ask("say: now", stream=True)) as waiting:
            await holder.until(b"data: ")
            await waiting.until(b"200 OK")
            await waiting.until(b": keep-alive; in line: position 1, about ")
            assert b"data: " not in waiting.seen
            holder.leave()
            await waiting.until(b"data: [DONE]")
            assert b"now" in waiting.seen


async def test_a_failure_after_the_hold_is_said_in_band() -> None:
    async with one(stream={"hold": 0.02, "keep_alive": 0.02}, timeouts={"line": 0.2}) as house:
        house.simulator("alpha").faults.arm("hang_mid_stream", **HANG)
        async with house.asking(ask("x", stream=True)) as holder:
            await holder.until(b"data: ")
            reply = await house.chat(stream=True)
            assert reply.status == 200
            assert json.loads(reply.events[-1])["error"]["code"] == "line_timeout"
            assert "[DONE]" not in reply.body.decode()
            holder.leave()


async def test_a_silent_stream_is_kept_alive_between_two_frames() -> None:
    async with House({"alpha": Behaviour(per_second=8)}, {"stream": {"hold": 0.01, "keep_alive": 0.03}}) as house:
        reply = await house.chat("say: one two three four", stream=True)
        assert reply.body.count(b": keep-alive\n") > 3
        assert reply.text.split() == ["one", "two", "three", "four"]
        assert reply.events[-1] == "[DONE]"


async def unending(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An instance whose answer is whole, and whose HTTP message never ends."""
    if (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST"):
        chunk = json.dumps({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}).encode()
        said = b"data: %b\n\ndata: [DONE]\n\n" % chunk
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(said), said))
        with contextlib.suppress(ConnectionError):
            await reader.read()
    else:
        writer.write(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"version":"0.32.15"}')
    writer.close()


@pytest.mark.parametrize(
    "limits", [{"stream": {"hold": 0.01, "keep_alive": 0.01}}, {"timeouts": {"total": 0.05}}], ids=str
)
async def test_after_the_end_marker_there_is_no_keep_alive_and_no_limit(limits: dict[str, Any]) -> None:
    async with await asyncio.start_server(unending, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        only = {"instances": [{"name": "unending", "url": url, "model": MODEL}]}
        async with House({}, {**only, **limits}) as house:
            reply = await house.chat(stream=True)
            assert reply.events[-1] == "[DONE]"
            await house.quiet()
            assert (house.last_line()["status"], "reason" in house.last_line()) == (200, False)
    gc.collect()
    assert not house.complaints


async def test_the_line_is_visible() -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("hang_mid_stream", **HANG)
        async with house.asking(ask("x", stream=True)) as holder, house.asking(ask("y", model=MODEL)) as waiting:
            await holder.until(b"data: ")
            await house.until(lambda: house.engine.pool.depth == 1)
            status = (await house.get("/gateway/status")).json
            assert status["line"]["depth"] == 1
            assert status["instances"][0]["in_flight"] == 1
            exposition = (await house.get("/metrics")).body.decode()
            assert "gateway_line_depth 1.0" in exposition
            assert 'gateway_upstream_in_flight{instance="alpha"} 1.0' in exposition
            assert 'gateway_upstream_limit{instance="alpha"} 1.0' in exposition
            holder.leave()
            waiting.leave()
