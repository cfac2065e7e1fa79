"""Messages: what a body asks for, which event is content, which ends the stream; and the estimate of its tokens."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Frame, Usage
from gateway.dialects import anthropic
from gateway.errors import InvalidCall, LineFull, StreamBroken
from gateway.simulator.dialects import Messages
from gateway.simulator.prompt import Ask, Part
from gateway.simulator.shapes import Numbers
from gateway.wire import sse

HELLO = {"role": "user", "content": "hello"}
ASKED: dict[str, Any] = {"model": "m", "max_tokens": 100, "messages": [HELLO]}
PARTS = [Part(thinking="so"), Part("Hi"), Part(" there \u2028"), Part(call=("look", {"at": "it"}))]
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def encoded(**more: Any) -> bytes:
    return msgspec.json.encode({**ASKED, **more})


def call(body: bytes) -> Call:
    operation = anthropic.MESSAGES
    return Call(request_id="r-1", operation=operation, wish=operation.read(body), body=body)


def events(parts: list[Part]) -> list[bytes]:
    voice = Messages(Ask(model="m", stream=True), 7, "0.32.15")
    said = b"".join([*map(voice.part, parts), *voice.closing(Numbers(3, 4, "stop"))])
    return sse.Splitter().feed(said)


def reading(*raw: bytes) -> tuple[anthropic.EventReader, list[Frame]]:
    reader = anthropic.EventReader()
    return reader, reader.feed(b"".join(raw))


def user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


# Bodies


def test_a_plain_call_needs_nothing_and_is_not_streamed() -> None:
    wish = anthropic.MESSAGES.read(encoded())
    assert (wish.model, wish.stream, wish.needs, wish.deterministic) == ("m", False, frozenset(), False)
    assert anthropic.MESSAGES.read(encoded(temperature=0)).deterministic
    assert anthropic.MESSAGES.read(encoded(stream=True)).stream


def test_tools_and_images_are_needs_wherever_the_images_are() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}, PICTURE]}
    assert anthropic.MESSAGES.read(encoded(tools=[{"name": "look"}])).needs == {"tools"}
    assert anthropic.MESSAGES.read(encoded(messages=user(PICTURE))).needs == {"vision"}
    assert anthropic.MESSAGES.read(encoded(messages=user(result))).needs == {"vision"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": ""}, "model is required"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\]\.role"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]\.content"),
        ({"messages": user("x")}, r"messages\[0\]\.content\[0\]"),
        ({"messages": user({"type": "image", "source": {"type": "url", "url": "https://host/a"}})}, "fetches none"),
        ({"messages": user({"type": "document", "source": {"type": "url", "url": "https://host/a"}})}, "documents"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stream": 1}, "stream"),
        ({"tools": "x"}, "tools"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidCall, match=words):
        anthropic.MESSAGES.read(encoded(**more))


def test_what_claude_code_sends_passes_as_bytes() -> None:
    system = [{"type": "text", "text": "You", "cache_control": {"type": "ephemeral"}}]
    body = encoded(
        system=system, thinking={"type": "adaptive"}, context_management={}, output_config={}, metadata={"user_id": "u"}
    )
    assert anthropic.MESSAGES.write(call(body), "m") is body


def test_a_body_is_changed_only_in_its_model_and_without_the_task() -> None:
    sent = msgspec.json.decode(anthropic.MESSAGES.write(call(encoded(task_type="reasoning", top_k=3)), "other"))
    assert sent == {**ASKED, "model": "other", "top_k": 3}


# Streams


@given(cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_events_pass_as_bytes_however_they_were_cut(cuts: list[int]) -> None:
    sent = events(PARTS)
    whole = b"".join(sent)
    reader, frames, last = anthropic.EventReader(), list[Frame](), 0
    for cut in [*sorted(cuts), len(whole)]:
        frames += reader.feed(whole[last:cut])
        last = max(last, cut)
    assert [frame.raw for frame in frames] == sent
    assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert (reader.complete, reader.usage) == (True, Usage(3, 4))


def test_only_what_the_model_said_is_content() -> None:
    _, frames = reading(b'event: ping\ndata: {"type":"ping"}\n\n', *events(PARTS))
    said = [frame.raw for frame in frames if frame.content]
    assert len(said) == len(PARTS)
    assert all(raw.startswith(b"event: content_block_delta\n") for raw in said)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"out of memory"}}\n\n', "memory"),
        (b'data: {"error":"out of memory"}\n\n', "out of memory"),
        (b"data: [DONE]\n\n", "cannot be read"),
        (b"data: {]\n\n", "cannot be read"),
    ],
)
def test_a_failure_in_the_stream_is_an_error_and_no_end(raw: bytes, words: str) -> None:
    reader, (frame,) = reading(raw)
    assert words in frame.error
    assert not reader.complete


def test_a_broken_stream_ends_with_an_error_event_and_no_stop() -> None:
    reader, _ = reading(*events(PARTS)[:3])
    (told,) = sse.Splitter().feed(reader.failure(StreamBroken("alpha", "died"), "r-1"))
    assert told.startswith(b"event: error\ndata: ")
    assert msgspec.json.decode(sse.data(told) or b"") == {
        "type": "error",
        "error": {"type": "api_error", "message": "instance alpha: died"},
        "request_id": "r-1",
    }
    busy = reader.failure(LineFull("full", retry_after=1), "r-1")
    assert msgspec.json.decode(sse.data(busy) or b"")["error"]["type"] == "rate_limit_error"


def test_the_keep_alive_is_a_whole_event() -> None:
    _, (frame,) = reading(anthropic.EventReader.keep_alive)
    assert (frame.content, frame.last, frame.error) == (False, False, "")


# Whole answers


def test_a_whole_answer_passes_as_bytes() -> None:
    body = msgspec.json.encode(
        {"type": "message", "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 4}}
    )
    reply = anthropic.MESSAGES.reply(call(encoded()), "m", body, 0.1)
    assert (reply.body, reply.usage) == (body, Usage(3, 4))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not a reply"),
        (b'{"type":"message","stop_reason":null}', "without finishing"),
        (b'{"type":"message","stop_reason":""}', "without finishing"),
        (b'{"type":"message"}', "without finishing"),
        (b'{"type":"error","error":{"type":"api_error","message":"out of memory"}}', "out of memory"),
    ],
)
def test_what_is_no_whole_answer_is_a_failure(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        anthropic.MESSAGES.reply(call(encoded()), "m", body, 0.1)


# The estimate


def estimated(**fields: Any) -> int:
    return anthropic.estimated_tokens(msgspec.json.encode({"messages": [HELLO], **fields}))


def test_text_counts_wherever_it_stands() -> None:
    text = "x" * 400
    bare = estimated()
    places: list[dict[str, Any]] = [
        {"system": text},
        {"system": [{"type": "text", "text": text}]},
        {"messages": [HELLO, {"role": "", "content": text}]},
        {"messages": [HELLO, *user({"type": "thinking", "thinking": text})]},
        {"messages": [HELLO, *user({"type": "tool_use", "input": {"a": text}})]},
        {"messages": [HELLO, *user({"type": "tool_result", "content": text})]},
        {"messages": [HELLO, *user({"type": "tool_result", "content": [{"type": "text", "text": text}]})]},
        {"tools": [{"name": "look", "description": text}]},
    ]
    for place in places:
        assert 100 <= estimated(**place) - bare <= 115, place


def test_an_image_is_not_counted_by_its_bytes() -> None:
    picture = {"type": "image", "source": {"type": "base64", "data": "A" * 100_000}}
    assert estimated(messages=user(picture)) < 10


def test_the_least_is_one() -> None:
    assert estimated(messages=[{"role": "", "content": ""}]) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"messages":[]}', b'{"messages":[{"role":"user","content":3}]}'])
def test_what_cannot_be_counted_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidCall):
        anthropic.estimated_tokens(body)
