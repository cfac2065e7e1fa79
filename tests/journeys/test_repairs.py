"""Whatever version an instance has, an OpenAI client gets what its SDK expects, and may ask as it likes."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from tests.house import MODEL, House, Reply, ask

VERSIONS = pytest.mark.parametrize("version", ["0.11.0", "0.20.0", "0.32.15"])
OVERFLOW = json.dumps({"error": {"code": 400, "message": "request (9000 tokens) exceeds the available context size"}})
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALLS = 'call: f {"city": "Zürich"}\ncall: g'


def one(version: str = "0.32.15", **config: Any) -> House:
    can = ("completion", "tools", "thinking", "vision", "embedding")
    return House({"alpha": Behaviour(version=version, models=(SimulatedModel(name=MODEL, capabilities=can),))}, config)


def chunks(reply: Reply) -> list[Any]:
    assert (reply.status, reply.events[-1]) == (200, "[DONE]")
    return [json.loads(event) for event in reply.events[:-1]]


def upstream(house: House) -> Any:
    """The body the instance got last."""
    return json.loads([seen for seen in house.simulator("alpha").requests if seen.method == "POST"][-1].body)


@VERSIONS
async def test_a_stream_says_its_role_once_and_has_one_identity(version: str) -> None:
    async with one(version) as house:
        reply = await house.chat("think: so so\nsay: well met ☃", stream=True, X_Request_Id="r.1")
        found = chunks(reply)
        assert [chunk["choices"][0]["delta"].get("role", "") for chunk in found] == ["assistant", *[""] * 5]
        assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in found} == {
            ("chatcmpl-r.1", "chat.completion.chunk", MODEL)
        }
        assert len({chunk["created"] for chunk in found}) == 1
        assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [*[None] * 5, "stop"]
        assert not any("error" in chunk or "usage" in chunk for chunk in found)
        assert reply.text == "well met ☃"


@VERSIONS
@pytest.mark.parametrize("twice", [False, True])
async def test_reasoning_has_one_name_or_two_as_configured(version: str, twice: bool) -> None:
    async with one(version, openai={"reasoning_content": twice}) as house:
        prompt = "think: so so\nsay: well met"
        whole = (await house.chat(prompt)).json["choices"][0]["message"]
        found = [chunk["choices"][0]["delta"] for chunk in chunks(await house.chat(prompt, stream=True))]
        for name, told in (("reasoning", True), ("reasoning_content", twice)):
            text = "".join(delta.get(name, "") for delta in found)
            assert (text, whole.get(name, "")) == (("so so", "so so") if told else ("", ""))
        assert not any(delta.get("reasoning") and delta.get("content") for delta in found)


@VERSIONS
async def test_tool_calls_are_told_apart_and_end_the_answer(version: str) -> None:
    async with one(version) as house:
        body = ask(CALLS, tools=TOOLS)
        whole = (await house.post("/v1/chat/completions", body)).json["choices"][0]
        found = chunks(await house.post("/v1/chat/completions", {**body, "stream": True}))
        streamed = [call for chunk in found for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
        for calls in (whole["message"]["tool_calls"], streamed):
            assert [call["index"] for call in calls] == [0, 1]
            assert len({call["id"] for call in calls}) == 2
            assert [call["function"]["name"] for call in calls] == ["f", "g"]
            assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "Zürich"}, {}]
        assert whole["finish_reason"] == found[-1]["choices"][0]["finish_reason"] == "tool_calls"


@VERSIONS
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_usage_comes_last_and_only_to_who_asked(version: str, path: str) -> None:
    async with one(version) as house:
        body = {**ask("say: a b c", stream=True), "prompt": "say: a b c"}
        hidden = chunks(await house.post(path, body))
        shown = chunks(await house.post(path, {**body, "stream_options": {"include_usage": True}}))
        assert not any("usage" in chunk for chunk in hidden)
        assert shown[-1]["choices"] == []
        assert shown[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        assert all(chunk["choices"] for chunk in shown[:-1])
        assert (await house.post(path, {**body, "stream": False})).json["usage"]["total_tokens"] == 7


async def test_a_prompt_that_does_not_fit_is_the_clients_to_hear_of_whole_and_streamed() -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        for stream in (False, True):
            alpha.faults.arm("status", path="/v1/chat", status=400, text=OVERFLOW)
            reply = await house.chat(stream=stream)
            assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
            assert reply.json["error"]["message"] == "request (9000 tokens) exceeds the available context size"


async def test_the_same_said_in_band_before_the_first_word_is_no_second_attempt_and_no_fault_of_the_instance() -> None:
    async with House({"alpha": Behaviour(), "beta": Behaviour()}) as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("error_in_band", path="/v1/chat", text=OVERFLOW)
        reply = await house.chat(stream=True)
        assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
        assert (reply.headers["x-gateway-attempts"], reply.headers["x-should-retry"]) == ("1", "false")


async def test_no_field_the_gateway_does_not_know_is_refused_and_all_are_passed_on() -> None:
    more: dict[str, Any] = {
        "metadata": {"a": "b"},
        "store": True,
        "user": "me",
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "verbosity": "low",
        "logit_bias": {"1": -1},
        "stream_options": {"include_usage": False},
        "options": {"num_ctx": 4096},
    }
    async with one() as house:
        assert (await house.post("/v1/chat/completions", ask("hi", **more))).status == 200
        assert more.items() <= upstream(house).items()


async def test_what_ollama_would_refuse_or_ignore_in_a_conversation_is_put_right() -> None:
    async with one() as house:
        messages = [
            {"role": "developer", "content": "be brief"},
            {"role": "assistant", "content": None},
            {"role": "assistant"},
            {"role": "user", "content": "tell a long story"},
        ]
        body = {"model": MODEL, "messages": messages, "max_completion_tokens": 3}
        reply = await house.post("/v1/chat/completions", body)
        assert (reply.status, reply.json["usage"]["completion_tokens"]) == (200, 3)
        assert [message["role"] for message in upstream(house)["messages"]] == [
            "system",
            "assistant",
            "assistant",
            "user",
        ]


async def test_an_answer_names_the_model_as_it_was_asked_for_and_headers_tell_the_rest() -> None:
    async with one() as house:
        for asked, told in ((MODEL.upper(), MODEL.upper()), ("auto", MODEL)):
            reply = await house.chat(model=asked)
            assert (reply.json["model"], reply.headers["x-gateway-model"]) == (told, MODEL)


async def test_an_image_of_20_mb_passes_and_one_to_be_fetched_is_refused() -> None:
    async with one() as house:
        for url, status in (("data:image/png;base64," + "A" * 20 * 2**20, 200), ("https://host/a.png", 400)):
            parts = [{"type": "text", "text": "say: seen"}, {"type": "image_url", "image_url": {"url": url}}]
            messages = [{"role": "user", "content": parts}]
            reply = await house.post("/v1/chat/completions", {"model": MODEL, "messages": messages})
            assert reply.status == status
        assert "data: URLs" in reply.json["error"]["message"]


async def test_a_text_is_completed_between_prompt_and_suffix() -> None:
    async with one() as house:
        body = {"model": MODEL, "prompt": "say: well met", "suffix": "!"}
        whole = await house.post("/v1/completions", body)
        found = chunks(await house.post("/v1/completions", {**body, "stream": True}))
        assert upstream(house)["suffix"] == "!"
        assert whole.json["choices"][0]["text"] == "".join(chunk["choices"][0]["text"] for chunk in found) == "well met"
        assert found[-1]["choices"][0]["finish_reason"] == "stop"
        assert len({chunk["id"] for chunk in found}) == 1
        for prompt in (["a", "b"], [1, 2]):
            refused = await house.post("/v1/completions", {**body, "prompt": prompt})
            assert (refused.status, refused.json["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("path", ["/v1/fim/completions", "/v1/engines/codex/completions"])
async def test_paths_of_other_makers_are_not_there_in_the_words_of_the_family(path: str) -> None:
    async with one() as house:
        reply = await house.post(path, {"model": MODEL, "prompt": "a"})
        assert (reply.status, reply.json["error"]["code"]) == (404, "unknown_path")


async def test_embeddings_come_in_the_form_that_was_asked_for() -> None:
    async with one() as house:
        texts = {"model": MODEL, "input": ["one", "two"], "dimensions": 4}
        numbers = (await house.post("/v1/embeddings", {**texts, "encoding_format": "float"})).json
        packed = (await house.post("/v1/embeddings", {**texts, "encoding_format": "base64"})).json
        assert upstream(house)["dimensions"] == 4
        assert [entry["index"] for entry in packed["data"]] == [0, 1]
        unpacked = [list(struct.unpack("<4f", base64.b64decode(entry["embedding"]))) for entry in packed["data"]]
        assert unpacked == [entry["embedding"] for entry in numbers["data"]]
        assert packed["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


async def test_an_instance_that_cannot_pack_embeddings_gives_numbers_which_sdks_take_too() -> None:
    async with one("0.12.6") as house:
        reply = await house.post("/v1/embeddings", {"model": MODEL, "input": "one", "encoding_format": "base64"})
        assert len(reply.json["data"][0]["embedding"]) == 8


async def test_embeddings_of_nothing_or_of_tokens_are_refused_with_a_hint() -> None:
    async with one() as house:
        for given in ([], [1, 2], [[1, 2]]):
            reply = await house.post("/v1/embeddings", {"model": MODEL, "input": given})
            assert (reply.status, reply.json["error"]["param"]) == (400, "input")
        assert "check_embedding_ctx_length=False" in reply.json["error"]["message"]


async def test_ollamas_own_embeddings_take_their_options_along() -> None:
    async with one() as house:
        more = {"truncate": False, "dimensions": 4, "options": {"num_ctx": 64}}
        embedded = await house.post("/api/embed", {"model": MODEL, "input": ["one", "two"], **more})
        assert [len(vector) for vector in embedded.json["embeddings"]] == [4, 4]
        assert more.items() <= upstream(house).items()
        old = await house.post("/api/embeddings", {"model": MODEL, "prompt": "one"})
        assert len(old.json["embedding"]) == 8
