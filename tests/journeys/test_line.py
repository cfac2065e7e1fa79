"""Whose turn it is in line, how long a call can wait there, and what its caller is told of that."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from gateway.instances.instance import Clock
from gateway.simulator import Behaviour, SimulatedModel
from tests.house import MODEL, House, Reply, ask

PATH = "/v1/chat/completions"
EAR = "embed:1b"
MODELS = (SimulatedModel(name=MODEL), SimulatedModel(name=EAR, capabilities=("embedding",)))


def one(limit: int = 1, behaviour: Behaviour | None = None, **config: Any) -> House:
    return House({"alpha": behaviour or Behaviour(parallel=8)}, config, {"alpha": {"max_concurrent": limit}}, warm=True)


def keys(**weights: float) -> dict[str, Any]:
    """A key for each of these names, which is the name itself."""
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in weights}
    return {"keys": [{"name": name, "sha256": digests[name], "weight": weight} for name, weight in weights.items()]}


@asynccontextmanager
async def held(
    house: House, name: str = "alpha", *, fault: str = "hang_mid_stream", **headers: str
) -> AsyncIterator[None]:
    """While a call holds a place of the instance."""
    house.simulator(name).faults.arm(fault, path="/v1", after=1)
    before = house.simulator(name).busy
    holder = asyncio.create_task(house.chat("holds", stream=True, **headers), name="holder")
    await house.until(lambda: house.simulator(name).busy > before)
    try:
        yield
    finally:
        holder.cancel()
        await asyncio.wait([holder])


class Waiting:
    """Calls that are put in line one after another."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._calls: list[asyncio.Task[Reply]] = []

    async def chat(self, prompt: str, **headers: str) -> asyncio.Task[Reply]:
        return await self.post(PATH, ask(f"say: {prompt}"), **headers)

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> asyncio.Task[Reply]:
        depth = self._house.engine.pool.depth
        self._calls.append(asyncio.create_task(self._house.post(path, body, **headers), name=f"call {depth}"))
        await self._house.until(lambda: self._house.engine.pool.depth == depth + 1)
        return self._calls[-1]

    async def replies(self) -> list[Reply]:
        return await asyncio.gather(*self._calls)


def prompts(house: House, name: str = "alpha") -> list[str]:
    """What was said to an instance, in the order it came there, without the call that held it."""
    bodies = [json.loads(seen.body) for seen in house.simulator(name).requests if seen.method == "POST"]
    said = [body["messages"][0]["content"] if "messages" in body else body.get("prompt", "vectors") for body in bodies]
    return [one.removeprefix("say: ") for one in said if one != "holds"]


def count_calls_as_seconds(house: House) -> None:
    """From now on the line's clock goes on by a second with each call that reaches alpha. Its shares are shares of
    time: where each call takes as long as the machine lets it, they are no numbers of calls.
    """
    simulator, loop = house.simulator("alpha"), asyncio.get_running_loop()
    house.engine.pool._clock = Clock(lambda: float(len(simulator.requests)), loop.call_later)


# whose turn it is


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        ("any", ["interactive", "none", "normal", "batch"]),
        ("lower", ["none", "normal", "interactive", "batch"]),
        ("never", ["batch", "none", "normal", "interactive"]),
    ],
)
async def test_a_client_may_change_the_class_of_its_call_as_far_as_the_configuration_says(
    rule: str, order: list[str]
) -> None:
    async with one(line={"priority_header": rule}) as house:
        waiting = Waiting(house)
        async with held(house):
            await waiting.chat("batch", x_priority="Batch")
            await waiting.chat("none")
            await waiting.chat("normal", x_priority="normal")
            await waiting.chat("interactive", x_priority="interactive")
        assert {reply.status for reply in await waiting.replies()} == {200}
        assert prompts(house) == order


async def test_a_class_nobody_knows_is_400_with_those_there_are() -> None:
    async with one() as house:
        reply = await house.chat(x_priority="urgent")
        assert (reply.status, reply.json["error"]["param"]) == (400, "X-Priority")
        assert "interactive, normal, batch" in reply.json["error"]["message"]


async def test_a_route_gives_its_calls_a_class_and_a_client_may_lower_it() -> None:
    hurried = {"name": "hurried", "match": {"header": {"X-Team": "desk"}}, "to": [{"model": MODEL}]}
    async with one(routes=[hurried | {"priority": "interactive"}]) as house:
        waiting = Waiting(house)
        async with held(house):
            await waiting.chat("plain")
            await waiting.chat("lowered", x_team="desk", x_priority="batch")
            await waiting.chat("hurried", x_team="desk")
        await waiting.replies()
        assert prompts(house) == ["hurried", "plain", "lowered"]


@pytest.mark.parametrize(
    ("editor", "vectors"),
    [("/v1/completions", "/v1/embeddings"), ("/api/generate", "/api/embed")],
)
async def test_an_editor_goes_before_a_chat_and_a_chat_before_the_indexing_of_documents(
    editor: str, vectors: str
) -> None:
    async with one(behaviour=Behaviour(parallel=8, models=MODELS)) as house:
        waiting = Waiting(house)
        async with held(house):
            await waiting.post(vectors, {"model": EAR, "input": [str(number) for number in range(9)]})
            await waiting.chat("chat")
            await waiting.post(editor, {"model": MODEL, "prompt": "editor", "suffix": "end", "stream": False})
        assert {reply.status for reply in await waiting.replies()} == {200}
        assert prompts(house) == ["editor", "chat", "vectors"]


async def test_a_call_of_a_low_class_that_waits_long_enough_goes_before_a_newer_one_of_a_higher() -> None:
    async with one(line={"ageing": 0.02, "priority_header": "any"}) as house:
        waiting = Waiting(house)
        async with held(house):
            await waiting.chat("batch", x_priority="batch")
            began = asyncio.get_running_loop().time()
            await house.until(lambda: asyncio.get_running_loop().time() > began + 0.05)
            await waiting.chat("interactive", x_priority="interactive")
        await waiting.replies()
        assert prompts(house) == ["batch", "interactive"]


@pytest.mark.parametrize("seen", [True, False], ids=["calls-seen", "nothing-seen"])
async def test_two_keys_share_a_busy_instance_by_their_weights(seen: bool) -> None:
    """Also while nobody knows how long a call takes, and far more is taken for granted than it will be."""
    async with one(auth=keys(amy=2, bob=1, eve=1)) as house:
        count_calls_as_seconds(house)
        waiting = Waiting(house)
        if seen:
            await house.chat("holds", authorization="Bearer eve")
        async with held(house, fault="hang_before_headers", authorization="Bearer eve"):
            for name in ("amy", "bob"):
                for _ in range(12):
                    await waiting.chat(name, authorization=f"Bearer {name}")
        assert {reply.status for reply in await waiting.replies()} == {200}
        assert 7 <= prompts(house)[:12].count("amy") <= 9


async def test_a_flood_of_one_caller_delays_another_by_at_most_two_calls() -> None:
    async with one(auth=keys(amy=1, bob=1)) as house:
        count_calls_as_seconds(house)
        waiting = Waiting(house)
        async with held(house, authorization="Bearer amy"):
            for _ in range(20):
                await waiting.chat("amy", authorization="Bearer amy")
            for _ in range(3):
                await waiting.chat("bob", authorization="Bearer bob")
        await waiting.replies()
        places = [place for place, name in enumerate(prompts(house)) if name == "bob"]
        assert max(place - before - 1 for before, place in pairwise([-1, *places])) <= 2


async def test_who_waited_for_a_call_of_their_own_to_end_is_told_the_setting() -> None:
    async with one(4, line={"max_running_per_caller": 1}, timeouts={"line": 0.1}) as house, held(house):
        reply = await house.chat()
        assert (reply.status, reply.json["error"]["code"]) == (429, "line_timeout")
        assert "line.max_running_per_caller" in reply.json["error"]["message"]


async def test_an_attempt_that_failed_keeps_the_place_of_its_call() -> None:
    limits = {"alpha": {"max_concurrent": 1}, "beta": {"max_concurrent": 1}}
    to_beta = {"name": "to-beta", "match": {"header": {"X-To": "beta"}}, "to": [{"instance": "beta"}]}
    config = {"timeouts": {"first_token": 0.2}, "routes": [to_beta]}
    async with House({"alpha": Behaviour(), "beta": Behaviour()}, config, limits, warm=True) as house:
        waiting = Waiting(house)
        house.simulator("alpha").faults.arm("hang_before_headers", path="/v1")
        async with held(house, "beta", x_to="beta"):
            first = asyncio.create_task(house.chat("say: first", stream=True), name="first")
            await house.until(lambda: house.simulator("alpha").busy == 1)
            await waiting.chat("second", x_to="beta")
            await waiting.chat("third", x_to="beta")
            await house.until(lambda: house.engine.pool.depth == 3)
        await waiting.replies()
        assert (await first).headers["x-gateway-attempts"] == "2"
        assert prompts(house, "beta") == ["first", "second", "third"]


# what a call can wait for


@pytest.mark.parametrize("told", [{"x_request_timeout": "0.1"}, {"x_stainless_read_timeout": "0.1"}])
async def test_a_call_that_can_not_be_served_in_its_time_is_told_at_once(told: dict[str, Any]) -> None:
    async with one(behaviour=Behaviour(parallel=8, first_token=0.3)) as house:
        assert (await house.chat(x_request_timeout="5")).status == 200
        async with held(house):
            reply = await house.chat("say: late", **told)
            assert (reply.status, reply.json["error"]["code"]) == (429, "deadline_unreachable")
            assert "X-Request-Timeout" in reply.json["error"]["message"]
            assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert "late" not in prompts(house)


async def test_the_time_an_sdk_gives_for_the_next_byte_is_no_limit_for_a_stream() -> None:
    async with one(behaviour=Behaviour(parallel=8, first_token=0.3)) as house:
        await house.chat()
        async with held(house):
            call = asyncio.create_task(house.chat("say: now", stream=True, x_stainless_read_timeout="0.1"), name="call")
            await house.until(lambda: house.engine.pool.depth == 1)
        assert (await call).status == 200


async def test_the_time_of_one_call_is_not_that_of_an_equal_one_beside_it() -> None:
    async with one() as house:
        waiting = Waiting(house)
        async with held(house):
            hurried = await waiting.post(PATH, ask("say: same", seed=1), x_request_timeout="0.2")
            patient = asyncio.create_task(house.post(PATH, ask("say: same", seed=1)), name="patient")
            assert (await hurried).status == 429
        assert (await patient).status == 200


@pytest.mark.parametrize("wrong", ["soon", "-1", "1e3", "", "inf", "5s"])
async def test_a_time_that_is_no_number_of_seconds_is_400(wrong: str) -> None:
    async with one() as house:
        reply = await house.chat(x_request_timeout=wrong)
        assert (reply.status, reply.json["error"]["param"]) == (400, "X-Request-Timeout")


# what a call is told


async def test_an_answer_tells_how_long_it_waited_from_which_place_and_why() -> None:
    async with one() as house:
        waiting = Waiting(house)
        async with held(house):
            await waiting.chat("first")
            await waiting.chat("second")
        for place, reply in enumerate(await waiting.replies(), 1):
            told = rf"position={place}; waited=\d+\.\d{{3}}; waiting for {MODEL} on alpha: .+"
            assert re.fullmatch(told, reply.headers["x-gateway-line"])
        assert "x-gateway-line" not in (await house.chat()).headers


async def test_a_stream_hears_its_place_the_time_and_the_reason_until_it_is_served() -> None:
    async with one(stream={"hold": 0.02, "keep_alive": 0.02}, behaviour=Behaviour(parallel=8, per_second=20)) as house:
        waiting = Waiting(house)
        async with held(house):
            await waiting.chat("first")
            stream = await waiting.post(PATH, ask("say: one two three four", stream=True))
            async with house.asking(ask("say: third", stream=True)) as wire:
                await wire.until(b": keep-alive; in line: position 3, about ")
                await wire.until(f"waiting for {MODEL} on alpha: ".encode())
        said = (await stream).body
        served = said.index(b"data: ")
        assert b": keep-alive; in line: position 2, about " in said[:served]
        assert b": keep-alive\n" in said[served:]
        assert b"in line" not in said[served:]
        await waiting.replies()
