"""SIGTERM: not ready at once, streams in progress finish, what outlasts the limit is told in-band."""

from __future__ import annotations

import asyncio
import json
import signal

from gateway.simulator import Behaviour
from tests.house import House, ask, request


def house(**server: float) -> House:
    return House({"alpha": Behaviour(per_second=40, parallel=8)}, {"server": {"drain_delay": 0, **server}})


async def test_streams_in_progress_finish_and_new_connections_are_refused() -> None:
    async with house() as at:
        async with at.asking(ask("say: one two three four five six", stream=True)) as wire:
            await wire.until(b"data: ")
            at.server.handle_exit(signal.SIGTERM, None)
            body = await wire.rest()
        assert b"[DONE]" in body
        await at._serving
        try:
            await asyncio.open_connection(*at.address)
        except OSError:
            refused = True
        assert refused


async def test_while_balancers_look_away_it_is_not_ready_but_serves_and_keeps_no_connection() -> None:
    async with house(drain_delay=30) as at:
        async with at.wire() as idle:
            at.server.handle_exit(signal.SIGTERM, None)
            await at.until(lambda: at.engine.draining)
            assert (await at.get("/readyz")).status == 503
            assert (await at.get("/livez")).status == 200
            reply = await at.chat("say: still here", stream=True)
            assert reply.text.strip() == "still here"
            assert reply.headers["connection"] == "close"
            await idle.send(request("/livez", b"", method="GET"))
            assert b"connection: close" in await idle.rest()
        at.server.handle_exit(signal.SIGTERM, None)


async def test_what_outlasts_the_limit_is_told_in_band_and_ends_cleanly() -> None:
    async with house(drain_timeout=0.1) as at:
        async with at.asking(ask("x", stream=True, max_tokens=10_000)) as wire:
            await wire.until(b"data: ")
            at.server.handle_exit(signal.SIGTERM, None)
            body = await wire.rest()
        last = body.decode().split("data: ")[-1].split("\n\n")[0]
        assert json.loads(last)["error"]["code"] == "server_shutting_down"
        assert body.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in body


async def test_a_whole_answer_that_outlasts_the_limit_is_a_503() -> None:
    async with house(drain_timeout=0.1) as at:
        async with at.asking(ask("x", max_tokens=10_000)) as wire:
            await at.simulator("alpha").until(lambda: at.simulator("alpha").busy == 1)
            at.server.handle_exit(signal.SIGTERM, None)
            head = await wire.rest()
        assert head.startswith(b"HTTP/1.1 503")
        assert b"server_shutting_down" in head
        assert b"retry-after: 1\r\n" in head


async def test_a_second_signal_waits_no_longer() -> None:
    async with house(drain_timeout=300) as at, at.asking(ask("x", stream=True, max_tokens=10_000)) as wire:
        await wire.until(b"data: ")
        at.server.handle_exit(signal.SIGTERM, None)
        await at.until(lambda: at.engine.draining)
        at.server.handle_exit(signal.SIGTERM, None)
        assert b"server_shutting_down" in await wire.rest()


async def test_calls_that_wait_in_line_are_served_before_the_end() -> None:
    limited = House(
        {"alpha": Behaviour(per_second=60)}, {"server": {"drain_delay": 0}}, {"alpha": {"max_concurrent": 1}}
    )
    async with (
        limited as at,
        at.asking(ask("say: a b c d e f", stream=True)) as first,
        at.asking(ask("say: z", stream=True)) as second,
    ):
        await first.until(b"data: ")
        await at.until(lambda: at.engine.pool.depth == 1)
        at.server.handle_exit(signal.SIGTERM, None)
        assert b"[DONE]" in await first.rest()
        assert b"[DONE]" in await second.rest()
