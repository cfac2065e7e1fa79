"""A new configuration while calls run, case by case; a thousand of them under load: tests/faults/test_reload.py."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.config import Loaded
from gateway.errors import ConfigError, Problem
from gateway.simulator import Behaviour, SimulatedModel
from tests.house import MODEL, House, ask


@dataclass
class Given:
    """A source of configurations under the test's control."""

    house: House
    keys: dict[str, Any] = field(default_factory=dict)
    broken: bool = False
    version: int = 0

    def load(self) -> Loaded:
        if self.broken:
            raise ConfigError("the test", [Problem("line.max_calls", "must be 0 or more, found -1", 3, 1)])
        return self.house.loaded(**self.keys)

    def fingerprint(self) -> str:
        return str(self.version)


def reloadable(house: House) -> Given:
    house.engine._source = given = Given(house)
    return given


def with_limit(house: House, name: str, limit: int) -> list[dict[str, Any]]:
    return [
        {"name": one, "url": simulator.url, "max_concurrent": limit if one == name else 4}
        for one, simulator in house.simulators.items()
    ]


async def test_an_instance_that_is_added_is_asked_for_its_models_and_used() -> None:
    async with House({"alpha": Behaviour(), "beta": Behaviour()}, warm=True) as house:
        given = reloadable(house)
        everything = with_limit(house, "", 4)
        given.keys = {"instances": everything[:1]}
        assert await house.engine.reload()
        given.keys = {"instances": everything}
        assert await house.engine.reload()
        await house.until(lambda: house.engine.catalog.has("beta", "llama3.1:8b"))
        seen = {(await house.chat(f"say: {number}")).instance for number in range(40)}
        assert seen == {"alpha", "beta"}


NEW = "new:1b"
QUICK = {"health": {"interval": 0.02, "timeout": 5.0, "fall": 1, "rise": 1}}


@asynccontextmanager
async def replaced(*new: str, **line: Any) -> AsyncIterator[House]:
    """Alpha has just given way to new instances that do not listen yet; each has a model of its own name as well."""
    models = {name: (SimulatedModel(name=MODEL), SimulatedModel(name=name)) for name in new}
    behaviours = {"alpha": Behaviour()} | {name: Behaviour(models=some) for name, some in models.items()}
    async with House(behaviours, QUICK | {"line": line}) as house:
        given = reloadable(house)
        given.keys = {"instances": with_limit(house, "", 4)[:1]}
        assert await house.engine.reload()
        for name in new:
            house.simulator(name).faults.arm("refuse", times=None)
        given.keys = {"instances": with_limit(house, "", 4)[1:]}
        assert await house.engine.reload()
        yield house


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_where_every_instance_is_replaced_a_call_waits_until_one_has_told_its_models(stream: bool) -> None:
    async with replaced("beta") as house:
        call = asyncio.create_task(house.chat("say: well come", stream=stream), name="call")
        unknown = asyncio.create_task(house.chat(model=NEW), name="unknown")
        by_task = asyncio.create_task(house.chat(model="auto"), name="by task")
        await house.until(lambda: house.engine.pool.depth == 3)
        house.simulator("beta").faults.clear()
        reply = await call
        assert (reply.status, reply.instance, reply.text.strip()) == (200, "beta", "well come")
        assert (reply.headers["x-gateway-route"], (await by_task).status) == ("by-model", 200)
        assert (await unknown).json["error"]["code"] == "model_not_found"


async def test_a_call_for_a_model_that_only_a_later_one_has_waits_for_that() -> None:
    async with replaced("beta", "gamma") as house:
        pool, gamma = house.engine.pool, house.simulator("gamma")
        gamma.faults.arm("status", times=None, path="/api/tags")
        gamma.faults.remove(gamma.faults.armed[0])
        await house.until(lambda: pool.instances["gamma"].health.healthy is True)
        house.simulator("beta").faults.clear()
        await house.until(lambda: house.engine.catalog.has("beta", "beta"))
        call = asyncio.create_task(house.chat(model="gamma"), name="call")
        await house.until(lambda: pool.depth == 1)
        assert (await house.chat(model="beta")).status == 200
        gamma.faults.clear()
        house.engine.catalog.ask_anew("gamma")
        assert ((await call).status, (await call).instance) == (200, "gamma")
        assert (await house.chat(model=NEW)).status == 404


async def test_a_call_for_a_model_that_nobody_has_does_not_wait_for_one_that_is_down() -> None:
    async with replaced("beta", "gamma") as house:
        house.simulator("beta").faults.clear()
        await house.until(lambda: house.engine.catalog.has("beta", "beta"))
        await house.until(lambda: house.engine.pool.instances["gamma"].state(0) == "down")
        reply = await house.chat(model=NEW)
        assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
        assert "1 of 2 instances could not be asked yet" in reply.json["error"]["message"]
        house.simulator("gamma").faults.clear()


async def test_it_waits_for_line_hold_and_no_longer() -> None:
    async with replaced("beta", hold=0.3) as house:
        reply = await house.chat()
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_instance")
        assert "no instance has told its models yet" in reply.json["error"]["message"]
        assert "wait" in house.last_line()
        assert (await house.chat()).status == 503
        assert "wait" not in house.last_line()
        house.simulator("beta").faults.clear()


async def test_those_that_wait_so_are_in_line_and_its_bounds_hold() -> None:
    async with replaced("beta", max_calls=1) as house:
        async with house.asking(ask("x", stream=True)) as wire:
            await house.until(lambda: house.engine.pool.depth == 1)
            assert (await house.chat()).json["error"]["code"] == "line_full"
            hurried = await house.chat(x_request_timeout="0")
            assert hurried.status == 429
            wire.leave()
            await house.until(lambda: house.engine.pool.depth == 0)
        late = await house.chat(x_request_timeout="0.1")
        assert (late.status, late.json["error"]["code"]) == (429, "line_timeout")
        house.simulator("beta").faults.clear()


async def test_a_call_whose_instance_is_removed_in_the_moment_of_its_turn_is_told_so() -> None:
    async with House({"alpha": Behaviour(), "beta": Behaviour()}) as house:
        given = reloadable(house)
        alpha, beta = with_limit(house, "alpha", 1)
        given.keys = {"instances": [alpha]}
        assert await house.engine.reload()
        house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
        async with house.asking(ask("x", stream=True)) as holder:
            await holder.until(b"data: ")
            waiting = asyncio.create_task(house.chat(), name="waiting")
            await house.until(lambda: house.engine.pool.depth == 1)
            holder.leave()
            await house.until(lambda: house.engine.pool.depth == 0)
            given.keys = {"instances": [beta]}
            house.engine.apply(given.load())  # in this very turn of the loop
            assert (await waiting).json["error"]["code"] == "no_instance"


async def test_waiting_calls_keep_their_place_and_use_a_raised_limit() -> None:
    async with House({"alpha": Behaviour(parallel=8)}, instances={"alpha": {"max_concurrent": 1}}) as house:
        given = reloadable(house)
        house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
        async with house.asking(ask("x", stream=True)) as holder:
            await holder.until(b"data: ")
            waiting = asyncio.create_task(house.chat(), name="waiting")
            await house.until(lambda: house.engine.pool.depth == 1)
            given.keys = {"instances": with_limit(house, "alpha", 2)}
            assert await house.engine.reload()
            assert (await waiting).status == 200
            holder.leave()


async def test_sighup_reads_the_configuration_anew() -> None:
    async with House({"alpha": Behaviour()}) as house:
        given = reloadable(house)
        given.keys = {"instances": with_limit(house, "alpha", 7)}
        os.kill(os.getpid(), signal.SIGHUP)
        await house.until(lambda: house.engine.pool.instances["alpha"].limit == 7)
        assert any(line["event"] == "config.applied" and "~ instance alpha" in line["changes"] for line in house.lines)


@dataclass
class Slow(Given):
    """One whose first reading takes until it is let go, and gives what was there when it began."""

    begun: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    def load(self) -> Loaded:
        self.begun += 1
        loaded = super().load()
        if self.begun == 1:
            assert self.go.wait(10)
        return loaded


async def test_while_a_configuration_is_read_calls_go_on_and_the_last_that_was_asked_for_counts() -> None:
    async with House({"alpha": Behaviour()}) as house:
        house.engine._source = given = Slow(house)
        try:
            for limit in (7, 8):
                given.keys = {"instances": with_limit(house, "alpha", limit)}
                os.kill(os.getpid(), signal.SIGHUP)
                await house.until(lambda: given.begun == 1)
                assert (await house.chat(f"say: {limit}")).text == str(limit)
            assert house.engine.pool.instances["alpha"].limit == 4
        finally:
            given.go.set()
        await house.until(lambda: given.begun == 2 and house.engine.pool.instances["alpha"].limit == 8)
