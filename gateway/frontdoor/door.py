"""All connections of clients: how many there may be, and how long each may take over what it sends and reads.

One timer looks at all of them now and then, so that no request and no frame pays for one of its own. It runs only while
somebody is connected.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Protocol as Shape

from gateway.config import ServerConfig
from gateway.errors import TooManyConnections

LONGEST_LOOK = 1.0  # seconds between two looks; less where a limit is short


class Visitor(Shape):
    """One connection as the door sees it."""

    peer: str

    def check_time(self, now: float, limits: ServerConfig) -> None:
        """Close it, or tell it so, where it has taken too long."""


class Door:
    """`limits` gives the settings in force; `refused` is told a word of a closed set for each connection or request
    that is turned away before the application sees it.
    """

    def __init__(self, limits: Callable[[], ServerConfig], refused: Callable[[str], None]) -> None:
        self.refused = refused
        self._limits = limits
        self._inside: set[Visitor] = set()
        self._by_peer: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._inside)

    @property
    def limits(self) -> ServerConfig:
        return self._limits()

    def enter(self, visitor: Visitor) -> TooManyConnections | None:
        """Why one more connection is too many; None where it is not, and may stay until it leaves."""
        limits = self._limits()
        if len(self._inside) >= limits.max_connections:
            return TooManyConnections(f"at most {limits.max_connections} connections (server.max_connections)")
        most = limits.max_connections_per_address
        if self._by_peer.get(visitor.peer, 0) >= most and not limits.trusts(visitor.peer):
            return TooManyConnections(
                f"at most {most} connections from one address (server.max_connections_per_address)"
            )
        self._inside.add(visitor)
        self._by_peer[visitor.peer] += 1
        if self._timer is None:
            self._look_again(limits)
        return None

    def leave(self, visitor: Visitor) -> None:
        """Idempotent."""
        if visitor not in self._inside:
            return
        self._inside.discard(visitor)
        self._by_peer[visitor.peer] -= 1
        if not self._by_peer[visitor.peer]:
            del self._by_peer[visitor.peer]
        if not self._inside and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self, limits: ServerConfig) -> None:
        shortest = min(limits.head_timeout, limits.body_timeout, limits.write_stall, limits.keep_alive)
        delay = max(0.01, min(LONGEST_LOOK, shortest / 4))
        self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        now, limits = asyncio.get_running_loop().time(), self._limits()
        for visitor in list(self._inside):
            visitor.check_time(now, limits)
        self._timer = None
        if self._inside:
            self._look_again(limits)
