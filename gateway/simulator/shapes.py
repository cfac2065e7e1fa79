"""How an Ollama answers: the exact bytes of a generation, in both generations of its wire format. Pure.

A `Voice` speaks one answer: `part` by `part`, then `closing`; or `whole`. `/v1` has two generations, before and from
0.32.6 (ollama.md §3.2). Native fields that are zero are absent, durations are nanoseconds (§2.2).
"""

from __future__ import annotations

import base64
import math
import struct
import time
import zlib
from collections.abc import Sequence
from hashlib import shake_128
from typing import Any, NamedTuple, Protocol

from msgspec.json import encode

from gateway.simulator.behaviour import version_of
from gateway.simulator.prompt import Ask, Part

JSON = b"application/json; charset=utf-8"
NDJSON = b"application/x-ndjson"
SSE = b"text/event-stream"
TEXT = b"text/plain"
DONE = b"data: [DONE]\n\n"


class Numbers(NamedTuple):
    """What an answer cost. Durations are nanoseconds; `reason` is "" when generation died quietly (§4.4)."""

    prompt: int
    output: int
    reason: str
    total: int = 0
    load: int = 0
    prefill: int = 0
    decode: int = 0


class Voice(Protocol):
    """One answer in one shape."""

    stream_type: bytes

    def opening(self) -> bytes:
        """A frame that says nothing yet; b"" where the shape has none."""

    def part(self, part: Part) -> bytes:
        """One frame with content."""

    def closing(self, numbers: Numbers) -> list[bytes]:
        """The frames that end a stream, its end marker last."""

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        """The answer in one body."""

    def error(self, text: str) -> bytes:
        """A frame that says the generation failed."""

    def swallowed(self) -> bytes:
        """What is left of an error Ollama loses in translation; b"" natively."""


def error_body(path: str, status: int, text: str) -> bytes:
    """An error in the shape of the family the path belongs to (§3.6, §4.1)."""
    if not path.startswith("/v1"):
        return encode({"error": text})
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return encode({"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_simulated"})
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return encode({"error": {"message": text, "type": kind, "param": None, "code": None}})


_ANTHROPIC_KINDS = {404: "not_found_error", 429: "rate_limit_error", 503: "overloaded_error", 529: "overloaded_error"}


class OpenAIChat:
    stream_type = SSE

    def __init__(self, ask: Ask, serial: int, version: str) -> None:
        self._ask = ask
        self._version = version_of(version)
        self._modern = self._version >= (0, 32, 6)
        self._id = f"chatcmpl-{serial % 999}"  # Ollama's ids collide as well
        self._created = int(time.time())
        self._first = True
        self._calls = 0
        self._head = self._render_head() if ask.stream else b""

    def opening(self) -> bytes:
        return self._event({**self._role(), "content": ""})

    def part(self, part: Part) -> bytes:
        if self._modern and not self._first and part.text:
            return b'%b[{"index":0,"delta":{"content":%b},"finish_reason":null}]}\n\n' % (self._head, encode(part.text))
        delta = self._role()
        if delta or part.text:
            delta["content"] = part.text
        if part.thinking:
            delta["reasoning"] = part.thinking
        if part.call is not None:
            delta["tool_calls"] = [self._call(part.call, self._calls)]
            self._calls += 1
        return self._event(delta)

    def closing(self, numbers: Numbers) -> list[bytes]:
        delta: dict[str, Any] = {} if self._modern else {"role": "assistant", "content": ""}
        reason = "tool_calls" if self._calls else numbers.reason
        frames = [self._event(delta, reason)]
        if self._ask.wants_usage:
            frames.append(b'%b[],"usage":%b}\n\n' % (self._head, encode(_usage(numbers))))
        return [*frames, DONE]

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": _text(parts)}
        if thinking := _thinking(parts):
            message["reasoning"] = thinking
        calls = [part.call for part in parts if part.call is not None]
        if calls:
            message["tool_calls"] = [self._call(call, index) for index, call in enumerate(calls)]
        reason = "tool_calls" if calls else numbers.reason or None
        return encode(
            {
                "id": self._id,
                "object": "chat.completion",
                "created": self._created,
                "model": self._ask.model,
                "system_fingerprint": "fp_ollama",
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": _usage(numbers),
            }
        )

    def error(self, text: str) -> bytes:
        return b"data: " + error_body("/v1", 500, text) + b"\n\n"

    def swallowed(self) -> bytes:
        event = self._event({"role": "assistant", "content": ""})
        return event.replace(b'"model":' + encode(self._ask.model), b'"model":""', 1)

    def _render_head(self) -> bytes:
        known = (self._id.encode(), self._created, encode(self._ask.model))
        head = b'data: {"id":"%b","object":"chat.completion.chunk","created":%d,"model":%b' % known
        return head + b',"system_fingerprint":"fp_ollama","choices":'

    def _role(self) -> dict[str, Any]:
        if self._modern and not self._first:
            return {}
        self._first = False
        return {"role": "assistant"}

    def _event(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return self._head + encode(choices) + b"}\n\n"

    def _call(self, call: tuple[str, dict[str, Any]], index: int) -> dict[str, Any]:
        name, arguments = call
        return {
            "id": f"call_{zlib.crc32(f'{self._id}{index}'.encode()):08x}",
            "index": index if self._version >= (0, 20, 6) else 0,
            "type": "function",
            "function": {"name": name, "arguments": encode(arguments).decode()},
        }


class OpenAICompletion:
    stream_type = SSE

    def __init__(self, ask: Ask, serial: int, _version: str) -> None:
        self._ask = ask
        self._base = {
            "id": f"cmpl-{serial % 999}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": ask.model,
            "system_fingerprint": "fp_ollama",
        }

    def opening(self) -> bytes:
        return self._event("")

    def part(self, part: Part) -> bytes:
        return self._event(part.text)

    def closing(self, numbers: Numbers) -> list[bytes]:
        frames = [self._event("", numbers.reason)]
        if self._ask.wants_usage:
            frames.append(b"data: " + encode({**self._base, "choices": [], "usage": _usage(numbers)}) + b"\n\n")
        return [*frames, DONE]

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        text = _text(parts)
        choices = [{"text": text, "index": 0, "finish_reason": numbers.reason or None}]
        return encode({**self._base, "choices": choices, "usage": _usage(numbers)})

    def error(self, text: str) -> bytes:
        return b"data: " + error_body("/v1", 500, text) + b"\n\n"

    def swallowed(self) -> bytes:
        choices = [{"text": "", "index": 0, "finish_reason": None}]
        return b"data: " + encode({**self._base, "model": "", "choices": choices}) + b"\n\n"

    def _event(self, text: str, reason: str | None = None) -> bytes:
        event: dict[str, Any] = {**self._base, "choices": [{"text": text, "index": 0, "finish_reason": reason}]}
        if self._ask.wants_usage:
            event["usage"] = _usage(Numbers(0, 0, ""))
        return b"data: " + encode(event) + b"\n\n"


class NativeChat:
    stream_type = NDJSON

    def __init__(self, ask: Ask, serial: int, version: str) -> None:
        self._model = ask.model
        self._serial = serial
        self._has_ids = version_of(version) >= (0, 12, 10)
        self._calls = 0

    def opening(self) -> bytes:
        return b""  # natively not even the head is sent before the first token (§2.1)

    def part(self, part: Part) -> bytes:
        return self._line({**self._said([part]), "done": False})

    def closing(self, numbers: Numbers) -> list[bytes]:
        return [self._line({**self._said([]), **_ending(numbers)})]

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        return self._line({**self._said(parts), **_ending(numbers)}).rstrip()

    def error(self, text: str) -> bytes:
        return encode({"error": text}) + b"\n"

    def swallowed(self) -> bytes:
        return b""

    def _line(self, said: dict[str, Any]) -> bytes:
        return encode({"model": self._model, "created_at": _now(), **said}) + b"\n"

    def _said(self, parts: Sequence[Part]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": _text(parts)}
        if thinking := _thinking(parts):
            message["thinking"] = thinking
        if calls := [self._call(*part.call) for part in parts if part.call is not None]:
            message["tool_calls"] = calls
        return {"message": message}

    def _call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"function": {"index": self._calls, "name": name, "arguments": arguments}}
        self._calls += 1
        if not self._has_ids:
            return call
        return {"id": f"call_{zlib.crc32(f'{self._serial}.{self._calls}'.encode()):08x}", **call}


class NativeGenerate(NativeChat):
    def closing(self, numbers: Numbers) -> list[bytes]:
        return [self._line({**self._said([]), **_ending(numbers), "context": [1, 2, 3]})]

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        context = {"context": [1, 2, 3]} if numbers.output else {}
        return self._line({**self._said(parts), **_ending(numbers), **context}).rstrip()

    def _said(self, parts: Sequence[Part]) -> dict[str, Any]:
        said = {"response": _text(parts)}
        if thinking := _thinking(parts):
            said["thinking"] = thinking
        return said


class Vectors(NativeChat):
    """Embeddings: never streamed. `style` is `embed`, `embeddings` (the old one) or `openai`."""

    def __init__(self, ask: Ask, serial: int, version: str) -> None:
        super().__init__(ask, serial, version)
        self._ask = ask
        self._base64 = ask.encoding == "base64" and version_of(version) >= (0, 12, 7)

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        vectors = [vector(text, self._ask.dimensions) for text in self._ask.inputs]
        if self._ask.style == "embeddings":  # the old endpoint does not normalise
            return encode({"embedding": [value * 3.0 for value in vectors[0]] if vectors else []})
        if self._ask.style == "embed":
            cost = {"total_duration": numbers.total, "load_duration": numbers.load, "prompt_eval_count": numbers.prompt}
            return encode({"model": self._model, "embeddings": vectors, **_present(cost)})
        shown = [_packed(one) for one in vectors] if self._base64 else vectors
        data = [{"object": "embedding", "embedding": one, "index": index} for index, one in enumerate(shown)]
        usage = {"prompt_tokens": numbers.prompt, "total_tokens": numbers.prompt}
        return encode({"object": "list", "data": data, "model": self._model, "usage": usage})


def vector(text: str, dimensions: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    raw = struct.unpack(f"<{dimensions}i", shake_128(text.encode("utf-8", "replace")).digest(4 * dimensions))
    length = math.sqrt(sum(value * value for value in raw)) or 1.0
    return [struct.unpack("<f", struct.pack("<f", value / length))[0] for value in raw]


def _packed(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _text(parts: Sequence[Part]) -> str:
    return "".join([part.text for part in parts])


def _thinking(parts: Sequence[Part]) -> str:
    return "".join([part.thinking for part in parts])


def _usage(numbers: Numbers) -> dict[str, int]:
    return {
        "prompt_tokens": numbers.prompt,
        "completion_tokens": numbers.output,
        "total_tokens": numbers.prompt + numbers.output,
    }


def _ending(numbers: Numbers) -> dict[str, Any]:
    if not numbers.reason:
        return {"done": False}
    cost = {
        "total_duration": numbers.total,
        "load_duration": numbers.load,
        "prompt_eval_count": numbers.prompt,
        "prompt_eval_duration": numbers.prefill,
        "eval_count": numbers.output,
        "eval_duration": numbers.decode,
    }
    return {"done": True, "done_reason": numbers.reason, **_present(cost)}


def _present(numbers: dict[str, int]) -> dict[str, int]:
    return {key: value for key, value in numbers.items() if value}


def _now() -> str:
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"
