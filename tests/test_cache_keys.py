"""What makes two calls the same call: row K4 of faults.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import key_for
from gateway.call import Call, Operation, Wish
from gateway.dialects import facade, openai


def call(body: Any, operation: Operation = openai.CHAT, **facts: Any) -> Call:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    usual: dict[str, Any] = {"request_id": "r", "operation": operation, "wish": Wish(), "body": content}
    return Call(**(usual | facts))


BODY: dict[str, Any] = {
    "model": "llama3.1:8b",
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "seed": 1,
    "options": {"num_ctx": 4096, "top_k": 5},
    "tools": [{"name": "a"}, {"name": "b"}],
}


def key(body: Any = BODY, route: str = "r", models: tuple[str, ...] = ("digest",), **facts: Any) -> str:
    return key_for(call(body, **facts), route, models)


def without(name: str) -> dict[str, Any]:
    return {field: value for field, value in BODY.items() if field != name}


def shuffled(value: Any) -> Any:
    """The same with the fields of every object the other way round."""
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in reversed(value)}
    return [shuffled(one) for one in value] if isinstance(value, list) else value


def test_a_key_is_short_and_says_nothing_of_the_body() -> None:
    assert len(key()) == 64
    assert int(key(), 16)


def test_the_order_of_fields_and_the_white_space_do_not_matter() -> None:
    spaced = json.dumps(shuffled(BODY), indent=3).encode()
    assert key(spaced) == key()


def test_an_escaped_character_is_the_character() -> None:
    assert key(b'{"message":"\\u00e9"}') == key('{"message":"é"}'.encode())


@pytest.mark.parametrize(
    ("one", "other"), [("1", "1.0"), ("1", "1e0"), ("0.5", "5E-1"), ("0", "-0.0"), ("0.1", "0.10")]
)
def test_a_number_is_the_same_however_it_is_written(one: str, other: str) -> None:
    for form in ('{"seed":%s}', '{"options":{"x":[%s]}}'):
        assert key((form % one).encode()) == key((form % other).encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", '"1"'),
        ("1", "true"),
        ("0", "null"),
        ("1", "1.5"),
        ("9007199254740992", "9007199254740993"),
        ("9007199254740992", "9007199254740993.0"),
        ("18446744073709551616", "18446744073709551617"),
        ("1e400", "null"),
        ("1e400", '"1e400"'),
        ("1e400", "1e401"),
        pytest.param("9" * 5000, "8" * 5000, id="thousands of digits"),
    ],
)
def test_different_values_are_different_however_large(one: str, other: str) -> None:
    for form in ('{"seed":%s}', '{"options":{"x":[%s]}}'):
        assert key((form % one).encode()) != key((form % other).encode())


@pytest.mark.parametrize(
    "changed",
    [
        BODY | {"seed": 2},
        BODY | {"temperature": 0.5},
        BODY | {"messages": [{"role": "user", "content": "hello "}]},
        BODY | {"messages": [{"role": "user", "content": "hello", "images": ["AAAA"]}]},
        BODY | {"tools": [{"name": "b"}, {"name": "a"}]},
        BODY | {"options": {"num_ctx": 4096, "top_k": 6}},
        BODY | {"a_field_we_do_not_know": 1},
        BODY | {"seed": None},
        without("seed"),
        without("tools"),
    ],
)
def test_whatever_may_change_the_answer_changes_the_key(changed: dict[str, Any]) -> None:
    assert key(changed) != key()


@pytest.mark.parametrize("name", ["stream", "stream_options", "user", "metadata", "store"])
def test_what_cannot_change_the_answer_does_not_change_the_key(name: str) -> None:
    assert key(BODY | {name: {"any": "thing"}}) == key()


def test_the_model_counts_as_it_was_understood_and_not_as_it_was_written() -> None:
    assert key(BODY | {"model": "auto:reasoning"}, model="x") == key(BODY | {"model": "x"}, model="x")
    assert key(model="x") != key(model="y")


@pytest.mark.parametrize(
    "facts",
    [
        {"operation": facade.CHAT},
        {"operation": openai.COMPLETIONS},
        {"task": "reasoning"},
        {"model": "x"},
        {"route": "other"},
        {"models": ("another digest",)},
        {"models": ("digest", "another")},
        {"models": ()},
    ],
)
def test_dialect_operation_task_model_route_and_weights_change_the_key(facts: dict[str, Any]) -> None:
    assert key(**facts) != key()


def test_who_asks_and_when_does_not_change_the_key() -> None:
    assert key(request_id="other", arrived=5.0, agent="curl", headers={"x": "y"}) == key()


WORDS = st.text(alphabet="ab", max_size=3)
PARTS = st.tuples(WORDS, WORDS, WORDS, st.lists(WORDS, max_size=3).map(tuple), st.sampled_from([b"{}", b'{"a":1}']))


def keyed(parts: tuple[str, str, str, tuple[str, ...], bytes]) -> str:
    route, task, model, models, body = parts
    return key_for(call(body, task=task, model=model), route, models)


def splits(text: str, count: int) -> Iterator[tuple[str, ...]]:
    if count == 1:
        yield (text,)
        return
    for at in range(len(text) + 1):
        yield from ((text[:at], *rest) for rest in splits(text[at:], count - 1))


@given(one=PARTS, other=PARTS)
def test_keys_are_equal_only_where_all_parts_are(one: Any, other: Any) -> None:
    assert (keyed(one) == keyed(other)) == (one == other)


def test_parts_that_read_the_same_one_after_the_other_have_different_keys() -> None:
    ways = [way for count in (3, 4, 5) for way in splits("abc", count)]
    keys = {keyed((route, task, model, tuple(digests), b"{}")) for route, task, model, *digests in ways}
    assert len(keys) == len(ways)
