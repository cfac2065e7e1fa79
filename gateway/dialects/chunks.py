"""The frames of an OpenAI stream, looked at in passing: each is decoded once, and most go on as the bytes that came.

Ways in which Ollama ends such a stream are told apart here (ollama.md §4.4): `[DONE]` after a `finish_reason`, which
alone is an end; `[DONE]` without one, which is a runner that died quietly; an `error` in a chunk; a chunk without a
model, which is an error it swallowed; and silence, which is for the caller to notice by `complete`.

A chunk that is not as clients need it is made so by the rules of `gateway.dialects.repairs`; what those have to know of
the chunks before it is held here. The law: `ChunkReader._sound` must see every chunk that a rule would change, because
`Mended` is not asked about the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from gateway.call import Frame, Usage
from gateway.dialects import repairs
from gateway.dialects.failures import heard, in_stream
from gateway.dialects.reading import NULL
from gateway.dialects.repairs import Fields, fields_of, objects_of, plain_event, raw
from gateway.errors import GatewayError
from gateway.wire import json, sse

UNFINISHED = "the instance ended the answer without finishing it"
SWALLOWED = "the instance ended the answer without saying why"
NOT_A_CHUNK = "the instance sent a frame that is not a chunk of an answer"
MAX_TOOL_CALLS = 1024  # in one answer

_EVENT_HEAD = re.compile(rb'data: \{"id":"[^"\\]*","object":"([a-z._]*)","created":(\d+),"model":("[^"\\]*")')
# How Ollama goes on where a chunk is text in plain ASCII and nothing else: nothing in it can be in need of anything.
_PLAIN_TEXT = re.compile(
    rb'(?:,"system_fingerprint":"[a-z_]*+")?,"choices":\[\{"index":0,'
    rb'"delta":\{"content":"[ !#-\[\]-~]++"\},"finish_reason":null\}\]\}\n\n'
)
_DONE = b"data: [DONE]\n\n"


class Delta(Struct, gc=False):
    role: Any = UNSET
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
    error: Any = UNSET


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

    keep_alive = b": keep-alive\n"  # the one form all clients bear (clients.md §4)

    def __init__(self, identity: str, *, show_usage: bool, reasoning_content: bool = False) -> None:
        self.complete = False
        self.usage: Usage | None = None
        self._show_usage = show_usage
        self._twice = reasoning_content
        self._finished = False  # a `finish_reason` was seen
        self._mended = Mended(identity, reasoning_content=reasoning_content)
        self._identified = OneIdentity(identity)
        self._splitter = sse.Splitter()

    def plain(self, data: bytes) -> bytes:
        if self._splitter.pending or self.complete or not self._mended.begun:
            return b""
        return self._identified.plain_text(data)

    def feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        if self.complete:
            return frames
        for event in self._splitter.feed(data):
            if self._mended.begun and (again := self._identified.plain_text(event)):
                frames.append(Frame(again, content=True))
                continue
            if payload := sse.data(event):
                frames.append(self._frame(event, payload))
            if self.complete:  # the first end marker ends it; the rest was not asked for
                break
        return frames

    def failure(self, error: GatewayError, request_id: str) -> bytes:
        return in_stream("openai", error, request_id)

    def _frame(self, event: bytes, payload: bytes) -> Frame:
        if payload.strip() == b"[DONE]":
            if not self._finished:
                return Frame(event, error=UNFINISHED)
            self.complete = True
            return Frame(_DONE, last=True)
        try:
            chunk = _CHUNK.decode(payload)
        except json.UNREADABLE:
            return Frame(event, error=NOT_A_CHUNK)
        if chunk.error is not UNSET and chunk.error:
            return Frame(event, error=heard(chunk.error).message)
        return self._chunk(event, payload, chunk)

    def _chunk(self, event: bytes, payload: bytes, chunk: Chunk) -> Frame:
        choices = chunk.choices or ()
        content, sound = False, chunk.error is UNSET and bool(choices)
        for choice in choices:
            content = content or spoke(choice)
            sound = self._sound(event, choice) and sound  # it notes things, so it is asked of every choice
        if chunk.model == "" and choices and not content:
            return Frame(event, error=SWALLOWED)
        if chunk.usage:
            # Zeros on a chunk with text mean "not yet".
            if (usage := counted(chunk.usage)) and (any(usage) or not choices):
                self.usage = usage
            if not self._show_usage and not choices:
                return Frame(b"")
        plain = len(event) == len(payload) + 8 and event.endswith(b"\n\n")  # what begins otherwise has another identity
        if not (sound and plain):
            return Frame(b"".join(map(self._identified, self._mended(payload))), content)
        if chunk.usage and not self._show_usage:
            event = repairs.without_zero_usage(event)
        return Frame(self._identified(repairs.role_cut_out(event)), content)

    def _sound(self, event: bytes, choice: Choice) -> bool:
        """Whether no rule would change it but those that cut out bytes. Notes that the answer is finished."""
        delta, mended = choice.delta, self._mended
        if choice.finish_reason:
            self._finished = True
            if mended.calls:
                return False
        if delta is None:
            return True
        if not mended.begun or delta.tool_calls or (delta.role is not UNSET and event.find(repairs.ROLE_BEFORE) < 0):
            return False
        if delta.reasoning is None and delta.reasoning_content is None:
            return True
        return not (self._twice or delta.content or delta.reasoning_content)


class Mended:
    """The chunks of one stream that are not as they should be, each made one or more that are."""

    def __init__(self, identity: str, *, reasoning_content: bool = False) -> None:
        self.begun = False  # who speaks was told
        self.calls = ToolCalls(identity)
        self._twice = reasoning_content

    def __call__(self, payload: bytes) -> list[bytes]:
        """The events to send in place of one, in one line each; the bytes of its payload where nothing had to change.

        Raises ValueError for more tool calls than an answer can have.
        """
        given = fields_of(payload)
        fields = repairs.without_error(given)
        if fields.get("usage", NULL) != NULL:
            fields = repairs.usage_in_three_numbers(fields)
        choices = objects_of(fields.get("choices", NULL))
        told = [part for choice in choices for part in self._choice(choice)]
        if told == choices:
            return [plain_event(payload if fields is given else json.encode(fields))]
        return [plain_event(json.encode({**fields, "choices": [part]})) for part in told]

    def _choice(self, choice: Fields) -> Iterator[Fields]:
        if choice.get("delta", NULL) == NULL:  # a text completion
            yield choice
            return
        given = fields_of(choice["delta"])
        delta = repairs.role_gone(given) if self.begun else repairs.role_first(given)
        self.begun = True
        delta = repairs.reasoning_named(self.calls(delta), self._twice)
        if self.calls:
            choice = repairs.finished_by_calls(choice)
        *thought, last = repairs.reasoning_apart(delta)
        for part in thought:
            yield {**choice, "delta": raw(part), "finish_reason": NULL}
        yield choice if last is given else {**choice, "delta": raw(last)}


class ToolCalls:
    """The calls of one stream under indexes from 0, one for each id: before v0.20.6 all had 0 (ollama.md §3.2)."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._ours: dict[bytes, int] = {}  # by id
        self._latest: dict[bytes, int] = {}  # by their index: a fragment without an id continues the last call there

    def __bool__(self) -> bool:
        return bool(self._ours)

    def __call__(self, delta: Fields) -> Fields:
        """Raises ValueError beyond MAX_TOOL_CALLS."""
        calls = objects_of(delta.get("tool_calls", NULL))
        told = [self._told(call) for call in calls]
        return delta if told == calls else {**delta, "tool_calls": raw(told)}

    def _told(self, call: Fields) -> Fields:
        own, theirs = call.get("id", NULL), bytes(call.get("index", NULL))
        known = self._latest.get(theirs) if own in repairs.SILENT else self._ours.get(bytes(own))
        if known is not None:
            return repairs.call_continued(call, known)
        index = len(self._ours)
        if index >= MAX_TOOL_CALLS:
            raise ValueError(f"the instance called tools more than {MAX_TOOL_CALLS} times in one answer")
        identity = repairs.call_id(self._identity, index) if own in repairs.SILENT else own
        self._ours[bytes(identity)] = self._latest[theirs] = index
        return repairs.call_complete(call, index, identity, repairs.EMPTY_TEXT)


class OneIdentity:
    """One `id`, one `created` and one `model` for all chunks of a stream: Ollama's ids collide and its times drift.

    Remembers how the last chunk began, so that the next one usually costs a comparison and a copy (ollama.md §3.2).
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._created = self._model = b""  # of the first chunk that tells
        self._theirs = b"\0"  # begins no event
        self._ours = b""

    def __call__(self, event: bytes) -> bytes:
        if not event.startswith(self._theirs):
            head = _EVENT_HEAD.match(event)
            if head is None:
                return self._rewritten(event)
            self._notice(head[2], head[3])
            self._theirs = head[0]
            shape = b'data: {"id":"%b","object":"%b","created":%b,"model":%b'
            self._ours = shape % (self._identity.encode(), head[1], self._created, self._model or head[3])
        return self._ours + event[len(self._theirs) :]

    def plain_text(self, event: bytes) -> bytes:
        """The same where it begins as the last one did and goes on as most do; else b"", and it is to be looked at."""
        begins = len(self._theirs)
        if event.startswith(self._theirs) and _PLAIN_TEXT.fullmatch(event, begins):
            return self._ours + event[begins:]
        return b""

    def _notice(self, created: bytes, model: bytes) -> None:
        self._created = self._created or created
        if model != b'""':
            self._model = self._model or model

    def _rewritten(self, event: bytes) -> bytes:
        """For a chunk that is not laid out as Ollama's: decoded and encoded, all other values as they came."""
        fields = fields_of(sse.data(event) or b"")
        if not fields:
            return event
        self._notice(bytes(fields.get("created", b"")), bytes(fields.get("model", b"")))
        ours = {"id": raw(self._identity), "created": Raw(self._created), "model": Raw(self._model)}
        known = {name: value for name, value in ours.items() if name == "id" or (name in fields and bytes(value))}
        return plain_event(json.encode({**fields, **known}))
