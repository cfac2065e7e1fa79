"""E. POST /v1/chat/completions: statements 42 to 58 and 66 to 69 of clients.md §9; see also `test_e_silence`."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.call import model_key
from gateway.simulator import Behaviour
from tests.conformance.asking import (
    ABLE,
    DONE,
    chunks,
    deltas,
    each_generation,
    events,
    finish_reasons,
    foreign,
    one,
    saying,
    tool,
    understood,
)
from tests.house import MODEL, House, ask, request

CHAT = "/v1/chat/completions"

ANSWERS: dict[str, dict[str, Any]] = {
    "text": ask("say: one two three", stream=True),
    "length": ask("x", stream=True, max_tokens=2),
    "reasoning": ask("think: well then\nsay: yes indeed", stream=True, reasoning_effort="high"),
    "tools": ask('call: look {"at": "it"}\ncall: take {"all": true}', stream=True, tools=[tool("look"), tool("take")]),
}
each_answer = pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)


@each_generation
async def test_042_streaming_is_decided_by_the_body_and_not_by_accept(version: str) -> None:
    async with one(version=version) as house:
        for stream, accept in ((True, "application/json"), (False, "text/event-stream")):
            reply = await house.chat("say: hello", stream=stream, Accept=accept)
            assert reply.headers["content-type"].startswith("text/event-stream") is stream
            assert reply.text.strip() == "hello"


@pytest.mark.parametrize(
    "kind", ["", "application/x-www-form-urlencoded", "application/json; charset=utf-8", "text/plain"]
)
async def test_043_a_body_is_json_whatever_its_content_type(kind: str) -> None:
    async with one() as house:
        sent = [f"Content-Type: {kind}"] if kind else []
        for body, status in ((json.dumps(ask("hi")).encode(), b"200"), (b"not json", b"400")):
            async with house.wire() as wire:
                await wire.send(request(CHAT, body, "Connection: close", *sent))
                head, _, said = (await wire.rest()).partition(b"\r\n\r\n")
                assert head.split()[1] == status
                assert status == b"200" or json.loads(said)["error"]["type"] == "invalid_request_error"


@each_generation
@pytest.mark.parametrize("limits", [{"max_completion_tokens": 3}, {"max_completion_tokens": 9, "max_tokens": 3}])
async def test_044_max_completion_tokens_limits_the_answer(version: str, limits: dict[str, int]) -> None:
    async with one(version=version) as house:
        reply = await house.post(CHAT, ask("x") | limits)
        assert reply.json["usage"]["completion_tokens"] == 3
        assert reply.json["choices"][0]["finish_reason"] == "length"


async def test_045_a_developer_reaches_the_model_as_system() -> None:
    async with one() as house:
        told = {"role": "developer", "content": "be brief"}
        assert (await house.post(CHAT, ask("hi") | {"messages": [told, *ask("hi")["messages"]]})).status == 200
        assert understood(house)["messages"][0] == {"role": "system", "content": "be brief"}


@each_generation
@pytest.mark.parametrize("said", [{"content": None}, {}, {"content": None, "tool_calls": []}])
async def test_046_an_assistant_that_said_nothing_is_accepted(version: str, said: dict[str, Any]) -> None:
    async with one(version=version) as house:
        body = ask("hi")
        body["messages"] = [*body["messages"], {"role": "assistant", **said}, *body["messages"]]
        assert (await house.post(CHAT, body)).status == 200
        assert understood(house)["messages"][1]["content"] == ""


UNKNOWN: dict[str, Any] = {
    "metadata": {"a": "b"},
    "store": True,
    "user": "me",
    "service_tier": "auto",
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "verbosity": "low",
    "logit_bias": {"50256": -100},
    "stream_options": {"include_usage": True},
    "options": {"num_ctx": 8192},
    "never_heard_of": [{"a": None}, 1.5, "é"],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", UNKNOWN)
async def test_047_an_unknown_field_is_never_an_error_and_goes_on_unchanged(name: str, stream: bool) -> None:
    async with one() as house:
        reply = await house.post(CHAT, ask("hi", stream=stream, **{name: UNKNOWN[name]}))
        assert reply.status == 200, reply.body
        assert understood(house)[name] == UNKNOWN[name]


async def test_048_options_in_an_openai_body_are_left_to_the_instance() -> None:
    """There is no setting: they are passed on as they came, and Ollama ignores them (ollama.md §3.3)."""
    async with one() as house:
        reply = await house.post(CHAT, ask("x", options={"num_ctx": 4096, "num_predict": 1}))
        assert understood(house)["options"] == {"num_ctx": 4096, "num_predict": 1}
        assert reply.json["usage"]["completion_tokens"] == Behaviour().tokens


@each_generation
async def test_049_a_stream_says_that_it_is_one_and_a_whole_answer_says_its_length(version: str) -> None:
    async with one(version=version) as house:
        streamed, whole = await house.chat(stream=True), await house.chat()
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert "no-cache" in streamed.headers["cache-control"]
        assert streamed.headers["x-accel-buffering"] == "no"
        assert "content-length" not in streamed.headers
        assert whole.headers["content-type"] == "application/json"
        assert int(whole.headers["content-length"]) == len(whole.body)


@each_generation
@each_answer
async def test_050_the_first_delta_has_the_role_and_no_later_one(version: str, body: dict[str, Any]) -> None:
    async with one(version=version) as house:
        first, *later = deltas(await house.post(CHAT, body))
        assert first["role"] == "assistant"
        assert not [delta for delta in later if "role" in delta]


@each_generation
@each_answer
async def test_051_a_stream_has_one_id_one_time_and_one_model(version: str, body: dict[str, Any]) -> None:
    async with one(version=version) as house:
        streams = [chunks(await house.post(CHAT, body)) for _ in range(2)]
        for found in streams:
            assert {(chunk["object"], chunk["model"]) for chunk in found} == {("chat.completion.chunk", MODEL)}
            assert len({(chunk["id"], chunk["created"]) for chunk in found}) == 1
        assert streams[0][0]["id"] != streams[1][0]["id"]


@pytest.mark.parametrize("version", ["0.20.5", "0.24.0", Behaviour().version])
async def test_052_tool_calls_are_counted_from_zero_and_named_once(version: str) -> None:
    """Before 0.20.6 every call of Ollama's had the index 0 (ollama.md §3.2)."""
    async with one(version=version) as house:
        reply = await house.post(CHAT, ANSWERS["tools"])
        calls = [call for delta in deltas(reply) for call in delta.get("tool_calls") or []]
        assert [call["index"] for call in calls] == [0, 1]
        assert [call["function"]["name"] for call in calls] == ["look", "take"]
        assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"at": "it"}, {"all": True}]
        assert {call["type"] for call in calls} == {"function"}
        assert len({call["id"] for call in calls}) == 2
        assert finish_reasons(chunks(reply)) == ["tool_calls"]


@each_generation
@pytest.mark.parametrize("answer", ANSWERS)
async def test_053_every_complete_stream_tells_why_it_ended(version: str, answer: str) -> None:
    async with one(version=version) as house:
        expected = {"length": "length", "tools": "tool_calls"}.get(answer, "stop")
        found = chunks(await house.post(CHAT, ANSWERS[answer]))
        assert finish_reasons(found) == [expected]
        assert found[-1]["choices"][0]["finish_reason"] == expected


async def test_053_an_end_marker_without_a_reason_is_no_complete_stream() -> None:
    said = foreign({"role": "assistant", "content": "so"}) + b"data: [DONE]\n\n"
    async with saying(said, "text/event-stream") as house:
        found = events((await house.chat(stream=True)).body)
        reasons = finish_reasons([event.data for event in found if event.data != DONE and "choices" in event.data])
        assert reasons or found[-1].data != DONE


@each_generation
@each_answer
async def test_054_usage_comes_last_and_only_to_who_asked(version: str, body: dict[str, Any]) -> None:
    async with one(version=version) as house:
        *others, last = chunks(await house.post(CHAT, body | {"stream_options": {"include_usage": True}}))
        assert last["choices"] == []
        counts = [last["usage"][f"{kind}_tokens"] for kind in ("prompt", "completion", "total")]
        assert [type(count) for count in counts] == [int, int, int]
        assert counts[0] + counts[1] == counts[2]
        unasked = chunks(await house.post(CHAT, body))
        assert not [chunk for chunk in others + unasked if chunk.get("usage")]
        assert all(chunk["choices"] for chunk in unasked)


@each_generation
async def test_055_done_is_the_end_and_the_connection_is_free_at_once(version: str) -> None:
    async with one(version=version) as house, house.asking(ask("hi", stream=True)) as wire:
        body = await wire.until(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert body.count(DONE.encode()) == 1
        await wire.send(request(CHAT, json.dumps(ask("say: once more")).encode()))
        await wire.until(b"once more")


@each_generation
@pytest.mark.parametrize("both", [False, True])
async def test_056_reasoning_has_chunks_of_its_own_and_on_request_its_other_name(version: str, both: bool) -> None:
    names = ("reasoning", "reasoning_content") if both else ("reasoning",)
    async with one({"openai": {"reasoning_content": both}}, version=version) as house:
        found = deltas(await house.post(CHAT, ANSWERS["reasoning"]))
        message = (await house.post(CHAT, ANSWERS["reasoning"] | {"stream": False})).json["choices"][0]["message"]
        for name in ("reasoning", "reasoning_content"):
            expected = "well then" if name in names else ""
            assert "".join(delta.get(name) or "" for delta in found).strip() == expected
            assert (message.get(name) or "").strip() == expected
        for delta in found:
            told = [delta[name] for name in names if name in delta]
            assert len(told) in (0, len(names)) or not any(told)
            assert len(set(told)) <= 1
            assert not (any(told) and delta.get("content"))


async def test_056_reasoning_and_content_that_came_in_one_chunk_are_two_for_the_client() -> None:
    mixed = foreign({"role": "assistant", "content": "so", "reasoning": "hm"})
    async with saying(mixed + foreign({}, "stop") + b"data: [DONE]\n\n", "text/event-stream") as house:
        found = deltas(await house.chat(stream=True))
        assert "".join(delta.get("reasoning") or "" for delta in found) == "hm"
        assert "".join(delta.get("content") or "" for delta in found) == "so"
        assert not [delta for delta in found if delta.get("reasoning") and delta.get("content")]


@each_generation
@each_answer
async def test_057_a_good_chunk_has_no_error_not_even_null(version: str, body: dict[str, Any]) -> None:
    async with one(version=version) as house:
        assert not [chunk for chunk in chunks(await house.post(CHAT, body)) if "error" in chunk]


async def test_057_an_error_that_is_null_is_taken_out() -> None:
    said = foreign({"role": "assistant", "content": "so"}, "stop").replace(b'{"id"', b'{"error": null, "id"')
    async with saying(said + b"data: [DONE]\n\n", "text/event-stream") as house:
        (only,) = chunks(await house.chat(stream=True))
        assert "error" not in only
        assert only["choices"][0]["delta"]["content"] == "so"


@each_generation
@each_answer
async def test_058_a_stream_is_data_and_comments_and_nothing_else(version: str, body: dict[str, Any]) -> None:
    async with one({"stream": {"hold": 0.01, "keep_alive": 0.02}}, version=version, first_token=0.1) as house:
        reply = await house.post(CHAT, body)
        said = reply.body.decode().split("\n")
        assert not [line for line in said if line and not line.startswith(("data: ", ": "))]


@each_generation
async def test_066_characters_arrive_whole_however_the_bytes_were_cut(version: str) -> None:
    async with one(version=version) as house:
        house.simulator("alpha").faults.arm("slow", path="/v1", seconds=0)
        assert (
            await house.chat("say: naïve 日本 🦙 \u2028 end", stream=True)
        ).text.strip() == "naïve 日本 🦙 \u2028 end"


@each_generation
async def test_066_an_event_of_a_mebibyte_passes(version: str) -> None:
    async with one(version=version) as house:
        reply = await house.chat("say: " + "é" * 2**19, stream=True)
        assert max(len(line) for line in reply.body.split(b"\n")) > 2**20
        assert reply.text.strip() == "é" * 2**19


@pytest.mark.parametrize("stream", [False, True])
async def test_067_a_model_left_out_is_400_and_an_unknown_one_404(stream: bool) -> None:
    async with one() as house:
        nameless = await house.post(
            CHAT, {key: value for key, value in ask("x", stream=stream).items() if key != "model"}
        )
        unknown = await house.chat(model="nobody:7b", stream=stream)
        assert (nameless.status, nameless.json["error"]["param"]) == (400, "model")
        assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", [MODEL, MODEL.upper(), "auto", "auto:planning"])
async def test_068_who_answered_stands_in_the_headers_and_the_model_in_the_answer(asked: str, stream: bool) -> None:
    """There is no setting: a model that was named is given back as it was spelt, else it is the one chosen."""
    async with House({"alpha": Behaviour(models=(ABLE,))}) as house:
        reply = await house.chat(model=asked, stream=stream)
        named = chunks(reply)[0]["model"] if stream else reply.json["model"]
        assert named == (MODEL if asked.startswith("auto") else asked)
        assert (reply.instance, model_key(reply.headers["x-gateway-model"])) == ("alpha", MODEL)


async def test_069_an_image_of_20_megabytes_passes_unchanged() -> None:
    url = "data:image/png;base64," + base64.b64encode(b"\x89PNG" + bytes(15_000_000)).decode()
    async with one() as house:
        assert (await house.post(CHAT, picture(url))).status == 200
        (_, image) = understood(house)["messages"][0]["content"]
        assert image["image_url"]["url"] == url


@pytest.mark.parametrize("url", ["http://example.invalid/a.png", "HTTPS://example.invalid/a.png"])
async def test_069_an_image_elsewhere_is_400_and_says_what_is_possible(url: str) -> None:
    async with one() as house:
        reply = await house.post(CHAT, picture(url))
        assert reply.status == 400
        assert "data:" in reply.json["error"]["message"]
        assert not [seen for seen in house.simulator("alpha").requests if seen.method == "POST"]


def picture(url: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return ask("") | {"messages": [{"role": "user", "content": parts}]}
