"""Rows Q1 to Q7 of the fault matrix: more calls than the instances can take, of several callers and classes.

Busy is 429 with the time to come back (D8 of the design), never a queue without a bound, and never one caller's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.faults.counting import Counted, called, failed, one, series, turned_away
from tests.house import MODEL, House, Reply, Wire, ask, request
from tests.journeys.test_reload import reloadable, with_limit

CHAT = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: ask("x"),
    "/v1/completions": {"model": MODEL, "prompt": "x"},
    "/v1/messages": ask("x", max_tokens=10),
    "/v1/responses": {"model": MODEL, "input": "x"},
    "/api/chat": ask("x"),
    "/api/generate": {"model": MODEL, "prompt": "x", "stream": False},
}


def keys(**weights: float) -> dict[str, Any]:
    """A key for each of these names, which is the name itself."""
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in weights}
    return {"keys": [{"name": name, "sha256": digests[name], "weight": weight} for name, weight in weights.items()]}


@asynccontextmanager
async def held(house: House, *headers: str) -> AsyncIterator[Wire]:
    """While a stream that does not end has the instance's only place."""
    house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
    async with house.wire() as holder:
        await holder.send(request(CHAT, json.dumps(ask("holds", stream=True)).encode(), *headers))
        await holder.until(b"data: ")
        yield holder


class Waiting:
    """Calls that are put in line one after another."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._calls: list[asyncio.Task[Reply]] = []

    async def chat(self, prompt: str, **headers: Any) -> asyncio.Task[Reply]:
        depth = self._house.engine.pool.depth
        call = asyncio.create_task(self._house.chat(f"say: {prompt}", **headers), name=f"call {depth}")
        self._calls.append(call)
        await self._house.until(lambda: self._house.engine.pool.depth == depth + 1 or call.done())
        return call

    async def replies(self) -> list[Reply]:
        return await asyncio.gather(*self._calls)


def prompts(house: House) -> list[str]:
    """What was said to alpha, in the order it came there, without the call that held it."""
    bodies = [json.loads(seen.body) for seen in house.simulator("alpha").requests if seen.method == "POST"]
    said = [body["messages"][0]["content"] for body in bodies]
    return [one.removeprefix("say: ") for one in said if one != "holds"]


def come_back(reply: Reply, code: str) -> None:
    """429, in the words of its path's family, with the time to come back."""
    assert reply.status == 429
    assert 1 <= int(reply.headers["retry-after"]) <= 30
    assert 1000 <= int(reply.headers["retry-after-ms"]) <= 30_000
    assert reply.headers["x-should-retry"] == "true"
    if isinstance(error := reply.json["error"], dict) and "code" in error:
        assert error["code"] == code


# Q1


@pytest.mark.parametrize("path", BODIES)
async def test_q1_a_full_line_is_429_with_the_time_to_come_back_and_the_setting(path: str) -> None:
    async with one(line={"max_calls": 1}) as house, held(house), house.asking(ask("y")):
        await house.until(lambda: house.engine.pool.depth == 1)
        counted = Counted(house)
        reply = await house.post(path, BODIES[path])
        come_back(reply, "line_full")
        assert "line.max_calls" in reply.body.decode()
        assert counted.moved[turned_away("line_full")] == counted.moved[failed("line_full")] == 1
        assert sum(counted.moved.values()) == 3
        assert (house.engine.pool.depth, house.simulator("alpha").busy) == (1, 1)


# Q2


async def test_q2_the_calls_of_one_caller_that_may_wait_have_a_bound_and_others_are_not_affected() -> None:
    async with one(line={"max_calls_per_caller": 2}, auth=keys(amy=1, bob=1)) as house:
        waiting = Waiting(house)
        async with held(house, "Authorization: Bearer bob"):
            for _ in range(2):
                await waiting.chat("amy", authorization="Bearer amy")
            counted = Counted(house)
            refused = await house.chat(authorization="Bearer amy")
            assert counted.moved == {
                called(429, model="none"): 1,
                failed("line_full"): 1,
                turned_away("line_full"): 1,
            }
            await waiting.chat("bob", authorization="Bearer bob")
        come_back(refused, "line_full")
        assert "line.max_calls_per_caller" in refused.json["error"]["message"]
        assert not [name for name in refused.headers if "ratelimit" in name], "of what span of time should they tell?"
        assert {reply.status for reply in await waiting.replies()} == {200}


async def test_q2_the_calls_of_one_caller_that_run_have_a_bound_and_others_use_the_room() -> None:
    async with one(limit=4, line={"max_running_per_caller": 2}, auth=keys(amy=1, bob=1)) as house:
        amy, waiting = "Authorization: Bearer amy", Waiting(house)
        async with held(house, amy), held(house, amy):
            await waiting.chat("amy", authorization="Bearer amy")
            assert house.engine.pool.depth == 1
            assert (await house.chat(authorization="Bearer bob")).status == 200
            assert house.engine.pool.instances["alpha"].held == 2
        (reply,) = await waiting.replies()
        assert (reply.status, "line.max_running_per_caller" in reply.headers["x-gateway-line"]) == (200, True)


# Q3


async def test_q3_a_flood_of_a_thousand_calls_delays_another_caller_by_two_calls_at_most() -> None:
    line = {"max_calls": 2_000, "max_calls_per_caller": 2_000}
    async with one(Behaviour(parallel=8, first_token=0.005), line=line, auth=keys(amy=1, bob=1)) as house:
        for name in ("amy", "bob"):
            await house.chat(f"say: {name}", authorization=f"Bearer {name}")
        async with AsyncExitStack() as stack:
            flood = request(CHAT, json.dumps(ask("say: amy")).encode(), "Authorization: Bearer amy")
            async with held(house, "Authorization: Bearer amy"):
                for _ in range(1_000):
                    await (await stack.enter_async_context(house.wire())).send(flood)
                await house.until(lambda: house.engine.pool.depth == 1_000)
            for _ in range(10):
                reply = await house.chat("say: bob", authorization="Bearer bob")
                assert reply.status == 200
                place = re.match(r"position=(\d+);", reply.headers["x-gateway-line"])
                assert place is not None
                assert int(place[1]) <= 3  # two calls of the flood go before it
            assert house.engine.pool.depth > 500, "the flood was over before the other had come"


async def test_q3_two_callers_share_a_busy_instance_by_their_weights() -> None:
    """In seconds of work, as far as that can be shared in whole calls; also where the machine stumbles meanwhile."""
    line = {"max_calls": 200, "max_calls_per_caller": 100}
    async with one(Behaviour(parallel=8, first_token=0.01), line=line, auth=keys(amy=3, bob=1, eve=1)) as house:
        waiting = Waiting(house)
        async with held(house, "Authorization: Bearer eve"):
            for name, calls in (("amy", 60), ("bob", 30)):
                for _ in range(calls):
                    await waiting.chat(name, authorization=f"Bearer {name}")
        assert {reply.status for reply in await waiting.replies()} == {200}
        ended = [line for line in house.lines if line["event"] == "call.done" and line["status"] == 200]
        times = [(line["key"], line["seconds"] - line["wait"]) for line in ended[:60]]  # both have calls waiting
        total, longest = sum(seconds for _, seconds in times), max(seconds for _, seconds in times)
        share = sum(seconds for name, seconds in times if name == "amy") / total
        assert abs(share - 0.75) <= 0.075 + longest / total


# Q4


async def test_q4_an_interactive_call_takes_the_next_place_though_many_of_class_batch_wait() -> None:
    async with one(line={"priority_header": "any"}) as house:
        waiting = Waiting(house)
        async with held(house):
            for number in range(20):
                await waiting.chat(f"batch {number}", x_priority="batch")
            await waiting.chat("interactive", x_priority="interactive")
        await waiting.replies()
        assert prompts(house)[0] == "interactive"


async def test_q4_calls_of_class_batch_have_a_turn_in_each_period_of_ageing_whatever_is_interactive() -> None:
    behaviour = Behaviour(parallel=8, first_token=0.005)
    async with one(behaviour, line={"priority_header": "any", "ageing": 0.05, "max_calls": 200}) as house:
        served = Counter[str]()

        async def always(name: str) -> None:
            while served["batch"] < 3:
                assert (await house.chat(f"say: {name}", x_priority=name)).status == 200
                served[name] += 1

        await asyncio.gather(*(always("interactive") for _ in range(6)), *(always("batch") for _ in range(2)))
        assert served["interactive"] > served["batch"]


# Q5


@pytest.mark.parametrize("limit", ["the client's", "the line's"])
async def test_q5_a_wait_that_is_known_to_be_too_long_is_told_at_once(limit: str) -> None:
    config: dict[str, Any] = {"timeouts": {"line": 0.1}} if limit == "the line's" else {}
    headers: dict[str, Any] = {"x_request_timeout": "0.1"} if limit == "the client's" else {}
    async with one(Behaviour(parallel=8, first_token=0.3), **config) as house:
        assert (await house.chat()).status == 200
        async with held(house):
            counted = Counted(house)
            reply = await house.chat("say: late", **headers)
            come_back(reply, "deadline_unreachable")
            assert house.engine.pool.depth == 0
            assert counted.moved[turned_away("deadline")] == counted.moved[failed("deadline")] == 1
        assert "late" not in prompts(house)


@pytest.mark.parametrize("limit", ["the client's", "the line's"])
async def test_q5_who_has_waited_as_long_as_it_may_is_told_then_and_its_place_is_free(limit: str) -> None:
    config: dict[str, Any] = {"timeouts": {"line": 0.1}} if limit == "the line's" else {}
    headers: dict[str, Any] = {"x_request_timeout": "0.1"} if limit == "the client's" else {}
    async with one(line={"max_calls": 1}, **config) as house, held(house):
        counted = Counted(house)
        for turn in (1, 2):  # the second finds the place of the first
            reply = await house.chat(**headers)
            come_back(reply, "line_timeout")
            assert house.engine.pool.depth == 0
            assert house.last_line()["wait"] >= 0.09
            assert counted.moved[turned_away("line_timeout")] == turn


# Q6


async def test_q6_a_limit_lowered_under_load_ends_no_call_and_is_kept_once_it_is_reached() -> None:
    async with one(Behaviour(parallel=8, first_token=0.01), limit=4) as house:
        given, alpha, instance = reloadable(house), house.simulator("alpha"), house.engine.pool.instances["alpha"]
        calls = [asyncio.create_task(house.chat(str(number), stream=number % 2 == 0)) for number in range(28)]
        await house.until(lambda: alpha.busy == 4)
        given.keys = {"instances": with_limit(house, "alpha", 1)}
        assert await house.engine.reload()
        assert (instance.held, instance.limit) == (4, 1)
        await house.until(lambda: instance.in_use == 1)
        alpha.peak = 0
        done = sum(call.done() for call in calls)
        await house.until(lambda: sum(call.done() for call in calls) >= done + 5)
        assert alpha.peak == 1
        given.keys = {"instances": with_limit(house, "alpha", 4)}
        assert await house.engine.reload()
        await house.until(lambda: alpha.busy == 4)
        assert {reply.status for reply in await asyncio.gather(*calls)} == {200}
        assert alpha.peak == 4


# Q7


async def test_q7_bodies_that_wait_have_a_bound_together() -> None:
    async with one(line={"max_bytes": 1000}) as house:
        waiting = Waiting(house)
        async with held(house):
            await waiting.chat("y" * 500)
            counted = Counted(house)
            refused = await house.chat("y" * 500)
            come_back(refused, "line_full")
            assert "line.max_bytes" in refused.json["error"]["message"]
            assert counted.moved[turned_away("line_full")] == 1
            await waiting.chat("short")
            assert house.engine.pool.held_bytes <= 1000
        assert {reply.status for reply in await waiting.replies()} == {200}


async def test_q7_bodies_that_are_on_their_way_in_have_a_bound_together_and_short_ones_pass() -> None:
    """However many clients begin to send one, and never end."""
    most, clients = 4 * 2**20, 20
    async with one(limit=2, line={"max_bytes": most}) as house, AsyncExitStack() as stack:
        counted, refused = Counted(house), series("rejections", route="none", reason="line_full")
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**20 + 1}\r\n\r\n".encode()
        wires = [await stack.enter_async_context(house.wire()) for _ in range(clients)]
        for wire in wires:
            wire.writer.write(head + b" " * 2**20)
        await house.until(lambda: counted.moved.get(refused, 0) >= clients - 4)
        tasks = house.server.server_state.tasks
        await house.until(lambda: len(tasks) == clients - counted.moved[refused] <= 4)
        assert (await house.chat("say: short")).text == "short"
        told = await asyncio.gather(*(answer(wire) for wire in wires))
        assert sum(b" 429 " in one and b"line.max_bytes" in one for one in told) == counted.moved[refused]


async def answer(wire: Wire) -> bytes:
    """What has come by now, or is about to."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            return await wire.until(b"}}")
    return bytes(wire.seen)
