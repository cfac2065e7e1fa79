"""An open answer: one call whose instance has begun to speak, and all it holds until the block is left.

After the first content frame there is no second attempt, and an answer is whole only if its own end marker was seen;
everything else is raised as an error, after the frames that came before it were handed out.

The instance's place is given back as soon as it has done its part, well or not: what a slow client has yet to read, an
error at its end included, is kept here.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from gateway.call import Frame, Reader
from gateway.dialects import broken
from gateway.errors import BadAnswer, CallTimeout, ConnectionLost, StreamBroken, UpstreamError
from gateway.instances import Lease
from gateway.journey import Journey
from gateway.upstream import Response

MAX_SILENT = 1000  # frames without content before the first that has some
SETTLE = 0.1  # seconds a finished answer may take to close its HTTP message, so that its connection can be kept


class Exchange:
    """`async with` it, then take `frames()` until there are none."""

    def __init__(self, journey: Journey) -> None:
        self._journey = journey
        self._now = journey.means.now
        self._reader = journey.call.operation.reader(journey.call)
        self._ready: list[Frame] = []
        self._broken: UpstreamError | None = None
        self._ended = False
        self._given_back = False
        self._held = ExitStack()
        self._limit = asyncio.timeout(journey.limits.total)
        self._sent_at = self._first_at = 0.0
        self._lease: Lease
        self._response: Response

    async def __aenter__(self) -> Self:
        """Returns with the first content frame at hand. Raises GatewayError."""
        await self._limit.__aenter__()
        try:
            await self._journey.attempts(self._until_content)
        except BaseException as error:
            await self._lift_limit(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back(error if isinstance(error, UpstreamError) else self._broken)
        record = self._journey.record
        record.upstream = self._now() - self._sent_at  # once more: what a slow client takes is no time of ours
        record.usage = self._reader.usage
        await self._lift_limit(error)

    @property
    def reader(self) -> Reader:
        """What has read the stream so far, and knows how to tell of its end."""
        return self._reader

    def waiting(self) -> str:
        """Where the call stands in line, in words; "" once it has left it."""
        return self._journey.waiting()

    async def frames(self) -> list[Frame]:
        """The next frames, as many as have come; [] after the last. Raises UpstreamError."""
        try:
            frames = self._ready or await self._read(self._lease, self._response)
        except (ConnectionLost, BadAnswer) as error:
            error.code = StreamBroken.code  # whatever broke it: the client has part of an answer
            raise
        self._ready = []
        if self._broken is not None or self._response.over:
            self._conclude()
        record = self._journey.record
        record.frames += len(frames)
        record.tokens_span = self._now() - self._first_at
        return frames

    async def settle(self) -> None:
        """After the last frame was sent on: let the HTTP message end, so that the connection can serve again."""
        self._limit.reschedule(None)  # the client has its whole answer: no limit can take it back
        try:
            async with asyncio.timeout(SETTLE):
                while await self._response.read():
                    pass
        except (UpstreamError, TimeoutError):
            return  # its connection is closed instead; the client has its whole answer

    async def _until_content(self, lease: Lease, held: ExitStack) -> None:
        """One attempt up to its first content frame: until then it can fail without the client knowing."""
        self._sent_at = self._now()
        self._reader = self._journey.call.operation.reader(self._journey.call)
        self._ready, self._broken, self._ended = [], None, False
        self._response = await self._journey.open(lease, held)
        self._lease = lease
        while not any(frame.content or frame.last for frame in self._ready):
            if len(self._ready) > MAX_SILENT:
                raise BadAnswer(lease.candidate.instance, "sends frames without content")
            self._ready += await self._read(lease, self._response)
        lease.answered()
        self._response.spoke(self._journey.limits.idle)
        self._first_at = self._now()
        self._journey.answered(lease, self._first_at - self._sent_at)
        self._held = held.pop_all()
        self._response.when_over(self._conclude)

    def _conclude(self) -> None:
        """The instance has done its part, and the client may still read. Synchronous: called as its last bytes come."""
        try:
            if not self._ended and self._broken is None:
                self._ready += self._sound(self._lease.candidate.instance, self._response.unread())
            if not self._ended and self._broken is None:
                self._response.check()
                raise self._endless(self._lease)
        except UpstreamError as error:
            self._broken = error.with_traceback(None)  # it is kept, and would keep the frames it came through
        self._give_back(self._broken)

    @staticmethod
    def _endless(lease: Lease) -> StreamBroken:
        return StreamBroken(lease.candidate.instance, "the stream ended without its end marker")

    def _give_back(self, error: UpstreamError | None) -> None:
        """End the lease and the response, and count what became of them. Idempotent."""
        if self._given_back:
            return
        self._given_back = True
        self._journey.record.upstream = self._now() - self._sent_at
        if self._ended:
            self._journey.done(self._lease)
        elif error is not None:
            self._journey.failed(self._lease, error)
        self._held.close()

    async def _read(self, lease: Lease, response: Response) -> list[Frame]:
        """Frames that came, up to an error among them, which is raised by the next call."""
        if self._broken is not None:
            raise self._broken
        frames: list[Frame] = []
        while not frames and not self._ended:
            data = await response.read()
            if not data:
                raise self._endless(lease)
            frames = self._sound(lease.candidate.instance, data)
            if self._broken is not None and not frames:
                raise self._broken
        return frames

    def _sound(self, instance: str, data: bytes) -> list[Frame]:
        try:
            frames = self._reader.feed(data)
        except ValueError as error:
            raise BadAnswer(instance, str(error)) from error
        for index, frame in enumerate(frames):
            if frame.error:
                self._broken = broken(instance, frame.error)
                return frames[:index]
            if frame.last:
                self._ended = True
                return frames[: index + 1]
        return frames

    async def _lift_limit(self, error: BaseException | None) -> None:
        """Take the total limit off; if it was what struck, say so in our words."""
        try:
            await self._limit.__aexit__(type(error) if error else None, error, None)
        except TimeoutError as struck:
            raise CallTimeout(self._journey.limits.total) from struck
