"""Responses that speak: a stream relayed frame by frame, a reply sent whole, an error in its family's own words.

The status is held back until the first content frame, or for `stream.hold`; then it is 200 and cannot be taken back,
so what goes wrong later is said in-band, and never with an end marker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import Receive, Send

from gateway.api.presence import Crowd, Presence
from gateway.call import Call, Record, Reply
from gateway.config import StreamConfig
from gateway.dialects import render, status_headers
from gateway.dispatch import Dispatch
from gateway.errors import GatewayError
from gateway.wire import ascii_value, response_headers

Headers = list[tuple[bytes, bytes]]


async def send_body(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """A whole response in two messages. `headers` come without the length."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, record: Record, error: GatewayError) -> None:
    """`error` as a status and a body in the shape of the family the path belongs to (D18)."""
    headers = [*response_headers(), *told(record), *status_headers(error)]
    await send_body(send, error.status, render(record.dialect, error, record.request_id), headers)


def told(record: Record) -> Headers:
    """What the gateway did, as response headers; only what is known by now."""
    facts = {
        b"x-gateway-instance": record.instance,
        b"x-gateway-route": record.route,
        b"x-gateway-model": record.model,
        b"x-gateway-substituted": record.substitution,
        b"cache-status": f"gateway; {_CACHE[record.cache]}" if record.cache in _CACHE else "",
    }
    if record.position:
        waited = f"position={record.position}; waited={record.waited:.3f}"
        facts[b"x-gateway-line"] = f"{waited}; {record.line_reason}" if record.line_reason else waited
    headers = [(name, ascii_value(value)) for name, value in facts.items() if value]
    if record.attempts:
        headers.append((b"x-gateway-attempts", str(record.attempts).encode()))
        upstream = record.upstream or max(0.0, (record.first_token or 0.0) - record.waited)
        timing = f"line;dur={record.waited * 1000:.1f}, upstream;dur={upstream * 1000:.1f}"
        headers.append((b"server-timing", timing.encode()))
    return headers


_CACHE = {"hit": "hit", "miss": "fwd=uri-miss; stored", "collapsed": "fwd=uri-miss; collapsed"}


class Stream:
    """One streamed response: its head is sent when it must be, its bytes in order, its failure in-band."""

    def __init__(self, send: Send, call: Call, record: Record, now: float) -> None:
        self._send = send
        self._call = call
        self._record = record
        self._turn = asyncio.Lock()  # relay and keep-alive take turns, so the head is first and frames stay whole
        self.reader = call.operation.reader(call)  # one that has read nothing, until there is an answer
        self.started = False
        self.ended = False
        self.last_write = now

    @property
    def writing(self) -> bool:
        return self._turn.locked()

    async def write(self, data: bytes, now: float) -> None:
        """Send whole frames on. Waits while the client does not read: that is the backpressure."""
        async with self._turn:
            if self.ended:
                return  # a keep-alive that was due just as the last frame came
            await self._head()
            self.last_write = now
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        async with self._turn:
            await self._head()
            await self._send({"type": "http.response.body", "body": data})
            self.ended = True

    async def _head(self) -> None:
        if self.started:
            return
        headers = [*response_headers(self._call.operation.stream_type), *told(self._record)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self.started = True

    async def fail(self, error: GatewayError) -> None:
        """Tell of `error`: as a status while that is possible, else as the last thing in the stream."""
        if not self.started:
            await send_error(self._send, self._record, error)
            return
        self._record.status = 200
        self._record.interrupted = True
        await self.end(self.reader.failure(error, self._record.request_id))


class KeepAlive:
    """Keeps a silent stream open: commits after `hold`, then sends what means nothing every `keep_alive` seconds.

    One timer, re-armed when it fires; a frame costs it nothing. Its bytes go between two frames, never inside one.
    Where they are a comment they say what `waiting` says of the call's place in line.
    """

    def __init__(self, stream: Stream, config: StreamConfig, waiting: Callable[[], str]) -> None:
        self._stream = stream
        self._config = config
        self._waiting = waiting
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._timer = self._loop.call_later(self._config.hold, self._due)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def _due(self) -> None:
        stream, now = self._stream, self._loop.time()
        silent = now - stream.last_write
        writing = stream.writing or (self._sending is not None and not self._sending.done())
        if writing or (stream.started and silent < self._config.keep_alive):
            wait = self._config.keep_alive if writing else self._config.keep_alive - silent
        else:
            wait = self._config.keep_alive
            self._sending = asyncio.create_task(self._speak(now), name="keep-alive")
        self._timer = self._loop.call_later(wait, self._due)

    async def _speak(self, now: float) -> None:
        said = self._stream.reader.keep_alive
        if said.startswith(b":") and (words := self._waiting()):
            said = said.replace(b"\n", b"; in line: " + ascii_value(words) + b"\n", 1)
        await self._stream.write(said, now)


async def relay_stream(
    dispatch: Dispatch, call: Call, record: Record, *, receive: Receive, send: Send, crowd: Crowd, config: StreamConfig
) -> None:
    """Carry `call` and relay its answer as it is made. Raises ClientLeft; tells of every other failure itself."""
    now = asyncio.get_running_loop().time
    stream = Stream(send, call, record, now())
    try:
        opening = dispatch.exchange(call, record)
        async with (
            Presence(receive, crowd) as presence,
            KeepAlive(stream, config, opening.waiting),
            opening as exchange,
        ):
            stream.reader = exchange.reader
            while frames := await exchange.frames():
                if frames[-1].last:
                    presence.finished()
                    await stream.end(b"".join(frame.raw for frame in frames))
                    await exchange.settle()
                    return
                await stream.write(b"".join(frame.raw for frame in frames), now())
    except GatewayError as error:
        record.reason = error.reason
        await stream.fail(error)


async def relay_reply(
    dispatch: Dispatch, call: Call, record: Record, *, receive: Receive, send: Send, crowd: Crowd
) -> None:
    """Carry `call` and send its finished answer. Raises ClientLeft and GatewayError."""
    async with Presence(receive, crowd) as presence:
        reply: Reply = await dispatch.answer(call, record)
        presence.finished()
        await send_body(send, 200, reply.body, [*response_headers(whole=reply.content_type), *told(record)])
