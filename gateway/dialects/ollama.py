"""Ollama's own dialect: /api/chat, /api/generate, /api/embed and /api/embeddings, relayed byte for byte (D6).

Of a body only the model's name is ever replaced; of an answer nothing. A line that cannot be read is passed on all the
same: whoever asked Ollama gets what Ollama said. A body without messages or prompt loads or unloads the model; it is
answered with one JSON object even where a stream was asked for (ollama.md §2.2), so it counts as not streaming.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from gateway.call import Call, Frame, Priority, Reply, Usage, Wish
from gateway.dialects.chunks import whole
from gateway.dialects.failures import heard, in_stream
from gateway.dialects.reading import (
    NULL,
    PROMPT_LENGTH,
    Form,
    TaskName,
    Thing,
    Whole,
    class_by_inputs,
    class_by_suffix,
    conversation_begun,
    opening,
    required_model,
    texts,
)
from gateway.errors import GatewayError
from gateway.wire import json, ndjson

UNFINISHED = "the instance ended the answer without finishing it"


class Options(Struct, gc=False):
    temperature: float | None = None
    seed: Whole | None = None


class Common(Struct, kw_only=True, gc=False):
    model: str | None = None
    task_type: TaskName | None = None
    options: Options | None = None


class Message(Struct, gc=False):
    role: str | None = None
    content: Raw = NULL
    images: list[Raw] | None = None


class ChatBody(Common, kw_only=True, gc=False):
    messages: list[Message] | None = None
    tools: list[Thing] | None = None
    stream: bool | None = None


class GenerateBody(Common, kw_only=True, gc=False):
    prompt: str | None = None
    suffix: str | None = None
    images: list[Raw] | None = None
    stream: bool | None = None


class EmbedBody(Common, kw_only=True, gc=False):
    input: Raw = NULL


class EmbeddingsBody(Common, kw_only=True, gc=False):
    prompt: str | None = None


class _Spoken(Struct, gc=False):
    content: Any = None
    thinking: Any = None
    tool_calls: Any = None


class Line(Struct, gc=False):
    """One line of a stream, or a finished reply, as far as we look at it."""

    message: _Spoken | None = None
    response: Any = None
    thinking: Any = None
    done: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    embeddings: list[Raw] | None = None
    embedding: list[Raw] | None = None
    error: Any = None


_LINE = msgspec.json.Decoder(Line)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])


def _spoke(line: Line) -> bool:
    if line.done or line.response or line.thinking:
        return True
    said = line.message
    return said is not None and bool(said.content or said.thinking or said.tool_calls)


def _counted(line: Line) -> Usage:
    """Ollama leaves out what is zero (ollama.md §2.2)."""
    return Usage(whole(line.prompt_eval_count), whole(line.eval_count))


class LineReader:
    """Cuts and reads one native stream. A `Reader`."""

    keep_alive = b" "  # before a line it means nothing; an empty line breaks clients (clients.md §4)

    def __init__(self) -> None:
        self.complete = False
        self.usage: Usage | None = None
        self._splitter = ndjson.Splitter()

    def plain(self, data: bytes) -> bytes:
        return b""

    def feed(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        if self.complete:
            return frames
        for raw in self._splitter.feed(data):
            frames.append(self._frame(raw))
            if self.complete:
                break
        return frames

    def failure(self, error: GatewayError, request_id: str) -> bytes:
        return in_stream("ollama", error, request_id)

    def _frame(self, raw: bytes) -> Frame:
        try:
            line = _LINE.decode(raw)
        except json.UNREADABLE:
            return Frame(raw)
        if line.error:
            return Frame(raw, error=heard(line.error).message)
        if line.done is True:
            self.complete = True
            self.usage = _counted(line)
        return Frame(raw, content=_spoke(line), last=self.complete)


class _Operation:
    """What the four have in common."""

    name = ""
    path = ""
    dialect = "ollama"
    native = True
    stream_type = b"application/x-ndjson"

    def write(self, call: Call, model: str) -> bytes:
        if call.wish.model == model:
            return call.body
        return json.encode_fields({**_FIELDS.decode(call.body), "model": Raw(msgspec.json.encode(model))})

    def reader(self, call: Call) -> LineReader:
        return LineReader()

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        line = _decoded(body)
        if line.done is not True:  # a quiet death (ollama.md §4.4)
            raise ValueError(UNFINISHED)
        return Reply(body, _counted(line))


class Chat(_Operation):
    """POST /api/chat with `messages`"""

    name = "chat"
    path = "/api/chat"
    _form = Form(ChatBody)

    def read(self, body: bytes) -> Wish:
        asked, fields = self._form.read_both(body)
        messages = asked.messages or []
        needs = set()
        if asked.tools:
            needs.add("tools")
        if any(message.images for message in messages):
            needs.add("vision")
        said = [part for turn in opening(messages) for part in _said(turn)]
        conversation = conversation_begun(fields, ("tools",), said)
        return _wish(asked, asked.stream, frozenset(needs), conversation, loads=not messages)


class Generate(_Operation):
    """POST /api/generate"""

    name = "generate"
    path = "/api/generate"
    _form = Form(GenerateBody)

    def read(self, body: bytes) -> Wish:
        asked, fields = self._form.read_both(body)
        needs = frozenset({"vision"}) if asked.images else frozenset()
        said = [("prompt", memoryview(fields["prompt"])[:PROMPT_LENGTH])] if asked.prompt else []
        conversation = conversation_begun(fields, ("system", "images"), said)
        priority = class_by_suffix(asked.suffix)
        return _wish(asked, asked.stream, needs, conversation, priority, loads=not asked.prompt)


class _Vectors(_Operation):
    name = "embeddings"

    def reader(self, call: Call) -> LineReader:
        raise NotImplementedError("embeddings are never streamed")

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        line = _decoded(body)
        if line.embeddings is None and line.embedding is None:
            raise ValueError("the instance answered without embeddings")
        return Reply(body, _counted(line))


class Embed(_Vectors):
    """POST /api/embed"""

    path = "/api/embed"
    _form = Form(EmbedBody)

    def read(self, body: bytes) -> Wish:
        asked = self._form.read(body)
        count = texts(asked.input)
        return _vector_wish(asked, class_by_inputs(count), loads=not count)


class Embeddings(_Vectors):
    """POST /api/embeddings, the old form: one prompt, not normalised"""

    path = "/api/embeddings"
    _form = Form(EmbeddingsBody)

    def read(self, body: bytes) -> Wish:
        asked = self._form.read(body)
        return _vector_wish(asked, class_by_inputs(1), loads=not asked.prompt)


def _said(turn: Message) -> list[tuple[str, Raw]]:
    return [("said", turn.content), *(("image", image) for image in turn.images or ())]


def _wish(
    asked: Common,
    stream: bool | None,
    needs: frozenset[str],
    conversation: str,
    priority: Priority = Priority.NORMAL,
    *,
    loads: bool,
) -> Wish:
    options = asked.options or Options()
    return Wish(
        model=required_model(asked.model),
        task=asked.task_type or "",
        stream=stream is not False and not loads,
        needs=needs,
        priority=priority,
        deterministic=not loads and (options.temperature == 0 or options.seed is not None),
        conversation=conversation,
    )


def _vector_wish(asked: Common, priority: Priority, *, loads: bool) -> Wish:
    return Wish(
        model=required_model(asked.model),
        task=asked.task_type or "",
        needs=frozenset({"embedding"}),
        priority=priority,
        deterministic=not loads,
    )


def _decoded(body: bytes) -> Line:
    try:
        line = _LINE.decode(body)
    except json.UNREADABLE:
        raise ValueError("the instance answered with something that is not a reply") from None
    if line.error:
        raise ValueError(heard(line.error).message)
    return line


CHAT = Chat()
GENERATE = Generate()
EMBED = Embed()
EMBEDDINGS = Embeddings()
