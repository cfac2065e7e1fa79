"""One request and its response: what the application receives, and what it sends, with ASGI's messages or without.

The head of a response waits for its first piece of body, so that both leave in one write. What is sent to a client that
has left is dropped without a word, as ASGI has it; `receive` tells of a departure, and so does the callback of `watch`.
What an application may use beside ASGI is described in `gateway.api.presence`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol as Shape

import structlog
from starlette.types import ASGIApp, Message, Scope

from gateway.errors import GatewayError

HIGH_WATER = 64 * 1024  # bytes of a body that nobody has taken yet; beyond, the client is made to wait

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_EMPTY = (204, 304)


def status_line(status: int) -> bytes:
    return _STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status


@lru_cache(maxsize=4)
def header_lines(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Kept, as the date that every response carries is the same for a second."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _breaks_a_line(fields: bytes, lines: int) -> bool:
    """Whether these header lines have an end more than there are lines, or what some readers take for one."""
    return fields.count(b"\n") != lines or fields.count(b"\r") != lines or 0 in fields


log = structlog.get_logger("gateway.frontdoor")


class Room:
    """Whether a client reads as fast as it is written to, kept up to date by its connection."""

    __slots__ = ("_waiter", "open", "told")

    def __init__(self) -> None:
        self.open = True
        self.told: Callable[[], None] | None = None  # called each time there is room again
        self._waiter: asyncio.Future[None] | None = None

    def change(self, *, is_open: bool) -> None:
        self.open = is_open
        if not is_open:
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.told is not None:
            self.told()

    async def wait(self) -> None:
        """Until there is some, for one who sends with ASGI."""
        while not self.open:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class Wire(Shape):
    """The connection as a cycle uses it."""

    leaving: bool
    room: Room

    def always(self) -> bytes:
        """Header lines of every response."""

    def write(self, data: bytes) -> None: ...

    def take_more(self) -> None: ...

    def finished(self, cycle: Cycle) -> None: ...

    def abort(self) -> None: ...


class Cycle:
    """`keep` tells whether the connection serves another request after this one."""

    __slots__ = (
        "_bodiless", "_chunked", "_continue", "_head", "_late", "_left", "_told", "_waiter", "_watcher",
        "_wire", "body", "complete", "gone", "keep", "more_body", "room", "scope", "started",
    )  # fmt: skip

    def __init__(self, wire: Wire, scope: Scope, *, keep: bool, expects: bool) -> None:
        self.scope = scope
        self.keep = keep
        self.body = bytearray()
        self.more_body = True
        self.gone = False  # the client has left
        self.started = False
        self.complete = False
        self._wire = wire
        self._continue = expects
        self._told = False  # that the body has ended
        self._late: GatewayError | None = None
        self._head = b""
        self._chunked = self._bodiless = False
        self._left = 0  # bytes of body still to come, where their number was told
        self._waiter: asyncio.Future[None] | None = None
        self._watcher: Callable[[], None] | None = None
        self.room = wire.room

    async def run(self, app: ASGIApp) -> None:
        """The asyncio task of this request."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("call.defect")
        if not self.complete and not self.gone:
            self._wire.abort()  # half a response must not look like a whole one
        self.scope["extensions"].clear()  # it points back at us, as does the connection: this spares the collector both
        del self._wire

    # from the client

    def came(self, data: bytes) -> None:
        self.body += data
        self._wake()

    @property
    def full(self) -> bool:
        """Whether the application is to take some of the body before more is read."""
        return len(self.body) > HIGH_WATER and not self.complete

    def ended(self) -> None:
        """The whole body has come."""
        self.more_body = False
        self._wake()

    def left(self) -> None:
        self.gone = True
        self._wake()
        self._tell()

    def watch(self, left: Callable[[], None] | None) -> None:
        """Have `left` called when the client leaves before the answer is complete; at the next turn, if it has left."""
        self._watcher = left
        if left is None:
            return
        self._wire.take_more()
        if self.gone:
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None and not self.complete:
            watcher()

    def late(self, error: GatewayError) -> None:
        """The body does not come as fast as it must, or there is no room for it: the answer is to be `error`."""
        self._late, self.keep = error, False
        self._wake()

    def whole_body(self) -> bytes | None:
        """The body where all of it is here and nobody took any of it: then it is taken now. Else None."""
        if self.more_body or self._told or self.gone or self._late or self._continue:
            return None
        self._told = True
        data, self.body = bytes(self.body), bytearray()
        return data

    async def receive(self) -> Message:
        """The next piece of the body; `http.disconnect` once the client has left, or the response is complete.

        Where the body was too slow, that message has the reason as `error`.
        """
        if self._continue:
            self._continue = False
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.gone or self.complete or self._late or self.body or (not self.more_body and not self._told)):
            self._wire.take_more()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.gone or self.complete:
            return {"type": "http.disconnect"}
        if self._late:
            return {"type": "http.disconnect", "error": self._late}
        data, self.body = bytes(self.body), bytearray()
        self._told = not self.more_body
        return {"type": "http.request", "body": data, "more_body": self.more_body}

    # to the client

    async def send(self, message: Message) -> None:
        if not self.gone:
            await self.room.wait()
        if message["type"] == "http.response.start":
            self.start(message["status"], message.get("headers", ()))
        elif message["type"] != "http.response.body":
            raise RuntimeError(f"{message['type']} is no part of a response")
        elif message.get("more_body", False):
            self.push(message.get("body", b""))
        else:
            self.end(message.get("body", b""))

    def push(self, data: bytes) -> None:
        """A piece of the body. Raises RuntimeError where none is to be sent now."""
        if self.gone:
            return
        if self._chunked and data and not (self._head or self.complete):
            self._wire.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._send(data, more=True)

    def end(self, data: bytes = b"") -> None:
        """The last piece of the body. Raises RuntimeError where none is to be sent now."""
        if not self.gone:
            self._send(data, more=False)

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head, which leaves with the first piece of body. Raises RuntimeError where there is one already."""
        if self.gone:
            return
        if self.started:
            raise RuntimeError("a response has one head")
        self.started = True
        self.keep = self.keep and not self._wire.leaving and not self._continue  # a body that was never asked for
        self._continue = False
        lines: list[bytes] = []
        length = None
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                self.keep = self.keep and value != b"close"
                continue
            lines += (name, b": ", value, b"\r\n")
        fields = b"".join(lines)
        if _breaks_a_line(fields, len(lines) // 4):
            raise RuntimeError("a response header that would end its own line")
        self._bodiless = self.scope["method"] == "HEAD" or status in _EMPTY
        if length is None and not self._bodiless:
            self._chunked = self.scope["http_version"] == "1.1"
            self.keep = self.keep and self._chunked  # else the end of the connection is the end of the body
            if self._chunked:
                fields += b"transfer-encoding: chunked\r\n"
        self._left = -1 if self._bodiless or length is None else length
        last = b"\r\n" if self.keep else b"connection: close\r\n\r\n"
        self._head = b"".join((status_line(status), self._wire.always(), fields, last))

    def _send(self, data: bytes, *, more: bool) -> None:
        if not self.started or self.complete:
            raise RuntimeError("no piece of a body was to be sent now")
        head, self._head = self._head, b""
        if self._left >= 0:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the body is not as long as its Content-Length")
        elif self._chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"" if more else b"0\r\n\r\n")
        elif self._bodiless:
            data = b""
        if head or data:
            self._wire.write(head + data)
        if not more:
            self.complete = True
            self._wake()
            self._wire.finished(self)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
