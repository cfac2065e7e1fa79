"""Where a conversation goes: to the same instance as before, as long as that is no busier than the others.

An instance that has seen a conversation answers its next turn sooner (ollama.md §7). Nothing is stored: the instances
are put in an order that the conversation's own name gives (rendezvous hashing), and that order breaks ties only, so
load and failover go before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from gateway.call import Candidate

# What clients call a conversation (clients.md §6); the first that is sent counts.
HINTS = (
    "session-id",
    "thread-id",
    "x-session-affinity",
    "x-session-id",
    "x-claude-code-session-id",
    "x-openwebui-chat-id",
)


def kept_together(candidates: Sequence[Candidate], conversation: str) -> tuple[Candidate, ...]:
    """The candidates, ranked so that of equals the same one is first for the same conversation."""
    names = sorted({one.instance for one in candidates}, key=lambda name: _weight(conversation, name))
    place = {name: index for index, name in enumerate(names)}
    return tuple(replace(one, rank=one.rank * len(names) + place[one.instance]) for one in candidates)


def _weight(conversation: str, instance: str) -> bytes:
    return hashlib.sha256(f"{instance}\0{conversation}".encode("utf-8", "replace")).digest()
