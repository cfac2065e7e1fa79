"""Health that cannot be fooled: rows U6, U7, U9, U11 and U16 of the fault matrix, and a model that finds no memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest

from gateway.instances import Instance
from gateway.simulator import Behaviour, SimulatedModel
from tests.house import LIMIT, MODEL, House, Reply, ask

OTHER = "other:1b"
ROOMY = Behaviour(models=(SimulatedModel(name=MODEL), SimulatedModel(name=OTHER)), parallel=64)
SERIAL = count()
QUICK_PROBES = {"interval": 0.02, "catalog": 60, "fall": 3, "rise": 2}


def one(limit: int = 4, behaviour: Behaviour = ROOMY, **config: Any) -> House:
    return House({"alpha": behaviour}, config, {"alpha": {"max_concurrent": limit}}, warm=True)


def two(limit: int = 4, **config: Any) -> House:
    """Either could take any call."""
    limits = {name: {"max_concurrent": limit} for name in ("alpha", "beta")}
    return House({"alpha": ROOMY, "beta": ROOMY}, config, limits, warm=True)


async def chat(house: House, **details: Any) -> Reply:
    """A call that belongs to no conversation, so that it goes wherever there is room."""
    return await house.chat(f"call {next(SERIAL)}", **details)


def alpha(house: House) -> Instance:
    return house.engine.pool.instances["alpha"]


def hits(house: House, model: str = MODEL) -> int:
    """Calls for a model that came to alpha."""
    seen = [one for one in house.simulator("alpha").requests if one.method == "POST"]
    return sum(model.encode() in one.body for one in seen)


async def told(house: House) -> dict[str, Any]:
    """What the status page says of alpha."""
    found: dict[str, Any] = (await house.get("/gateway/status")).json["instances"][0]
    return found


def probes(house: House, result: str) -> float:
    """How many of alpha's probes had this result."""
    labels = {"instance": "alpha", "result": result}
    return house.engine.metrics.registry.get_sample_value("gateway_upstream_health_checks_total", labels) or 0.0


def model_state(house: House, model: str = MODEL) -> str:
    breaker = alpha(house).breakers.models.get(model)
    return str(breaker.state_at(house.engine._loop.time())) if breaker else "closed"


def state(house: House) -> str:
    return alpha(house).state(house.engine._loop.time())


async def ask_until(house: House, holds: Callable[[], bool], **details: Any) -> Reply:
    """Call again and again, each time with success, until something holds; the last reply."""
    async with asyncio.timeout(LIMIT):
        while True:
            reply = await chat(house, **details)
            assert reply.status == 200
            if holds():
                return reply


@asynccontextmanager
async def failing(house: House, what: str, **details: Any) -> AsyncIterator[None]:
    """While alpha does so to every call."""
    fault = house.simulator("alpha").faults.arm(what, times=None, **({"path": "/v1"} | details))
    yield
    house.simulator("alpha").faults.remove(fault)


# Saturated, which is not broken: U6


@pytest.mark.parametrize("at_once", [1, 100])
async def test_calls_land_on_the_other_while_an_instance_says_it_is_busy(at_once: int) -> None:
    async with two(line={"max_calls": 100, "max_calls_per_caller": 100}) as house, failing(house, "busy"):
        replies: list[Reply] = []
        while len(replies) < 100:
            replies += await asyncio.gather(*(chat(house) for _ in range(at_once)))
        assert {(reply.status, reply.instance) for reply in replies} == {(200, "beta")}
        assert hits(house) <= 5
        assert (await told(house))["state"] == "saturated"
        assert (await told(house))["breaker"] is None
        for to in ("open", "half_open"):
            assert await house.metric("gateway_upstream_breaker_transitions_total", instance="alpha", to=to) == 0


# A runner that dies (U7)


async def test_after_five_dead_runners_in_a_row_an_instance_is_out_for_that_model_and_one_of_fifty_calls_tries_it() -> (
    None
):
    async with two(limit=64, breaker={"cooldown": 0.3, "slow_start": 0}) as house:
        async with failing(house, "runner_stopped"):
            await ask_until(house, lambda: model_state(house) == "open")
        assert hits(house) == 5
        await house.until(lambda: model_state(house) == "half_open")
        house.simulator("alpha").faults.arm("hang_before_headers", path="/v1")
        arrivals = [asyncio.create_task(chat(house), name="arrival") for _ in range(50)]
        await house.until(lambda: sum(arrival.done() for arrival in arrivals) == 49)
        assert hits(house) == 6
        (trial,) = [arrival for arrival in arrivals if not arrival.done()]
        trial.cancel()
        await house.quiet()
        await ask_until(house, lambda: model_state(house) == "closed")
        series = "gateway_upstream_model_breaker_transitions_total"
        labels = {"instance": "alpha", "model": MODEL}
        assert [await house.metric(series, **labels, to=to) for to in ("open", "half_open", "closed")] == [1, 1, 1]


# Rate limits and the client's own mistakes (U9)


async def test_an_instance_with_a_rate_limit_is_left_alone_while_another_serves() -> None:
    async with two() as house, failing(house, "rate_limited", retry_after=2):
        reply = await ask_until(house, lambda: hits(house) > 0)
        assert (reply.instance, reply.headers["x-gateway-attempts"]) == ("beta", "2")
        left = alpha(house).breakers._busy_until - house.engine._loop.time()
        assert 0 < left <= 2
        for _ in range(10):
            assert (await chat(house)).headers["x-gateway-attempts"] == "1"
        assert hits(house) == 1


async def test_a_call_waits_for_the_only_instance_for_as_long_as_that_asks() -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("rate_limited", path="/v1", retry_after=1)
        reply = await house.chat("say: here I am")
        assert (reply.status, reply.text.strip(), reply.headers["x-gateway-attempts"]) == (200, "here I am", "2")
        assert float(reply.headers["x-gateway-line"].split("waited=")[1].split(";")[0]) > 0.5


async def test_where_no_attempt_is_left_the_rate_limit_is_relayed_with_its_time() -> None:
    async with one(retry={"attempts": 1}) as house, failing(house, "rate_limited", retry_after=7):
        reply = await chat(house)
        assert (reply.status, reply.headers["retry-after"]) == (429, "7")
        assert "too many requests" in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("asks", "timeout", "limits"),
    [(600, "60", {}), (9, "5", {}), (9, "60", {"timeouts": {"line": 5}})],
)
async def test_who_cannot_wait_for_so_long_is_told_at_once_in_the_instances_words(
    asks: int, timeout: str, limits: dict[str, Any]
) -> None:
    async with one(**limits) as house, failing(house, "rate_limited", retry_after=asks):
        reply = await chat(house, X_Request_Timeout=timeout)
        assert (reply.status, reply.headers["x-gateway-attempts"]) == (429, "1")
        assert reply.headers["retry-after"] == str(min(asks, 30))
        assert "too many requests" in reply.json["error"]["message"]


async def test_a_mistake_of_the_client_is_relayed_once_and_held_against_nobody() -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("status", times=None, path="/v1", status=400, text="out of memory, says the client")
        for _ in range(30):
            reply = await chat(house)
            assert (reply.status, reply.headers["x-gateway-attempts"]) == (400, "1")
        assert all(one.calm for one in house.engine.pool.instances.values())


# Probes are answered, calls are not (U11)


@pytest.mark.parametrize("how", ["hang_before_headers", "hang_before_first_token"])
async def test_after_two_calls_without_a_first_token_an_instance_is_out_whatever_its_probes_say(how: str) -> None:
    limits = {"first_token": 0.2, "loading": 0.2}
    async with two(timeouts=limits, health=QUICK_PROBES) as house, failing(house, how):
        await ask_until(house, lambda: state(house) == "open", stream=True)
        assert hits(house) == 2
        assert (await told(house))["breaker"]["why"] == "2 calls in a row had no first token in time"
        seen = probes(house, "ok")
        reply = await ask_until(house, lambda: probes(house, "ok") >= seen + 20, stream=True)
        assert (reply.instance, reply.headers["x-gateway-attempts"]) == ("beta", "1")
        assert (state(house), alpha(house).healthy, hits(house)) == ("open", True, 2)


async def test_probes_that_fail_every_other_time_make_no_instance_flap() -> None:
    async with two(health=QUICK_PROBES) as house:
        for path in ("/api/version", "/v1/models"):
            house.simulator("alpha").faults.arm("status", times=None, path=path, every=2)
        await house.until(lambda: min(probes(house, "failed"), probes(house, "ok")) >= 20)
        assert not [line for line in house.lines if line["event"] == "instance.down"]
        house.simulator("alpha").faults.clear()


def found_again(house: House) -> int:
    """How often alpha's probes have told that it is there."""
    return sum(line["event"] == "instance.up" and line["instance"] == "alpha" for line in house.lines)


async def test_probes_that_succeed_every_other_time_bring_no_instance_back() -> None:
    async with two(health=QUICK_PROBES) as house:
        faults = house.simulator("alpha").faults
        faults.arm("status", times=None, path="/api/version")
        await house.until(lambda: state(house) == "down")
        faults.arm("status", times=None, path="/api/version", every=2)
        faults.remove(faults.armed[0])
        good, bad, ups = probes(house, "ok"), probes(house, "failed"), found_again(house)
        await house.until(lambda: min(probes(house, "ok") - good, probes(house, "failed") - bad) >= 20)
        assert (found_again(house), state(house)) == (ups, "down")
        assert {(await chat(house)).instance for _ in range(10)} == {"beta"}
        faults.clear()
        await house.until(lambda: state(house) == "healthy")


# The last instance of a model (U16)


async def test_the_last_instance_of_a_model_is_still_asked_though_it_fails_and_comes_back_little_by_little() -> None:
    pace = Behaviour(models=(SimulatedModel(name=MODEL),), parallel=64, tokens=8, per_second=40)
    settings = {"cooldown": 600, "slow_start": 0.6}
    async with one(4, pace, breaker=settings, retry={"attempts": 1}) as house:
        async with failing(house, "status", status=500, text="boom"):
            replies = [await chat(house) for _ in range(20)]
        assert {reply.status for reply in replies} == {500}
        assert "boom" in replies[-1].json["error"]["message"]
        assert (hits(house), state(house)) == (20, "open")
        assert await house.metric("gateway_upstream_panics_total", instance="alpha") == 15
        assert (await house.get("/readyz")).status == 200
        crowd = [asyncio.create_task(chat(house, stream=True), name="crowd") for _ in range(16)]
        held = await held_until_done(house, crowd, slow_start=0.6)
        assert {(await one).status for one in crowd} == {200}
        assert held == {0, 1, 2, 3, 4}
        assert (await told(house))["state"] == "healthy"


async def held_until_done(house: House, crowd: list[asyncio.Task[Reply]], *, slow_start: float) -> set[int]:
    """How many calls alpha had while it came back, each time no more than it was to have by then."""
    instance, now = alpha(house), house.engine._loop.time
    back, held = None, set()
    guard = now() + LIMIT
    while not all(one.done() for one in crowd):
        assert now() < guard, "it does not come back"
        back = instance.breaker.since if back is None else back
        passed = 0.0 if back is None else now() - back
        held.add(instance.held)
        assert instance.held <= 1 + 3 * passed / slow_start + 1e-3
        await asyncio.sleep(0)
    return held


async def test_a_flood_of_calls_reaches_the_last_instance_one_after_the_other_while_it_fails() -> None:
    async with one(8, breaker={"cooldown": 600}, retry={"attempts": 1}) as house:
        async with failing(house, "status", status=500, text="boom"):
            for _ in range(5):
                await chat(house)
            house.simulator("alpha").forget()
            replies = await asyncio.gather(*(chat(house) for _ in range(30)))
        assert {reply.status for reply in replies} == {500}
        assert await house.metric("gateway_upstream_panics_total", instance="alpha") == 30
        assert house.simulator("alpha").peak <= 1


async def test_where_nobody_listens_calls_are_held_until_somebody_does() -> None:
    async with one(breaker={"cooldown": 0.5}, retry={"attempts": 4, "backoff": 0}) as house:
        house.simulator("alpha").faults.arm("refuse", times=None, seconds=0.3)
        reply = await chat(house)
        assert reply.status == 200
        assert await house.metric("gateway_upstream_panics_total", instance="alpha") == 0


# A model that finds no memory


@pytest.mark.parametrize(
    ("what", "details"),
    [
        ("out_of_memory", {}),
        ("full_gpu", {}),
        ("startup_oom", {}),
        ("terminated", {}),
        ("load_timeout", {}),
        ("error_in_band", {"path": "/api", "text": "CUDA error: out of memory"}),
    ],
)
async def test_a_model_that_cannot_be_loaded_on_one_instance_goes_to_another_and_its_other_models_go_on(
    what: str, details: dict[str, Any]
) -> None:
    path = "/api/chat" if details else "/v1/chat/completions"
    async with two(breaker={"cooldown": 100}) as house, failing(house, what, model=MODEL, **details):
        for _ in range(20):
            reply = await house.post(path, ask(f"call {next(SERIAL)}", stream=True))
            assert (reply.status, reply.instance) == (200, "beta")
        assert hits(house) == 1
        assert {(await chat(house, model=OTHER)).instance for _ in range(20)} == {"alpha", "beta"}
        seen = await told(house)
        assert (seen["state"], seen["breaker"], list(seen["cooling"])) == ("healthy", None, [MODEL])
        assert seen["cooling"][MODEL]["why"].startswith("it could not load the model: ")
        assert 60 < seen["cooling"][MODEL]["seconds"] <= 120
        exposition = (await house.get("/metrics")).body.decode()
        assert f'gateway_upstream_model_cooling{{instance="alpha",model="{MODEL}"}} 1.0' in exposition


async def test_explain_says_for_how_long_a_model_is_left_out_where_and_why() -> None:
    async with two(breaker={"cooldown": 100, "failures": 2}) as house:
        async with failing(house, "out_of_memory", model=MODEL):
            await ask_until(house, lambda: model_state(house) == "open")
        told = (await house.get(f"/gateway/explain?model={MODEL}")).json
        (left_out,) = told["left_out"]
        assert left_out["instance"] == "alpha"
        words = rf"model {MODEL} for \d+ s more: it could not load the model: no_memory"
        assert re.fullmatch(words, left_out["reason"])
        assert (await house.get(f"/gateway/explain?model={OTHER}")).json["left_out"] == []
        async with failing(house, "status"):
            await ask_until(house, lambda: state(house) == "open", model=OTHER)
        (left_out,) = (await house.get(f"/gateway/explain?model={OTHER}")).json["left_out"]
        assert re.fullmatch(r"all models for \d+ s more: .+ failed calls in a row, .+", left_out["reason"])


async def test_after_its_cooldown_the_model_is_tried_there_and_is_back() -> None:
    async with two(breaker={"cooldown": 0.2}) as house:
        async with failing(house, "out_of_memory", model=MODEL):
            await ask_until(house, lambda: model_state(house) == "open")
        await ask_until(house, lambda: model_state(house) == "closed")
        assert (await told(house))["cooling"] == {}
        changes = [line for line in house.lines if line["event"] == "breaker.change"]
        assert [(line["model"], line["state"]) for line in changes] == [
            (MODEL, "open"),
            (MODEL, "half_open"),
            (MODEL, "closed"),
        ]


async def test_where_no_other_could_have_it_the_client_hears_the_instances_own_words_at_once() -> None:
    async with one() as house, failing(house, "out_of_memory", model=MODEL):
        for _ in range(3):
            reply = await chat(house)
            assert (reply.status, reply.headers["x-gateway-attempts"]) == (500, "1")
            assert "more system memory" in reply.json["error"]["message"]
        assert (await chat(house, model=OTHER)).status == 200
        assert await house.metric("gateway_upstream_errors_total", instance="alpha", reason="no_memory") == 3
