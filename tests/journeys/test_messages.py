"""Claude Code and others that speak Anthropic's Messages: relayed as they are, failing in their own words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.house import MODEL, House, Reply

PATH = "/v1/messages"
SIX = "say: one two three four five six"


def one(**config: Any) -> House:
    return House({"alpha": Behaviour()}, config)


def two(**config: Any) -> House:
    return House({"alpha": Behaviour(), "beta": Behaviour()}, config)


def asked(prompt: str = "say: hello you", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 32_000, "messages": [{"role": "user", "content": prompt}], **more}


def events(reply: Reply) -> list[dict[str, Any]]:
    """The events of a stream, each of which must be named as its data says."""
    found = []
    for frame in reply.body.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def error(reply: Reply) -> dict[str, Any]:
    """The error of a reply, in the family's shape."""
    assert reply.json["type"] == "error"
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    found: dict[str, Any] = reply.json["error"]
    assert set(found) == {"type", "message"}
    return found


async def test_a_stream_keeps_its_events_and_their_order() -> None:
    async with one() as house:
        reply = await house.post(f"{PATH}?beta=true", asked("think: hm\nsay: naïve \u2028", stream=True))
        kinds = [event["type"] for event in events(reply)]
        block = ["content_block_start", "content_block_delta", "content_block_stop"]
        assert kinds[0] == "message_start"
        assert kinds[1:4] == block
        assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert b"[DONE]" not in reply.body
        assert reply.headers["request-id"] == reply.headers["x-request-id"]
        await house.quiet()
        usage = events(reply)[-2]["usage"]
        assert (house.last_line()["in"], house.last_line()["out"]) == (usage["input_tokens"], usage["output_tokens"])


async def test_a_whole_answer_is_one_message() -> None:
    async with one() as house:
        reply = await house.post(PATH, asked())
        assert (reply.json["type"], reply.json["stop_reason"]) == ("message", "end_turn")
        assert reply.json["content"] == [{"type": "text", "text": "hello you"}]
        called = await house.post(PATH, asked('call: look {"at": 1}', tools=[{"name": "look", "input_schema": {}}]))
        assert called.json["stop_reason"] == "tool_use"


async def test_what_claude_code_sends_reaches_the_instance_untouched() -> None:
    async with one() as house:
        body = asked(
            thinking={"type": "adaptive"},
            context_management={"edits": []},
            output_config={"effort": "high"},
            system=[{"type": "text", "text": "You", "cache_control": {"type": "ephemeral"}}],
        )
        reply = await house.post(PATH, body, anthropic_version="2099-01-01", anthropic_beta="x", x_api_key="secret")
        assert reply.status == 200
        seen = house.seen("alpha")
        assert json.loads(seen.body) == body
        assert seen.header("x-api-key") is None


async def test_auto_and_a_task_choose_as_anywhere() -> None:
    async with one() as house:
        for path, model in ((PATH, "auto:reasoning"), (f"/t/reasoning{PATH}", "auto")):
            reply = await house.post(path, asked(model=model))
            assert (reply.status, reply.json["model"]) == (200, MODEL)
            assert house.last_line()["task"] == "reasoning"


@pytest.mark.parametrize(
    ("more", "status", "kind"),
    [
        ({"model": "nobody"}, 404, "not_found_error"),
        ({"model": ""}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"max_tokens": None}, 400, "invalid_request_error"),
    ],
)
async def test_a_refusal_is_in_the_familys_words(more: dict[str, Any], status: int, kind: str) -> None:
    async with one() as house:
        for stream in (True, False):
            reply = await house.post(PATH, asked(**more, stream=stream))
            assert (reply.status, error(reply)["type"]) == (status, kind)


async def test_what_is_overloaded_down_or_elsewhere_is_said_in_the_same_words() -> None:
    async with one(retry={"attempts": 1}) as house:
        house.simulator("alpha").faults.arm("busy", path=PATH)
        assert error(await house.post(PATH, asked()))["type"] == "overloaded_error"
        house.simulator("alpha").faults.arm("out_of_memory", path=PATH)
        assert error(await house.post(PATH, asked()))["type"] == "api_error"
        assert error(await house.get(PATH))["type"] == "invalid_request_error"
        assert error(await house.get(f"{PATH}/batches"))["type"] == "not_found_error"


async def test_before_the_first_content_another_instance_answers() -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("cut", path=PATH)
        reply = await house.post(PATH, asked(stream=True))
        assert [event["type"] for event in events(reply)].count("message_start") == 1
        assert events(reply)[-1]["type"] == "message_stop"


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
async def test_a_stream_that_breaks_ends_with_an_error_event(kind: str, details: dict[str, Any]) -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm(kind, path=PATH, after=3, **details)
        reply = await house.post(PATH, asked(SIX, stream=True))
        *before, last = events(reply)
        assert (last["type"], last["error"]["type"]) == ("error", "api_error")
        assert details.get("text", "") in last["error"]["message"]
        assert "message_stop" not in [event["type"] for event in before]
        await house.quiet()
        assert house.last_line()["reason"] in ("stream_broken", "upstream_reset", "bad_answer")


async def test_a_quiet_death_is_not_a_whole_answer() -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("swallowed_error", path=PATH, times=None)
        reply = await house.post(PATH, asked())
        assert (reply.status, error(reply)["type"]) == (502, "api_error")


async def test_a_silence_is_filled_with_pings_before_the_message_starts() -> None:
    async with House({"alpha": Behaviour(first_token=0.4)}, {"stream": {"hold": 0.05, "keep_alive": 0.05}}) as house:
        reply = await house.post(PATH, asked(stream=True))
        kinds = [event["type"] for event in events(reply)]
        assert kinds[0] == "ping"
        assert kinds[kinds.count("ping")] == "message_start"
        assert kinds[-1] == "message_stop"


# The estimate


async def test_tokens_are_estimated_without_asking_an_instance() -> None:
    async with one() as house:
        reply = await house.post(f"{PATH}/count_tokens?beta=true", asked("x" * 4000))
        assert reply.status == 200
        assert 1000 <= reply.json["input_tokens"] <= 1010
        assert not [seen for seen in house.simulator("alpha").requests if seen.path.startswith("/v1/messages")]


async def test_what_cannot_be_counted_is_refused_in_the_familys_words() -> None:
    async with one() as house:
        for body in (b"", b"{", b"[]", b"{}"):
            reply = await house.post(f"{PATH}/count_tokens", body)
            assert (reply.status, error(reply)["type"]) == (400, "invalid_request_error")
