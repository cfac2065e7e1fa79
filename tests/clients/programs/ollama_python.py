"""Ollama's Python library: the native API."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ollama

from tests.clients.programs import tell

client = ollama.Client(host=tell.GATEWAY)


def whole(model: str = tell.MODEL) -> dict[str, Any]:
    reply = client.chat(model=model, messages=tell.user(tell.SAY))
    return {"text": reply.message.content, "end": reply.done_reason}


def stream(model: str = tell.MODEL) -> dict[str, Any]:
    lines = list(client.chat(model=model, messages=tell.user(tell.SAY), stream=True))
    text = "".join(line.message.content or "" for line in lines)
    return {"text": text, "pieces": len(lines), "end": lines[-1].done_reason}


def generate() -> dict[str, Any]:
    whole = client.generate(model=tell.MODEL, prompt=tell.SAY)
    pieces = list(client.generate(model=tell.MODEL, prompt=tell.SAY, stream=True))
    return {"text": whole.response, "streamed": "".join(piece.response for piece in pieces)}


def tools() -> dict[str, Any]:
    reply = client.chat(model=tell.MODEL, messages=tell.user(tell.CALL), tools=[tell.TOOL])
    call = (reply.message.tool_calls or [])[0].function
    return {"name": call.name, "arguments": json.dumps(call.arguments), "role": reply.message.role}


def embed() -> dict[str, Any]:
    vectors = client.embed(model=tell.EMBEDDER, input=["one", "two"]).embeddings
    old = client.embeddings(model=tell.EMBEDDER, prompt="one").embedding
    return {"vectors": len(vectors), "length": len(vectors[0]), "old": len(old)}


def models() -> dict[str, Any]:
    return {"names": [model.model for model in client.list().models]}


def show() -> dict[str, Any]:
    shown = client.show(tell.MODEL)
    info = shown.modelinfo or {}
    return {
        "capabilities": shown.capabilities,
        "context": info.get(f"{info.get('general.architecture')}.context_length"),
        "virtual": client.show("auto").capabilities,
    }


def loaded() -> dict[str, Any]:
    whole()
    running = client.ps().models
    return {"names": [model.model for model in running], "dated": all(model.expires_at for model in running)}


async def hurry() -> dict[str, Any]:
    """As Home Assistant looks at an Ollama when it is set up."""
    async with asyncio.timeout(5):
        listed = await ollama.AsyncClient(host=tell.GATEWAY).list()
    return {"names": [model.model for model in listed.models]}


tell.main(
    {
        "whole": whole,
        "stream": stream,
        "generate": generate,
        "tools": tools,
        "embed": embed,
        "models": models,
        "show": show,
        "loaded": loaded,
        "hurry": hurry,
        "missing": lambda: whole(tell.NOBODY),
        "cut": lambda: stream(tell.CUT),
        "silence": lambda: stream(tell.SILENT),
        "busy": lambda: whole(tell.BUSY),
    }
)
