"""How it is said: each dialect reads a body, writes the one an instance gets, and reads what comes back. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from gateway.call import Operation
from gateway.dialects import anthropic, facade, ollama, openai, responses
from gateway.dialects.failures import Heard, broken, heard, in_stream, refusal, render, status_headers
from gateway.dialects.reading import NULL
from gateway.wire import json

__all__ = [
    "Heard",
    "anthropic",
    "broken",
    "facade",
    "facade_or_ollama",
    "heard",
    "in_stream",
    "ollama",
    "openai",
    "refusal",
    "render",
    "responses",
    "status_headers",
]


class _Either(Struct, gc=False):
    message: Raw = NULL
    messages: Raw = NULL


_EITHER = msgspec.json.Decoder(_Either)


def facade_or_ollama(body: bytes) -> Operation:
    """Which of the two POST /api/chat means (D5): a `message` and no `messages` is the facade, else Ollama's own."""
    if b'"message"' not in body:
        return ollama.CHAT
    try:
        asked = _EITHER.decode(body)
    except json.UNREADABLE:
        return ollama.CHAT  # whose reading says what is wrong with it
    return facade.CHAT if asked.message != NULL and asked.messages == NULL else ollama.CHAT
