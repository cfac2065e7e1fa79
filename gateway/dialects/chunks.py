"""The frames of an OpenAI stream, looked at in passing: each is decoded once, and most go on as the bytes that came.

Four ways in which Ollama ends such a stream are told apart here (ollama.md §4.4): `[DONE]`, which alone is an end; an
`error` in a chunk; a chunk without a model, which is an error it swallowed; and silence, which is for the caller to
notice by `complete`.

Repairs of what a chunk says (roles, tool-call indexes, reasoning) have their place in `ChunkReader._repaired`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from gateway.call import Frame, Usage
from gateway.dialects import repairs
from gateway.dialects.failures import heard
from gateway.wire import json, sse

SWALLOWED = "the instance ended the answer without saying why"
NOT_A_CHUNK = "the instance sent a frame that is not a chunk of an answer"


class Delta(Struct, gc=False):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class Choice(Struct, gc=False):
    delta: Delta | None = None
    text: Any = None
    finish_reason: Any = None


class Chunk(Struct, gc=False):
    """As far as we look at it. Tolerant in what is only passed on: other servers than Ollama are met here, too (D4)."""

    model: Any = None
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(Chunk)


def spoke(choice: Choice) -> bool:
    """Whether the model has said something in it, or that it has finished."""
    if choice.text or choice.finish_reason is not None:
        return True
    delta = choice.delta
    return delta is not None and bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


def counted(usage: object) -> Usage | None:
    """Token counts in the OpenAI shape; None where it is no such thing."""
    if not isinstance(usage, dict):
        return None
    return Usage(whole(usage.get("prompt_tokens")), whole(usage.get("completion_tokens")))


def whole(value: object) -> int:
    """A count as it came, 0 where it is absent or none."""
    return value if type(value) is int and value >= 0 else 0


class ChunkReader:
    """Cuts and reads one stream of chat or text completions. A `Reader`."""

    def __init__(self, identity: str, *, show_usage: bool) -> None:
        self.complete = False
        self.usage: Usage | None = None
        self._show_usage = show_usage
        self._identified = repairs.OneIdentity(identity)
        self._splitter = sse.Splitter()

    def feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        if self.complete:
            return frames
        for event in self._splitter.feed(data):
            frames.append(self._frame(event))
            if self.complete:  # the first end marker ends it; the rest was not asked for
                break
        return frames

    def _frame(self, event: bytes) -> Frame:
        payload = sse.data(event)
        if not payload:
            return Frame(event)
        if payload.strip() == b"[DONE]":
            self.complete = True
            return Frame(event, last=True)
        try:
            chunk = _CHUNK.decode(payload)
        except json.UNREADABLE:
            return Frame(event, error=NOT_A_CHUNK)
        if chunk.error:
            return Frame(event, error=heard(chunk.error).message)
        return self._chunk(event, chunk)

    def _chunk(self, event: bytes, chunk: Chunk) -> Frame:
        content = any(map(spoke, chunk.choices or ()))
        if chunk.model == "" and chunk.choices and not content:
            return Frame(event, error=SWALLOWED)
        if chunk.usage:
            # Zeros on a chunk with text mean "not yet".
            if (usage := counted(chunk.usage)) and (any(usage) or not chunk.choices):
                self.usage = usage
            if not self._show_usage and not chunk.choices:
                return Frame(b"")
        return Frame(self._repaired(event, chunk), content)

    def _repaired(self, event: bytes, chunk: Chunk) -> bytes:
        if chunk.usage and not self._show_usage:
            event = repairs.without_zero_usage(event)
        return self._identified(event)
