"""The facade: one message in, one text out, by task (D5). Asked of the instance as a chat completion.

`{"message", "task_type"?, "temperature"?, "model"?}` → `{"response", "model", "task_type", "duration_ms"}`. Other
fields are ignored: this shape is older than the gateway and its callers send what they like.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from gateway.call import Call, Reply, Wish
from gateway.dialects import openai
from gateway.dialects.chunks import ChunkReader, counted
from gateway.dialects.reading import Form, TaskName, possible_model
from gateway.wire import json

DEFAULT_TASK = "general_chat"  # what no task at all means (D2)


class FacadeBody(Struct, kw_only=True, gc=False):
    message: Annotated[str, Meta(min_length=1)]
    task_type: TaskName | None = None
    temperature: float | None = None
    model: str | None = None


_BODY = msgspec.json.Decoder(FacadeBody)


class Facade:
    """POST /api/chat with `message`"""

    name = "chat"
    dialect = "facade"
    path = "/v1/chat/completions"
    native = False
    stream_type = b"application/json"
    _form = Form(FacadeBody)

    def read(self, body: bytes) -> Wish:
        asked = self._form.read(body)
        return Wish(
            model=possible_model((asked.model or "").strip()),
            task=asked.task_type or "",
            deterministic=asked.temperature == 0,
        )

    def write(self, call: Call, model: str) -> bytes:
        asked = _BODY.decode(call.body)
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": asked.message}]}
        if asked.temperature is not None:
            body["temperature"] = asked.temperature
        return msgspec.json.encode({**body, "stream": False})

    def reader(self, call: Call) -> ChunkReader:
        raise NotImplementedError("the facade never streams")

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        finished = openai.whole_answer(body)
        answer = {
            "response": openai.text_of(finished),
            "model": model,
            "task_type": call.task or call.wish.task or DEFAULT_TASK,
            "duration_ms": round(seconds * 1000),
        }
        return Reply(json.encode(answer), counted(finished.usage))


CHAT = Facade()
