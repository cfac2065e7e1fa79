"""OpenAI's Python SDK."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

from tests.clients.programs import tell

client = OpenAI(base_url=f"{tell.GATEWAY}/v1", api_key=tell.KEY)
create: Any = client.chat.completions.create


def whole() -> dict[str, Any]:
    reply = create(model=tell.MODEL, messages=tell.user(tell.SAY))
    return {"text": reply.choices[0].message.content, "end": reply.choices[0].finish_reason}


def stream(model: str = tell.MODEL) -> dict[str, Any]:
    chunks = list(create(model=model, messages=tell.user(tell.SAY), stream=True))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "pieces": len(choices),
        "end": choices[-1].finish_reason,
    }


def tools() -> dict[str, Any]:
    """With the SDK's own accumulation of a stream, which is strict about indexes and roles."""
    helper: Any = client.chat.completions.stream
    with helper(model=tell.MODEL, messages=tell.user(tell.CALL), tools=[tell.TOOL]) as events:
        for _ in events:
            pass
        message = events.get_final_completion().choices[0].message
    call = message.tool_calls[0].function
    return {"name": call.name, "arguments": call.arguments, "role": message.role}


def embed() -> dict[str, Any]:
    reply = client.embeddings.create(model=tell.EMBEDDER, input=["one", "two"])
    return {"vectors": len(reply.data), "length": len(reply.data[0].embedding)}


def models() -> dict[str, Any]:
    return {"names": [model.id for model in client.models.list()], "one": client.models.retrieve(tell.MODEL).id}


def responses() -> dict[str, Any]:
    """The newer API, whole and with the SDK's own accumulation of a stream."""
    asked: dict[str, Any] = {"model": tell.MODEL, "input": tell.SAY}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as events:
        kinds = [event.type for event in events]
        streamed = events.get_final_response()
    return {"text": whole.output_text, "streamed": streamed.output_text, "kinds": [kinds[0], kinds[-1]]}


def completions() -> dict[str, Any]:
    asked: Any = {"model": tell.MODEL, "prompt": tell.SAY}
    streamed: Any = client.completions.create(**asked, stream=True)
    text = "".join(chunk.choices[0].text for chunk in streamed if chunk.choices)
    return {"text": client.completions.create(**asked).choices[0].text, "streamed": text}


def alias() -> dict[str, Any]:
    reply = create(model="gpt-4o", messages=tell.user(tell.SAY))
    return {"text": reply.choices[0].message.content}


tell.main(
    {
        "whole": whole,
        "stream": stream,
        "tools": tools,
        "embed": embed,
        "models": models,
        "responses": responses,
        "completions": completions,
        "alias": alias,
        "missing": lambda: create(model=tell.NOBODY, messages=tell.user("hi")),
        "cut": lambda: stream(tell.CUT),
        "silence": lambda: stream(tell.SILENT),
        "busy": lambda: create(model=tell.BUSY, messages=tell.user("hi")),
    }
)
