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


class Stay:
    """`with` it around what a shutdown may end. Raises the cause given to `interrupt` out of the block."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._cause: Exception | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None  # noqa: S101 - a request is served in an asyncio task
        self._cancelling = self._task.cancelling()
        self._crowd.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over()
        # As asyncio.timeout does it: a cancellation of ours becomes our exception, another's stays what it is.
        if self._cause is not None and self._task is not None:
            others = self._task.uncancel() > self._cancelling
            if not others and kind is asyncio.CancelledError:
                raise self._cause from error

    def over(self) -> None:
        """From now on a shutdown lets it be."""
        self._crowd.discard(self)

    def interrupt(self, cause: Exception) -> None:
        """End the block with `cause`. The first cause stands."""
        if self._cause is None and self._task is not None and not self._task.done():
            self._cause = cause
            self._task.cancel()


class Presence(Stay):
    """`async with` it around a call's work: a client that leaves ends the block too. Raises ClientLeft then."""

    def __init__(self, receive: Receive, crowd: Crowd) -> None:
        super().__init__(crowd)
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.__enter__()
        self._watcher = asyncio.create_task(self._watch(), name="presence")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finished()
        self.__exit__(kind, error, trace)

    def finished(self) -> None:
        """The answer is complete but for its last bytes: a departure from now on is a success."""
        self.over()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self.interrupt(ClientLeft())
