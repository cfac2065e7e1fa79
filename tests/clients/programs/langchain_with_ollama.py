"""LangChain's Ollama integration; it looks for the model in the list before it asks."""

from __future__ import annotations

import json
from typing import Any

from langchain_ollama import ChatOllama, OllamaEmbeddings

from tests.clients.programs import tell


def chat(model: str = tell.MODEL, *, look: bool = False) -> Any:
    return ChatOllama(model=model, base_url=tell.GATEWAY, validate_model_on_init=look)


def whole() -> dict[str, Any]:
    reply = chat(look=True).invoke(tell.SAY)
    return {"text": reply.content, "end": reply.response_metadata["done_reason"]}


def stream(model: str = tell.MODEL) -> dict[str, Any]:
    pieces = list(chat(model).stream(tell.SAY))
    ends = [piece.response_metadata.get("done_reason") for piece in pieces]
    return {
        "text": "".join(piece.content for piece in pieces),
        "pieces": len(pieces),
        "end": next((end for end in ends if end), None),
    }


def tools() -> dict[str, Any]:
    call = chat().bind_tools([tell.TOOL]).invoke(tell.CALL).tool_calls[0]
    return {"name": call["name"], "arguments": json.dumps(call["args"])}


def embed() -> dict[str, Any]:
    vectors = OllamaEmbeddings(model=tell.EMBEDDER, base_url=tell.GATEWAY).embed_documents(["one", "two"])
    return {"vectors": len(vectors), "length": len(vectors[0])}


tell.main(
    {
        "whole": whole,
        "stream": stream,
        "tools": tools,
        "embed": embed,
        "missing": lambda: chat(tell.NOBODY).invoke("hi"),
        "unlisted": lambda: chat(tell.NOBODY, look=True).invoke("hi"),
        "cut": lambda: stream(tell.CUT),
        "silence": lambda: stream(tell.SILENT),
        "busy": lambda: chat(tell.BUSY).invoke("hi"),
    }
)
