"""What a client sends is a wish or an InvalidCall; what an instance answers is frames, a reply or a ValueError."""

from __future__ import annotations

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Operation, Wish
from gateway.dialects import anthropic, facade, facade_or_ollama, ollama, openai, responses
from gateway.errors import InvalidCall
from tests.examples import tried

STREAMED: tuple[Operation, ...] = (
    *(openai.CHAT, openai.COMPLETIONS, responses.RESPONSES, anthropic.MESSAGES, ollama.CHAT, ollama.GENERATE),
)
WHOLE: tuple[Operation, ...] = (openai.EMBEDDINGS, openai.TRANSCRIPTIONS, ollama.EMBED, ollama.EMBEDDINGS, facade.CHAT)
OPERATIONS = pytest.mark.parametrize("operation", [*STREAMED, *WHOLE], ids=lambda one: f"{one.dialect}-{one.name}")

WORDS = st.sampled_from(
    [
        *(
            "model",
            "messages",
            "message",
            "prompt",
            "input",
            "content",
            "role",
            "type",
            "text",
            "tools",
            "stream",
            "images",
        ),
        *(
            "options",
            "seed",
            "temperature",
            "stop",
            "image_url",
            "url",
            "source",
            "tool_calls",
            "function",
            "arguments",
        ),
        *(
            "choices",
            "delta",
            "finish_reason",
            "done",
            "response",
            "error",
            "usage",
            "embedding",
            "data",
            "output",
            "id",
        ),
        *("prompt_eval_count", "sequence_number", "created_at", "index", "reasoning", "stop_reason", "keep_alive"),
        *("cache_control", "prompt_cache_key", "system", "instructions", "previous_response_id", "task_type", "n"),
    ]
)
KINDS = st.sampled_from(
    [
        *(
            "user",
            "assistant",
            "developer",
            "text",
            "image_url",
            "image",
            "tool_result",
            "tool_use",
            "error",
            "stop",
            "m",
        ),
        *(
            "message_stop",
            "message_delta",
            "response.completed",
            "response.created",
            "response.failed",
            "data:,",
            "http:",
        ),
        *("", "a\r\nb", "\u2028", '{"error":"x"}', '{"error":{"message":{}}}', "x" * 300),
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | KINDS
THINGS = st.recursive(
    LEAVES, lambda one: st.lists(one, max_size=3) | st.dictionaries(WORDS, one, max_size=4), max_leaves=14
)
OBJECTS = st.dictionaries(WORDS, THINGS, max_size=7).map(lambda one: json.dumps(one).encode())
LIKELY = OBJECTS.map(lambda one: one.replace(b"{", b'{"model":"m","messages":[{"role":"user","content":"x"}],', 1))
ENDS = st.sampled_from([b"\n", b"\n\n", b"\r\n\r\n", b"\r", b""])
PIECES = st.tuples(st.sampled_from([b"data: ", b"data:", b"event: x\ndata: ", b": ", b""]), OBJECTS | st.binary(), ENDS)
STREAMS = st.lists(PIECES.map(b"".join), max_size=5).map(b"".join)


def call(operation: Operation, body: bytes = b"{}") -> Call:
    return Call(request_id="r", operation=operation, wish=Wish(model="m", stream=True), body=body)


@OPERATIONS
@given(body=OBJECTS | LIKELY | st.binary(max_size=40))
@tried(50)
def test_any_body_is_a_wish_or_refused_and_a_wish_can_be_sent(operation: Operation, body: bytes) -> None:
    try:
        wish = operation.read(body)
    except InvalidCall as refusal:
        assert refusal.message.isprintable(), refusal.message  # noqa: PT017 - either outcome is right
        return
    asked = Call(request_id="r", operation=operation, wish=wish, body=body, model=wish.model)
    assert msgspec.json.decode(operation.write(asked, "another"))["model"] == "another"


@given(body=OBJECTS | LIKELY)
def test_the_two_meanings_of_one_path_never_both_refuse_to_choose(body: bytes) -> None:
    assert facade_or_ollama(body) in (facade.CHAT, ollama.CHAT)


@given(body=OBJECTS | LIKELY)
def test_any_message_has_some_tokens_or_is_refused(body: bytes) -> None:
    with contextlib.suppress(InvalidCall):
        assert anthropic.estimated_tokens(body) >= 1


@pytest.mark.parametrize("operation", STREAMED, ids=lambda one: f"{one.dialect}-{one.name}")
@given(stream=STREAMS)
@tried(50)
def test_any_stream_is_frames(operation: Operation, stream: bytes) -> None:
    reader = operation.reader(call(operation))
    frames = reader.feed(stream)
    assert reader.complete == any(frame.last for frame in frames)
    assert all(not frame.last for frame in frames[:-1])
    assert all("\n" not in frame.error for frame in frames)
    assert reader.usage is None or all(count >= 0 for count in reader.usage)


@OPERATIONS
@given(body=OBJECTS | st.binary(max_size=60))
@tried(50)
def test_any_answer_is_a_reply_or_none(operation: Operation, body: bytes) -> None:
    with contextlib.suppress(ValueError):
        operation.reply(call(operation), "m", body, 1.0)
