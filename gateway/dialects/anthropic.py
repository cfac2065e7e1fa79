"""Anthropic's Messages: POST /v1/messages, relayed to the instance's own, event by event and byte for byte.

A stream ends with `message_stop`; there is no `[DONE]`. A stream that breaks ends with `event: error` and without
`message_stop` (D7). Whether a model can be asked to think is the instance's to say: here it relaxes that in silence.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.call import Call, Frame, Reply, Usage, Wish
from gateway.dialects import repairs
from gateway.dialects.chunks import whole
from gateway.dialects.failures import heard, in_stream
from gateway.dialects.reading import (
    NULL,
    Form,
    Positive,
    TaskName,
    Thing,
    Whole,
    complaint,
    conversation_begun,
    first_byte,
    opening,
    required_model,
)
from gateway.errors import GatewayError, InvalidCall
from gateway.wire import json, sse

UNFINISHED = "the instance ended the answer without finishing it"
NOT_AN_EVENT = "the instance sent an event that cannot be read"
BYTES_PER_TOKEN = 4  # the usual estimate for English text, and the one Ollama makes


class Message(Struct, gc=False):
    role: str
    content: Raw = NULL


class MessagesBody(Struct, kw_only=True, gc=False):
    model: str | None = None
    task_type: TaskName | None = None
    stream: bool | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=2048)]
    tools: Annotated[list[Thing], Meta(max_length=256)] | None = None
    max_tokens: Positive | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None


class CountBody(Struct, kw_only=True, gc=False):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=2048)]
    system: Raw = NULL
    tools: Raw = NULL


class _Source(Struct, gc=False):
    type: str | None = None


class _Block(Struct, gc=False):
    """One block of a message's content; a tool's result holds blocks of its own."""

    type: str
    text: str | None = None
    thinking: str | None = None
    source: _Source | None = None
    content: Raw = NULL
    input: Raw = NULL


class _Delta(Struct, gc=False):
    text: Any = None
    thinking: Any = None
    partial_json: Any = None


class _Event(Struct, gc=False):
    type: Any = None
    delta: _Delta | None = None
    usage: Any = None
    error: Any = None


class _Finished(Struct, gc=False):
    stop_reason: Any = None
    usage: Any = None
    error: Any = None


_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_BLOCKS = msgspec.json.Decoder(list[_Block])
_EVENT = msgspec.json.Decoder(_Event)
_FINISHED = msgspec.json.Decoder(_Finished)


def _counted(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    return Usage(whole(usage.get("input_tokens")), whole(usage.get("output_tokens")))


class EventReader:
    """Cuts and reads one stream of message events. A `Reader`."""

    keep_alive = b'event: ping\ndata: {"type":"ping"}\n\n'  # may come before message_start (clients.md §4)

    def __init__(self) -> None:
        self.complete = False
        self.usage: Usage | None = None
        self._splitter = sse.Splitter()

    def plain(self, data: bytes) -> bytes:
        return b""

    def feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        if self.complete:
            return frames
        for event in self._splitter.feed(data):
            frames.append(self._frame(event))
            if self.complete:
                break
        return frames

    def _frame(self, raw: bytes) -> Frame:
        payload = sse.data(raw)
        if not payload:
            return Frame(raw)
        try:
            event = _EVENT.decode(payload)
        except json.UNREADABLE:
            return Frame(raw, error=NOT_AN_EVENT)
        if event.error or event.type == "error":
            return Frame(raw, error=heard(event.error).message)
        if event.type == "message_delta":
            self.usage = _counted(event.usage)
        if event.type == "message_stop":
            self.complete = True
        return Frame(raw, content=_spoke(event.delta), last=self.complete)

    def failure(self, error: GatewayError, request_id: str) -> bytes:
        return in_stream("anthropic", error, request_id)


def _spoke(delta: _Delta | None) -> bool:
    return delta is not None and bool(delta.text or delta.thinking or delta.partial_json)


class Messages:
    """POST /v1/messages"""

    name = "messages"
    dialect = "anthropic"
    path = "/v1/messages"
    native = False
    stream_type = b"text/event-stream"
    _form = Form(MessagesBody)

    def read(self, body: bytes) -> Wish:
        asked, fields = self._form.read_both(body)
        needs = set()
        if asked.tools:
            needs.add("tools")
        if sum(_images(one.content, f"messages[{place}].content") for place, one in enumerate(asked.messages)):
            needs.add("vision")
        return Wish(
            model=required_model(asked.model),
            task=asked.task_type or "",
            stream=bool(asked.stream),
            needs=frozenset(needs),
            deterministic=asked.temperature == 0,
            conversation=conversation_begun(
                fields, ("system", "tools"), [("said", turn.content) for turn in opening(asked.messages)]
            ),
        )

    def write(self, call: Call, model: str) -> bytes:
        given = _FIELDS.decode(call.body)
        fields = repairs.without_task_type(given)
        if call.wish.model != model:
            fields = {**fields, "model": Raw(msgspec.json.encode(model))}
        return call.body if fields is given else json.encode_fields(fields)

    def reader(self, call: Call) -> EventReader:
        return EventReader()

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        try:
            finished = _FINISHED.decode(body)
        except json.UNREADABLE:
            raise ValueError("the instance answered with something that is not a reply") from None
        if finished.error:
            raise ValueError(heard(finished.error).message)
        if not finished.stop_reason:  # a quiet death (ollama.md §4.4)
            raise ValueError(UNFINISHED)
        return Reply(body, _counted(finished.usage))


def _images(content: Raw, path: str, *, within: bool = False) -> int:
    """How many images there are, those in the results of tools included; a result holds no other result.

    Raises InvalidCall for content of no known kind, and for images or documents that would have to be fetched.
    """
    count = 0
    for place, block in enumerate(_blocks(content, path)):
        if block.type == "tool_result" and not within:
            count += _images(block.content, f"{path}[{place}].content", within=True)
        elif block.source is not None and block.source.type == "url":
            what = "images" if block.type == "image" else "documents"
            raise InvalidCall(f"{path}[{place}].source: {what} must be base64; the gateway fetches none", param=path)
        elif block.type == "image":
            count += 1
    return count


def _blocks(content: Raw, path: str) -> list[_Block]:
    """The blocks of a list; none for a string or null. Raises InvalidCall for anything else."""
    kind = first_byte(content)
    if kind in (b'"', b"n"):
        return []
    if kind != b"[":
        raise InvalidCall(f"{path}: expected a string or a list of blocks", param=path)
    try:
        return _BLOCKS.decode(content)
    except json.UNREADABLE as problem:
        raise complaint(str(problem), path) from None


_COUNT = Form(CountBody)


def estimated_tokens(body: bytes) -> int:
    """Tokens in a body of /v1/messages/count_tokens: an estimate, the bytes of its text by four, without its images.

    Raises InvalidCall. Ollama has no such endpoint (ollama.md §1), and no tokenizer is asked for it.
    """
    asked = _COUNT.read(body)
    size = _text_bytes(asked.system, "system")
    if first_byte(asked.tools) == b"[":
        size += len(memoryview(asked.tools))
    for place, message in enumerate(asked.messages):
        size += len(message.role) + _text_bytes(message.content, f"messages[{place}].content")
    return max(1, size // BYTES_PER_TOKEN)


def _text_bytes(content: Raw, path: str, *, within: bool = False) -> int:
    if first_byte(content) == b'"':
        return len(memoryview(content)) - 2
    size = 0
    for block in _blocks(content, path):
        size += len((block.text or "").encode()) + len((block.thinking or "").encode())
        if block.type == "tool_use":
            size += len(memoryview(block.input))
        elif block.type == "tool_result" and not within:
            size += _text_bytes(block.content, path, within=True)
    return size


MESSAGES = Messages()
