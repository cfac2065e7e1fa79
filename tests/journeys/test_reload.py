"""A new configuration while calls run, case by case; a thousand of them under load: tests/faults/test_reload.py."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from typing import Any

from gateway.config import Loaded
from gateway.errors import ConfigError, Problem
from gateway.simulator import Behaviour
from tests.house import House, ask


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
        assert house.engine.reload()
        given.keys = {"instances": everything}
        assert house.engine.reload()
        await house.until(lambda: house.engine.catalog.has("beta", "llama3.1:8b"))
        seen = {(await house.chat(f"say: {number}")).instance for number in range(40)}
        assert seen == {"alpha", "beta"}


async def test_a_call_whose_instance_is_removed_in_the_moment_of_its_turn_is_told_so() -> None:
    async with House({"alpha": Behaviour(), "beta": Behaviour()}) as house:
        given = reloadable(house)
        alpha, beta = with_limit(house, "alpha", 1)
        given.keys = {"instances": [alpha]}
        assert house.engine.reload()
        house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
        async with house.asking(ask("x", stream=True)) as holder:
            await holder.until(b"data: ")
            waiting = asyncio.create_task(house.chat(), name="waiting")
            await house.until(lambda: house.engine.pool.depth == 1)
            holder.leave()
            await house.until(lambda: house.engine.pool.depth == 0)
            given.keys = {"instances": [beta]}
            assert house.engine.reload()
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
            assert house.engine.reload()
            assert (await waiting).status == 200
            holder.leave()


async def test_sighup_reads_the_configuration_anew() -> None:
    async with House({"alpha": Behaviour()}) as house:
        given = reloadable(house)
        given.keys = {"instances": with_limit(house, "alpha", 7)}
        os.kill(os.getpid(), signal.SIGHUP)
        await house.until(lambda: house.engine.pool.instances["alpha"].limit == 7)
        assert any(line["event"] == "config.applied" and "~ instance alpha" in line["changes"] for line in house.lines)
