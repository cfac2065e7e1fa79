"""An instance fails after the client has heard something: there is no second attempt, and no clean end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.house import MODEL, House, Reply, ask

SIX = "say: one two three four five six"


def two(**config: Any) -> House:
    return House({"alpha": Behaviour(), "beta": Behaviour()}, config)


async def broken(house: House, kind: str, **details: Any) -> Reply:
    for simulator in house.simulators.values():
        simulator.requests.clear()
        simulator.faults.arm(kind, path="/v1", **details)
    reply = await house.chat(SIX, stream=True)
    for simulator in house.simulators.values():
        simulator.faults.clear()
    assert reply.status == 200
    assert "[DONE]" not in reply.body.decode()
    generated = [len([one for one in s.requests if one.method == "POST"]) for s in house.simulators.values()]
    assert sum(generated) == 1, "a second attempt was made"
    return reply


@pytest.mark.parametrize(
    ("kind", "details"),
    [
        ("cut", {}),
        ("reset", {}),
        ("error_in_band", {"text": "out of memory"}),
        ("swallowed_error", {}),
        ("bad_frame", {}),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_in_the_dialects_words(
    kind: str, details: dict[str, Any]
) -> None:
    async with two() as house:
        reply = await broken(house, kind, after=3, **details)
        error = json.loads(reply.events[-1])["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] in ("stream_interrupted", "upstream_error", "bad_upstream_response")
        if "text" in details:
            assert details["text"] in error["message"]
        await house.quiet()
        assert house.last_line()["reason"] in ("stream_broken", "upstream_reset", "bad_answer")


async def test_what_came_before_the_break_is_passed_on() -> None:
    async with two() as house:
        whole = await house.chat(SIX, stream=True)
        reply = await broken(house, "error_in_band", after=4)
        said = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in reply.events[:-1])
        assert said
        assert whole.text.startswith(said)


async def test_silence_in_the_middle_is_ended_by_the_idle_limit() -> None:
    async with two(timeouts={"idle": 0.2}) as house:
        reply = await broken(house, "hang_mid_stream", after=3)
        assert json.loads(reply.events[-1])["error"]["code"] == "idle_timeout"


async def test_a_call_that_outlasts_its_whole_limit_is_ended_in_band() -> None:
    async with House({"alpha": Behaviour(per_second=20)}, {"timeouts": {"total": 0.4}}) as house:
        reply = await house.post("/v1/chat/completions", ask("x", stream=True, max_tokens=1000))
        assert json.loads(reply.events[-1])["error"]["code"] == "timeout"
        assert "[DONE]" not in reply.body.decode()


async def test_a_native_stream_that_breaks_ends_with_an_error_line() -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("cut", path="/api/chat", after=2)
        reply = await house.post("/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": SIX}]})
        last = json.loads(reply.body.splitlines()[-1])
        assert set(last) == {"error"}
        assert isinstance(last["error"], str)


async def test_an_interrupted_stream_is_counted_as_one() -> None:
    async with two() as house:
        await broken(house, "cut", after=3)
        await house.quiet()
        labels = {"route": "by-model", "reason": "stream_broken"}
        lost = {"route": "by-model", "reason": "upstream_reset"}
        name = "gateway_stream_interruptions_total"
        assert await house.metric(name, **labels) + await house.metric(name, **lost) == 1


async def test_a_stream_whose_end_marker_came_is_whole_whatever_comes_after() -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("extra_frames", path="/v1")
        reply = await house.chat(SIX, stream=True)
        assert reply.events.count("[DONE]") == 1
        assert reply.events[-1] == "[DONE]"
        assert reply.text.strip() == SIX.removeprefix("say: ")


@pytest.mark.parametrize("kind", ["extra_bytes", "extra_frames"])
async def test_surplus_bytes_never_reach_the_next_call(kind: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        for stream in (True, False):
            house.simulator("alpha").faults.arm(kind, path="/v1")
            await house.chat("say: first", stream=stream)
            assert (await house.chat("say: second", stream=stream)).text.strip() == "second"


async def test_an_answer_dripped_byte_by_byte_is_the_same_answer() -> None:
    async with House({"alpha": Behaviour()}) as house:
        house.simulator("alpha").faults.arm("slow", path="/v1", seconds=0)
        reply = await house.chat("say: naïve ☃ \u2028 text", stream=True)
        assert reply.text.strip() == "naïve ☃ \u2028 text"
        assert reply.events[-1] == "[DONE]"
