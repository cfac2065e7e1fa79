"""The simulator in its other dialects: Ollama's own events in Ollama's order, and the faults it has there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.simulator import Behaviour, Simulator
from tests.forms import CONTENT_TYPE, form

MODEL = "llama3.1:8b"
RESPONSES, MESSAGES, AUDIO = "/v1/responses", "/v1/messages", "/v1/audio/transcriptions"
TOOLS = [{"type": "function", "name": "look"}]


@pytest.fixture
async def ollama() -> AsyncIterator[Simulator]:
    async with Simulator(Behaviour()) as simulator:
        yield simulator


@pytest.fixture
async def client(ollama: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=ollama.url, timeout=5) as one:
        yield one


def body(path: str, prompt: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    kept: dict[str, Any] = {"input": messages} if path == RESPONSES else {"messages": messages, "max_tokens": 1000}
    return {"model": MODEL, "stream": True, **kept, **more}


async def streamed(client: httpx.AsyncClient, path: str, prompt: str, **more: Any) -> list[dict[str, Any]]:
    reply = await client.post(path, json=body(path, prompt, **more))
    assert reply.headers["content-type"] == "text/event-stream"
    events = []
    for frame in reply.text.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


async def test_responses_come_in_ollamas_order(client: httpx.AsyncClient) -> None:
    events = await streamed(client, RESPONSES, "think: hm\nsay: a b")
    assert kinds(events) == [
        "created", "in_progress",
        "output_item.added", "reasoning_summary_text.delta", "reasoning_summary_text.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message"]
    assert events[-1]["response"]["usage"]["output_tokens"] == 3


async def test_responses_call_tools(client: httpx.AsyncClient) -> None:
    events = await streamed(client, RESPONSES, 'call: look {"at": 1}', tools=TOOLS)
    assert kinds(events)[2:-1] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"
    ]  # fmt: skip
    assert events[-2]["item"]["arguments"] == '{"at":1}'


async def test_messages_come_in_anthropics_order(client: httpx.AsyncClient) -> None:
    events = await streamed(client, MESSAGES, "think: hm\nsay: a b")
    assert kinds(events) == [
        "message_start",
        "content_block_start", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert [event["index"] for event in events[1:-2]] == [0, 0, 0, 1, 1, 1, 1]
    assert events[-2]["delta"]["stop_reason"] == "end_turn"


async def test_messages_call_tools(client: httpx.AsyncClient) -> None:
    events = await streamed(client, MESSAGES, 'call: look {"at": 1}', tools=TOOLS)
    assert events[1]["content_block"]["name"] == "look"
    assert json.loads(events[2]["delta"]["partial_json"]) == {"at": 1}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_a_stream_and_a_whole_answer_say_the_same(client: httpx.AsyncClient, path: str) -> None:
    whole = (await client.post(path, json=body(path, "say: a b", stream=False))).json()
    events = await streamed(client, path, "say: a b")
    said = "".join(
        event["delta"] if path == RESPONSES else event["delta"].get("text", "")
        for event in events
        if event["type"] in ("response.output_text.delta", "content_block_delta")
    )
    content = whole["output"][0]["content"] if path == RESPONSES else whole["content"]
    assert content[0]["text"] == said == "a b"


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_a_stream_that_dies_just_ends(ollama: Simulator, client: httpx.AsyncClient, path: str) -> None:
    ollama.faults.arm("swallowed_error", after=1)
    events = await streamed(client, path, "say: a b c")
    assert kinds(events)[-1] in ("output_text.delta", "content_block_delta")


async def test_a_quiet_death_leaves_its_mark_on_a_whole_answer(ollama: Simulator, client: httpx.AsyncClient) -> None:
    ollama.faults.arm("swallowed_error", times=2)
    response = (await client.post(RESPONSES, json=body(RESPONSES, "say: a", stream=False))).json()
    assert (response["status"], response["usage"]["output_tokens"]) == ("completed", 0)
    message = (await client.post(MESSAGES, json=body(MESSAGES, "say: a", stream=False))).json()
    assert "stop_reason" not in message


async def test_errors_are_in_the_shape_of_the_family(client: httpx.AsyncClient) -> None:
    openai = await client.post(RESPONSES, json=body(RESPONSES, "x", model="nobody"))
    assert (openai.status_code, openai.json()["error"]["type"]) == (404, "not_found_error")
    anthropic = await client.post(MESSAGES, json=body(MESSAGES, "x", model="nobody"))
    assert (anthropic.status_code, anthropic.json()["type"]) == (404, "error")
    assert anthropic.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize("odd", [None, 3, "", [], [3], {}])
async def test_what_is_no_conversation_is_turned_down(client: httpx.AsyncClient, path: str, odd: object) -> None:
    name = "input" if path == RESPONSES else "messages"
    reply = await client.post(path, json=body(path, "x") | {name: odd, "stream": False})
    assert reply.status_code == (200 if (path, odd) == (RESPONSES, "") else 400)


async def test_a_transcription_is_json_or_text(client: httpx.AsyncClient) -> None:
    for more, heard in (({}, b'{"text":"a b"}'), ({"response_format": "text"}, b"a b")):
        content = form(model=MODEL, prompt="say: a b", **more)
        head = {"content-type": CONTENT_TYPE.replace("boundary=", 'boundary="') + '"'}
        assert (await client.post(AUDIO, content=content, headers=head)).content == heard


async def test_a_form_whose_boundary_is_not_the_one_named_is_turned_down(client: httpx.AsyncClient) -> None:
    head = {"content-type": "multipart/form-data; boundary=other"}
    assert (await client.post(AUDIO, content=form(model=MODEL), headers=head)).status_code == 400
