"""Failures, as instances word them and as each family of clients wants to hear them.

A client library that meets an error in a shape it does not know reports something else, retries what cannot succeed, or
takes a broken answer for a whole one (clients.md §5). So: one shape per family, always one line, never a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from gateway.errors import GatewayError, InternalError, Refused, StreamBroken, UpstreamError, WrongMethod
from gateway.wire import headers, json

LONGEST = 2000  # characters of an instance's own words
RETRY_AFTER = (1.0, 30.0)  # seconds: clients ignore more, or sleep through it (clients.md §9 K 105)
CONTEXT_OVERFLOW = "context_length_exceeded"

_NESTED = 4  # an error in an error in an error: on /v1 Ollama reaches all of them (ollama.md §4.3)
_OVERFLOW_WORDS = (
    "exceeds the available context size",
    "exceeds the context length",
    "longer than the context length",
)


class Heard(NamedTuple):
    """What an instance said of its failure; `code` where the words mean something a client acts on."""

    message: str
    code: str | None = None


def heard(error: object) -> Heard:
    """The words in an `error` of any shape met so far: a string, an object, JSON inside a string (ollama.md §4.3)."""
    message = one_line(_innermost(error, _NESTED))[:LONGEST] or "the instance gave no reason"
    return Heard(message, CONTEXT_OVERFLOW if any(words in message for words in _OVERFLOW_WORDS) else None)


def refusal(body: bytes) -> Heard:
    """The same for the body of a reply with an error status, in either family's shape; no words where it has none."""
    try:
        value = msgspec.json.decode(body)
    except json.UNREADABLE:
        return Heard("")
    error = value.get("error") if isinstance(value, dict) else None
    return heard(error) if error else Heard("")


def broken(instance: str, words: str) -> UpstreamError:
    """An answer that failed after status 200 (ollama.md §4.4). Of a prompt that does not fit the client should hear."""
    code = heard(words).code
    return StreamBroken(instance, words) if code is None else Refused(instance, 400, words, code=code)


def _innermost(error: object, depth: int) -> str:
    if isinstance(error, str):
        return _unwrapped(error, depth)
    if isinstance(error, dict):
        inner = error.get("error") or error.get("message")
        return _innermost(inner, depth - 1) if inner and depth else ""
    return ""


def _unwrapped(text: str, depth: int) -> str:
    if not (depth and text.lstrip().startswith("{")):
        return text
    try:
        value = msgspec.json.decode(text)
    except json.UNREADABLE:
        return text
    return _innermost(value, depth - 1) or text


def one_line(text: str) -> str:
    """Fit for a client that reads one line, and for UTF-8."""
    return " ".join(text.splitlines()).encode("utf-8", "replace").decode()


def render(dialect: str, error: GatewayError, request_id: str) -> bytes:
    """The JSON body of an error, in the shape of the family `dialect` belongs to."""
    return json.encode(_SHAPES.get(dialect, _openai)(error, _words(error, request_id), request_id))


def in_stream(dialect: str, error: GatewayError, request_id: str) -> bytes:
    """The frame that ends a stream which failed after it began. Nothing may follow it, no end marker either (D7)."""
    before, after = _FRAMES.get(dialect, _FRAMES["openai"])
    return before + render(dialect, error, request_id) + after


def status_headers(error: GatewayError) -> headers.Headers:
    """What a client's retry logic reads. Every 429 and 503 says when to come back (clients.md §9 K 105-106)."""
    found = []
    wait = error.retry_after
    if wait is None and error.status in (429, 503):
        wait = RETRY_AFTER[0]
    if wait is not None:
        wait = min(max(wait, 0.001), RETRY_AFTER[1])
        found.append((b"retry-after", b"%d" % math.ceil(wait)))
        found.append((b"retry-after-ms", b"%d" % round(wait * 1000)))
    if error.retryable is not None:
        found.append((b"x-should-retry", b"true" if error.retryable else b"false"))
    if isinstance(error, WrongMethod):
        found.append((b"allow", headers.ascii_value(error.allow)))
    return found


def _words(error: GatewayError, request_id: str) -> str:
    if isinstance(error, InternalError):  # a defect's own words may show what is nobody's business
        return f"internal error; the log tells more under request id {request_id}"
    return one_line(error.message)


def _openai(error: GatewayError, words: str, _request_id: str) -> dict[str, Any]:
    return {"error": {"message": words, "type": error.kind, "param": error.param, "code": error.code}}


def _ollama(_error: GatewayError, words: str, _request_id: str) -> dict[str, Any]:
    return {"error": words}


def _anthropic(error: GatewayError, words: str, request_id: str) -> dict[str, Any]:
    usual = "invalid_request_error" if 400 <= error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, usual)
    return {"type": "error", "error": {"type": kind, "message": words}, "request_id": request_id}


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_SHAPES: dict[str, Callable[[GatewayError, str, str], dict[str, Any]]] = {
    "openai": _openai,
    "ollama": _ollama,
    "facade": _ollama,
    "anthropic": _anthropic,
}
_FRAMES = {
    "openai": (b"data: ", b"\n\n"),
    "ollama": (b"", b"\n"),
    "facade": (b"", b"\n"),
    "anthropic": (b"event: error\ndata: ", b"\n\n"),
}
