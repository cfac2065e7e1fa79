"""The same question again: kept answers, shared flights, and what is never kept."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.simulator import Behaviour, SimulatedModel
from tests.house import House, ask


def generated(house: House) -> int:
    return len([seen for seen in house.simulator("alpha").requests if seen.method == "POST"])


def one(**config: Any) -> House:
    return House({"alpha": Behaviour()}, config, {"alpha": {"max_concurrent": 1}})


async def test_a_deterministic_call_is_answered_from_the_cache_the_second_time() -> None:
    async with one() as house:
        first = await house.post("/v1/chat/completions", ask("x", temperature=0))
        second = await house.post("/v1/chat/completions", ask("x", temperature=0, user="somebody else"))
        assert first.body == second.body
        assert first.headers["cache-status"] == "gateway; fwd=uri-miss; stored"
        assert second.headers["cache-status"] == "gateway; hit"
        assert "x-gateway-instance" not in second.headers
        assert generated(house) == 1
        assert await house.metric("gateway_cache_requests_total", route="by-model", result="hit") == 1


async def test_a_call_that_may_be_answered_differently_is_not_kept() -> None:
    async with one() as house:
        for _ in range(2):
            assert "cache-status" not in (await house.chat("x")).headers
        assert generated(house) == 2


async def test_what_changes_the_answer_changes_the_key() -> None:
    async with one() as house:
        asked: list[dict[str, Any]] = [
            {"temperature": 0},
            {"temperature": 0, "seed": 1},
            {"temperature": 0, "top_p": 0.5},
        ]
        for more in asked:
            await house.post("/v1/chat/completions", ask("x", **more))
        await house.post("/v1/chat/completions", ask("y", temperature=0))
        assert generated(house) == 4


async def test_the_facade_is_always_cached_and_never_where_the_cache_is_off() -> None:
    for enabled, expected in ((True, 1), (False, 2)):
        async with one(cache={"enabled": enabled}) as house:
            for _ in range(2):
                assert (await house.post("/api/chat", {"message": "hello"})).status == 200
            assert generated(house) == expected


async def test_a_client_can_ask_for_a_fresh_answer() -> None:
    async with one() as house:
        for _ in range(2):
            await house.post("/v1/chat/completions", ask("x", temperature=0), Cache_Control="no-store")
        assert generated(house) == 2


async def test_a_route_can_say_always_and_never() -> None:
    for rule, temperature, expected in (("always", 1, 1), ("never", 0, 2)):
        routes = [{"name": "r", "match": {"model": "llama*"}, "to": [{"instance": "alpha"}], "cache": rule}]
        async with one(routes=routes) as house:
            for _ in range(2):
                await house.post("/v1/chat/completions", ask("x", temperature=temperature))
            assert generated(house) == expected


async def test_equal_calls_at_the_same_time_share_one_flight() -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        alpha.behaviour = Behaviour(first_token=0.1)
        replies = await asyncio.gather(
            *(house.post("/v1/chat/completions", ask("x", temperature=0)) for _ in range(20))
        )
        assert len({reply.body for reply in replies}) == 1
        assert generated(house) == 1
        assert await house.metric("gateway_cache_requests_total", route="by-model", result="collapsed") == 19


async def test_a_flight_ends_when_the_last_caller_leaves() -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("hang_before_headers", path="/v1")
        async with house.asking(ask("x", temperature=0)) as wire:
            await alpha.until(lambda: alpha.busy == 1)
            wire.leave()
            await alpha.until(lambda: alpha.requests[-1].left_at is not None)


async def test_a_failure_is_shared_by_those_who_wait_and_not_kept() -> None:
    async with one(retry={"attempts": 1}) as house:
        house.simulator("alpha").faults.arm("status", path="/v1", status=500, text="boom")
        failed = await asyncio.gather(*(house.post("/v1/chat/completions", ask("x", temperature=0)) for _ in range(5)))
        assert {reply.status for reply in failed} <= {500, 200}
        assert (await house.post("/v1/chat/completions", ask("x", temperature=0))).status == 200


async def test_a_model_pulled_anew_is_asked_anew() -> None:
    async with one() as house:
        await house.post("/v1/chat/completions", ask("x", temperature=0))
        alpha = house.simulator("alpha")
        alpha.behaviour = Behaviour(models=(SimulatedModel(name="llama3.1:8b", digest="f" * 64),))
        house.engine.catalog.known("alpha").refresh.set()
        await house.until(lambda: next(iter(house.engine.catalog.known("alpha").installed.values())).digest == "f" * 64)
        await house.post("/v1/chat/completions", ask("x", temperature=0))
        assert generated(house) == 2


async def test_an_aliased_call_is_asked_anew_when_the_model_behind_it_was_pulled_anew() -> None:
    async with one(aliases={"gpt-4o": "llama3.1:8b"}) as house:
        keys = []
        for digest in ("a" * 64, "b" * 64):
            house.simulator("alpha").behaviour = Behaviour(models=(SimulatedModel(name="llama3.1:8b", digest=digest),))
            known = house.engine.catalog.known("alpha")
            known.refresh.set()
            await house.until(lambda: next(iter(known.installed.values())).digest == digest)  # noqa: B023
            keys.append((await house.post("/v1/chat/completions", ask("x", model="gpt-4o", temperature=0))).status)
        assert keys == [200, 200]
        assert generated(house) == 2
