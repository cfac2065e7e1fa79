"""What happens when an instance fails before the client has heard anything."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.house import ALPHA_FIRST, MODEL, House, ask


def two(**config: Any) -> House:
    """Both have the model; alpha is asked first."""
    return House({"alpha": Behaviour(), "beta": Behaviour()}, {"routes": [ALPHA_FIRST], **config})


async def served_by_the_other(house: House, stream: bool) -> None:
    """Ask with alpha in the way, and hold that to a good answer from beta."""
    reply = await house.chat("say: here I am", stream=stream)
    assert reply.status == 200, reply.body
    assert reply.text.strip() == "here I am"
    assert (reply.headers["x-gateway-attempts"], reply.instance) == ("2", "beta")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("refuse", {}),
        ("drop", {"path": "/v1"}),
        ("reset", {}),
        ("status", {"status": 500, "text": "model runner has unexpectedly stopped"}),
        ("out_of_memory", {}),
        ("busy", {}),
        ("rate_limited", {}),
        ("model_not_found", {}),
        ("forbidden", {}),
        ("redirect", {"text": "http://127.0.0.1:1/"}),
        ("garbage", {"text": "this is no HTTP\r\n\r\n"}),
        ("endless_headers", {}),
        ("short_length", {}),
        ("cut", {"after": 0}),
        ("swallowed_error", {}),
        ("error_in_band", {}),
    ],
)
async def test_the_call_moves_on_when_an_instance_fails_before_it_has_spoken(
    kind: str, details: dict[str, Any], stream: bool
) -> None:
    if stream and kind == "short_length":
        pytest.skip("a stream has no length to be short of")
    async with two() as house:
        house.simulator("alpha").faults.arm(kind, times=None, **({"path": "/v1"} | details if kind != "refuse" else {}))
        await served_by_the_other(house, stream)
        house.simulator("alpha").faults.clear()


@pytest.mark.parametrize("kind", ["hang_before_headers", "hang_before_first_token"])
async def test_the_call_moves_on_when_an_instance_does_not_speak_in_time(kind: str) -> None:
    async with two(timeouts={"first_token": 0.3, "loading": 0.3}) as house:
        house.simulator("alpha").faults.arm(kind, times=None, path="/v1")
        await served_by_the_other(house, stream=True)
        house.simulator("alpha").faults.clear()


async def test_every_attempt_fails_with_the_last_error_and_no_more_than_three_are_made() -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("status", times=None, path="/v1", status=500, text="boom")
        reply = await house.chat()
        assert reply.status == 500
        assert reply.json["error"]["message"].endswith("boom")
        assert (
            sum(len([one for one in s.requests if one.path.startswith("/v1/chat")]) for s in house.simulators.values())
            == 3
        )


async def test_connections_that_are_refused_everywhere_are_a_502() -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("refuse", times=None)
        reply = await house.chat()
        assert (reply.status, reply.json["error"]["code"]) == (502, "upstream_unavailable")
        for simulator in house.simulators.values():
            simulator.faults.clear()


@pytest.mark.parametrize(
    ("kind", "details", "status", "attempts"),
    [
        ("hang_before_headers", {}, 504, 1),
        ("model_not_found", {}, 404, 1),
        ("garbage", {"text": "no HTTP\r\n\r\n"}, 502, 3),
        ("reset", {}, 502, 3),
        ("busy", {}, 503, 3),
        ("runner_stopped", {}, 500, 3),
        ("out_of_memory", {}, 500, 1),
    ],
)
async def test_an_instance_that_is_alone_is_asked_again_only_where_that_may_help(
    kind: str, details: dict[str, Any], status: int, attempts: int
) -> None:
    limits = {"first_token": 0.1, "loading": 0.1}
    async with House({"alpha": Behaviour()}, {"timeouts": limits, "breaker": {"busy": 0.02}}) as house:
        house.simulator("alpha").faults.arm(kind, times=None, path="/v1", **details)
        reply = await house.chat(stream=True)
        assert (reply.status, reply.headers["x-gateway-attempts"]) == (status, str(attempts))
        house.simulator("alpha").faults.clear()


async def test_a_route_has_limits_of_its_own() -> None:
    routes = [
        {
            "name": "quick",
            "match": {"task": "reasoning"},
            "to": [{"capability": "general"}],
            "timeouts": {"first_token": 0.1, "loading": 0.1},
        }
    ]
    async with House({"alpha": Behaviour(first_token=0.3)}, {"routes": routes}) as house:
        quick = await house.chat(model="auto:reasoning", stream=True)
        assert (quick.status, quick.json["error"]["code"]) == (504, "first_token_timeout")
        assert (await house.chat(stream=True)).status == 200


async def test_a_mistake_of_the_client_is_told_once_and_tried_nowhere_else() -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("status", times=None, path="/v1", status=400, text="does not support tools")
        reply = await house.chat()
        assert (reply.status, reply.headers["x-gateway-attempts"]) == (400, "1")
        assert "does not support tools" in reply.json["error"]["message"]
        assert reply.headers["x-should-retry"] == "false"
        assert all(one.breaker.state_at(0) == "closed" for one in house.engine.pool.instances.values())


async def test_a_model_that_vanished_from_an_instance_is_asked_of_the_other_and_forgotten() -> None:
    async with two() as house:
        alpha = house.simulator("alpha")
        await alpha.until(lambda: len([one for one in alpha.requests if one.path == "/api/ps"]) == 2)
        alpha.behaviour = Behaviour(models=())
        await served_by_the_other(house, stream=False)
        await house.until(lambda: not house.engine.catalog.has("alpha", MODEL))


async def test_an_attempt_after_the_first_is_visible_in_metrics() -> None:
    async with two() as house:
        house.simulator("alpha").faults.arm("reset", times=None, path="/v1")
        await served_by_the_other(house, stream=True)
        labels = {"route": "alpha-first", "reason": "upstream_reset", "result": "tried"}
        assert await house.metric("gateway_upstream_retries_total", **labels) >= 1
        assert await house.metric("gateway_upstream_errors_total", instance="alpha", reason="upstream_reset") >= 1


async def test_no_more_is_tried_again_than_the_budget_allows() -> None:
    async with two(retry={"reserve": 2, "budget": 0, "backoff": 0}, breaker={"failures": 1000}) as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("status", times=None, path="/v1", status=500, text="boom")
        for _ in range(10):
            await house.chat()
        seen = sum(
            len([one for one in s.requests if one.path.startswith("/v1/chat")]) for s in house.simulators.values()
        )
        assert seen == 10 + 2


async def test_an_instance_that_keeps_failing_is_left_out_and_tried_again_by_one_call() -> None:
    async with two(breaker={"failures": 2, "cooldown": 0.2}) as house:
        alpha = house.engine.pool.instances["alpha"]
        now = house.engine._loop.time
        house.simulator("alpha").faults.arm("status", times=None, path="/v1", status=500, text="boom")
        while alpha.state(now()) != "open":
            assert (await house.chat()).status == 200
        house.simulator("alpha").faults.clear()
        await house.until(lambda: alpha.state(now()) == "half_open")
        while alpha.state(now()) != "healthy":
            assert (await house.chat()).status == 200
        assert await house.metric("gateway_upstream_breaker_transitions_total", instance="alpha", to="open") == 1


async def test_a_stale_connection_is_replaced_without_counting_as_an_attempt() -> None:
    async with House({"alpha": Behaviour()}) as house:
        alpha = house.simulator("alpha")
        for _ in range(5):
            alpha.faults.arm("close_idle", path="/v1")
            reply = await house.chat()
            assert (reply.status, reply.headers["x-gateway-attempts"]) == (200, "1")


async def test_the_fallback_of_a_route_serves_when_the_first_target_is_not_healthy_and_says_so() -> None:
    routes = [
        {"name": "code", "match": {"task": "code_generation"}, "to": [{"instance": "alpha"}, {"instance": "beta"}]}
    ]
    async with two(routes=routes) as house:
        house.simulator("alpha").faults.arm("refuse", times=None)
        reply = await house.post("/v1/chat/completions", ask("hi", model="auto:code_generation"))
        assert (reply.status, reply.instance, reply.headers["x-gateway-route"]) == (200, "beta", "code")
        house.simulator("alpha").faults.clear()
