"""Codex and others that speak OpenAI's Responses, and transcriptions: relayed as they are, and failing as they must."""

from __future__ import annotations

import gzip
import json
from typing import Any

import openai
import pytest
import zstandard

from gateway.simulator import Behaviour, SimulatedModel
from tests.forms import CONTENT_TYPE, form
from tests.house import MODEL, House, Reply

PATH = "/v1/responses"
SIX = "say: one two three four five six"
EAR = SimulatedModel(name="gemma4:e2b", capabilities=("completion", "audio"))
EARS = Behaviour(models=(SimulatedModel(name=MODEL), EAR))


def one(behaviour: Behaviour | None = None, **config: Any) -> House:
    return House({"alpha": behaviour or Behaviour()}, config)


def two(**config: Any) -> House:
    return House({"alpha": Behaviour(), "beta": Behaviour()}, config)


def asked(prompt: str = "say: hello you", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": [{"role": "user", "content": prompt}], **more}


def events(reply: Reply) -> list[dict[str, Any]]:
    """The events of a stream, each of which must be named as its data says; numbers must rise."""
    found = []
    for frame in reply.body.decode().split("\n\n")[:-1]:
        name, data = frame.removeprefix(": keep-alive\n").split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    numbers = [event["sequence_number"] for event in found]
    assert numbers == sorted(set(numbers))
    return found


def posts(house: House) -> int:
    return sum(seen.path.startswith("/v1/") for one in house.simulators.values() for seen in one.requests)


async def test_a_stream_is_the_instances_own_to_the_byte() -> None:
    async with one() as house:
        reply = await house.post(PATH, asked("think: hm\nsay: naïve \u2028 text", stream=True))
        assert reply.status == 200
        kinds = [event["type"] for event in events(reply)]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-2:] == ["response.output_item.done", "response.completed"]
        assert b"[DONE]" not in reply.body
        usage = events(reply)[-1]["response"]["usage"]
        assert usage["input_tokens_details"] == {"cached_tokens": 0}
        await house.quiet()
        line = house.last_line()
        assert (line["in"], line["out"]) == (usage["input_tokens"], usage["output_tokens"])
        assert line["stream"] is True


async def test_a_whole_answer_is_one_object_and_not_streamed_unless_asked_for() -> None:
    async with one() as house:
        reply = await house.post(PATH, asked())
        assert (reply.json["object"], reply.json["status"]) == ("response", "completed")
        assert reply.json["output"][0]["content"][0]["text"] == "hello you"


async def test_auto_and_a_task_choose_as_anywhere() -> None:
    async with one() as house:
        for path, body, more in (
            (PATH, asked(model="auto:reasoning"), {}),
            (f"/t/reasoning{PATH}", asked(model="auto"), {}),
            (PATH, asked(model="auto"), {"x_task_type": "reasoning"}),
            (PATH, asked(model="auto", task_type="reasoning"), {}),
        ):
            reply = await house.post(path, body, **more)
            assert (reply.status, reply.headers["x-gateway-route"]) == (200, "by-task")
            assert house.last_line()["task"] == "reasoning"
        sent = json.loads(house.seen("alpha").body)
        assert sent == {**asked(), "model": MODEL}


async def test_an_unknown_field_reaches_the_instance() -> None:
    async with one() as house:
        body = asked(store=True, include=["reasoning.encrypted_content"], client_metadata={"a": 1})
        assert (await house.post(PATH, body)).status == 200
        assert json.loads(house.seen("alpha").body) == body


@pytest.mark.parametrize("more", [{"previous_response_id": "resp_1"}, {"conversation": "conv_1"}, {"model": None}])
async def test_what_needs_a_store_or_a_model_is_refused(more: dict[str, Any]) -> None:
    async with one() as house:
        reply = await house.post(PATH, asked(**more))
        assert (reply.status, reply.json["error"]["param"]) == (400, next(iter(more)))
        assert posts(house) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/resp_1"),
        ("DELETE", "/resp_1"),
        ("POST", "/resp_1/cancel"),
        ("POST", "/compact"),
        ("POST", "/input_tokens"),
    ],
)
async def test_what_would_need_a_store_is_not_there(method: str, path: str) -> None:
    async with one() as house:
        reply = await house.get(PATH + path, method)
        assert (reply.status, reply.json["error"]["code"]) == (404, "unknown_path")


# Failures


async def test_before_the_first_content_another_instance_answers() -> None:
    async with two() as house:
        for kind in ("cut", "error_in_band", "swallowed_error"):
            house.simulator("alpha").faults.arm(kind, path=PATH)
            house.simulator("beta").faults.arm(kind, path=PATH)
            reply = await house.post(PATH, asked(stream=True))
            for simulator in house.simulators.values():
                simulator.faults.clear()
            kinds = [event["type"] for event in events(reply)]
            assert kinds.count("response.created") == 1
            assert kinds[-1] == "response.completed"


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
async def test_a_stream_that_breaks_ends_with_a_failed_response(kind: str, details: dict[str, Any]) -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.faults.arm(kind, path=PATH, after=3, **details)
        reply = await house.post(PATH, asked(SIX, stream=True))
        assert posts(house) == 1
        *_, error, failed = events(reply)
        assert (error["type"], failed["type"]) == ("error", "response.failed")
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["id"] == events(reply)[0]["response"]["id"]
        assert failed["response"]["error"]["code"]
        assert details.get("text", "") in failed["response"]["error"]["message"]
        await house.quiet()
        assert house.last_line()["reason"] in ("stream_broken", "upstream_reset", "bad_answer")


async def test_the_sdk_raises_for_a_broken_stream_and_reads_a_whole_one() -> None:
    async with one() as house, openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key="k", max_retries=0) as client:
        async with client.responses.stream(model=MODEL, input=SIX) as stream:
            whole = await stream.get_final_response()
        assert whole.output_text == SIX.removeprefix("say: ")
        house.simulator("alpha").faults.arm("cut", path=PATH, after=3)
        with pytest.raises(openai.APIError, match="alpha"):
            async for _ in await client.responses.create(model=MODEL, input=SIX, stream=True):
                pass


async def test_a_quiet_death_is_not_a_whole_answer() -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("swallowed_error", path=PATH, times=None)
        reply = await house.post(PATH, asked())
        assert (reply.status, reply.json["error"]["code"]) == (502, "stream_interrupted")


async def test_an_ollama_too_old_for_the_path_does_not_lose_its_model() -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("status", path=PATH, status=404, text="")
        reply = await house.post(PATH, asked())
        assert (reply.status, reply.json["error"]["code"]) == (404, "unknown_path")
        assert (await house.chat()).status == 200


async def test_a_silence_is_kept_open_by_comments_and_its_failure_told_in_band() -> None:
    limits = {"first_token": 0.4, "loading": 0.4}
    async with one(stream={"hold": 0.05, "keep_alive": 0.05}, timeouts=limits) as house:
        house.simulator("alpha").faults.arm("hang_before_first_token", path=PATH, times=None)
        reply = await house.post(PATH, asked(stream=True))
        assert reply.status == 200
        assert reply.body.startswith(b": keep-alive\n")
        kinds = [line for line in reply.body.decode().splitlines() if line.startswith("event: ")]
        assert kinds == ["event: error", "event: response.failed"]


# Compressed bodies


@pytest.mark.parametrize(("name", "compress"), [("zstd", zstandard.compress), ("gzip", gzip.compress)])
async def test_a_compressed_body_is_read_and_sent_on_as_it_was(name: str, compress: Any) -> None:
    async with one() as house:
        body = json.dumps(asked(stream=True)).encode()
        reply = await house.post(PATH, compress(body), content_encoding=name)
        assert events(reply)[-1]["type"] == "response.completed"
        seen = house.seen("alpha")
        assert (seen.body, seen.header("content-encoding")) == (body, None)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        ("zstd", zstandard.compress(bytes(2**24)), 413, "body_too_large"),
        ("gzip", gzip.compress(bytes(2**24)), 413, "body_too_large"),
        ("zstd", b"{}", 400, "invalid_request"),
        ("gzip", gzip.compress(b"{}")[:-1], 400, "invalid_request"),
        ("br", b"{}", 415, "unsupported_encoding"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}")), 415, "unsupported_encoding"),
    ],
)
async def test_a_body_that_cannot_be_inflated_is_told_why(encoding: str, body: bytes, status: int, code: str) -> None:
    async with one(server={"max_body": 2**20}) as house:
        for path in (PATH, "/v1/chat/completions"):
            reply = await house.post(path, body, content_encoding=encoding)
            assert (reply.status, reply.json["error"]["code"]) == (status, code)


# Transcriptions


async def transcribed(house: House, **fields: str) -> Reply:
    return await house.post("/v1/audio/transcriptions", form(**fields), content_type=CONTENT_TYPE)


async def test_a_form_reaches_the_instance_as_it_came() -> None:
    async with one(EARS) as house:
        reply = await transcribed(house, model=EAR.name, prompt="say: hello")
        assert (reply.status, reply.json) == (200, {"text": "hello"})
        seen = house.seen("alpha")
        assert seen.body == form(model=EAR.name, prompt="say: hello")


async def test_auto_finds_a_model_that_hears() -> None:
    async with one(EARS) as house:
        reply = await transcribed(house, model="auto", prompt="say: hello")
        assert (reply.status, reply.headers["x-gateway-model"]) == (200, EAR.name)
        assert house.seen("alpha").body == form(model=EAR.name, prompt="say: hello")


async def test_text_is_sent_as_text_and_never_kept() -> None:
    kept = {"name": "kept", "match": {"task": "general_chat"}, "to": [{"model": EAR.name}], "cache": "always"}
    async with one(EARS, routes=[kept]) as house:
        for _ in range(2):
            reply = await transcribed(house, model="auto", prompt="say: hello", response_format="text")
            assert (reply.body, reply.headers["content-type"]) == (b"hello", "text/plain; charset=utf-8")
        assert posts(house) == 2


async def test_a_form_that_is_none_is_refused() -> None:
    async with one(EARS) as house:
        for body in (b"", b"{}", form(model=EAR.name)[:-30], form(), form(model="nobody")):
            reply = await house.post("/v1/audio/transcriptions", body, content_type=CONTENT_TYPE)
            assert reply.status == (404 if b"nobody" in body else 400)
            assert set(reply.json["error"]) == {"message", "type", "param", "code"}
