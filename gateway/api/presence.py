"""Who is still there: ends a block when its client hangs up, or when the gateway can wait no longer.

ASGI tells of a departure only to those who ask `receive`, which would take an asyncio task of its own for every call
(faults.md §0.12-13), and has a message and an `await` for each piece of an answer. What the front door puts beside it
into a request's scope spares all that: a departure is told of by a callback, and bytes go out in the very callback that
brought them in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

from starlette.types import Scope

from gateway.block import Block
from gateway.errors import ClientLeft, GatewayError
from gateway.exchange import Room
from gateway.wire import Headers

EXTENSION = "gateway.client"


class Watched(Protocol):
    def watch(self, left: Callable[[], None] | None) -> None:
        """Have `left` called when it leaves before its answer is complete; at the next turn, if it has left."""


class Client(Watched, Protocol):
    """One request's client. To one that has left everything is said in vain, without an error."""

    def whole_body(self) -> bytes | None:
        """The body where all of it is here and nobody took any of it: then it is taken now. Else None."""

    @property
    def room(self) -> Room:
        """Whether it reads as fast as it is written to."""

    def start(self, status: int, headers: Headers) -> None:
        """The head of the answer; it leaves with the first piece."""

    def push(self, data: bytes) -> None:
        """A piece of the answer."""

    def end(self, data: bytes = b"") -> None:
        """The last piece."""


def client_of(scope: Scope) -> Client:
    found: Client = scope["extensions"][EXTENSION]
    return found


class Crowd:
    """All calls that are present now, so that a shutdown can end those that outlast it, and any that come later."""

    def __init__(self) -> None:
        self._present: set[Stay] = set()
        self._cause: GatewayError | None = None

    def __len__(self) -> int:
        return len(self._present)

    def add(self, stay: Stay) -> None:
        self._present.add(stay)
        if self._cause is not None:
            stay.interrupt(self._cause)

    def discard(self, stay: Stay) -> None:
        self._present.discard(stay)

    def interrupt(self, cause: GatewayError) -> int:
        """End every call with `cause`, from now on; how many there were."""
        self._cause = cause
        present = list(self._present)
        for stay in present:
            stay.interrupt(cause)
        return len(present)


class Stay(Block):
    """A block that a shutdown may end."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd

    def __enter__(self) -> Self:
        super().__enter__()
        self._crowd.add(self)
        return self

    def over(self) -> None:
        """From now on a shutdown lets it be."""
        self._crowd.discard(self)


class Presence(Stay):
    """A block for a call's work: a client that leaves ends it, too. Raises ClientLeft then."""

    def __init__(self, client: Watched, crowd: Crowd) -> None:
        super().__init__(crowd)
        self._client = client

    def __enter__(self) -> Self:
        super().__enter__()
        self._client.watch(self._left)
        return self

    def over(self) -> None:
        """The answer is complete but for its last bytes: a departure from now on is a success."""
        super().over()
        self._client.watch(None)

    def _left(self) -> None:
        self.interrupt(ClientLeft())
