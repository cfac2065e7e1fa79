"""Who is still there: ends a block when its client hangs up, or when the gateway can wait no longer.

ASGI tells of a departure only to those who ask `receive`, and uvicorn's `send` to a departed client returns without a
word (faults.md §0.12–13). So one asyncio task asks, for every call, from the moment its body was read.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive

from gateway.errors import ClientLeft, GatewayError


class Crowd:
    """All calls that are present now, so that a shutdown can end those that outlast it."""

    def __init__(self) -> None:
        self._present: set[Presence] = set()

    def __len__(self) -> int:
        return len(self._present)

    def add(self, presence: Presence) -> None:
        self._present.add(presence)

    def discard(self, presence: Presence) -> None:
        self._present.discard(presence)

    def interrupt(self, cause: GatewayError) -> int:
        """End every call with `cause`; how many there were."""
        present = list(self._present)
        for presence in present:
            presence.interrupt(cause)
        return len(present)


class Presence:
    """`async with` it around a call's work. Raises ClientLeft, or the cause given to `interrupt`, out of the block."""

    def __init__(self, receive: Receive, crowd: Crowd) -> None:
        self._receive = receive
        self._crowd = crowd
        self._cause: Exception | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None  # noqa: S101 - an async with runs in an asyncio task
        self._cancelling = self._task.cancelling()
        self._watcher = asyncio.create_task(self._watch(), name="presence")
        self._crowd.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finished()
        # As asyncio.timeout does it: a cancellation of ours becomes our exception, another's stays what it is.
        if self._cause is not None and self._task is not None:
            others = self._task.uncancel() > self._cancelling
            if not others and kind is asyncio.CancelledError:
                raise self._cause from error

    def finished(self) -> None:
        """The answer is complete but for its last bytes: a departure from now on is a success."""
        self._crowd.discard(self)
        if self._watcher is not None:
            self._watcher.cancel()

    def interrupt(self, cause: Exception) -> None:
        """End the block with `cause`. The first cause stands."""
        if self._cause is None and self._task is not None and not self._task.done():
            self._cause = cause
            self._task.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self.interrupt(ClientLeft())
