"""The named rules by which a body or a frame of the OpenAI dialect is changed on its way. All else passes as bytes.

A repair of a body takes the top-level fields, a repair of a message those of the message, and gives back fields: the
same object where nothing had to change. A repair of a frame takes one event and gives back one event. What a repair
cannot read it leaves alone. To add one: write it here, test it alone, and name it in the operation's `rules`, in
MESSAGE_REPAIRS or in `ChunkReader._repaired`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
from msgspec import Raw, Struct

from gateway.wire import json, sse

Fields = dict[str, Raw]
Repair = Callable[[Fields], Fields]

_NULL = Raw(b"null")
_NOTHING = (_NULL, Raw(b"[]"))
_EMPTY_TEXT = Raw(b'""')
_ASSISTANT, _DEVELOPER, _SYSTEM = Raw(b'"assistant"'), Raw(b'"developer"'), Raw(b'"system"')


class _Glance(Struct, gc=False):
    """As much of a message as tells whether it needs mending."""

    role: Raw
    content: Raw = _NULL
    tool_calls: Raw = _NULL


_FIELDS = msgspec.json.Decoder(Fields)
_LIST = msgspec.json.Decoder(list[Fields])
_GLANCES = msgspec.json.Decoder(list[_Glance])
_EMPTY_ARGUMENTS = re.compile(rb'"arguments"\s*:\s*""')
_ZERO_USAGE = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
_EVENT_HEAD = re.compile(rb'data: \{"id":"[^"\\]*","object":"([a-z._]*)","created":(\d+),')
_REPLY_HEAD = re.compile(rb'\s*\{\s*"id"\s*:\s*"[^"\\]*"')


def without_task_type(fields: Fields) -> Fields:
    """`task_type` is a word between the client and this gateway; no instance knows it."""
    if "task_type" not in fields:
        return fields
    return {name: value for name, value in fields.items() if name != "task_type"}


def max_tokens_by_its_old_name(fields: Fields) -> Fields:
    """Ollama ignores `max_completion_tokens` and would fill its whole context (ollama.md §3.3)."""
    limit = fields.get("max_completion_tokens", _NULL)
    if limit == _NULL or fields.get("max_tokens", _NULL) != _NULL:
        return fields
    kept = {name: value for name, value in fields.items() if name != "max_completion_tokens"}
    return {**kept, "max_tokens": limit}


def messages_mended(fields: Fields) -> Fields:
    """Every message by the rules of MESSAGE_REPAIRS. Most have nothing to mend, and a glance is enough to see that."""
    messages = fields["messages"]
    if not any(map(_needs_mending, _GLANCES.decode(messages))):
        return fields
    mended = []
    for message in _LIST.decode(messages):
        for repair in MESSAGE_REPAIRS:
            message = repair(message)  # noqa: PLW2901
        mended.append(message)
    return {**fields, "messages": Raw(msgspec.json.encode(mended))}


def _needs_mending(message: _Glance) -> bool:
    return (
        message.role == _DEVELOPER
        or (message.content == _NULL and message.role == _ASSISTANT)
        or (message.tool_calls != _NULL and _EMPTY_ARGUMENTS.search(message.tool_calls) is not None)
    )


def developer_as_system(message: Fields) -> Fields:
    """Only some of Ollama's renderers know the role `developer` (ollama.md §3.3)."""
    return {**message, "role": _SYSTEM} if message["role"] == _DEVELOPER else message


def content_never_missing(message: Fields) -> Fields:
    """An assistant's message without content or tool calls is empty text; Ollama refuses null (ollama.md §3.3)."""
    if message["role"] != _ASSISTANT or message.get("content", _NULL) != _NULL:
        return message
    if message.get("tool_calls", _NULL) not in _NOTHING:
        return message
    return {**message, "content": _EMPTY_TEXT}


def arguments_never_empty(message: Fields) -> Fields:
    """A tool call without arguments has the arguments `{}`; Ollama refuses "" (ollama.md §3.3)."""
    try:
        calls = _LIST.decode(message.get("tool_calls", b"[]"))
        functions = [_FIELDS.decode(call.get("function", b"{}")) for call in calls]
    except json.UNREADABLE:  # not as it should be: the instance says so better than we could
        return message
    if all(function.get("arguments") != _EMPTY_TEXT for function in functions):
        return message
    for call, function in zip(calls, functions, strict=True):
        if function.get("arguments") == _EMPTY_TEXT:
            call["function"] = Raw(msgspec.json.encode({**function, "arguments": "{}"}))
    return {**message, "tool_calls": Raw(msgspec.json.encode(calls))}


MESSAGE_REPAIRS: tuple[Repair, ...] = (developer_as_system, content_never_missing, arguments_never_empty)


def usage_asked_for(fields: Fields) -> Fields:
    """A stream tells its token counts only to who asks (ollama.md §3.2); the reader hides them from who did not."""
    options = fields.get("stream_options", _NULL)
    known = {} if options == _NULL else _FIELDS.decode(options)
    if known.get("include_usage") == Raw(b"true"):
        return fields
    return {**fields, "stream_options": Raw(msgspec.json.encode({**known, "include_usage": True}))}


def without_zero_usage(event: bytes) -> bytes:
    """Asked for usage, Ollama's text completions put zeros on every chunk (ollama.md §3.2): not for who did not ask.

    A quote inside a JSON string is escaped, so these bytes can only be the field itself.
    """
    return event.replace(_ZERO_USAGE, b"", 1)


def identified(body: bytes, identity: str) -> bytes:
    """A finished answer under an id of its own: Ollama draws from 999 and they collide (ollama.md §3.2)."""
    if head := _REPLY_HEAD.match(body):
        return b'{"id":"' + identity.encode() + b'"' + body[head.end() :]
    try:
        fields = _FIELDS.decode(body)
    except json.UNREADABLE:
        return body
    return json.encode({**fields, "id": identity}) if "id" in fields else body


class OneIdentity:
    """One `id` and one `created` for all chunks of a stream: Ollama's ids collide and its times drift (ollama.md §3.2).

    Remembers how the last chunk began, so that the next one usually costs a comparison and a copy.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._created = b""  # of the first chunk
        self._theirs = b"\0"  # begins no event
        self._ours = b""

    def __call__(self, event: bytes) -> bytes:
        if not event.startswith(self._theirs):
            head = _EVENT_HEAD.match(event)
            if head is None:
                return self._rewritten(event)
            self._created = self._created or head[2]
            self._theirs = head[0]
            shape = b'data: {"id":"%b","object":"%b","created":%b,'
            self._ours = shape % (self._identity.encode(), head[1], self._created)
        return self._ours + event[len(self._theirs) :]

    def _rewritten(self, event: bytes) -> bytes:
        """For a chunk that is not laid out as Ollama's: decoded and encoded, all other values as they came."""
        try:
            fields = _FIELDS.decode(sse.data(event) or b"{}")
        except json.UNREADABLE:
            return event
        if "id" not in fields:
            return event
        fields["id"] = Raw(msgspec.json.encode(self._identity))
        if "created" in fields:
            self._created = self._created or bytes(fields["created"])
            fields["created"] = Raw(self._created)
        return b"data: " + json.encode(fields) + b"\n\n"
