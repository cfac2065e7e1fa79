"""One client's connection: bytes in, requests one after the other, bytes out, right or deliberately wrong.

A `Connection` parses and serves in order; pipelined requests wait. An `Exchange` is one request and its answer, and the
only way to write. Whoever answers sets `on_over`: it is called once, when the answer is complete, broken off, or when
the client has left before its end. A client that closes only its sending side counts as gone, as with Ollama.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import httptools

from gateway.simulator.faults import DURING, Fault, Kind
from gateway.simulator.shapes import JSON, TEXT, Voice

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
MAX_ENDLESS = 256 * 1024 * 1024  # what is endless stops here, and hangs

_REASONS = {
    200: b"OK", 201: b"Created", 204: b"No Content", 301: b"Moved Permanently", 302: b"Found",
    307: b"Temporary Redirect", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 413: b"Request Entity Too Large", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 503: b"Service Unavailable",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Seen:
    """One request as the simulator saw it, and what became of it. Times are time.monotonic()."""

    id: int
    method: str
    path: str  # without the query
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # names in lower case
    body: bytes = field(default=b"", repr=False)
    arrived: float = field(default_factory=time.monotonic)
    model: str = ""
    stream: bool = False
    status: int = 0  # 0: nothing was answered
    sent: int = 0  # frames of a stream, end marker included
    answered_at: float | None = None  # the first byte
    finished: bool = False  # the whole answer was written
    left_at: float | None = None  # the client closed before the end

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)


class Request(NamedTuple):
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool


class House(Protocol):
    """What a connection needs of the simulator it belongs to."""

    def opened(self, connection: Connection) -> bool: ...  # False closes at once

    def closed(self, connection: Connection) -> None: ...

    def answer(self, connection: Connection, request: Request) -> None: ...  # through an `Exchange`, now or later

    def changed(self) -> None: ...


class Connection(asyncio.Protocol):
    """One socket. See the module's docstring."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._serving: Exchange | None = None
        self._advancing = False
        self._drip: bytearray | None = None
        self._pace = 0.0
        self._ending: tuple[bool, bool] | None = None
        self._timer: asyncio.Handle | None = None
        self._stopped = False
        self._paused = False
        self.blocked = False  # the client does not read
        self.changed = house.changed
        self._fresh()

    def _fresh(self) -> None:
        self._path = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._body = bytearray()

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._house.opened(self):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._house.closed(self)
        if (exchange := self._serving) is not None:
            self._serving = None
            exchange.left(by_client=not self._stopped)

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400)
            return
        self._advance()

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        exchange = self._serving
        if exchange is not None and exchange.on_writable is not None:
            resume, exchange.on_writable = exchange.on_writable, None
            resume()

    # the parser's side

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD:
            self._refuse(431)
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if (b"expect", b"100-continue") in self._headers:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if len(self._body) + len(data) > MAX_BODY:
            self._refuse(413)
        else:
            self._body += data

    def on_message_complete(self) -> None:
        path = self._path.partition(b"?")[0].decode("latin-1")
        method = self._parser.get_method().decode()
        self._queue.append(Request(method, path, self._headers, bytes(self._body), self._parser.should_keep_alive()))
        self._fresh()

    # serving

    def _advance(self) -> None:
        """Serve what has come, one at a time; a synchronous answer comes back here through `over`."""
        if self._advancing:
            return
        self._advancing = True
        while self._queue and self._serving is None and not self._transport.is_closing():
            self._house.answer(self, self._queue.popleft())
        self._advancing = False
        if bool(self._queue) is not self._paused and not self._transport.is_closing():
            self._paused = not self._paused  # a client that pipelines is not watched for leaving while it waits
            (self._transport.pause_reading if self._paused else self._transport.resume_reading)()

    def begin(self, exchange: Exchange) -> None:
        self._serving = exchange
        if exchange.fault is not None and exchange.fault.kind is Kind.SLOW:
            self._drip, self._pace = bytearray(), exchange.fault.seconds

    def over(self, *, finished: bool, close: bool) -> None:
        """The answer is written as far as it will be; go on or close (FIN) once all of it is on its way."""
        self._ending = (finished, close)
        if not self._drip:
            self._end()

    def _end(self) -> None:
        if self._ending is None:
            return
        (finished, close), self._ending = self._ending, None
        if self._serving is not None:
            self._serving.seen.finished = finished
        self._drip = self._serving = None
        self.changed()
        if close:
            self._transport.close()
        else:
            self._advance()

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if self._drip is None:
            self._transport.write(data)
            return
        self._drip += data
        if self._timer is None:
            self.later(self._pace, self._drop)

    def _drop(self) -> None:
        self._timer = None
        if not self._drip or self._transport.is_closing():
            return
        self._transport.write(bytes(self._drip[:1]))
        del self._drip[:1]
        if self._drip:
            self.later(self._pace, self._drop)
        else:
            self._end()

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """The one timer of this connection; it ends with it."""
        self._timer = self._loop.call_later(seconds, do)

    def reset(self) -> None:
        """RST, once what was written is on its way."""
        self._serving = None
        self.later(0.001 if self._transport.get_write_buffer_size() else 0, self._reset)

    def _reset(self) -> None:
        if self._transport.get_write_buffer_size() and not self.blocked:
            self.later(0.001, self._reset)
            return
        peer: socket.socket | None = self._transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def stop(self) -> None:
        """Close at once; the client that loses its answer did not leave."""
        self._stopped = True
        self._transport.abort()

    @property
    def idle(self) -> bool:
        return self._serving is None and not self._queue

    def _refuse(self, status: int) -> None:
        if not self._transport.is_closing():
            self._transport.write(head(status, TEXT, 0, b"Connection: close\r\n"))
            self._transport.close()


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_close", "_connection", "_kind", "_opened", "_unsent", "fault", "on_over", "on_writable", "seen", "voice"
    )  # fmt: skip

    def __init__(self, connection: Connection, seen: Seen, fault: Fault | None, keep_alive: bool) -> None:
        self._connection = connection
        self._close = not keep_alive
        self._kind = JSON
        self._opened = False
        self._unsent = b""
        self.seen = seen
        self.fault = fault
        self.voice: Voice | None = None
        self.on_over: Callable[[bool], None] | None = None  # told whether the client left
        self.on_writable: Callable[[], None] | None = None
        connection.begin(self)

    @property
    def blocked(self) -> bool:
        return self._connection.blocked

    def reply(self, status: int, body: bytes, kind: bytes = JSON, more: bytes = b"") -> None:
        """A whole answer, unless a fault has its say. `more` is header lines."""
        self._kind = kind
        if self.fault is None or self.misbehave(body):
            self.send(status, body, kind, more)

    def misbehave(self, body: bytes | None) -> bool:
        """Let the fault happen here, before `body` or before the next frame (None). True: the answer goes on."""
        act = None if self.fault is None else DURING.get(self.fault.kind)
        return True if act is None or self.fault is None else act(self, self.fault, body)

    def send(self, status: int, body: bytes, kind: bytes = JSON, more: bytes = b"") -> None:
        length = len(body)
        if self.fault is not None and self.fault.kind is Kind.SHORT_LENGTH:
            length += 10
            self._close = True
        elif self._close:
            more += b"Connection: close\r\n"
        self._mark(status)
        shown = b"" if self.seen.method == "HEAD" or status == 204 else body
        self._connection.write(head(status, kind, length, more) + shown)
        self._finish()

    def open(self, kind: bytes) -> None:
        """Begin a stream. The head leaves with the first frame, or with `flush`."""
        if self._opened:
            return
        self._opened = True
        close = b"Connection: close\r\n" if self._close else b""
        self._unsent = head(200, kind, None, close)

    def frame(self, payload: bytes) -> None:
        """One frame as one HTTP chunk."""
        self.seen.sent += 1
        self._put(b"%x\r\n%b\r\n" % (len(payload), payload))

    def flush(self) -> None:
        if self._unsent:
            self._put(b"")

    def end(self, frames: list[bytes]) -> None:
        """The last frames and the end of the stream."""
        kind = None if self.fault is None else self.fault.kind
        if kind is Kind.EXTRA_FRAMES and self.voice is not None:
            frames = [*frames, self.voice.opening() or frames[-1], frames[-1]]
        self.seen.sent += len(frames)
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(payload), payload) for payload in frames)
        self._close = self._close or kind is Kind.SHORT_LENGTH
        self._put(chunks + (b"ff\r\ntoo short" if kind is Kind.SHORT_LENGTH else b"0\r\n\r\n"))
        self._finish()

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self._mark(200)
        self._connection.write(data)

    def half(self, body: bytes) -> None:
        """Announce all of a body and send half of it."""
        self.raw(head(200, self._kind, len(body), b"") + body[: len(body) // 2])

    def pump(self, data: bytes, left: int = MAX_ENDLESS) -> None:
        """The same bytes again and again, as fast as the client reads."""
        if self.blocked:
            self.on_writable = lambda: self.pump(data, left)
        elif left > 0:
            self._connection.write(data)
            self._connection.later(0, lambda: self.pump(data, left - len(data)))

    def close(self) -> None:
        """Break off with FIN."""
        self._over()
        self._connection.over(finished=False, close=True)

    def reset(self) -> None:
        """Break off with RST."""
        self._over()
        self._connection.reset()

    def left(self, *, by_client: bool) -> None:
        """The socket is gone before the end of the answer."""
        if by_client:
            self.seen.left_at = time.monotonic()
        self._over(left=by_client)
        self._connection.changed()

    def _finish(self) -> None:
        fault = self.fault
        if fault is not None and fault.kind is Kind.EXTRA_BYTES:
            self._connection.write(fault.text.encode("latin-1", "replace"))
        self._over()
        close = self._close or (fault is not None and fault.kind is Kind.CLOSE_IDLE)
        self._connection.over(finished=True, close=close)

    def _over(self, *, left: bool = False) -> None:
        if self.on_over is not None:
            tell, self.on_over = self.on_over, None
            tell(left)

    def _put(self, data: bytes) -> None:
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
            self._mark(200)
        self._connection.write(data)
        self._connection.changed()

    def _mark(self, status: int) -> None:
        if self.seen.answered_at is None:
            self.seen.answered_at = time.monotonic()
            self.seen.status = status


def head(status: int, kind: bytes, length: int | None, more: bytes) -> bytes:
    """The head of an answer; no length means chunks."""
    size = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    reason = _REASONS.get(status, b"Status")
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\n%b%b\r\n\r\n" % (status, reason, kind, more, size)
