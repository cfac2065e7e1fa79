"""Every dialect's reading: whatever is sent, only InvalidCall comes out, and it names the field to blame."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Operation
from gateway.dialects import facade, facade_or_ollama, ollama, openai
from gateway.errors import InvalidCall

OPERATIONS = [
    openai.CHAT,
    openai.COMPLETIONS,
    openai.EMBEDDINGS,
    ollama.CHAT,
    ollama.GENERATE,
    ollama.EMBED,
    ollama.EMBEDDINGS,
    facade.CHAT,
]
EVERY = pytest.mark.parametrize("operation", OPERATIONS)

HELLO = {"role": "user", "content": "hello"}
GOOD: dict[str, Any] = {"model": "m", "messages": [HELLO], "prompt": "p", "input": "i", "message": "hello"}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "image_url", "url", "images", "seed"]), inner)
    ),
    max_leaves=8,
)
FIELDS = [*GOOD, "stream", "stream_options", "temperature", "seed", "tools", "n", "stop", "max_tokens", "task_type"]
BODIES = st.dictionaries(st.sampled_from([*FIELDS, "options", "images", "Model", "x"]), VALUES, max_size=6)


def encoded(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


@EVERY
@given(change=BODIES)
def test_bodies_of_any_shape_are_read_or_refused(operation: Operation, change: dict[str, Any]) -> None:
    body = msgspec.json.encode({**GOOD, **change})
    try:
        wish = operation.read(body)
    except InvalidCall as refusal:
        assert refusal.message.isprintable()  # noqa: PT017
    else:
        assert facade_or_ollama(body) in (ollama.CHAT, facade.CHAT)
        assert wish.model == (change.get("model", "m") or "").strip() or wish.model == change["model"]


@EVERY
@given(body=st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")))
def test_bytes_of_any_kind_are_refused(operation: Operation, body: bytes) -> None:
    facade_or_ollama(body)
    with pytest.raises(InvalidCall):
        operation.read(body)


@EVERY
@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","message":"x","messages":' + b"[" * 100_000,
        b'{"message":' + b'{"a":' * 100_000,
        b'{"model":"m","message":' + b"9" * 5000 + b',"messages":1,"prompt":1,"input":1,"options":1}',
    ],
    ids=["lists", "objects", "digits"],
)
def test_hostile_bodies_are_refused_not_crashed_on(operation: Operation, body: bytes) -> None:
    facade_or_ollama(body)
    with pytest.raises(InvalidCall):
        operation.read(body)


@EVERY
def test_fields_that_are_not_looked_at_may_hold_anything(operation: Operation) -> None:
    wish = operation.read(encoded(**GOOD, metadata={"a": [1]}, logit_bias=True, keep_alive=-1, think="high"))

    assert wish.model == "m"


@EVERY
def test_null_is_the_same_as_absent(operation: Operation) -> None:
    absent = dict.fromkeys(["stream", "temperature", "seed", "tools", "n", "stop", "options", "task_type"])

    assert operation.read(encoded(**GOOD, **absent)) == operation.read(encoded(**GOOD))


@EVERY
def test_a_model_name_is_printable_and_of_bounded_length(operation: Operation) -> None:
    for name in ("x" * 257, "a\nb", "a\u2028b", "a\x00"):
        with pytest.raises(InvalidCall) as refusal:
            operation.read(encoded(**{**GOOD, "model": name}))
        assert refusal.value.param == "model"
        assert name not in refusal.value.message

    assert operation.read(encoded(**{**GOOD, "model": "x" * 256})).model == "x" * 256


@EVERY
def test_a_second_model_in_another_case_is_refused(operation: Operation) -> None:
    with pytest.raises(InvalidCall, match="lower case") as refusal:
        operation.read(encoded(**GOOD, Model="other"))

    assert refusal.value.param == "model"


@pytest.mark.parametrize("operation", OPERATIONS[:-1])
@pytest.mark.parametrize("model", [None, "", "  "])
def test_a_model_is_required(operation: Operation, model: str | None) -> None:
    with pytest.raises(InvalidCall, match="model is required") as refusal:
        operation.read(encoded(**{**GOOD, "model": model}))

    assert refusal.value.param == "model"


@EVERY
def test_the_task_in_the_body_is_read(operation: Operation) -> None:
    assert operation.read(encoded(**GOOD, task_type="reasoning")).task == "reasoning"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": 1}, "model", "model: expected a string or null, got a whole number"),
        ({"messages": None}, "messages", "messages: expected a list, got null"),
        ({"messages": []}, "messages", "messages: expected a list of length >= 1"),
        ({"messages": "hi"}, "messages", "expected a list, got a string"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is required"),
        ({"messages": [HELLO, {"role": True}]}, "messages[1].role", "expected a string, got true or false"),
        ({"messages": [HELLO, "x"]}, "messages[1]", "expected an object, got a string"),
        ({"messages": [HELLO] * 2049}, "messages", "length <= 2048"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "a string or a list of parts"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]", "expected an object"),
        ({"stream": 1}, "stream", "true or false or null"),
        ({"stream": "yes"}, "stream", "got a string"),
        ({"temperature": True}, "temperature", "expected a number or null, got true or false"),
        ({"temperature": "0"}, "temperature", "expected a number"),
        ({"seed": 1.5}, "seed", "expected a whole number"),
        ({"seed": False}, "seed", "expected a whole number"),
        ({"tools": {}}, "tools", "expected a list"),
        ({"tools": ["x"]}, "tools[0]", "expected an object"),
        ({"tools": [{}] * 257}, "tools", "length <= 256"),
        ({"n": 2}, "n", "n must be 1"),
        ({"n": True}, "n", "expected a whole number"),
        ({"stop": ["x"] * 17}, "stop", "length <= 16"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", ">= 1"),
        ({"stream_options": []}, "stream_options", "expected an object"),
        ({"task_type": 1}, "task_type", "expected a string"),
        ({"task_type": "x" * 65}, "task_type", "length <= 64"),
    ],
)
def test_a_chat_with_a_field_of_the_wrong_kind_names_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidCall) as refusal:
        openai.CHAT.read(encoded(**{**GOOD, **fields}))

    assert refusal.value.param == param
    assert words in refusal.value.message


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5000, b"-1e999"])
def test_a_number_beyond_all_bounds_is_refused(number: bytes) -> None:
    with pytest.raises(InvalidCall) as refusal:
        openai.CHAT.read(b'{"model":"m","messages":[{"role":"user"}],"temperature":%b}' % number)

    assert refusal.value.param == "temperature"


def test_messages_are_required() -> None:
    with pytest.raises(InvalidCall, match=r"^messages is required$") as refusal:
        openai.CHAT.read(b'{"model":"m"}')

    assert refusal.value.param == "messages"
