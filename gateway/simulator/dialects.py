"""The other dialects an Ollama speaks: Responses, Messages and audio transcriptions, read and answered. Pure.

Events come as `event:` and `data:`, in Ollama's order, and end with `response.completed` or `message_stop`; there is no
`[DONE]` (ollama.md §3.1, §3.5). What goes wrong in a stream Ollama says in neither: the stream just ends (§4.4).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

from msgspec.json import encode

from gateway.simulator.prompt import Ask, Part, Refusal
from gateway.simulator.shapes import SSE, Numbers, error_body
from gateway.wire import multipart

SHORT = 64  # tokens: `max_tokens` must be told to Messages, so only a small one is meant as the length of the answer

Fields = dict[str, Any]


def read_responses(data: Fields) -> Ask:
    given = data.get("input")
    items = _objects([{"role": "user", "content": given}] if isinstance(given, str) else given, "input")
    texts = [str(data.get("instructions") or ""), *(_text(item.get("content")) for item in items)]
    limit = data.get("max_output_tokens")
    reasoning = data.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    return Ask(
        model=str(data.get("model") or ""),
        stream=data.get("stream") is True,
        prompt=_last(items),
        words=sum(len(text.split()) for text in texts),
        limit=limit if isinstance(limit, int) else None,
        tools=bool(data.get("tools")),
        may_call=bool(data.get("tools")) and items[-1].get("type") != "function_call_output",
        think=effort not in (None, "", "none"),
    )


def read_messages(data: Fields) -> Ask:
    """Thinking that is asked for is relaxed in silence (ollama.md §3.5): here only the prompt brings it about."""
    messages = _objects(data.get("messages"), "messages")
    limit = data.get("max_tokens")
    if not isinstance(limit, int) or limit < 1:
        raise Refusal(400, "max_tokens is required and must be positive")
    texts = [_text(data.get("system")), *(_text(one.get("content")) for one in messages)]
    blocks = messages[-1].get("content")
    brought = isinstance(blocks, list) and any(_type(block) == "tool_result" for block in blocks)
    return Ask(
        model=str(data.get("model") or ""),
        stream=data.get("stream") is True,
        prompt=_last(messages),
        words=sum(len(text.split()) for text in texts),
        limit=limit if limit <= SHORT else None,
        tools=bool(data.get("tools")),
        may_call=bool(data.get("tools")) and not brought,
    )


def read_transcription(body: bytes, content_type: str) -> Ask:
    """A form whose boundary is the one its Content-Type names. Of the audio only the size is heard."""
    try:
        form = multipart.Form(body)
        if form.content_type.decode() != content_type:
            raise Refusal(400, "multipart: NextPart: EOF")
        size = len(body)
        return Ask(
            model=form.field("model"),
            prompt=form.field("prompt") or f"say: {size} bytes of sound",
            words=1,
            encoding=form.field("response_format") or "json",
        )
    except multipart.FormProblem as problem:
        raise Refusal(400, str(problem)) from None


def _objects(given: object, name: str) -> list[Fields]:
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise Refusal(400, f"{name} is required")
    return given


def _type(block: object) -> object:
    return block.get("type") if isinstance(block, dict) else None


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _last(messages: list[Fields]) -> str:
    said = (_text(one.get("content")) for one in reversed(messages) if one.get("role") == "user")
    return next(said, "")


def _event(fields: Fields) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (fields["type"].encode(), encode(fields))


class Responses:
    """One answer of /v1/responses."""

    stream_type = SSE

    def __init__(self, ask: Ask, serial: int, _version: str) -> None:
        self._ask = ask
        self._id = f"resp_{serial % 999_999}"
        self._created = int(time.time())
        self._count = 0
        self._done: list[Fields] = []  # output items
        self._open: Fields | None = None  # the one under way, reasoning or a message

    def opening(self) -> bytes:
        if self._count:
            return b""
        begun = self._response("in_progress", None)
        return b"".join(self._told(f"response.{word}", response=begun) for word in ("created", "in_progress"))

    def part(self, part: Part) -> bytes:
        told = self.opening()
        if part.thinking:
            told += self._begin("reasoning") + self._delta("reasoning_summary_text", part.thinking, summary_index=0)
        if part.call is not None:
            told += self._finish() + self._call(*part.call)
        elif part.text and not any(item["type"] == "function_call" for item in self._done):
            told += self._begin("message")
            told += self._delta("output_text", part.text, content_index=0, logprobs=[])
        return told

    def closing(self, numbers: Numbers) -> list[bytes]:
        told = self.opening() + self._finish()
        return [told + self._told("response.completed", response=self._response("completed", numbers))]

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        """Even a quiet death is `completed`; only its counts are nothing (ollama.md §4.4)."""
        for part in parts:
            self.part(part)
        self._finish()
        cost = numbers if numbers.reason else Numbers(0, 0, "")
        return encode(self._response("completed", cost))

    def error(self, text: str) -> bytes:
        return _event({"type": "error", "code": "server_error", "message": text, "param": None})

    def swallowed(self) -> bytes:
        return b""

    def _told(self, kind: str, **fields: Any) -> bytes:
        number, self._count = self._count, self._count + 1
        return _event({"type": kind, "sequence_number": number, **fields})

    def _begin(self, kind: str) -> bytes:
        if self._open is not None and self._open["type"] == kind:
            return b""
        told = self._finish()
        identity = f"{'rs' if kind == 'reasoning' else 'msg'}_{self._id}_{len(self._done)}"
        shown: Fields = {"id": identity, "type": kind}
        shown |= (
            {"summary": []} if kind == "reasoning" else {"status": "in_progress", "role": "assistant", "content": []}
        )
        self._open = {"type": kind, "id": identity, "text": ""}
        told += self._told("response.output_item.added", output_index=len(self._done), item=shown)
        if kind == "message":
            told += self._about("content_part.added", content_index=0, part=_output_text(""))
        return told

    def _about(self, word: str, **fields: Any) -> bytes:
        """An event about the item under way."""
        assert self._open is not None  # noqa: S101 - called between _begin and _finish
        place = {"item_id": self._open["id"], "output_index": len(self._done)}
        return self._told(f"response.{word}", **place, **fields)

    def _delta(self, word: str, text: str, **fields: Any) -> bytes:
        if self._open is not None:
            self._open["text"] += text
        return self._about(f"{word}.delta", delta=text, **fields)

    def _finish(self) -> bytes:
        if self._open is None:
            return b""
        identity, text = self._open["id"], self._open["text"]
        if self._open["type"] == "reasoning":
            told = self._about("reasoning_summary_text.done", summary_index=0, text=text)
            summary = [{"type": "summary_text", "text": text}]
            item: Fields = {"id": identity, "type": "reasoning", "summary": summary, "encrypted_content": text}
        else:
            told = self._about("output_text.done", content_index=0, text=text, logprobs=[])
            told += self._about("content_part.done", content_index=0, part=_output_text(text))
            shown = {"status": "completed", "role": "assistant", "content": [_output_text(text)]}
            item = {"id": identity, "type": "message", **shown}
        self._open = None
        return told + self._item_done(item)

    def _item_done(self, item: Fields) -> bytes:
        told = self._told("response.output_item.done", output_index=len(self._done), item=item)
        self._done.append(item)
        return told

    def _call(self, name: str, arguments: Fields) -> bytes:
        index = len(self._done)
        identity, text = f"fc_{self._id}_{index}", encode(arguments).decode()
        item = {"id": identity, "type": "function_call", "call_id": _call_id(identity), "name": name}
        place = {"item_id": identity, "output_index": index}
        begun = {**item, "status": "in_progress", "arguments": ""}
        told = self._told("response.output_item.added", output_index=index, item=begun)
        told += self._told("response.function_call_arguments.delta", **place, delta=text)
        told += self._told("response.function_call_arguments.done", **place, arguments=text)
        return told + self._item_done({**item, "status": "completed", "arguments": text})

    def _response(self, status: str, numbers: Numbers | None) -> Fields:
        usage = None
        if numbers is not None:
            usage = {
                "input_tokens": numbers.prompt,
                "output_tokens": numbers.output,
                "total_tokens": numbers.prompt + numbers.output,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "incomplete_details": None,
            "model": self._ask.model,
            "previous_response_id": None,
            "instructions": None,
            "output": list(self._done),
            "error": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "usage": usage,
            "store": False,
            "metadata": {},
        }


def _output_text(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_id(identity: str) -> str:
    return f"call_{zlib.crc32(identity.encode()):08x}"


class Messages:
    """One answer of /v1/messages."""

    stream_type = SSE

    def __init__(self, ask: Ask, serial: int, _version: str) -> None:
        self._ask = ask
        self._id = f"msg_{serial % 999_999}"
        self._begun = False
        self._index = 0
        self._open = ""  # the type of the block under way
        self._calls = 0

    def opening(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        usage = {"input_tokens": self._ask.words, "output_tokens": 0}  # an estimate
        return _event({"type": "message_start", "message": self._message([], usage)})

    def part(self, part: Part) -> bytes:
        told = self.opening()
        if part.thinking:
            told += self._block("thinking", thinking="")
            told += self._delta("thinking_delta", thinking=part.thinking)
        if part.text:
            told += self._block("text", text="") + self._delta("text_delta", text=part.text)
        if part.call is not None:
            told += self._stop() + self._begin("tool_use", **self._tool(part.call[0]), input={})
            told += self._delta("input_json_delta", partial_json=encode(part.call[1]).decode()) + self._stop()
        return told

    def closing(self, numbers: Numbers) -> list[bytes]:
        told = self.opening() + self._stop()
        usage = {"input_tokens": numbers.prompt, "output_tokens": numbers.output}
        told += _event({"type": "message_delta", "delta": {"stop_reason": self._reason(numbers)}, "usage": usage})
        return [told, _event({"type": "message_stop"})]

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        content: list[Fields] = []
        thought, said = "".join(part.thinking for part in parts), "".join(part.text for part in parts)
        if thought:
            content.append({"type": "thinking", "thinking": thought})
        if said:
            content.append({"type": "text", "text": said})
        calls = [part.call for part in parts if part.call is not None]
        content += [{"type": "tool_use", **self._tool(name), "input": arguments} for name, arguments in calls]
        message = self._message(content, {"input_tokens": numbers.prompt, "output_tokens": numbers.output})
        if reason := self._reason(numbers):  # left out where generation died quietly (ollama.md §4.4)
            message["stop_reason"] = reason
        return encode(message)

    def error(self, text: str) -> bytes:
        return b"event: error\ndata: " + error_body("/v1/messages", 500, text) + b"\n\n"

    def swallowed(self) -> bytes:
        return b""

    def _message(self, content: list[Fields], usage: Fields) -> Fields:
        message = {"id": self._id, "type": "message", "role": "assistant", "model": self._ask.model}
        return {**message, "content": content, "usage": usage}

    def _reason(self, numbers: Numbers) -> str:
        if self._calls:
            return "tool_use"
        return {"stop": "end_turn", "length": "max_tokens"}.get(numbers.reason, "")

    def _tool(self, name: str) -> Fields:
        self._calls += 1
        return {"id": _call_id(f"{self._id}.{self._calls}"), "name": name}

    def _block(self, kind: str, **fields: Any) -> bytes:
        return b"" if self._open == kind else self._stop() + self._begin(kind, **fields)

    def _begin(self, kind: str, **fields: Any) -> bytes:
        self._open = kind
        block = {"type": kind, **fields}
        return _event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, kind: str, **fields: Any) -> bytes:
        return _event({"type": "content_block_delta", "index": self._index, "delta": {"type": kind, **fields}})

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        index, self._index = self._index, self._index + 1
        return _event({"type": "content_block_stop", "index": index})


class Transcription(Messages):
    """One answer of /v1/audio/transcriptions: never streamed; JSON, or just the text where that was asked for."""

    def whole(self, parts: Sequence[Part], numbers: Numbers) -> bytes:
        text = "".join(part.text for part in parts)
        return text.encode() if self._ask.encoding == "text" else encode({"text": text})
