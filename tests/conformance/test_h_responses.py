"""H. POST /v1/responses: statements 79 to 86 of clients.md §9."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import zstandard

from tests.conformance.asking import Event, comments, each_generation, events, one, understood
from tests.house import MODEL, House, Reply, request

RESPONSES = "/v1/responses"
CODEX = {"originator": "codex_exec", "user-agent": "codex_exec/0.169.0 (Linux; x86_64)"}


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": text, "stream": True, **more}


def told(reply: Reply) -> list[Event]:
    """The events of a stream, each named as its `type` says."""
    assert reply.status == 200, reply.body
    found = events(reply.body)
    assert all(event.name in ("", event.data["type"]) for event in found)
    return found


def types(found: list[Event]) -> list[str]:
    return [event.data["type"] for event in found]


def text(found: list[Event]) -> str:
    return "".join(event.data["delta"] for event in found if event.data["type"] == "response.output_text.delta").strip()


# What `codex exec "say hi"` was recorded to send (clients.md §3 CDX), its instructions and tools cut short.
RECORDED: dict[str, Any] = {
    "model": MODEL,
    "instructions": "You are a coding agent running in a terminal.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "say: hi from codex"}]},
    ],
    "tools": [
        {
            "type": "function",
            "name": "exec_command",
            "description": "Runs a command.",
            "strict": False,
            "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]},
        }
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": None,
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199-thread",
    "client_metadata": {"x-codex-installation-id": "0199"},
}
IDS = {"session-id": "0199", "thread-id": "0199", "x-client-request-id": "0199"}
SESSION = {**CODEX, **IDS, "accept": "text/event-stream"}


async def look_around(house: House) -> None:
    """`--oss`: is it there, is it new enough, does it have the model? No credentials are ever sent."""
    assert (await house.get("/v1/models")).status == 200
    version = (await house.get("/api/version")).json["version"]
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)
    assert MODEL in [model["name"] for model in (await house.get("/api/tags")).json["models"]]


async def knock_by_websocket(house: House) -> None:
    """The built-in provider, pointed elsewhere: only a 426 makes it fall back to POST at once."""
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAA")
    async with house.wire() as wire:
        await wire.send(request(RESPONSES, b"", *upgrade, method="GET"))
        assert (await wire.until(b"\r\n\r\n")).split()[1] == b"426"


async def do_nothing(house: House) -> None:
    """A provider of one's own is asked at once."""


WAYS: dict[str, tuple[Callable[[House], Any], dict[str, str]]] = {
    "--oss": (look_around, {}),
    "a provider of one's own": (do_nothing, {"authorization": "Bearer k", "x-task-type": "code_generation"}),
    "openai pointed here": (knock_by_websocket, {"authorization": "Bearer k"}),
}


@each_generation
@pytest.mark.parametrize("way", WAYS)
async def test_079_codex_gets_its_answer_whichever_way_it_was_pointed_here(version: str, way: str) -> None:
    """The requests it was recorded to send, read as it reads them; the real one is in tests/clients."""
    first, headers = WAYS[way]
    async with one(version=version) as house:
        await first(house)
        found = told(await house.post(RESPONSES, RECORDED, **SESSION, **headers))
        (item,) = [event.data["item"] for event in found if event.data["type"] == "response.output_item.done"]
        assert "".join(part["text"] for part in item["content"]).strip() == "hi from codex"
        assert types(found)[-1] == "response.completed"


@each_generation
async def test_080_events_come_in_order_and_are_numbered(version: str) -> None:
    async with one(version=version) as house:
        found = told(await house.post(RESPONSES, asked("say: one two")))
        kinds = types(found)
        assert [event.name for event in found] == kinds
        assert (kinds[0], kinds[-1], text(found)) == ("response.created", "response.completed", "one two")
        assert kinds.index("response.output_text.delta") < kinds.index("response.output_item.done") < len(kinds) - 1
        numbers = [event.data["sequence_number"] for event in found]
        assert numbers == sorted(set(numbers))
        assert b"[DONE]" not in json.dumps(kinds).encode()


@each_generation
@pytest.mark.parametrize("stream", [False, True])
async def test_081_tokens_are_counted_details_included(version: str, stream: bool) -> None:
    async with one(version=version) as house:
        reply = await house.post(RESPONSES, asked("say: one two", stream=stream))
        usage = (told(reply)[-1].data["response"] if stream else reply.json)["usage"]
        details = usage["input_tokens_details"]["cached_tokens"], usage["output_tokens_details"]["reasoning_tokens"]
        counts = [*details, *(usage[f"{kind}_tokens"] for kind in ("input", "output", "total"))]
        assert [type(count) for count in counts] == [int] * 5
        assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]


PACKED = {"zstd": zstandard.ZstdCompressor().compress, "gzip": gzip.compress}


@pytest.mark.parametrize("encoding", PACKED)
async def test_082_a_packed_body_is_unpacked(encoding: str) -> None:
    async with one() as house:
        body = PACKED[encoding](json.dumps(RECORDED).encode())
        assert text(told(await house.post(RESPONSES, body, content_encoding=encoding))) == "hi from codex"
        assert understood(house)["model"] == MODEL


@pytest.mark.parametrize("encoding", PACKED)
async def test_082_a_body_too_large_once_unpacked_is_413(encoding: str) -> None:
    async with one({"server": {"max_body": 10_000}}) as house:
        reply = await house.post(RESPONSES, PACKED[encoding](b" " * 10_000_000), content_encoding=encoding)
        assert (reply.status, reply.json["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(("encoding", "status"), [("br", 415), ("compress", 415), ("zstd", 400), ("gzip", 400)])
async def test_082_a_body_that_cannot_be_unpacked_says_so(encoding: str, status: int) -> None:
    async with one() as house:
        reply = await house.post(RESPONSES, b"neither of these", content_encoding=encoding)
        assert (reply.status, reply.json["error"]["type"]) == (status, "invalid_request_error")


@pytest.mark.parametrize("field", [{"previous_response_id": "resp_1"}, {"conversation": {"id": "conv_1"}}])
async def test_083_a_stored_past_is_a_clear_400(field: dict[str, Any]) -> None:
    async with one() as house:
        reply = await house.post(RESPONSES, asked("hi", **field))
        assert (reply.status, reply.json["error"]["param"]) == (400, *field)


@pytest.mark.parametrize("field", [{"store": True}, {"previous_response_id": None, "conversation": None}])
async def test_083_a_wish_to_store_is_no_error(field: dict[str, Any]) -> None:
    async with one() as house:
        assert types(told(await house.post(RESPONSES, asked("hi", **field))))[-1] == "response.completed"


KEPT = {"stream": {"hold": 0.02, "keep_alive": 0.03}}


@each_generation
@pytest.mark.parametrize("headers", [{}, CODEX], ids=["anybody", "codex"])
async def test_084_a_silent_start_is_filled_with_comments(version: str, headers: dict[str, str]) -> None:
    """Codex bears 300 s without an event, and 200 s were asked for; events of no known type fail other clients."""
    async with one(KEPT, version=version, first_token=0.3) as house:
        reply = await house.post(RESPONSES, asked("say: one two"), **headers)
        found = told(reply)
        assert (types(found)[0], text(found)) == ("response.created", "one two")
        assert len(comments(reply.body)) > 2
        assert all(not line.startswith(": ping") for line in comments(reply.body))


async def test_084_nobody_but_codex_is_sent_an_event_to_keep_alive() -> None:
    async with one(KEPT, per_second=8.0) as house:
        reply = await house.post(RESPONSES, asked("say: one two three"))
        assert comments(reply.body)
        assert all(kind.startswith("response.") for kind in types(told(reply)))


async def test_084_codex_is_sent_events_once_the_answer_has_begun() -> None:
    """Comments do not reset its limit of 300 s between events; an event of unknown type does (clients.md §3)."""
    async with one(KEPT, per_second=8.0) as house:
        found = told(await house.post(RESPONSES, asked("say: one two three"), **CODEX))
        assert types(found)[0] == "response.created"
        assert "keepalive" in types(found)
        assert (text(found), types(found)[-1]) == ("one two three", "response.completed")


@each_generation
@pytest.mark.parametrize("kind", ["cut", "reset", "error_in_band", "swallowed_error"])
async def test_085_a_failure_in_the_stream_is_response_failed(version: str, kind: str) -> None:
    async with one(version=version) as house:
        house.simulator("alpha").faults.arm(kind, path="/v1", after=3)
        found = told(await house.post(RESPONSES, asked("say: one two three four five")))
        assert types(found)[-1] == "response.failed"
        assert "response.completed" not in types(found)
        error = found[-1].data["response"]["error"]
        assert error["code"]
        assert error["message"]


async def test_085_who_may_try_again_is_told_when() -> None:
    config = {"stream": {"hold": 0.01, "keep_alive": 1}, "timeouts": {"line": 0.2}}
    async with one(config, {"max_concurrent": 1}) as house:
        house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
        async with house.asking(asked("x"), RESPONSES) as holder:
            await holder.until(b"data: ")
            last = told(await house.post(RESPONSES, asked("hi"), **CODEX))[-1].data
            assert last["type"] == "response.failed"
            error = last["response"]["error"]
            assert error["code"] == "rate_limit_exceeded"
            assert re.search(r"Please try again in \d+(\.\d+)?s", error["message"])
            holder.leave()


STORED = [
    ("GET", "/v1/responses/resp_1"),
    ("DELETE", "/v1/responses/resp_1"),
    ("POST", "/v1/responses/resp_1/cancel"),
    ("GET", "/v1/responses/resp_1/input_items"),
    ("POST", "/v1/responses/compact"),
    ("POST", "/v1/responses/input_tokens"),
]


@pytest.mark.parametrize(("method", "path"), STORED)
async def test_086_what_only_a_store_could_answer_is_a_404_object(method: str, path: str) -> None:
    async with one() as house:
        reply = await house.get(path, method)
        assert reply.status == 404
        assert set(reply.json["error"]) == {"message", "type", "param", "code"}
