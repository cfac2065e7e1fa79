"""LangChain's OpenAI integration."""

from __future__ import annotations

import json
from typing import Any

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.clients.programs import tell

BASE: dict[str, Any] = {"base_url": f"{tell.GATEWAY}/v1", "api_key": tell.KEY}


def chat(model: str = tell.MODEL) -> Any:
    return ChatOpenAI(model=model, max_tokens=64, **BASE)  # sent as max_completion_tokens


def whole(model: str = tell.MODEL) -> dict[str, Any]:
    reply = chat(model).invoke(tell.SAY)
    return {"text": reply.content, "end": reply.response_metadata["finish_reason"]}


def stream(model: str = tell.MODEL) -> dict[str, Any]:
    pieces = list(chat(model).stream(tell.SAY))
    ends = [piece.response_metadata.get("finish_reason") for piece in pieces]
    return {
        "text": "".join(piece.content for piece in pieces),
        "pieces": len(pieces),
        "end": next((end for end in ends if end), None),
    }


def tools() -> dict[str, Any]:
    call = chat().bind_tools([tell.TOOL]).invoke(tell.CALL).tool_calls[0]
    return {"name": call["name"], "arguments": json.dumps(call["args"])}


def embed() -> dict[str, Any]:
    vectors = OpenAIEmbeddings(model=tell.EMBEDDER, check_embedding_ctx_length=False, **BASE).embed_documents(
        ["one", "two"]
    )
    return {"vectors": len(vectors), "length": len(vectors[0])}


tell.main(
    {
        "whole": whole,
        "stream": stream,
        "tools": tools,
        "embed": embed,
        "missing": lambda: whole(tell.NOBODY),
        "cut": lambda: stream(tell.CUT),
        "silence": lambda: stream(tell.SILENT),
        "busy": lambda: whole(tell.BUSY),
    }
)
