"""OpenAI's Responses: POST /v1/responses, relayed to the instance's own, event by event and byte for byte.

A stream ends with `response.completed` or `response.incomplete`; there is no `[DONE]`. A stream that breaks ends with
an `error` event, for SDKs, and `response.failed`, for Codex, numbered on from the last event (clients.md §9 H 85).
Nothing is stored: a call that builds on a stored answer is refused, for Ollama would answer it without its past.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.call import Call, Frame, Reply, Usage, Wish
from gateway.dialects import repairs
from gateway.dialects.chunks import whole
from gateway.dialects.failures import RETRY_AFTER, heard, render
from gateway.dialects.reading import (
    NULL,
    Form,
    Positive,
    TaskName,
    Thing,
    complaint,
    conversation_begun,
    conversation_named,
    first_byte,
    opening,
    required_model,
    text,
)
from gateway.errors import GatewayError, InvalidCall
from gateway.wire import json, sse

UNFINISHED = "the instance ended the answer without finishing it"
NOT_AN_EVENT = "the instance sent an event that cannot be read"

_ENDS = ("response.completed", "response.incomplete")
_NOTHING = (NULL, Raw(b'""'))


class ResponsesBody(Struct, kw_only=True, gc=False):
    model: str | None = None
    task_type: TaskName | None = None
    stream: bool | None = None
    input: Raw = NULL
    tools: Annotated[list[Thing], Meta(max_length=256)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: Positive | None = None
    previous_response_id: Raw = NULL
    conversation: Raw = NULL


class _Item(Struct, gc=False):
    content: Raw = NULL
    output: Raw = NULL
    speaker: Raw = msgspec.field(default=NULL, name="role")

    @property
    def role(self) -> str:
        return text(self.speaker)


class _Part(Struct, gc=False):
    type: str | None = None
    image_url: str | None = None
    file_url: str | None = None


class _Response(Struct, gc=False):
    """The response object, whole or inside an event, as far as we look at it."""

    id: Any = None
    created_at: Any = None
    model: Any = None
    status: Any = None
    output: list[Raw] | None = None
    usage: Any = None
    error: Any = None


class _Event(Struct, gc=False):
    type: Any = None
    sequence_number: Any = None
    delta: Any = None
    response: _Response | None = None
    error: Any = None
    message: Any = None


_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_ITEMS = msgspec.json.Decoder(list[_Item])
_PARTS = msgspec.json.Decoder(list[_Part])
_EVENT = msgspec.json.Decoder(_Event)
_RESPONSE = msgspec.json.Decoder(_Response)


def _counted(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    return Usage(whole(usage.get("input_tokens")), whole(usage.get("output_tokens")))


_KEEP_ALIVE_EVENT = b'event: keepalive\ndata: {"type":"keepalive"}\n\n'


class EventReader:
    """Cuts and reads one stream of response events. A `Reader`. `agent` is the client's User-Agent."""

    def __init__(self, agent: str = "") -> None:
        self._codex = agent.startswith("codex")
        self.complete = False
        self.usage: Usage | None = None
        self._splitter = sse.Splitter()
        self._next = 0  # the number of the next event
        self._begun = _Response()  # as `response.created` told it

    @property
    def keep_alive(self) -> bytes:
        """A comment; for Codex, once there is a response, an event: its patience counts events, and others break on one
        whose type they do not know (clients.md §4)."""
        return _KEEP_ALIVE_EVENT if self._codex and self._next else b": keep-alive\n"

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
        kind = event.type if isinstance(event.type, str) else ""
        if kind in ("error", "response.failed") or event.error:
            return self._failed(raw, event)
        self._next = whole(event.sequence_number) + 1
        if kind == "response.created" and event.response is not None:
            self._begun = event.response
        if kind in _ENDS:
            self.complete = True
            self.usage = _counted(event.response.usage) if event.response is not None else None
        return Frame(raw, content=kind.endswith(".delta") and bool(event.delta), last=self.complete)

    def _failed(self, raw: bytes, event: _Event) -> Frame:
        inner = event.response.error if event.response is not None else None
        return Frame(raw, error=heard(event.error or event.message or inner).message)

    def failure(self, error: GatewayError, request_id: str) -> bytes:
        """Two events, numbered on. Codex acts on three codes and on "try again in"; SDKs raise at the first event."""
        told = msgspec.json.decode(render("openai", error, request_id))["error"]
        told["code"] = "rate_limit_exceeded" if error.status == 429 else told["code"]
        if error.retry_after is not None:
            told["message"] += f" Please try again in {min(max(error.retry_after, 1.0), RETRY_AFTER[1]):.1f}s."
        flat = {"code": told["code"], "message": told["message"], "param": told["param"]}
        failed = {"type": "response.failed", "sequence_number": self._next + 1}
        return _event({"type": "error", "sequence_number": self._next, **flat, "error": told}) + _event(
            {**failed, "response": self._failed_response(told, request_id)}
        )

    def _failed_response(self, told: dict[str, Any], request_id: str) -> dict[str, Any]:
        begun = self._begun
        return {
            "id": begun.id or f"resp_{request_id}",
            "object": "response",
            "created_at": begun.created_at or int(time.time()),
            "status": "failed",
            "error": {"code": told["code"], "message": told["message"]},
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": begun.model or "",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
        }


def _event(fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (fields["type"].encode(), json.encode(fields))


class Responses:
    """POST /v1/responses"""

    name = "responses"
    dialect = "openai"
    path = "/v1/responses"
    native = False
    stream_type = b"text/event-stream"
    _form = Form(ResponsesBody)

    def read(self, body: bytes) -> Wish:
        asked, fields = self._form.read_both(body)
        for name in ("previous_response_id", "conversation"):
            if getattr(asked, name) not in _NOTHING:
                raise InvalidCall(f"{name} is not supported: no answers are stored; send the whole input", param=name)
        needs = set()
        if asked.tools:
            needs.add("tools")
        items = _items(asked.input)
        if sum(_images(item, f"input[{place}]") for place, item in enumerate(items)):
            needs.add("vision")
        return Wish(
            model=required_model(asked.model),
            task=asked.task_type or "",
            stream=bool(asked.stream),
            needs=frozenset(needs),
            deterministic=asked.temperature == 0,
            conversation=conversation_named(fields) or _begun(fields, items),
        )

    def write(self, call: Call, model: str) -> bytes:
        given = _FIELDS.decode(call.body)
        fields = repairs.without_task_type(given)
        if call.wish.model != model:
            fields = {**fields, "model": Raw(msgspec.json.encode(model))}
        return call.body if fields is given else json.encode_fields(fields)

    def reader(self, call: Call) -> EventReader:
        return EventReader(call.agent)

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        try:
            response = _RESPONSE.decode(body)
        except json.UNREADABLE:
            raise ValueError("the instance answered with something that is not a reply") from None
        if response.error:
            raise ValueError(heard(response.error).message)
        usage = _counted(response.usage)
        # Ollama says `completed` even of a quiet death, which tells by its counts: it has none (ollama.md §4.4).
        died = bool(response.output) and usage is not None and not any(usage)
        if response.status not in ("completed", "incomplete") or died:
            raise ValueError(UNFINISHED)
        return Reply(body, usage)


def _begun(fields: repairs.Fields, items: list[_Item]) -> str:
    """What the conversation begins with; input that is text is what a user says."""
    given = fields.get("input", NULL)
    said = [("said", given)] if first_byte(given) == b'"' else [("said", item.content) for item in opening(items)]
    return conversation_begun(fields, ("instructions", "tools"), said)


def _items(given: Raw) -> list[_Item]:
    """The items of the input; none where it is text or null. Raises InvalidCall for input of no known kind."""
    kind = first_byte(given)
    if kind in (b'"', b"n"):
        return []
    if kind != b"[":
        raise InvalidCall("input: expected a string or a list of items", param="input")
    try:
        return _ITEMS.decode(given)
    except json.UNREADABLE as problem:
        raise complaint(str(problem), "input") from None


def _images(item: _Item, path: str) -> int:
    """How many images one item holds, in its content or in a tool's output. Raises InvalidCall for what is remote."""
    count = 0
    for name, parts in (("content", item.content), ("output", item.output)):
        if first_byte(parts) != b"[":
            continue
        try:
            media = _PARTS.decode(parts)
        except json.UNREADABLE as problem:
            raise complaint(str(problem), f"{path}.{name}") from None
        count += sum(part.type == "input_image" for part in media)
        urls = [url for part in media for url in (part.image_url, part.file_url) if url]
        if not all(url.lower().startswith("data:") for url in urls):
            message = f"{path}.{name}: images and files must be data: URLs; the gateway fetches none"
            raise InvalidCall(message, param=f"{path}.{name}")
    return count


RESPONSES = Responses()
