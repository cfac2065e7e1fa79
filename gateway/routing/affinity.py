"""Where a conversation goes: to the instance that had its last turn, which still has its beginning in the cache.

An instance that has seen a conversation answers its next turn sooner (ollama.md §7). Nothing is stored: a conversation
and an instance give a number, and the highest number of those that are offered wins (rendezvous hashing). So every
replica of the gateway chooses alike, and only the conversations of an instance that leaves move. Who is offered, the
line decides: load and failover go before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

# What clients call a conversation (clients.md §6); the first that is sent counts.
HINTS = (
    b"session-id",
    b"thread-id",
    b"x-session-affinity",
    b"x-session-id",
    b"x-claude-code-session-id",
    b"x-openwebui-chat-id",
)
_MASK = 2**64 - 1


def seed(instance: str) -> int:
    """What stands for an instance: 64 bits of its name's digest."""
    return _digest(instance)


def home(conversation: str, seeds: Mapping[T, int]) -> T:
    """Whichever of `seeds`, at least one, this conversation goes to."""
    if len(seeds) == 1:
        return next(iter(seeds))
    point = _digest(conversation) | 1  # an odd factor mixes without losing anything
    return max(seeds, key=lambda one: seeds[one] * point & _MASK)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
