"""Responses: what a body asks for, which event is content, which ends the stream, and how a broken one ends."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Frame, Usage
from gateway.dialects import responses
from gateway.errors import GatewayError, InternalError, InvalidCall, LineFull, Refused, StreamBroken
from gateway.simulator.dialects import Responses
from gateway.simulator.prompt import Ask, Part
from gateway.simulator.shapes import Numbers
from gateway.wire import sse

ASKED: dict[str, Any] = {"model": "m", "input": "hello"}
PARTS = [
    Part(thinking="so"),
    Part("Hi"),
    Part(" there \u2028"),
    Part(call=("look", {"at": "it"})),
]
USAGE = Usage(3, 4)


def encoded(**more: Any) -> bytes:
    return msgspec.json.encode({**ASKED, **more})


def call(body: bytes) -> Call:
    operation = responses.RESPONSES
    return Call(request_id="r-1", operation=operation, wish=operation.read(body), body=body)


def events(parts: list[Part]) -> list[bytes]:
    """A whole stream as Ollama sends it, one event each."""
    voice = Responses(Ask(model="m", stream=True), 7, "0.32.15")
    said = b"".join([*map(voice.part, parts), *voice.closing(Numbers(*USAGE, "stop"))])
    return sse.Splitter().feed(said)


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


def fed(*raw: bytes) -> list[Frame]:
    return reading(*raw)[1]


def reading(*raw: bytes) -> tuple[responses.EventReader, list[Frame]]:
    reader = responses.EventReader()
    return reader, reader.feed(b"".join(raw))


def kind_of(raw: bytes) -> str:
    payload: dict[str, Any] = msgspec.json.decode(sse.data(raw) or b"{}")
    return str(payload["type"])


def ending(reader: responses.EventReader, error: GatewayError) -> list[dict[str, Any]]:
    told = sse.Splitter().feed(reader.failure(error, "r-1"))
    for one in told:
        assert one.startswith(f"event: {kind_of(one)}\n".encode())
    return [msgspec.json.decode(sse.data(one) or b"") for one in told]


# Bodies


def test_a_plain_call_needs_nothing_and_is_not_streamed() -> None:
    wish = responses.RESPONSES.read(encoded())
    assert (wish.model, wish.stream, wish.needs, wish.deterministic) == ("m", False, frozenset(), False)
    assert responses.RESPONSES.read(encoded(stream=True, temperature=0)).deterministic
    assert responses.RESPONSES.read(encoded(stream=True)).stream


def test_tools_and_images_are_needs_wherever_the_images_are() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}, image]}
    brought = {"type": "function_call_output", "call_id": "c", "output": [image]}
    assert responses.RESPONSES.read(encoded(tools=[{"type": "function"}])).needs == {"tools"}
    assert responses.RESPONSES.read(encoded(input=[message])).needs == {"vision"}
    assert responses.RESPONSES.read(encoded(input=[{"role": "user", "content": "x"}, brought])).needs == {"vision"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"input": 3}, "input"),
        ({"input": {}}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"content": [3]}]}, "input[0].content[0]"),
        ({"input": [{"content": [{"type": "input_image", "image_url": "https://host/a.png"}]}]}, "input[0].content"),
        ({"input": [{"content": [{"type": "input_file", "file_url": "file:///a"}]}]}, "input[0].content"),
        ({"input": [{"content": [{"type": "input_text", "image_url": "http://host"}]}]}, "input[0].content"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": {}}, "tools"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
    ],
)
def test_what_cannot_be_served_is_refused_by_the_name_of_its_field(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidCall) as refused:
        responses.RESPONSES.read(encoded(**more))
    assert refused.value.param == param


def test_what_asks_to_be_stored_or_is_not_known_passes() -> None:
    body = encoded(store=True, previous_response_id=None, conversation=None, include=["x"], client_metadata={"a": 1})
    assert responses.RESPONSES.write(call(body), "m") is body


def test_a_body_is_changed_only_in_its_model_and_without_the_task() -> None:
    sent = msgspec.json.decode(responses.RESPONSES.write(call(encoded(task_type="reasoning", top_k=3)), "other"))
    assert sent == {**ASKED, "model": "other", "top_k": 3}


# Streams


@given(cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_events_pass_as_bytes_however_they_were_cut(cuts: list[int]) -> None:
    sent = events(PARTS)  # once: they hold the time
    whole = b"".join(sent)
    reader, frames, last = responses.EventReader(), list[Frame](), 0
    for cut in [*sorted(cuts), len(whole)]:
        frames += reader.feed(whole[last:cut])
        last = max(last, cut)
    assert [frame.raw for frame in frames] == sent
    assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert reader.complete
    assert reader.usage == USAGE


def test_only_what_the_model_said_is_content() -> None:
    said = {kind_of(frame.raw) for frame in fed(*events(PARTS)) if frame.content}
    assert said == {
        "response.reasoning_summary_text.delta",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
    }
    assert not fed(event("response.output_text.delta", delta=""))[0].content


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_an_answer_that_ended_is_an_end_and_nothing_after_it_counts(kind: str) -> None:
    end = event(kind, response={"usage": {"input_tokens": 1, "output_tokens": 2}})
    reader, frames = reading(end, event("error", message="late"))
    assert [frame.last for frame in frames] == [True]
    assert reader.usage == Usage(1, 2)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (event("error", message="out of memory"), "out of memory"),
        (event("error", error={"message": "out of memory"}), "out of memory"),
        (event("response.failed", response={"error": {"code": "x", "message": "out of memory"}}), "out of memory"),
        (b'data: {"error":"out of memory"}\n\n', "out of memory"),
        (b"data: {]\n\n", "cannot be read"),
        (b"data: [DONE]\n\n", "cannot be read"),
    ],
)
def test_a_failure_in_the_stream_is_an_error_and_no_end(raw: bytes, words: str) -> None:
    reader, (frame,) = reading(raw)
    assert words in frame.error
    assert not reader.complete


def test_a_broken_stream_ends_with_an_error_and_a_failed_response_numbered_on() -> None:
    reader, frames = reading(*events(PARTS)[:6])
    error, failed = ending(reader, StreamBroken("alpha", "died"))
    assert len(frames) == 6
    assert [error["sequence_number"], failed["sequence_number"]] == [6, 7]
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert error["error"]["code"] == error["code"] == failed["response"]["error"]["code"] == "stream_interrupted"
    assert error["message"] == failed["response"]["error"]["message"] == "instance alpha: died"
    begun = msgspec.json.decode(sse.data(frames[0].raw) or b"")["response"]
    assert {name: failed["response"][name] for name in ("id", "model", "created_at")} == {
        name: begun[name] for name in ("id", "model", "created_at")
    }
    assert failed["response"]["status"] == "failed"


def test_a_stream_that_broke_before_its_first_event_is_numbered_from_the_start() -> None:
    error, failed = ending(responses.EventReader(), StreamBroken("alpha", "died"))
    assert [error["sequence_number"], failed["sequence_number"]] == [0, 1]
    assert failed["response"]["id"] == "resp_r-1"


def test_codex_is_told_in_the_words_it_acts_on() -> None:
    _, busy = ending(responses.EventReader(), LineFull("the line is full", retry_after=4))
    assert busy["response"]["error"]["code"] == "rate_limit_exceeded"
    assert busy["response"]["error"]["message"].endswith("Please try again in 4.0s.")
    _, long = ending(responses.EventReader(), Refused("a", 400, "too long", code="context_length_exceeded"))
    assert long["response"]["error"]["code"] == "context_length_exceeded"


def test_a_defect_is_told_without_its_words() -> None:
    error, _ = ending(responses.EventReader(), InternalError("secret \u2028 words"))
    assert "secret" not in error["message"]


# Whole answers


def whole(**fields: Any) -> bytes:
    finished = {"id": "resp_1", "object": "response", "status": "completed", "output": [{"type": "message"}]}
    return msgspec.json.encode({**finished, "usage": {"input_tokens": 3, "output_tokens": 4}, **fields})


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_whole_answer_passes_as_bytes(status: str) -> None:
    body = whole(status=status, error=None)
    reply = responses.RESPONSES.reply(call(encoded()), "m", body, 0.1)
    assert (reply.body, reply.usage) == (body, USAGE)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not a reply"),
        (b"[]", "not a reply"),
        (whole(status="failed", error={"message": "out of memory"}), "out of memory"),
        (whole(status="in_progress"), "without finishing"),
        (whole(status=None), "without finishing"),
        (whole(usage={"input_tokens": 0, "output_tokens": 0}), "without finishing"),
        (msgspec.json.encode({"error": "out of memory"}), "out of memory"),
    ],
)
def test_what_is_no_whole_answer_is_a_failure(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        responses.RESPONSES.reply(call(encoded()), "m", body, 0.1)
