"""Anthropic's Python SDK: its base URL has no /v1."""

from __future__ import annotations

import json
from typing import Any

import anthropic

from tests.clients.programs import tell

client = anthropic.Anthropic(base_url=tell.GATEWAY, auth_token=tell.KEY)


def ask(text: str, model: str = tell.MODEL, **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 64, "messages": tell.user(text), **more}


def whole(model: str = tell.MODEL) -> dict[str, Any]:
    reply: Any = client.messages.create(**ask(tell.SAY, model))
    return {"text": reply.content[0].text, "end": reply.stop_reason}


def stream(model: str = tell.MODEL) -> dict[str, Any]:
    with client.messages.stream(**ask(tell.SAY, model)) as events:
        pieces = list(events.text_stream)
        return {"text": "".join(pieces), "pieces": len(pieces), "end": events.get_final_message().stop_reason}


def tools() -> dict[str, Any]:
    offered = [{"name": "weather", "description": "The weather.", "input_schema": tell.PARAMETERS}]
    with client.messages.stream(**ask(tell.CALL, tools=offered)) as events:
        reply: Any = events.get_final_message()
    call = next(block for block in reply.content if block.type == "tool_use")
    return {"name": call.name, "arguments": json.dumps(call.input), "role": reply.role}


def count() -> dict[str, Any]:
    return {"tokens": client.messages.count_tokens(model=tell.MODEL, messages=tell.user(tell.SAY)).input_tokens}


def models() -> dict[str, Any]:
    return {"names": [model.id for model in client.models.list()]}


tell.main(
    {
        "whole": whole,
        "stream": stream,
        "tools": tools,
        "models": models,
        "alias": lambda: whole("claude-haiku-4-5"),
        "count": count,
        "missing": lambda: whole(tell.NOBODY),
        "cut": lambda: stream(tell.CUT),
        "silence": lambda: stream(tell.SILENT),
        "busy": lambda: whole(tell.BUSY),
    }
)
