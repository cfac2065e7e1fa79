"""Failures: what an instance's words mean, and the shape in which each family of clients hears of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import heard, in_stream, refusal, render, status_headers
from gateway.errors import (
    ConnectFailed,
    Forbidden,
    GatewayError,
    InternalError,
    InvalidCall,
    LineFull,
    NoInstance,
    Refused,
    ShuttingDown,
    StreamBroken,
    UnknownModel,
    WrongMethod,
)
from gateway.wire import ndjson, sse

FAMILIES = ["openai", "ollama", "facade", "anthropic"]
UGLY = 'a\nb\r\nc\u2028d\u2029e\u0085f"\\\x00\ud800'


def body(dialect: str, error: GatewayError) -> Any:
    return msgspec.json.decode(render(dialect, error, "r-1"))


def test_openai_clients_get_an_object_with_all_four_fields() -> None:
    assert body("openai", InvalidCall("no", param="model")) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "model", "code": "invalid_request"}
    }
    assert body("openai", UnknownModel("x"))["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("dialect", ["ollama", "facade"])
def test_ollama_clients_get_a_string(dialect: str) -> None:
    assert body(dialect, UnknownModel("x")) == {"error": "model 'x' not found"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidCall("no"), "invalid_request_error"),
        (Forbidden("no"), "permission_error"),
        (UnknownModel("x"), "not_found_error"),
        (LineFull("no", retry_after=1), "rate_limit_error"),
        (ShuttingDown(), "overloaded_error"),
        (ConnectFailed("a", "no"), "api_error"),
        (WrongMethod("no", allow="POST"), "invalid_request_error"),
    ],
)
def test_anthropic_clients_get_a_type_by_status_and_the_request_id(error: GatewayError, kind: str) -> None:
    told = body("anthropic", error)

    assert told == {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": "r-1"}


@pytest.mark.parametrize("dialect", FAMILIES)
@given(message=st.text(alphabet=st.characters()) | st.just(UGLY))
def test_whatever_the_message_an_error_is_one_line_of_json(dialect: str, message: str) -> None:
    rendered = render(dialect, InvalidCall(message), "r-1")

    assert len(rendered.decode().splitlines()) == 1
    msgspec.json.decode(rendered)


@pytest.mark.parametrize("dialect", FAMILIES)
def test_a_defect_of_ours_shows_only_the_request_id(dialect: str) -> None:
    rendered = render(dialect, InternalError("KeyError: 'secret'"), "r-1")

    assert b"secret" not in rendered
    assert b"r-1" in rendered


def test_in_a_stream_each_family_gets_one_frame_and_no_end_marker() -> None:
    error = StreamBroken("alpha", UGLY)

    openai, ollama, anthropic = (in_stream(dialect, error, "r-1") for dialect in ("openai", "ollama", "anthropic"))

    assert sse.Splitter().feed(openai) == [openai]
    assert msgspec.json.decode(sse.data(openai) or b"")["error"]["code"] == "stream_interrupted"
    assert b"[DONE]" not in openai
    assert ndjson.Splitter().feed(ollama) == [ollama]
    assert set(msgspec.json.decode(ollama)) == {"error"}
    assert anthropic.startswith(b"event: error\ndata: {")
    assert sse.Splitter().feed(anthropic) == [anthropic]


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0, b"1", b"1"), (0.2, b"1", b"200"), (1.2, b"2", b"1200"), (30, b"30", b"30000"), (999, b"30", b"30000")],
)
def test_a_client_is_told_when_to_come_back(seconds: float, whole: bytes, milliseconds: bytes) -> None:
    headers = dict(status_headers(LineFull("no", retry_after=seconds)))

    assert headers == {b"retry-after": whole, b"retry-after-ms": milliseconds, b"x-should-retry": b"true"}


@pytest.mark.parametrize("status", [429, 503])
def test_an_instance_that_is_busy_is_worth_another_try_in_a_second(status: int) -> None:
    assert dict(status_headers(Refused("alpha", status, "busy")))[b"retry-after"] == b"1"


def test_what_cannot_succeed_is_not_to_be_tried_again() -> None:
    assert status_headers(InvalidCall("no")) == [(b"x-should-retry", b"false")]


def test_a_failure_nobody_can_judge_says_nothing_of_retrying() -> None:
    assert status_headers(ConnectFailed("alpha", "no")) == []


def test_a_wrong_method_is_told_the_right_ones() -> None:
    assert (b"allow", b"GET, HEAD") in status_headers(WrongMethod("no", allow="GET, HEAD"))


def test_without_an_instance_there_is_a_time_to_come_back_too() -> None:
    assert dict(status_headers(NoInstance("none", retry_after=5)))[b"retry-after"] == b"5"


OVERFLOW = "request (9000 tokens) exceeds the available context size (4096 tokens)"


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        ("boom", "boom", None),
        ("a\nb", "a b", None),
        ({"message": "boom"}, "boom", None),
        ({"message": None}, "the instance gave no reason", None),
        (True, "the instance gave no reason", None),
        ([1], "the instance gave no reason", None),
        ("{not json", "{not json", None),
        ('{"x":1}', '{"x":1}', None),
        ('{"error":{"code":400,"message":"' + OVERFLOW + '"}}', OVERFLOW, "context_length_exceeded"),
        ("the input length exceeds the context length", "the input length exceeds the context length",
         "context_length_exceeded"),
        ("x" * 5000, "x" * 2000, None),
        ("[" * 100_000, "[" * 2000, None),
        ('{"error":' * 100_000, '{"error":' * 222 + '{"', None),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_an_instance_is_understood_in_every_shape(error: object, message: str, code: str | None) -> None:
    assert heard(error) == (message, code)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b'{"error":"model not found"}', "model not found"),
        (b'{"error":{"message":"no","type":"x","param":null,"code":null}}', "no"),
        (b'{"error":null}', ""),
        (b'{"x":1}', ""),
        (b"[]", ""),
        (b"", ""),
        (b"<html>", ""),
        (b"[" * 100_000, ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_refusal_is_read_from_a_body_of_either_family(reply: bytes, message: str) -> None:
    assert refusal(reply).message == message
