"""What happens when an instance fails before the client has heard anything, beyond the rows in faults/."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.house import ALPHA_FIRST, House, ask


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
        ("out_of_memory", {}),
        ("busy", {}),
        ("forbidden", {}),
        ("redirect", {"text": "http://127.0.0.1:1/"}),
        ("swallowed_error", {}),
    ],
)
async def test_the_call_moves_on_when_an_instance_fails_before_it_has_spoken(
    kind: str, details: dict[str, Any], stream: bool
) -> None:
    async with two() as house:
        house.simulator("alpha").faults.arm(kind, times=None, path="/v1", **details)
        await served_by_the_other(house, stream)
        house.simulator("alpha").faults.clear()


async def test_the_call_moves_on_when_an_instance_does_not_speak_in_time() -> None:
    async with two(timeouts={"first_token": 0.3, "loading": 0.3}) as house:
        house.simulator("alpha").faults.arm("hang_before_first_token", times=None, path="/v1")
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


async def test_the_fallback_of_a_route_serves_when_the_first_target_is_not_healthy_and_says_so() -> None:
    routes = [
        {"name": "code", "match": {"task": "code_generation"}, "to": [{"instance": "alpha"}, {"instance": "beta"}]}
    ]
    async with two(routes=routes) as house:
        house.simulator("alpha").faults.arm("refuse", times=None)
        reply = await house.post("/v1/chat/completions", ask("hi", model="auto:code_generation"))
        assert (reply.status, reply.instance, reply.headers["x-gateway-route"]) == (200, "beta", "code")
        house.simulator("alpha").faults.clear()
