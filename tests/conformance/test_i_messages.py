"""I. POST /v1/messages: statements 87 to 93 of clients.md §9."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.conformance.asking import Event, each_generation, events, one, received, understood
from tests.house import MODEL, House, Reply

MESSAGES = "/v1/messages"
VERSION = {"anthropic-version": "2023-06-01", "x-api-key": "k"}


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": text}], **more}


def told(reply: Reply) -> list[Event]:
    """The events of a stream but for pings, each named as its `type` says."""
    assert reply.status == 200, reply.body
    found = events(reply.body)
    assert [event.name for event in found] == [event.data["type"] for event in found]
    return [event for event in found if event.name != "ping"]


def text(found: list[Event]) -> str:
    spoken = [event.data["delta"] for event in found if event.name == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in spoken).strip()


NEWER: dict[str, Any] = {
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "thinking": {"type": "adaptive"},
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
    "metadata": {"user_id": "u"},
    "never_heard_of": [None],
}


@each_generation
@pytest.mark.parametrize("field", NEWER)
async def test_087_newer_fields_and_the_beta_query_are_accepted(version: str, field: str) -> None:
    async with one(version=version) as house:
        reply = await house.post(f"{MESSAGES}?beta=true", asked("hi", **{field: NEWER[field]}), **VERSION)
        assert (reply.status, reply.json["type"]) == (200, "message")
        assert understood(house)[field] == NEWER[field]


LOOK = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}
ANSWERS: dict[str, dict[str, Any]] = {
    "text": asked("say: one two", stream=True),
    "thinking": asked("think: hm\nsay: one two", stream=True, thinking={"type": "enabled", "budget_tokens": 1024}),
    "tools": asked('call: look {"at": "it"}', stream=True, tools=[LOOK]),
}
ORDER = r"message_start (content_block_start (content_block_delta )*content_block_stop )+message_delta message_stop"


@each_generation
@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
async def test_088_events_are_named_and_in_order_and_there_is_no_done(version: str, body: dict[str, Any]) -> None:
    async with one(version=version) as house:
        reply = await house.post(MESSAGES, body, **VERSION)
        assert re.fullmatch(ORDER, " ".join(event.name for event in told(reply)))
        assert text(told(reply)) == ("" if "tools" in body else "one two")
        assert b"[DONE]" not in reply.body


def error(reply: Reply) -> tuple[int, str]:
    """Status and type of an error in Anthropic's shape."""
    assert (reply.json["type"], set(reply.json)) == ("error", {"type", "error", "request_id"})
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    assert set(reply.json["error"]) == {"type", "message"}
    return reply.status, reply.json["error"]["type"]


@pytest.mark.parametrize("stream", [False, True])
async def test_089_errors_have_anthropics_shape_and_types(stream: bool) -> None:
    async with one() as house:
        unknown = await house.post(MESSAGES, asked("hi", stream=stream) | {"model": "nobody"})
        assert error(unknown) == (404, "not_found_error")
        assert error(await house.post(MESSAGES, b"not json")) == (400, "invalid_request_error")
        assert error(await house.get(MESSAGES)) == (405, "invalid_request_error")


async def test_089_a_full_line_is_a_rate_limit_error() -> None:
    async with one({"line": {"max_calls": 0}}, {"max_concurrent": 1}) as house:
        house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
        async with house.asking(asked("x", stream=True), MESSAGES) as holder:
            await holder.until(b"data: ")
            assert error(await house.post(MESSAGES, asked("hi"))) == (429, "rate_limit_error")
            holder.leave()


async def test_089_nobody_to_ask_is_an_overloaded_error() -> None:
    async with one(alpha={"drain": True}) as house:
        assert error(await house.post(MESSAGES, asked("hi"))) == (503, "overloaded_error")


@each_generation
async def test_090_pings_keep_alive_and_may_come_first(version: str) -> None:
    kept = {"stream": {"hold": 0.02, "keep_alive": 0.03}}
    async with one(kept, version=version, first_token=0.2, per_second=10.0) as house:
        reply = await house.post(MESSAGES, asked("say: one two", stream=True))
        assert events(reply.body)[0] == Event("ping", {"type": "ping"})
        assert re.fullmatch(ORDER, " ".join(event.name for event in told(reply)))
        assert text(told(reply)) == "one two"


@each_generation
@pytest.mark.parametrize("kind", ["cut", "reset", "error_in_band", "swallowed_error"])
async def test_090_a_failure_in_the_stream_is_an_error_event_and_no_end(version: str, kind: str) -> None:
    async with one(version=version) as house:
        house.simulator("alpha").faults.arm(kind, path="/v1", after=3)
        *found, last = told(await house.post(MESSAGES, asked("say: one two three four five", stream=True)))
        assert (last.name, set(last.data["error"])) == ("error", {"type", "message"})
        assert "message_stop" not in [event.name for event in found]


async def test_091_tokens_can_be_counted_or_at_least_estimated() -> None:
    async with one() as house:
        short = await house.post(f"{MESSAGES}/count_tokens?beta=true", asked("hi"), **VERSION)
        long = await house.post(f"{MESSAGES}/count_tokens", asked("hi there " * 100, **NEWER), **VERSION)
        assert (short.status, long.status) == (200, 200)
        assert 0 < short.json["input_tokens"] < long.json["input_tokens"]
        assert error(await house.post(f"{MESSAGES}/count_tokens", b"{")) == (400, "invalid_request_error")


# What `claude -p "say hi"` was recorded to send (clients.md §3 CC), its 70 kB of tools and system made up.
RECORDED = asked("", stream=True, **NEWER) | {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "say: hi from claude"}]}],
    "system": [{"type": "text", "text": "You are Claude Code. " * 1000, "cache_control": {"type": "ephemeral"}}],
    "tools": [LOOK | {"name": f"Tool{number}", "description": "Does things. " * 200} for number in range(20)],
    "max_tokens": 32_000,
}
SENT = {
    "authorization": "Bearer k",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "x-claude-code-session-id": "0199",
    "user-agent": "claude-cli/2.1.197 (external, sdk-cli)",
}


BASES = ["", "/", "/v1", "/v1/", "/t/code_generation", "/k/some-key", "/k/some-key/t/planning"]


@each_generation
@pytest.mark.parametrize("base", BASES)
async def test_092_claude_code_gets_its_answer_whatever_its_base_url(version: str, base: str) -> None:
    """The requests it was recorded to send: a HEAD of the base path, and one POST; the real one is in tests/clients."""
    async with one(version=version) as house:
        assert (await house.get(base or "/", "HEAD")).status == 200
        reply = await house.post(f"{base}{MESSAGES}?beta=true", RECORDED, **SENT)
        assert text(told(reply)) == "hi from claude"
        assert received(house).path == MESSAGES


@pytest.mark.parametrize("asked_for", ["claude-haiku-4-5-20251001", "claude-sonnet-5"])
async def test_093_a_model_of_anthropics_can_stand_for_one_of_ours(asked_for: str) -> None:
    async with aliased() as house:
        reply = await house.post(MESSAGES, asked("hi") | {"model": asked_for})
        assert (reply.status, reply.headers["x-gateway-model"]) == (200, MODEL)
        assert understood(house)["model"] == MODEL
        assert error(await house.post(MESSAGES, asked("hi") | {"model": "gpt-5"})) == (404, "not_found_error")


def aliased() -> House:
    return one({"aliases": {"claude-haiku-*": MODEL, "claude-*": MODEL}})
