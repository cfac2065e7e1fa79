"""OpenAI's Python SDK, asynchronous."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

from tests.clients.programs import tell


def client() -> Any:
    return AsyncOpenAI(base_url=f"{tell.GATEWAY}/v1", api_key=tell.KEY)


async def whole(model: str = tell.MODEL) -> dict[str, Any]:
    async with client() as sdk:
        reply = await sdk.chat.completions.create(model=model, messages=tell.user(tell.SAY))
    return {"text": reply.choices[0].message.content, "end": reply.choices[0].finish_reason}


async def stream(model: str = tell.MODEL) -> dict[str, Any]:
    async with client() as sdk:
        chunks = await sdk.chat.completions.create(model=model, messages=tell.user(tell.SAY), stream=True)
        choices = [chunk.choices[0] async for chunk in chunks if chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "pieces": len(choices),
        "end": choices[-1].finish_reason,
    }


async def tools() -> dict[str, Any]:
    async with client() as sdk:
        reply = await sdk.chat.completions.create(
            model=tell.MODEL, messages=tell.user(tell.CALL), tools=[tell.TOOL], max_completion_tokens=64
        )
    call = reply.choices[0].message.tool_calls[0].function
    return {"name": call.name, "arguments": call.arguments, "role": reply.choices[0].message.role}


async def embed() -> dict[str, Any]:
    async with client() as sdk:
        reply = await sdk.embeddings.create(model=tell.EMBEDDER, input=["one", "two"], encoding_format="float")
    return {"vectors": len(reply.data), "length": len(reply.data[0].embedding)}


async def models() -> dict[str, Any]:
    async with client() as sdk:
        return {"names": [model.id async for model in sdk.models.list()]}


tell.main(
    {
        "whole": whole,
        "stream": stream,
        "tools": tools,
        "embed": embed,
        "models": models,
        "missing": lambda: whole(tell.NOBODY),
        "cut": lambda: stream(tell.CUT),
        "silence": lambda: stream(tell.SILENT),
        "busy": lambda: whole(tell.BUSY),
    }
)
