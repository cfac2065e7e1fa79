"""The OpenAI dialect: completions of both kinds, embeddings, transcriptions, relayed to the instance's own `/v1` (D6).

The fields that decide where a call may go, or that Ollama would get wrong in silence, are read and checked; all others
pass. A body goes upstream as the bytes that came unless a rule of `gateway.dialects.repairs` changes it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.call import Call, Priority, Reply, Usage, Wish
from gateway.dialects import repairs
from gateway.dialects.chunks import UNFINISHED, ChunkReader, counted
from gateway.dialects.failures import heard
from gateway.dialects.reading import (
    NULL,
    PROMPT_LENGTH,
    Form,
    Positive,
    TaskName,
    Thing,
    Whole,
    class_by_inputs,
    class_by_suffix,
    complaint,
    conversation_begun,
    conversation_named,
    first_byte,
    opening,
    required_model,
    texts,
)
from gateway.errors import InvalidCall
from gateway.offload import give_way
from gateway.wire import json, multipart

MAX_INPUTS = 2048

_NOTHING, _TOOLS, _VISION = frozenset[str](), frozenset({"tools"}), frozenset({"vision"})
_NO_PARTS = b'"n'  # how a text begins, and null
_PLAIN_FORMS = ("text", "srt", "vtt")


class StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class Common(Struct, kw_only=True, gc=False):
    """What all three operations look at."""

    model: str | None = None
    task_type: TaskName | None = None


class Generation(Common, kw_only=True, gc=False):
    """What both kinds of completion look at. Limits: faults.md §8.2."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Whole | None = None
    n: Whole | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    max_tokens: Positive | None = None


class Message(Struct, gc=False):
    role: str
    content: Raw = NULL


class Part(Struct, gc=False):
    type: str
    image_url: Raw = NULL
    video_url: Raw = NULL  # these two are no Ollama's, but other servers would fetch what they name
    audio_url: Raw = NULL


class MediaUrl(Struct, gc=False):
    url: Raw = NULL


class ChatBody(Generation, kw_only=True, gc=False):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=2048)]
    tools: Annotated[list[Thing], Meta(max_length=256)] | None = None
    max_completion_tokens: Positive | None = None


class CompletionsBody(Generation, kw_only=True, gc=False):
    prompt: Raw
    suffix: str | None = None


class EmbeddingsBody(Common, kw_only=True, gc=False):
    input: Raw


class _Message(Struct, gc=False):
    content: Any = None


class _Choice(Struct, gc=False):
    message: _Message | None = None
    finish_reason: Any = None


class Finished(Struct, gc=False):
    """A finished reply of any kind, as far as we look at it."""

    choices: list[_Choice] | None = None
    data: list[Raw] | None = None
    text: Any = None
    usage: Any = None
    error: Any = None


_FINISHED = msgspec.json.Decoder(Finished)
_PARTS = msgspec.json.Decoder(list[Part])
_MEDIA_URL = msgspec.json.Decoder(MediaUrl)
_MEDIA = {"image_url": "images", "video_url": "videos", "audio_url": "audio"}
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_TEXT = msgspec.json.Decoder(str)


class _Operation:
    """What they have in common. `rules` are the repairs that may change a body, in order."""

    name = ""
    path = ""
    dialect = "openai"
    native = False
    stream_type = b"text/event-stream"
    rules: tuple[repairs.Repair, ...] = (repairs.without_task_type,)
    id_prefix = ""

    def write(self, call: Call, model: str) -> bytes:
        given = fields = _FIELDS.decode(call.body)
        give_way()
        for rule in self.rules:
            fields = rule(fields)
        if call.wish.stream:
            fields = repairs.usage_asked_for(fields)
        if call.wish.model != model:
            fields = {**fields, "model": Raw(msgspec.json.encode(model))}
        return call.body if fields is given else json.encode_fields(fields)

    def reader(self, call: Call) -> ChunkReader:
        identity, twice = self.id_prefix + call.request_id, call.reasoning_content
        return ChunkReader(identity, show_usage=call.wish.wants_usage, reasoning_content=twice)

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        identity = self.id_prefix + call.request_id
        if plain := repairs.plain_answer(body):
            usage = plain.usage
            return Reply(repairs.identified(body, identity), Usage(usage.prompt_tokens, usage.completion_tokens))
        finished = whole_answer(body)
        mended = repairs.answer_mended(body, identity, reasoning_content=call.reasoning_content)
        return Reply(mended, counted(finished.usage))


class Chat(_Operation):
    """POST /v1/chat/completions"""

    name = "chat"
    path = "/v1/chat/completions"
    id_prefix = "chatcmpl-"
    rules = (
        repairs.without_task_type,
        repairs.max_tokens_by_its_old_name,
        repairs.messages_mended,
    )
    _form = Form(ChatBody)

    def read(self, body: bytes) -> Wish:
        asked, fields = self._form.read_both(body)
        needs = _TOOLS if asked.tools else _NOTHING
        shown = [
            _shows_images(turn, place)
            for place, turn in enumerate(asked.messages)
            if memoryview(turn.content)[0] not in _NO_PARTS
        ]
        if any(shown):
            needs |= _VISION
        said = [("said", turn.content) for turn in opening(asked.messages)]
        conversation = conversation_named(fields) or conversation_begun(fields, ("tools",), said)
        return _wish(asked, needs, conversation)


class Completions(_Operation):
    """POST /v1/completions"""

    name = "completions"
    path = "/v1/completions"
    id_prefix = "cmpl-"
    _form = Form(CompletionsBody)

    def read(self, body: bytes) -> Wish:
        asked, fields = self._form.read_both(body)
        if first_byte(asked.prompt) != b'"':
            raise InvalidCall("prompt must be one string: Ollama takes no lists", param="prompt")
        said = [("prompt", memoryview(asked.prompt)[:PROMPT_LENGTH])]
        conversation = conversation_named(fields) or conversation_begun(fields, (), said)
        return _wish(asked, _NOTHING, conversation, class_by_suffix(asked.suffix))


class Embeddings(_Operation):
    """POST /v1/embeddings"""

    name = "embeddings"
    path = "/v1/embeddings"
    _form = Form(EmbeddingsBody)

    def read(self, body: bytes) -> Wish:
        asked = self._form.read(body)
        count = texts(asked.input)
        if not 1 <= count <= MAX_INPUTS:
            raise InvalidCall(f"input must be a string or a list of 1 to {MAX_INPUTS} strings", param="input")
        return Wish(
            model=required_model(asked.model),
            task=asked.task_type or "",
            needs=frozenset({"embedding"}),
            priority=class_by_inputs(count),
            deterministic=True,
        )

    def reader(self, call: Call) -> ChunkReader:
        raise NotImplementedError("embeddings are never streamed")

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        finished = decoded(body)
        if not finished.data:
            raise ValueError("the instance answered without embeddings")
        return Reply(body, counted(finished.usage))


class Transcriptions(_Operation):
    """POST /v1/audio/transcriptions: a form with a file. Only its field `model` is ever replaced"""

    name = "transcriptions"
    path = "/v1/audio/transcriptions"

    def read(self, body: bytes) -> Wish:
        try:
            form = multipart.Form(body)
            model, task, stream = (form.field(name) for name in ("model", "task_type", "stream"))
            if not form.has_file("file"):
                raise InvalidCall("file is required", param="file")
        except multipart.FormProblem as problem:
            raise InvalidCall(str(problem)) from None
        if stream.lower() not in ("", "false", "0"):
            raise InvalidCall("stream must be false: Ollama sends a transcription whole", param="stream")
        return Wish(model=required_model(model), task=task, needs=frozenset({"audio"}), content_type=form.content_type)

    def write(self, call: Call, model: str) -> bytes:
        return call.body if call.wish.model == model else multipart.Form(call.body).with_field("model", model)

    def reader(self, call: Call) -> ChunkReader:
        raise NotImplementedError("transcriptions are never streamed")

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        """JSON with a `text`, or where another form was asked for plain text; Ollama sends JSON even then."""
        if body.lstrip()[:1] != b"{" and multipart.Form(call.body).field("response_format") in _PLAIN_FORMS:
            return Reply(body, content_type=b"text/plain; charset=utf-8")
        finished = decoded(body)
        if not isinstance(finished.text, str):
            raise ValueError("the instance answered without a transcription")  # noqa: TRY004 - its fault, not a type's
        return Reply(body, counted(finished.usage))


def _wish(asked: Generation, needs: frozenset[str], conversation: str, priority: Priority = Priority.NORMAL) -> Wish:
    if asked.n not in (None, 1):
        raise InvalidCall("n must be 1: Ollama gives one answer", param="n")
    options = asked.stream_options
    return Wish(
        model=required_model(asked.model),
        task=asked.task_type or "",
        stream=bool(asked.stream),
        needs=needs,
        priority=priority,
        deterministic=asked.temperature == 0 or asked.seed is not None,
        wants_usage=bool(options and options.include_usage),
        conversation=conversation,
    )


def _shows_images(message: Message, place: int) -> bool:
    """Whether a message whose content is no text has images. Raises InvalidCall where they are elsewhere."""
    path = f"messages[{place}].content"
    if first_byte(message.content) != b"[":
        raise InvalidCall(f"{path}: expected a string or a list of parts", param=path)
    give_way()
    try:
        parts = _PARTS.decode(message.content)
    except json.UNREADABLE as problem:
        raise complaint(str(problem), path) from None
    for part in parts:
        named: dict[str, Raw] = {"image_url": part.image_url, "video_url": part.video_url, "audio_url": part.audio_url}
        for name, url in named.items():
            if part.type == name or first_byte(url) != b"n":
                _check_url(name, url, path)
    return any(part.type == "image_url" for part in parts)


def _check_url(kind: str, url: Raw, path: str) -> None:
    """Nothing is fetched for a client, neither by us nor by Ollama (ollama.md §3.3) nor by another server behind us.

    So only what carries its own data passes: no scheme that is not named here can be one that somebody follows.
    """
    give_way()
    try:
        if first_byte(url) == b"{":
            url = _MEDIA_URL.decode(url).url
        head = bytes(memoryview(url)[:6])
        if head != b'"data:' and not _TEXT.decode(url).strip().lower().startswith("data:"):
            raise InvalidCall(f"{path}: {_MEDIA[kind]} must be data: URLs; the gateway fetches none", param=path)
    except json.UNREADABLE:
        raise InvalidCall(f"{path}: {kind} must be a string or an object with a url", param=path) from None


def decoded(body: bytes) -> Finished:
    """A finished reply, looked at. Raises ValueError where it is none, or says that it failed."""
    try:
        finished = _FINISHED.decode(body)
    except json.UNREADABLE:
        raise ValueError("the instance answered with something that is not a reply") from None
    if finished.error:
        raise ValueError(heard(finished.error).message)
    return finished


def whole_answer(body: bytes) -> Finished:
    """A reply of a model that finished: a null `finish_reason` is a quiet death (ollama.md §4.4). Raises ValueError."""
    finished = decoded(body)
    if not finished.choices or any(choice.finish_reason is None for choice in finished.choices):
        raise ValueError(UNFINISHED)
    return finished


def text_of(finished: Finished) -> str:
    """What the model said, without its reasoning. Raises ValueError where that is no text."""
    message = finished.choices[0].message if finished.choices else None
    if message is None or not isinstance(message.content, str):
        raise ValueError("the instance answered without text")
    return message.content


CHAT = Chat()
COMPLETIONS = Completions()
EMBEDDINGS = Embeddings()
TRANSCRIPTIONS = Transcriptions()
