"""Responses that speak: a stream relayed frame by frame, a reply sent whole, an error in its family's own words.

The status is held back until the first content frame, or for `stream.hold`; then it is 200 and cannot be taken back,
so what goes wrong later is said in-band, and never with an end marker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Self

from starlette.types import Send

from gateway.api.presence import Client, Crowd, Presence
from gateway.call import Call, Record, Reply
from gateway.config import StreamConfig
from gateway.dialects import render, status_headers
from gateway.dispatch import Dispatch
from gateway.errors import GatewayError
from gateway.wire import Headers, ascii_value, response_headers


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
    headers = [*_whereabouts(record.instance, record.route, record.model, record.substitution)]
    if record.cache in _CACHE:
        headers.append((b"cache-status", _CACHE[record.cache]))
    if record.position:
        waited = f"position={record.position}; waited={record.waited:.3f}"
        line = f"{waited}; {record.line_reason}" if record.line_reason else waited
        headers.append((b"x-gateway-line", ascii_value(line)))
    if record.attempts:
        headers.append((b"x-gateway-attempts", b"%d" % record.attempts))
        upstream = record.upstream or max(0.0, (record.first_token or 0.0) - record.waited)
        timing = b"line;dur=%.1f, upstream;dur=%.1f" % (record.waited * 1000, upstream * 1000)
        headers.append((b"server-timing", timing))
    return headers


@lru_cache(maxsize=1024)
def _whereabouts(instance: str, route: str, model: str, substitution: str) -> tuple[tuple[bytes, bytes], ...]:
    facts = {
        b"x-gateway-instance": instance,
        b"x-gateway-route": route,
        b"x-gateway-model": model,
        b"x-gateway-substituted": substitution,
    }
    return tuple((name, ascii_value(value)) for name, value in facts.items() if value)


_CACHE = {
    "hit": b"gateway; hit",
    "miss": b"gateway; fwd=uri-miss; stored",
    "collapsed": b"gateway; fwd=uri-miss; collapsed",
}


class Stream:
    """One streamed response: its head is sent when it must be, its bytes in order, its failure in-band.

    `presence` is told of its end: a client that leaves then has all of its answer.
    """

    def __init__(self, client: Client, call: Call, record: Record, now: float) -> None:
        self._client = client
        self.room = client.room  # closed while it does not read: then what has come is held back
        self._call = call
        self._record = record
        self.presence: Presence | None = None
        self.reader = call.operation.reader(call)  # one that has read nothing, until there is an answer
        self.started = False
        self.ended = False
        self.last_write = now

    def push(self, data: bytes, now: float) -> None:
        """Send whole frames on."""
        if not self.started:
            self._head()
        self.last_write = now
        self._client.push(data)

    def end(self, data: bytes = b"") -> None:
        """Send the last of them on."""
        self._head()
        self.ended = True
        if self.presence is not None:
            self.presence.over()
        self._client.end(data)

    def _head(self) -> None:
        if not self.started:
            self.started = True
            headers = [*response_headers(self._call.operation.stream_type), *told(self._record)]
            self._client.start(200, headers)

    def fail(self, error: GatewayError) -> None:
        """Tell of `error` as the last thing in the stream."""
        self._record.status = 200
        self._record.interrupted = True
        self.end(self.reader.failure(error, self._record.request_id))


class KeepAlive:
    """Keeps a silent stream open: commits after `hold`, then sends what means nothing every `keep_alive` seconds.

    One timer, re-armed when it fires; a frame costs it nothing. Its bytes go between two frames, never inside one, and
    not to a client that does not read. Where they are a comment they say what `waiting` says of the call's place in
    line.
    """

    def __init__(self, stream: Stream, config: StreamConfig, waiting: Callable[[], str]) -> None:
        self._stream = stream
        self._config = config
        self._waiting = waiting
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(self._config.hold, self._due)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> None:
        stream, now = self._stream, self._loop.time()
        wait, silent = self._config.keep_alive, now - stream.last_write
        if stream.started and silent < wait:
            wait -= silent
        elif stream.room.open and not stream.ended:
            stream.push(self._said(), now)
        self._timer = self._loop.call_later(wait, self._due)

    def _said(self) -> bytes:
        said = self._stream.reader.keep_alive
        if said.startswith(b":") and (words := self._waiting()):
            said = said.replace(b"\n", b"; in line: " + ascii_value(words) + b"\n", 1)
        return said


async def relay_stream(
    dispatch: Dispatch, call: Call, record: Record, *, client: Client, send: Send, crowd: Crowd, config: StreamConfig
) -> None:
    """Carry `call` and relay its answer as it is made. Raises ClientLeft; tells of every other failure itself."""
    stream = Stream(client, call, record, asyncio.get_running_loop().time())
    try:
        opening = dispatch.exchange(call, record)
        with Presence(client, crowd) as stream.presence, KeepAlive(stream, config, opening.waiting):
            async with opening as exchange:
                stream.reader = exchange.reader
                await exchange.relay(stream)
    except GatewayError as error:
        record.reason = error.reason
        if stream.started:
            stream.fail(error)
        else:
            await send_error(send, record, error)


async def relay_reply(dispatch: Dispatch, call: Call, record: Record, *, client: Client, crowd: Crowd) -> None:
    """Carry `call` and send its finished answer. Raises ClientLeft and GatewayError."""
    with Presence(client, crowd):
        reply: Reply = await dispatch.answer(call, record)
    length = (b"content-length", b"%d" % len(reply.body))
    client.start(200, [*response_headers(whole=reply.content_type), *told(record), length])
    client.end(reply.body)
