"""The named rules by which a body or a frame of the OpenAI dialect is changed on its way. All else passes as bytes.

A repair takes the fields of a body, a message, a choice or a delta and gives back fields: the same object where nothing
had to change. What a repair cannot read it leaves alone. To add one: write it here, test it alone, and name it in the
operation's `rules`, in MESSAGE_REPAIRS or in `answer_mended`; for streams in `gateway.dialects.chunks`, which remembers
what has to be known from chunk to chunk.

Two rules cut bytes out of an event, because they would cost most streams of some versions a rewriting of every chunk. A
quote inside a JSON string is escaped, so those bytes can only be the field itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2s
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.dialects.reading import NULL
from gateway.wire import json

Fields = dict[str, Raw]
Repair = Callable[[Fields], Fields]

_NOTHING = (NULL, Raw(b"[]"))
EMPTY_TEXT = Raw(b'""')
_EMPTY_OBJECT = Raw(b'"{}"')
SILENT = (NULL, EMPTY_TEXT)
_ASSISTANT, _DEVELOPER, _SYSTEM = Raw(b'"assistant"'), Raw(b'"developer"'), Raw(b'"system"')
_FUNCTION, _STOP, _TOOL_CALLS = Raw(b'"function"'), Raw(b'"stop"'), Raw(b'"tool_calls"')
_REASONING = ("reasoning", "reasoning_content")  # Ollama's name for it, and the one others gave it
_MAX_COUNT = 18  # digits
Count = Annotated[int, Meta(ge=0, lt=10**_MAX_COUNT)]


class _Glance(Struct, gc=False):
    """As much of a message as tells whether it needs mending."""

    role: Raw
    content: Raw = NULL
    tool_calls: Raw = NULL


class _PlainMessage(Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["assistant"]
    content: str


class _PlainChoice(Struct, forbid_unknown_fields=True, gc=False):
    index: int
    message: _PlainMessage
    finish_reason: str


class PlainUsage(Struct, forbid_unknown_fields=True, gc=False):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class PlainAnswer(Struct, forbid_unknown_fields=True, gc=False):
    """A chat's answer that is text and nothing else: nothing in it can be in need of anything."""

    id: str
    object: str
    created: int
    model: str
    choices: Annotated[list[_PlainChoice], Meta(min_length=1)]
    usage: PlainUsage
    system_fingerprint: str = ""


_PLAIN_ANSWER = msgspec.json.Decoder(PlainAnswer)
_FIELDS = msgspec.json.Decoder(Fields)
_LIST = msgspec.json.Decoder(list[Fields])
_GLANCES = msgspec.json.Decoder(list[_Glance])
_EMPTY_ARGUMENTS = re.compile(rb'"arguments"\s*:\s*""')
_ZERO_USAGE = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
ROLE_BEFORE = b'"delta":{"role":"assistant",'  # something that follows
_REPLY_HEAD = re.compile(rb'\s*\{\s*"id"\s*:\s*"[^"\\]*"')


def without_task_type(fields: Fields) -> Fields:
    """`task_type` is a word between the client and this gateway; no instance knows it."""
    if "task_type" not in fields:
        return fields
    return {name: value for name, value in fields.items() if name != "task_type"}


def max_tokens_by_its_old_name(fields: Fields) -> Fields:
    """Ollama ignores `max_completion_tokens` and would fill its whole context (ollama.md §3.3)."""
    limit = fields.get("max_completion_tokens", NULL)
    if limit == NULL or fields.get("max_tokens", NULL) != NULL:
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
        or (message.content == NULL and message.role == _ASSISTANT)
        or (message.tool_calls != NULL and _EMPTY_ARGUMENTS.search(message.tool_calls) is not None)
    )


def developer_as_system(message: Fields) -> Fields:
    """Only some of Ollama's renderers know the role `developer` (ollama.md §3.3)."""
    return {**message, "role": _SYSTEM} if message["role"] == _DEVELOPER else message


def content_never_missing(message: Fields) -> Fields:
    """An assistant's message without content or tool calls is empty text; Ollama refuses null (ollama.md §3.3)."""
    if message["role"] != _ASSISTANT or message.get("content", NULL) != NULL:
        return message
    if message.get("tool_calls", NULL) not in _NOTHING:
        return message
    return {**message, "content": EMPTY_TEXT}


def arguments_never_empty(message: Fields) -> Fields:
    """A tool call without arguments has the arguments `{}`; Ollama refuses "" (ollama.md §3.3)."""
    try:
        calls = _LIST.decode(message.get("tool_calls", b"[]"))
        functions = [_FIELDS.decode(call.get("function", b"{}")) for call in calls]
    except json.UNREADABLE:  # not as it should be: the instance says so better than we could
        return message
    if all(function.get("arguments") != EMPTY_TEXT for function in functions):
        return message
    for call, function in zip(calls, functions, strict=True):
        if function.get("arguments") == EMPTY_TEXT:
            call["function"] = Raw(msgspec.json.encode({**function, "arguments": "{}"}))
    return {**message, "tool_calls": Raw(msgspec.json.encode(calls))}


MESSAGE_REPAIRS: tuple[Repair, ...] = (developer_as_system, content_never_missing, arguments_never_empty)


def usage_asked_for(fields: Fields) -> Fields:
    """A stream tells its token counts only to who asks (ollama.md §3.2); the reader hides them from who did not."""
    options = fields.get("stream_options", NULL)
    known = {} if options == NULL else _FIELDS.decode(options)
    if known.get("include_usage") == Raw(b"true"):
        return fields
    return {**fields, "stream_options": Raw(msgspec.json.encode({**known, "include_usage": True}))}


def without_zero_usage(event: bytes) -> bytes:
    """Asked for usage, Ollama's text completions put zeros on every chunk (ollama.md §3.2): not for who did not ask."""
    return event.replace(_ZERO_USAGE, b"", 1)


def plain_event(payload: bytes) -> bytes:
    """One data line and a blank one. Comments, ids and names of events stay behind: clients trip over them (E 58).

    A line feed in a payload that is JSON can only stand between two values.
    """
    return b"data: " + payload.replace(b"\n", b" ") + b"\n\n"


def without_error(fields: Fields) -> Fields:
    """`error: null` is a failure to clients that only look for the key (clients.md §9 E 57)."""
    return {name: value for name, value in fields.items() if name != "error"} if "error" in fields else fields


def usage_in_three_numbers(fields: Fields) -> Fields:
    """Clients demand all three counts where there is a `usage` at all (clients.md §9 E 54); 0 is not known."""
    given = fields_of(fields.get("usage", NULL))
    prompt, completion, total = (_count(given.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if None not in (prompt, completion, total):
        return fields
    prompt, completion = prompt or 0, completion or 0
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total or prompt + completion}
    return {**fields, "usage": raw({**given, **counts})}


def role_first(delta: Fields) -> Fields:
    """The first delta of a stream says who speaks (clients.md §9 E 50)."""
    return delta if delta.get("role") == _ASSISTANT else {"role": _ASSISTANT, **role_gone(delta)}


def role_gone(delta: Fields) -> Fields:
    """No later one does: before v0.32.6 Ollama said it in each, and clients that add deltas up repeat it (E 50)."""
    return {name: value for name, value in delta.items() if name != "role"} if "role" in delta else delta


def role_cut_out(event: bytes) -> bytes:
    """The same for an event, where the role stands first and is not all there is."""
    return event.replace(ROLE_BEFORE, b'"delta":{')


def reasoning_named(said: Fields, twice: bool) -> Fields:
    """Reasoning under Ollama's name for it and, `twice`, under the other one too; never is one full and one empty."""
    given = {name: said[name] for name in _REASONING if name in said}
    full = [name for name in given if given[name] not in SILENT]
    if not full:
        return said
    text = given["reasoning" if "reasoning" in full else "reasoning_content"]
    names = _REASONING if twice or "reasoning_content" in full else _REASONING[:1]
    wanted = {name: given[name] if name in full else text for name in names}
    if wanted == given:
        return said
    return {**{name: value for name, value in said.items() if name not in _REASONING}, **wanted}


def reasoning_apart(delta: Fields) -> list[Fields]:
    """Reasoning, then the rest: together in one delta, as before v0.18, clients drop one of them (E 56)."""
    thought = {name: delta[name] for name in _REASONING if delta.get(name, NULL) not in SILENT}
    rest = {name: value for name, value in delta.items() if name not in (*_REASONING, "role")}
    if not thought or all(value in (*SILENT, *_NOTHING) for value in rest.values()):
        return [delta]
    role = {"role": delta["role"]} if "role" in delta else {}
    return [{**role, **thought}, rest]


def finished_by_calls(choice: Fields) -> Fields:
    """An answer that calls tools stopped for their sake (E 52). For use only where it does."""
    return {**choice, "finish_reason": _TOOL_CALLS} if choice.get("finish_reason") == _STOP else choice


def call_complete(call: Fields, index: int, identity: Raw, nothing: Raw) -> Fields:
    """A tool call, or its beginning, with all a client needs: id, index, type, name, and its arguments as text.

    `nothing` is what no arguments are: "" where more may follow, "{}" where the call is whole.
    """
    function = fields_of(call.get("function", NULL))
    arguments = function.get("arguments", NULL)
    if arguments in SILENT:
        arguments = nothing
    elif not bytes(arguments).startswith(b'"'):  # the value itself in place of its text
        arguments = raw(bytes(arguments).decode())
    if function.get("arguments") != arguments:
        call = {**call, "function": raw({**function, "arguments": arguments})}
    given = call.get("type", NULL)
    wanted = {"id": identity, "index": raw(index), "type": _FUNCTION if given in SILENT else given}
    return call if wanted.items() <= call.items() else {**wanted, **call, **wanted}


def call_continued(call: Fields, index: int) -> Fields:
    """More of a call's arguments: its id, type and name were told (E 52)."""
    function = fields_of(call.get("function", NULL))
    if "name" in function:
        call = {**call, "function": raw({name: value for name, value in function.items() if name != "name"})}
    wanted = {name: value for name, value in call.items() if name not in ("id", "type")} | {"index": raw(index)}
    return call if wanted == call else wanted


def calls_complete(message: Fields, identity: str) -> Fields:
    """The tool calls of a finished message: ids there and unique, arguments as text (E 52)."""
    calls = objects_of(message.get("tool_calls", NULL))
    seen: list[Raw] = []
    for index, call in enumerate(calls):
        own = call.get("id", NULL)
        seen.append(call_id(identity, index) if own in SILENT or own in seen else own)
    whole = [call_complete(call, index, seen[index], _EMPTY_OBJECT) for index, call in enumerate(calls)]
    return message if whole == calls else {**message, "tool_calls": raw(whole)}


def call_id(identity: str, index: int) -> Raw:
    """For a call that came without one: the same for the same call, and no other's."""
    return raw("call_" + blake2s(f"{identity}.{index}".encode(), digest_size=12).hexdigest())


def plain_answer(body: bytes) -> PlainAnswer | None:
    """What most finished answers are: one that `answer_mended` would change in nothing but its id."""
    try:
        return _PLAIN_ANSWER.decode(body)
    except json.UNREADABLE:
        return None


def answer_mended(body: bytes, identity: str, *, reasoning_content: bool = False) -> bytes:
    """A finished answer as a client can rely on it; the bytes that came, under their own id, where it is so already."""
    given = _FIELDS.decode(body)
    fields = usage_in_three_numbers(without_error(given))
    choices = objects_of(fields.get("choices", NULL))
    told = [_choice_mended(choice, identity, reasoning_content) for choice in choices]
    if told != choices:
        fields = {**fields, "choices": raw(told)}
    return identified(body if fields is given else json.encode(fields), identity)


def _choice_mended(choice: Fields, identity: str, twice: bool) -> Fields:
    given = fields_of(choice.get("message", NULL))
    if not given:
        return choice
    message = reasoning_named(calls_complete(role_first(given), identity), twice)
    if objects_of(message.get("tool_calls", NULL)):
        choice = finished_by_calls(choice)
    return choice if message is given else {**choice, "message": raw(message)}


def identified(body: bytes, identity: str) -> bytes:
    """A finished answer under an id of its own: Ollama draws from 999 and they collide (ollama.md §3.2)."""
    if head := _REPLY_HEAD.match(body):
        return b'{"id":"' + identity.encode() + b'"' + body[head.end() :]
    try:
        fields = _FIELDS.decode(body)
    except json.UNREADABLE:
        return body
    return json.encode({**fields, "id": identity})


def fields_of(value: Raw | bytes) -> Fields:
    """The fields of an object; none where it is no object."""
    try:
        return _FIELDS.decode(value)
    except json.UNREADABLE:
        return {}


def objects_of(value: Raw) -> list[Fields]:
    """The objects of a list; none where it is no list of objects."""
    try:
        return _LIST.decode(value)
    except json.UNREADABLE:
        return []


def raw(value: object) -> Raw:
    return Raw(msgspec.json.encode(value))


def _count(value: Raw | None) -> int | None:
    text = b"" if value is None else bytes(value)
    return int(text) if text.isdigit() and len(text) <= _MAX_COUNT else None
