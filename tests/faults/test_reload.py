"""Rows L5 to L7 of the fault matrix: a thousand new configurations, an instance that leaves, no file left to open."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator import Behaviour, Seen, Simulator
from tests.faults.counting import Counted
from tests.faults.test_shutdown import connected, fetched, said, words
from tests.house import MODEL, House, Reply, Wire, ask, request
from tests.journeys.test_reload import reloadable, with_limit
from tests.test_cli import serving

SEED = int(os.environ.get("FAULTS_SEED", "5"))
RELOADS = 1_000
MEBI = 2**20
CHAT = "/v1/chat/completions"
GRACE = 20.0  # seconds; guards against a hang


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# L5


def some_configuration(house: House, chance: random.Random) -> dict[str, Any]:
    """Other limits, fewer instances, a route more or less, other settings. Alpha is always there."""
    instances = [
        {"name": name, "url": simulator.url, "max_concurrent": chance.randrange(1, 9)}
        for name, simulator in house.simulators.items()
        if name == "alpha" or chance.random() < 0.7
    ]
    routes = [{"name": "r", "match": {"task": "planning"}, "to": [{"instance": "alpha"}]}]
    return {
        "instances": instances,
        "routes": routes if chance.random() < 0.5 else [],
        "line": {"drain_grace": 0.2, "max_calls": chance.randrange(100, 200), "max_calls_per_caller": 100},
        "breaker": {"failures": chance.randrange(3, 6)},
        "cache": {"enabled": chance.random() < 0.5},
    }


async def test_l5_a_thousand_reloads_under_load_affect_no_call_and_a_wrong_one_changes_nothing() -> None:
    chance = random.Random(SEED)  # noqa: S311
    behaviour = Behaviour(parallel=16, first_token=0.001, per_second=2000)
    async with House(dict.fromkeys(("alpha", "beta", "gamma"), behaviour), warm=True) as house:
        given, engine = reloadable(house), house.engine
        finished, replies = asyncio.Event(), list[Reply]()

        async def client(number: int) -> None:
            while not finished.is_set():
                stream = len(replies) % 2 == 0
                reply = await house.chat(f"say: {number} two three", stream=stream)
                assert (reply.status, reply.text) == (200, f"{number} two three"), reply.body
                assert not stream or reply.events[-1] == "[DONE]"
                replies.append(reply)

        clients = [asyncio.create_task(client(number), name=f"client {number}") for number in range(8)]
        refused = before = 0
        for number in range(RELOADS):
            given.keys, given.broken = some_configuration(house, chance), chance.random() < 0.1
            kept = engine.config
            assert await engine.reload() is not given.broken
            assert (engine.config is kept) is given.broken
            refused += given.broken
            seen = len(replies)
            await asyncio.sleep(0)
            if number % 4 == 0:  # some calls live through several reloads, some through none
                await house.until(lambda: len(replies) > seen or any(one.done() for one in clients))  # noqa: B023
            if number == RELOADS // 5:
                before = resident()
        finished.set()
        await asyncio.gather(*clients)
        assert RELOADS // 20 < refused < RELOADS // 5
        assert len([line for line in house.lines if line["event"] == "config.refused"]) == refused
        assert {reply.instance for reply in replies} == {"alpha", "beta", "gamma"}
        assert len(replies) > RELOADS // 4
        assert resident() - before < 32 * MEBI
        given.keys, given.broken = {}, False
        assert await engine.reload()
        await house.until(lambda: not engine._leaving)
        assert len(engine._attached) == len(engine.pool.instances) == 3


async def test_l5_a_configuration_that_does_not_load_is_refused_with_its_reason() -> None:
    async with House({"alpha": Behaviour()}) as house:
        given, before = reloadable(house), house.engine.config
        for broken, successful in ((True, "0.0"), (False, "1.0")):
            given.broken = broken
            assert await house.engine.reload() is not broken
            assert house.engine.config is before
            house.engine.metrics._scrapes._text_at = -10.0  # else the text of a moment ago is told
            exposition = (await house.get("/metrics")).body.decode()
            assert f"gateway_config_last_reload_successful {successful}" in exposition
        assert [line["line"] for line in house.lines if line["event"] == "config.problem"] == [3]
        assert (await house.chat()).status == 200


# L6


TO_ALPHA = {"name": "to-alpha", "match": {"header": {"X-To": "alpha"}}, "to": [{"instance": "alpha"}]}


@pytest.mark.parametrize("way", ["removed", "moved"])
async def test_l6_streams_of_an_instance_that_leaves_are_finished_and_then_its_sockets_are_closed(way: str) -> None:
    behaviour, limits = Behaviour(parallel=8, per_second=40), {"alpha": {"max_concurrent": 8}}
    async with House({"alpha": behaviour, "beta": behaviour}, {"routes": [TO_ALPHA]}, limits, warm=True) as house:
        given, counted, alpha = reloadable(house), Counted(house), house.simulator("alpha")
        body = request(CHAT, json.dumps(ask(words(20), stream=True)).encode(), "X-To: alpha")
        async with AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(house.wire()) for _ in range(4)]
            for wire in wires:
                await wire.send(body)
                await wire.until(b"data: ")
            _, beta = with_limit(house, "", 8)
            given.keys = {"instances": [beta], "routes": []}
            if way == "moved":
                given.keys = {"instances": [{**beta, "name": "alpha"}, beta]}
            assert await house.engine.reload()
            assert alpha.busy == 4
            await house.until(lambda: all(map(known(house), house.engine.pool.instances)))
            for _ in range(4):
                assert (await house.chat("say: elsewhere", X_To="alpha")).instance == ("beta", "alpha")[way == "moved"]
            assert len(calls(alpha)) == 4
            assert len(calls(house.simulator("beta"))) == 4
            for wire in wires:
                whole = await wire.until(b"0\r\n\r\n")
                assert (said(whole), whole.count(b"data: [DONE]")) == (words(20).removeprefix("say: "), 1)
        await alpha.until(lambda: alpha.connections == 0)
        assert not [key for key in counted.moved if key[0] in ("request_errors", "upstream_errors")]


def known(house: House) -> Callable[[str], bool]:
    return lambda name: house.engine.catalog.has(name, MODEL)


def calls(simulator: Simulator) -> list[Seen]:
    return [seen for seen in simulator.requests if seen.method == "POST"]


# L7


async def test_l7_without_a_file_left_it_says_so_blames_no_instance_and_recovers(tmp_path: Path) -> None:
    async with Simulator(Behaviour(parallel=64, first_token=0.3)) as simulator, AsyncExitStack() as stack:
        config = {
            "instances": [{"name": "alpha", "url": simulator.url, "max_concurrent": 32}],
            "health": {"interval": 0.05, "catalog": 0.05},  # probes go on without files, too
            "server": {"drain_delay": 0},
        }
        (tmp_path / "routes.yaml").write_text(json.dumps(config))
        process, url, _ = await asyncio.to_thread(stack.enter_context, serving("serve", cwd=tmp_path))
        used = files(process.pid)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 12, used + 12))
        async with AsyncExitStack() as crowd:
            wires = [await crowd.enter_async_context(connected(url)) for _ in range(40)]
            await until(lambda: files(process.pid) >= used + 12)
            outcomes = await asyncio.gather(*(asked(wire) for wire in wires))
            told = [one for one in outcomes if one.startswith(b"HTTP/1.1 503 ")]
            assert told
            assert all(b'"code":"gateway_exhausted"' in one and b"retry-after: 1\r\n" in one for one in told)
            assert all(one[:13] in (b"HTTP/1.1 503 ", b"HTTP/1.1 200 ", b"") for one in outcomes)
            accepted = next(wire for wire, outcome in zip(wires, outcomes, strict=True) if outcome)
            await accepted.send(request("/livez", b"", method="GET"))
            assert b"alive" in await accepted.until(b"alive")
        await until(lambda: files(process.pid) < used + 12)
        answer = await fetched(url, CHAT, json.dumps(ask("say: back")).encode())
        assert b'"content":"back"' in answer
        status = await fetched(url, "/gateway/status")
        assert b'"state":"healthy"' in status
        process.terminate()
        _, logged = await asyncio.to_thread(process.communicate, timeout=GRACE)
        assert process.returncode == 0
        for event in ("breaker.change", "instance.down", "call.defect", "Traceback"):
            assert event not in logged


def files(pid: int) -> int:
    """Files that a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def until(holds: Any) -> None:
    async with asyncio.timeout(GRACE):
        while not holds():
            await asyncio.sleep(0.01)


async def asked(wire: Wire) -> bytes:
    """A whole answer; b"" where the gateway could not even accept the connection."""
    try:
        await wire.send(request(CHAT, json.dumps(ask("say: hello")).encode()))
        head = await wire.until(b"\r\n\r\n")
        return await wire.until(b"}}" if b" 503 " in head else b'"usage"')
    except (ConnectionError, AssertionError):
        return b""
