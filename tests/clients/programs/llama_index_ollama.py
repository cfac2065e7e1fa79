"""LlamaIndex with an Ollama; it asks /api/show for the context length first."""

from __future__ import annotations

import json
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama

from tests.clients.programs import tell


def llm(model: str = tell.MODEL) -> Any:
    return Ollama(model=model, base_url=tell.GATEWAY)


def whole(model: str = tell.MODEL) -> dict[str, Any]:
    reply = llm(model).complete(tell.SAY)
    return {"text": reply.text, "end": reply.raw["done_reason"]}


def stream(model: str = tell.MODEL) -> dict[str, Any]:
    pieces = list(llm(model).stream_chat([ChatMessage(role="user", content=tell.SAY)]))
    return {"text": pieces[-1].message.content, "pieces": len(pieces), "end": pieces[-1].raw["done_reason"]}


def tools() -> dict[str, Any]:
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"fine in {city}"

    model = llm()
    reply = model.chat_with_tools([FunctionTool.from_defaults(fn=weather)], user_msg=tell.CALL)
    call = model.get_tool_calls_from_response(reply)[0]
    return {"name": call.tool_name, "arguments": json.dumps(call.tool_kwargs)}


def context() -> dict[str, Any]:
    return {"length": llm().metadata.context_window}


tell.main(
    {
        "whole": whole,
        "stream": stream,
        "tools": tools,
        "context": context,
        "missing": lambda: whole(tell.NOBODY),
        "cut": lambda: stream(tell.CUT),
        "silence": lambda: stream(tell.SILENT),
        "busy": lambda: whole(tell.BUSY),
    }
)
