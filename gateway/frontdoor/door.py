"""All connections of clients: how many there may be, and how long each may take over what it sends and reads.

One timer looks at all of them now and then, so that no request and no frame pays for one of its own. It runs only while
somebody is connected. What comes of many at once, a look at each or all that thousands of them leave behind, is done a
few at a time, so that others have their turn in between.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol as Shape

from gateway.config import ServerConfig
from gateway.errors import TooManyConnections
from gateway.frontdoor.lobby import AT_A_TURN, Lobby, Quiet

LONGEST_LOOK = 1.0  # seconds between two looks at one of them; less where a limit is short
AT_A_LOOK = 128  # connections, which takes a quarter of a millisecond


class Visitor(Quiet, Shape):
    """One connection as the door sees it."""

    peer: str

    def check_time(self, now: float, limits: ServerConfig) -> None:
        """Close it, or tell it so, where it has taken too long."""

    def quiet(self, now: float) -> bool:
        """Whether it has sent nothing for a while, and is not about to be closed."""

    def departed(self) -> None:
        """Its client has left: end what it asked for."""


class Door:
    """`limits` gives the settings in force; `refused` is told a word of a closed set for each connection or request
    that is turned away before the application sees it.
    """

    def __init__(self, limits: Callable[[], ServerConfig], refused: Callable[[str], None]) -> None:
        self.refused = refused
        self._limits = limits
        self._inside: OrderedDict[Visitor, None] = OrderedDict()  # who was looked at last comes last
        self._by_peer: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._parted: deque[Visitor] = deque()
        self._lobby = Lobby()

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
        self._inside[visitor] = None
        self._by_peer[visitor.peer] += 1
        if self._timer is None:
            self._look_again(limits)
        return None

    def leave(self, visitor: Visitor) -> None:
        """Idempotent."""
        if visitor not in self._inside:
            return
        del self._inside[visitor]
        self._lobby.leave(visitor)
        self._by_peer[visitor.peer] -= 1
        if not self._by_peer[visitor.peer]:
            del self._by_peer[visitor.peer]
        if not self._inside and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def see_off(self, visitor: Visitor) -> None:
        """Have it told that its client left, at the next turn of the loop or, where many leave at once, a later one."""
        self._parted.append(visitor)
        if len(self._parted) == 1:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _tell_some(self) -> None:
        for _ in range(min(AT_A_TURN, len(self._parted))):
            self._parted.popleft().departed()
        if self._parted:
            asyncio.get_running_loop().call_soon(self._tell_some)

    def _look_again(self, limits: ServerConfig) -> None:
        shortest = min(limits.head_timeout, limits.body_timeout, limits.write_stall, limits.keep_alive)
        delay = max(0.01, min(LONGEST_LOOK, shortest / 4))
        looks = 1 + len(self._inside) // AT_A_LOOK
        self._timer = asyncio.get_running_loop().call_later(delay / looks, self._look)

    def _look(self) -> None:
        """At some of them, so often that each has been looked at once in each delay."""
        now, limits = asyncio.get_running_loop().time(), self._limits()
        for visitor in list(islice(self._inside, AT_A_LOOK)):
            self._inside.move_to_end(visitor)
            visitor.check_time(now, limits)
            if visitor.quiet(now):
                self._lobby.enter(visitor)
        self._timer = None
        if self._inside:
            self._look_again(limits)
