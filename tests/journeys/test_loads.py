"""What a load costs, and what is held while an instance is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from tests.house import House, ask
from tests.journeys.test_line import PATH, Waiting, one, prompts

PROBED = {"interval": 0.02, "catalog": 0.02, "fall": 1, "rise": 1}
PAIR = (SimulatedModel(name="one:1b"), SimulatedModel(name="two:1b"))

# what is held


@asynccontextmanager
async def away(house: House) -> AsyncIterator[None]:
    """While probes find that alpha is not there."""
    house.simulator("alpha").faults.arm("refuse", times=None)
    await house.until(lambda: house.engine.pool.instances["alpha"].state(0) == "down")
    yield
    house.simulator("alpha").faults.clear()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_waits_for_the_only_instance_that_could_serve_it_and_is_served_when_it_is_back(
    stream: bool,
) -> None:
    async with one(health=PROBED) as house:
        waiting = Waiting(house)
        async with away(house):
            await waiting.post(PATH, ask("say: here I am", stream=stream))
        (reply,) = await waiting.replies()
        assert (reply.status, reply.text.strip()) == (200, "here I am")
        assert reply.headers["x-gateway-line"].endswith("; waiting for an instance to come back")


async def test_a_call_that_found_nobody_listening_waits_for_the_trial_of_the_breaker_it_opened() -> None:
    async with one(breaker={"connects": 1, "cooldown": 0.3}, retry={"backoff": 0}) as house:
        house.simulator("alpha").faults.arm("refuse", times=None, seconds=0.2)
        reply = await house.chat()
        assert (reply.status, reply.headers["x-gateway-attempts"]) == (200, "2")
        assert "waiting for an instance to come back" in reply.headers["x-gateway-line"]


@pytest.mark.parametrize("hold", [0, 0.1])
async def test_nobody_waits_longer_for_an_instance_than_the_configuration_says(hold: float) -> None:
    async with one(health=PROBED, line={"hold": hold}) as house, away(house):
        reply = await house.chat()
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_instance")
        assert "alpha is down" in reply.json["error"]["message"]


async def test_what_no_instance_could_serve_even_if_it_were_back_is_told_at_once() -> None:
    limits = {"alpha": {"drain": True}}
    async with House({"alpha": Behaviour()}, instances=limits) as house:
        reply = await house.chat()
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_instance")


# what a load costs


def pair(limit: int = 1, max_loaded: int = 1, **line: Any) -> House:
    """An instance with two models, of which it holds so many in memory."""
    behaviour = Behaviour(models=PAIR, max_loaded=max_loaded, load_time=0.02, parallel=8)
    return House({"alpha": behaviour}, {"line": line}, {"alpha": {"max_concurrent": limit}})


async def learned(house: House) -> None:
    """Both models were asked for, so that it is known that only one fits; the second is there."""
    memory = house.engine.pool.instances["alpha"].memory
    for model in PAIR:
        assert (await house.chat("holds", model=model.name, stream=True)).status == 200
        await house.until(lambda name=model.name: list(memory.residents) == [name])  # type: ignore[misc]


@asynccontextmanager
async def two_held(house: House) -> AsyncIterator[None]:
    """While a call for the second model goes on."""
    house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
    async with house.asking(ask("holds", model="two:1b", stream=True)) as holder:
        await holder.until(b"data: ")
        yield
        holder.leave()


async def test_calls_for_a_model_that_is_there_go_before_one_for_a_model_that_has_to_be_loaded() -> None:
    async with pair(max_loaded=2) as house:
        waiting = Waiting(house)
        async with two_held(house):
            await waiting.post(PATH, ask("one", model="one:1b"))
            for _ in range(2):
                await waiting.post(PATH, ask("two", model="two:1b"))
        assert {reply.status for reply in await waiting.replies()} == {200}
        assert prompts(house) == ["two", "two", "one"]


async def test_what_does_not_fit_beside_what_runs_leaves_the_room_to_calls_for_that() -> None:
    async with pair(2) as house:
        await learned(house)
        waiting = Waiting(house)
        async with two_held(house):
            await waiting.post(PATH, ask("one", model="one:1b"))
            assert (await house.chat("two", model="two:1b")).status == 200
            assert house.engine.pool.depth == 1
        assert {reply.status for reply in await waiting.replies()} == {200}
        assert prompts(house) == ["two", "one"]


async def test_a_model_that_is_asked_for_all_the_time_gives_way_to_one_that_has_waited_long_enough() -> None:
    async with pair(switch_after=0.2, keep_loaded=0, ageing=0.1) as house:
        await learned(house)

        async def asks() -> None:
            while not other.done():
                assert (await house.chat("two", model="two:1b")).status == 200

        async with two_held(house):
            other = await Waiting(house).post(PATH, ask("one", model="one:1b"))
            crowd = [asyncio.create_task(asks(), name="two") for _ in range(3)]
            await house.until(lambda: house.engine.pool.depth == 4)
        reply = await other
        await asyncio.gather(*crowd)
        assert reply.status == 200
        assert "two" in prompts(house)[: prompts(house).index("one")]
        assert "one:1b" in reply.headers["x-gateway-line"]
        series = "gateway_upstream_model_loads_total"
        assert await house.metric(series, instance="alpha", model="one:1b") == 2
