"""An open answer: one call whose instance has begun to speak, and all it holds until the block is left.

After the first content frame there is no second attempt, and an answer is whole only if its own end marker was seen;
everything else is raised as an error, after the frames that came before it were handed out.

Frames are passed on to a client in the very callback that brought their bytes, without waking anybody. The instance's
place is given back as soon as its answer is over: what a slow client has yet to read is kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from gateway.block import TimeLimit
from gateway.call import Frame, Reader
from gateway.dialects import broken
from gateway.errors import BadAnswer, CallTimeout, ConnectionLost, StreamBroken, UpstreamError
from gateway.instances import Lease
from gateway.journey import Attempt, Journey
from gateway.upstream import Response

MAX_SILENT = 1000  # frames without content before the first that has some
SETTLE = 0.1  # seconds a finished answer may take to close its HTTP message, so that its connection can be kept


class Room(Protocol):
    """Whether more is taken now; `told` is called each time it is again."""

    open: bool
    told: Callable[[], None] | None


class Sink(Protocol):
    """Where frames go. Nothing here waits."""

    @property
    def room(self) -> Room: ...

    def push(self, data: bytes, now: float) -> None: ...

    def end(self, data: bytes = b"") -> None:
        """The last of them."""


class Exchange:
    """`async with` it, then `relay`; or take `frames()` until there are none."""

    def __init__(self, journey: Journey) -> None:
        self._journey = journey
        self._record = journey.record
        self._now = journey.means.now
        self._reader = journey.call.operation.reader(journey.call)
        self._ready: list[Frame] = []
        self._broken: UpstreamError | None = None
        self._ended = False
        self._given_back = False
        self._limit = TimeLimit(journey.limits.total, partial(CallTimeout, journey.limits.total))
        self._sent_at = self._first_at = 0.0
        self._attempt: Attempt
        self._lease: Lease
        self._response: Response
        self._sink: Sink
        self._over: asyncio.Future[None]
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        """Returns with the first content frame at hand. Raises GatewayError."""
        self._limit.__enter__()
        try:
            await self._journey.attempts(self._until_content)
        except BaseException as error:
            self._limit.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back(error if isinstance(error, UpstreamError) else self._broken)
        record = self._record
        record.upstream = self._now() - self._sent_at  # once more: what a slow client takes is no time of ours
        record.usage = self._reader.usage
        self._broken = self._failure = None  # they know the frames they were raised through, and those know us
        self._limit.__exit__(kind, error, trace)

    @property
    def reader(self) -> Reader:
        """What has read the stream so far, and knows how to tell of its end."""
        return self._reader

    def waiting(self) -> str:
        """Where the call stands in line, in words; "" once it has left it."""
        return self._journey.waiting()

    async def relay(self, sink: Sink) -> None:
        """Pass all frames on as they come, to the last. Raises UpstreamError after the frames before it."""
        self._sink, self._over = sink, asyncio.get_running_loop().create_future()
        sink.room.told = self._flow
        self._response.when_changed(self._flow)
        try:
            self._flow()
            await self._over
        finally:
            if sink.room.told == self._flow:  # else the next answer on this connection has it by now
                sink.room.told = None
            self._response.when_changed(None)
        if self._failure is not None:
            raise self._failure
        await self.settle()

    def _flow(self) -> None:
        """What has come goes on, as far as the client takes it. Called whenever that may have changed."""
        if self._over.done():
            return
        try:
            over = self._pass_on()
        except Exception as failure:  # noqa: BLE001 - whoever waits for the end is to have it
            if isinstance(failure, ConnectionLost | BadAnswer):
                failure.code = StreamBroken.code  # whatever broke it: the client has part of an answer
            self._failure = failure
            over = True
        if over:
            self._over.set_result(None)

    def _pass_on(self) -> bool:
        """True after the last frame. Raises UpstreamError where there will be none."""
        sink, response = self._sink, self._response
        room = sink.room
        while room.open:
            data = b"" if self._ready else response.unread()
            if not (data or self._ready):
                self._look_for_an_end()
                return False
            piece, last = self._reader.plain(data) if data else b"", False
            if not piece:
                frames, self._ready = self._ready or self._sound(data), []
                if not frames:
                    continue
                piece, last = b"".join([frame.raw for frame in frames]), frames[-1].last
            now = self._now()
            self._record.tokens_span = now - self._first_at
            if last:
                self._limit.over()  # the client has its whole answer: no limit can take it back
                sink.end(piece)
                if response.over:
                    self._conclude()
                return True
            sink.push(piece, now)
            if response.waits and self._broken is None:
                return False
        if self._broken is not None or response.over:
            self._conclude()
        return False

    def _look_for_an_end(self) -> None:
        if self._broken is not None:
            raise self._broken
        self._response.check()
        if self._response.whole:
            raise self._endless()

    async def frames(self) -> list[Frame]:
        """The next frames, as many as have come; [] after the last. Raises UpstreamError."""
        try:
            frames = self._ready or await self._read()
        except (ConnectionLost, BadAnswer) as error:
            error.code = StreamBroken.code
            raise
        self._ready = []
        if self._broken is not None or self._response.over:
            self._conclude()
        self._record.tokens_span = self._now() - self._first_at
        return frames

    async def settle(self) -> None:
        """After the last frame was sent on: let the HTTP message end, so that the connection can serve again."""
        self._limit.over()
        if self._given_back:
            return
        try:
            async with asyncio.timeout(SETTLE):
                while await self._response.read():
                    pass
        except (UpstreamError, TimeoutError):
            return  # its connection is closed instead; the client has its whole answer

    async def _until_content(self, attempt: Attempt) -> None:
        """One attempt up to its first content frame: until then it can fail without the client knowing."""
        self._sent_at = self._now()
        self._reader = self._journey.call.operation.reader(self._journey.call)
        self._ready, self._broken, self._ended = [], None, False
        self._attempt, self._lease = attempt, attempt.lease
        self._response = await self._journey.open(attempt)
        while not any(frame.content or frame.last for frame in self._ready):
            if len(self._ready) > MAX_SILENT:
                raise BadAnswer(self._lease.candidate.instance, "sends frames without content")
            self._ready += await self._read()
        self._lease.answered()
        self._response.spoke(self._journey.limits.idle)
        self._first_at = self._now()
        self._journey.answered(self._lease, self._first_at - self._sent_at)
        attempt.kept = True
        self._response.when_changed(self._unread)

    def _unread(self) -> None:
        """Something came that nobody waits for."""
        if self._response.over:
            self._conclude()

    def _conclude(self) -> None:
        """The instance has done its part, and the client may still read. Synchronous: called as its last bytes come."""
        if self._given_back:
            return
        try:
            if not self._ended and self._broken is None:
                self._ready += self._sound(self._response.unread())
            if not self._ended:
                self._look_for_an_end()
        except UpstreamError as error:
            self._broken = error.with_traceback(None)  # it is kept, and would keep the frames it came through
        self._give_back(self._broken)

    def _endless(self) -> StreamBroken:
        return StreamBroken(self._lease.candidate.instance, "the stream ended without its end marker")

    def _give_back(self, error: UpstreamError | None) -> None:
        """End the lease and the response, and count what became of them. Idempotent."""
        if self._given_back:
            return
        self._given_back = True
        self._record.upstream = self._now() - self._sent_at
        if self._ended:
            self._journey.done(self._lease)
        elif error is not None:
            self._journey.failed(self._lease, error)
        self._attempt.close()

    async def _read(self) -> list[Frame]:
        """Frames that came, up to an error among them, which is raised by the next call."""
        if self._broken is not None:
            raise self._broken
        frames: list[Frame] = []
        while not frames and not self._ended:
            data = await self._response.read()
            if not data:
                raise self._endless()
            frames = self._sound(data)
            if self._broken is not None and not frames:
                raise self._broken
        return frames

    def _sound(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, up to an error or the end among them."""
        instance = self._lease.candidate.instance
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
