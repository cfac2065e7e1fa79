"""Ollama's own dialect: what a body asks for, and that an answer passes byte for byte."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Frame, Operation, Priority, Usage
from gateway.dialects import ollama
from gateway.errors import InvalidCall

HELLO = {"role": "user", "content": "hello"}
CHAT: dict[str, Any] = {"model": "m", "messages": [HELLO]}
GENERATE: dict[str, Any] = {"model": "m", "prompt": "hello"}

TEXT = '{"model":"m","message":{"role":"assistant","content":"é\u2028\u0085👋"},"done":false}\n'.encode()
THINKING = b'{"model":"m","message":{"role":"assistant","content":"","thinking":"hm"},"done":false}\n'
LAST = (
    b'{"model":"m","message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":26,"eval_count":298}\n'
)
STREAM = TEXT + b" " + THINKING + b'{"logprobs":[1],"done":false}\r\n' + LAST


def encoded(fields: dict[str, Any], **more: Any) -> bytes:
    return msgspec.json.encode({**fields, **more})


def call(operation: Operation, body: bytes) -> Call:
    return Call(request_id="r-1", operation=operation, wish=operation.read(body), body=body)


def reader() -> ollama.LineReader:
    return ollama.CHAT.reader(call(ollama.CHAT, encoded(CHAT)))


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_a_stream_passes_byte_for_byte_wherever_it_was_cut(cuts: list[int]) -> None:
    cut = reader()

    found = [frame for start, end in pairwise([0, *sorted(cuts), len(STREAM)]) for frame in cut.feed(STREAM[start:end])]

    assert b"".join(frame.raw for frame in found) == STREAM
    assert found == reader().feed(STREAM)
    assert [frame.content for frame in found] == [True, True, False, True]
    assert (cut.complete, cut.usage) == (True, Usage(26, 298))


@pytest.mark.parametrize(
    ("line", "content"),
    [
        (TEXT, True),
        (THINKING, True),
        (b'{"message":{"content":"","tool_calls":[{"function":{"name":"f"}}]},"done":false}\n', True),
        (b'{"message":{"role":"assistant","content":""},"done":false}\n', False),
        (b'{"response":"Hi","done":false}\n', True),
        (b'{"response":"","thinking":"hm","done":false}\n', True),
        (b'{"response":"","done":false}\n', False),
    ],
)
def test_content_is_what_the_model_said(line: bytes, content: bool) -> None:
    assert reader().feed(line) == [Frame(line, content=content)]


def test_a_last_line_without_counts_counts_nothing() -> None:
    spoken = reader()

    assert spoken.feed(b'{"done":true}\n') == [Frame(b'{"done":true}\n', content=True, last=True)]
    assert spoken.usage == Usage(0, 0)


def test_nothing_follows_the_last_line() -> None:
    spoken = reader()

    assert len(spoken.feed(LAST + TEXT)) == 1
    assert spoken.feed(TEXT) == []


def test_an_error_in_the_stream_is_told_and_is_no_end() -> None:
    spoken = reader()

    (frame,) = spoken.feed(b'{"error":"model runner has unexpectedly stopped"}\n')

    assert frame.error == "model runner has unexpectedly stopped"
    assert not spoken.complete


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b"\n", b"[" * 100_000 + b"\n", b'{"message":"x"}\n'])
def test_a_line_that_cannot_be_read_is_passed_on_as_it_came(line: bytes) -> None:
    assert reader().feed(line) == [Frame(line)]


@given(stream=st.binary())
def test_nothing_an_instance_sends_makes_reading_fail(stream: bytes) -> None:
    assert b"".join(frame.raw for frame in reader().feed(stream + b"\n")) == stream + b"\n"


@pytest.mark.parametrize(("stream", "streams"), [(None, True), (True, True), (False, False)])
def test_streaming_is_on_unless_it_is_turned_off(stream: bool | None, streams: bool) -> None:
    assert ollama.CHAT.read(encoded(CHAT, stream=stream)).stream is streams
    assert ollama.GENERATE.read(encoded(GENERATE, stream=stream)).stream is streams
    assert ollama.CHAT.read(encoded(CHAT)).stream


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        (ollama.CHAT, {"model": "m"}),
        (ollama.CHAT, {"model": "m", "messages": [], "stream": True, "keep_alive": 0}),
        (ollama.GENERATE, {"model": "m", "options": {"seed": 1}}),
        (ollama.GENERATE, {"model": "m", "prompt": "", "stream": True}),
        (ollama.EMBED, {"model": "m"}),
        (ollama.EMBED, {"model": "m", "input": []}),
        (ollama.EMBEDDINGS, {"model": "m", "prompt": ""}),
    ],
)
def test_a_load_or_unload_is_answered_whole_and_never_from_a_cache(operation: Operation, body: dict[str, Any]) -> None:
    wish = operation.read(msgspec.json.encode(body))

    assert (wish.stream, wish.deterministic) == (False, False)


def test_the_answer_to_a_load_is_a_whole_answer() -> None:
    body = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}'

    assert ollama.CHAT.reply(call(ollama.CHAT, encoded({"model": "m"})), "m", body, 0.1).body == body
    assert reader().feed(body + b"\n")[0].last


def test_needs_and_determinism_are_read_from_where_ollama_has_them() -> None:
    wish = ollama.CHAT.read(
        encoded(CHAT, messages=[{**HELLO, "images": ["AAAA"]}], tools=[{}], options={"temperature": 0})
    )

    assert wish.needs == {"vision", "tools"}
    assert wish.deterministic
    assert ollama.GENERATE.read(encoded(GENERATE, images=["AAAA"], options={"seed": 3})).needs == {"vision"}
    assert ollama.EMBED.read(encoded({"model": "m", "input": ["a"]})).needs == {"embedding"}
    assert ollama.EMBED.read(encoded({"model": "m", "input": ["a"]})).deterministic


def test_an_editor_goes_first_and_the_indexing_of_documents_last() -> None:
    assert ollama.GENERATE.read(encoded(GENERATE, suffix="return x")).priority is Priority.INTERACTIVE
    assert ollama.GENERATE.read(encoded(GENERATE, suffix="")).priority is Priority.NORMAL
    assert ollama.CHAT.read(encoded(CHAT)).priority is Priority.NORMAL
    assert ollama.EMBED.read(encoded({"model": "m", "input": ["x"] * 8})).priority is Priority.NORMAL
    assert ollama.EMBED.read(encoded({"model": "m", "input": ["x"] * 9})).priority is Priority.BATCH
    assert ollama.EMBEDDINGS.read(encoded({"model": "m", "prompt": "x"})).priority is Priority.NORMAL


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "x"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"stream": "no"}, "stream"),
        ({"options": []}, "options"),
        ({"options": {"temperature": "0"}}, "options.temperature"),
        ({"options": {"seed": True}}, "options.seed"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidCall) as refusal:
        ollama.CHAT.read(encoded(CHAT, **fields))

    assert refusal.value.param == param


def test_token_numbers_get_the_hint_here_too() -> None:
    with pytest.raises(InvalidCall, match="check_embedding_ctx_length=False"):
        ollama.EMBED.read(encoded({"model": "m", "input": [1, 2]}))


def test_only_the_model_is_ever_replaced() -> None:
    body = (
        b'{ "model" : "auto", "messages":[{"role":"user","content":"\\u00e9"}], "task_type":"x", "options":{"a": 1.0} }'
    )
    asked = call(ollama.CHAT, body)

    assert ollama.CHAT.write(asked, "auto") == body
    assert ollama.CHAT.write(asked, "qwen3") == (
        b'{"model":"qwen3","messages":[{"role":"user","content":"\\u00e9"}],"task_type":"x","options":{"a": 1.0}}'
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"message":{"content":"Hi"},"done":false}', "without finishing"),
        (b"{}", "without finishing"),
        (b'{"error":"boom"}', "boom"),
        (b"", "not a reply"),
        (b"[]", "not a reply"),
        (b"[" * 100_000, "not a reply"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_an_answer_that_is_not_whole_is_an_error(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ollama.CHAT.reply(call(ollama.CHAT, encoded(CHAT)), "m", body, 0.1)


@pytest.mark.parametrize("body", [b'{"embeddings":[[0.5]],"prompt_eval_count":2}', b'{"embedding":[0.5]}'])
def test_vectors_pass_as_they_came(body: bytes) -> None:
    reply = ollama.EMBED.reply(call(ollama.EMBED, encoded({"model": "m", "input": "a"})), "m", body, 0.1)

    assert reply.body == body


def test_an_answer_without_vectors_is_an_error() -> None:
    with pytest.raises(ValueError, match="without embeddings"):
        ollama.EMBED.reply(call(ollama.EMBED, encoded({"model": "m", "input": "a"})), "m", b'{"model":"m"}', 0.1)
