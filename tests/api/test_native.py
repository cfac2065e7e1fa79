"""What of a native body is about memory, and how a body that was read already is given on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.models import MAX_MEMORY_BODY, Asked, _without_question


def empty(path: str, **fields: Any) -> bool:
    body = json.dumps({"model": "x", **fields}).encode()
    return _without_question(body, prompted=path == "/api/generate") is not None


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_100_a_body_without_a_question_is_about_memory(path: str) -> None:
    assert empty(path)
    assert empty(path, keep_alive="5m", stream=True)
    assert empty(path, prompt="", messages=[])
    assert empty(path, prompt=None, messages=None)
    assert not empty(path, prompt="hi", messages=[{"role": "user", "content": "hi"}])
    assert empty(path, prompt="hi") == (path == "/api/chat")  # the other's field says nothing here
    assert empty(path, messages=[{}]) == (path == "/api/generate")


def test_100_a_body_of_the_facade_is_not() -> None:
    assert not empty("/api/chat", message="hello")
    assert not empty("/api/chat", message="")
    assert empty("/api/chat", message=None)


@given(body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_100_whatever_cannot_be_read_is_left_to_whoever_says_what_is_wrong(body: bytes) -> None:
    _without_question(body, prompted=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"model":7}',
        b'{"model":"x","messages":{}}',
        b'{"model":"x","keep_alive":[]}',
        b'{"model":"x","model":"y"}',
        b'{"model":"x","options":%b}' % (b'{"a":' * 500 + b"1" + b"}" * 500),
        b'{"model":"x","system":"%b"}' % (b"s" * MAX_MEMORY_BODY),
    ],
)
def test_100_so_is_what_is_odd_or_long(body: bytes) -> None:
    assert _without_question(body, prompted=True) is None
    assert _without_question(body, prompted=False) is None


@pytest.mark.parametrize(
    ("keep_alive", "unloads"),
    [
        *((one, True) for one in (0, 0.0, -0.0, "0", "0s", "0m0s", "-0h", "0.0s", "00ms")),
        *((one, False) for one in (None, 1, -1, 0.5, "5m", "-1m", "1s0m", "0m1s", "", "s", "0x", "never")),
    ],
)
def test_100_a_model_is_unloaded_by_no_time_at_all_in_any_spelling(keep_alive: Any, unloads: bool) -> None:
    body = json.dumps({"model": "x", "keep_alive": keep_alive}).encode()
    asked = _without_question(body, prompted=True)
    assert asked is not None
    assert asked.unloads is unloads


@pytest.mark.parametrize("keep_alive", ["0", "+0", "-0.0s", "0m0s", "00h0.000ms"])
def test_every_spelling_of_no_time_unloads(keep_alive: str) -> None:
    assert Asked(keep_alive=keep_alive).unloads


@pytest.mark.parametrize(
    "keep_alive", ["0" * 1_000_000 + "x", "0s" * 500_000 + "x", "0." * 500_000, "", "s", "5m", "0x"]
)
def test_whatever_else_is_written_there_does_not_and_is_read_in_one_go(keep_alive: str) -> None:
    assert not Asked(keep_alive=keep_alive).unloads
