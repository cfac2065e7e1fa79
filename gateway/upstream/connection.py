"""One TCP connection to an instance, and the HTTP/1.1 answers cut out of its bytes.

`Answer` is one response and does no I/O: bytes go in, status, headers and body come out, the same however they were
cut. `Connection` moves the bytes, keeps memory bounded in both directions, and wakes whoever waits once per read.

Everything but `send` and `changed` is synchronous, and `abort` may be called at any moment. Keep it so: whoever leaves
must be able to close the socket without waiting for it.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.errors import BadAnswer, ConnectionLost, UpstreamError

MAX_HEAD = 64 * 1024  # bytes of a head; of chunk framing or trailers between two pieces of body
MAX_HEADERS = 256  # of a head; of trailers
MAX_UNTAKEN = 256 * 1024  # bytes of body nobody has read yet; beyond, the instance is made to wait
PIECE = 64  # what a piece of body costs beside its bytes: without it, one-byte chunks would cost many times the bound
ONE_WRITE = 64 * 1024  # a body smaller than this goes out in one write with its head
SLICE = 128 * 1024  # of a larger body: what is handed to the transport at a time


class Answer:
    """One HTTP/1.1 response, however its bytes are cut. 1xx are skipped, trailers dropped, nothing is inflated.

    `feed` raises ValueError, in words, for bytes that are no answer we could stand by. What came before them can
    still be taken.
    """

    __slots__ = (
        "_head_only",
        "_interim",
        "_parser",
        "_pieces",
        "_since_body",
        "_trailers",
        "_why",
        "delimited",
        "done",
        "headers",
        "heard",
        "keep",
        "status",
        "surplus",
        "untaken",
    )

    def __init__(self, *, head_only: bool = False) -> None:
        self.status = 0  # until the head is complete
        self.headers: list[tuple[bytes, bytes]] = []  # names lower-case
        self.heard = False  # at least one byte came
        self.delimited = True  # its end is marked; otherwise the end of the connection is all there is
        self.done = False
        self.keep = False  # both sides may use the connection again
        self.surplus = False  # more bytes came than the answer has
        self.untaken = 0  # bytes, and PIECE for each piece
        self._pieces: list[bytes] = []
        self._head_only = head_only  # the answer to HEAD: what its head promises does not follow
        self._interim = False
        self._since_body = 0
        self._trailers = 0
        self._why = ""
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take in the next bytes. Raises ValueError."""
        parser = self._parser
        if self.done or parser is None:
            self.surplus = True
            return
        self.heard, rest = True, b""
        if not self.status:  # a head is fed only as far as it may go, so that one large read cannot carry a larger one
            room = MAX_HEAD - self._since_body
            data, rest = data[:room], data[room:]
        self._since_body += len(data)
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self.done:
                raise ValueError(self._why or f"not an HTTP answer: {error}") from None
            self.surplus = True
        if self.done:
            self._parser = None
        elif self._since_body >= MAX_HEAD:
            raise ValueError(f"more than {MAX_HEAD} bytes of {'framing or trailers' if self.status else 'head'}")
        if rest:
            self.feed(rest)

    def end(self) -> bool:
        """The instance closed the connection: True if the answer is complete."""
        if self.status and not self.delimited:
            self.done = True
        return self.done

    def take(self) -> bytes:
        """The body that came since the last time; b"" if none did."""
        pieces, self._pieces, self.untaken = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def stop(self) -> None:
        """Nothing more will be fed. The parser points back at us; this spares the collector the circle."""
        self._parser = None

    def _refuse(self, why: str) -> None:
        self._why = why  # the parser wraps what a callback raises
        raise ValueError(why)

    # The parser's callbacks. Bytes after a complete answer make it begin another: that one is surplus. (Line ends alone
    # it skips, here as before a status line; they are gone with it.)

    def on_message_begin(self) -> None:
        self.surplus = self.surplus or self.done

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            self._trailers += 1
        else:
            self.headers.append((name.lower(), value.strip()))
        if len(self.headers) > MAX_HEADERS or self._trailers > MAX_HEADERS:
            self._refuse(f"more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        if self.done or self._parser is None:
            return
        status = self._parser.get_status_code()
        if not 100 <= status <= 599 or status == 101 or not self._parser.get_http_version().startswith("1."):
            self._refuse(f"status {status} of HTTP/{self._parser.get_http_version()}")
        self._interim = status < 200
        if self._interim:
            self.headers.clear()
            return
        self._frame(status)
        self.status, self._since_body = status, 0
        self.keep = self._parser.should_keep_alive()
        self.done = self._head_only

    def _frame(self, status: int) -> None:
        """Where the body will end. Two statements about it, or an encoding nobody asked for, are refused."""
        length = coding = b""
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                coding = coding + b"," + value.lower() if coding else value.lower()
            elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                self._refuse("a compressed answer, though none was asked for")
        if coding not in (b"", b"chunked") or (coding and length):
            self._refuse("a body whose length cannot be told")
        if status == 204 and (coding or length.strip(b"0")):
            self._refuse("status 204 with a body")
        self.delimited = bool(self._head_only or status in (204, 304) or coding or length)

    def on_body(self, data: bytes) -> None:
        if self.done:
            self.surplus = True
        else:
            self._since_body = 0
            self._pieces.append(data)
            self.untaken += len(data) + PIECE

    def on_message_complete(self) -> None:
        if not self._interim:
            self.done = True


class Connection(asyncio.Protocol):
    """One socket to an instance; one exchange at a time. Bytes that nobody asked for close it.

    `gone` is called whenever it can no longer be used; more than once does no harm.
    """

    __slots__ = (
        "_full",
        "_gone",
        "_name",
        "_transport",
        "_unread",
        "_unsent",
        "_waiter",
        "answer",
        "failure",
        "idle_since",
        "last_data",
        "loop",
        "on_changed",
        "paused",
    )

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, gone: Callable[[Connection], None]) -> None:
        self.loop = loop
        self.answer: Answer | None = None  # None while idle
        self.idle_since = 0.0  # loop time
        self.last_data = 0.0  # loop time; never before the last moment at which we let the instance speak
        self.paused = False  # the instance is made to wait
        self.on_changed: Callable[[], None] | None = None  # something happened while nobody waited for it
        self._name = name
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        # The kind and words, not the exception: one that is kept would keep the frames it was raised through.
        self.failure: tuple[type[UpstreamError], str] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._full = False  # the transport wants no more for now
        self._unsent = False  # part of a request body was never handed over
        self._unread = select.poll()  # the socket, where it has something that the loop did not bring us yet

    @property
    def usable(self) -> bool:
        """Whether it can carry another exchange. What waits to be read now, its end or bytes, belongs to none."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and not self._unread.poll(0)

    async def send(self, answer: Answer, head: bytes, body: bytes) -> None:
        """Hand over a request, no faster than the instance takes it; `answer` gets what comes back.

        Returns early when the answer's head, or a failure, is there before the body was sent.
        """
        self.check()
        transport = self._transport
        assert transport is not None  # noqa: S101 - one that is not there has failed
        self.answer = answer
        if len(body) < ONE_WRITE:
            transport.write(head + body)
            return
        self._unsent = True
        view = memoryview(body)
        transport.writelines((head, view[:SLICE]))
        for start in range(SLICE, len(body), SLICE):
            while self._full and not self._settled(answer):
                await self.changed()
            if self._settled(answer):
                return
            transport.write(view[start : start + SLICE])
        self._unsent = False

    async def changed(self) -> None:
        """Until something happened: bytes, the end, a failure, room to write. One waits at a time."""
        if self._waiter is not None:
            raise RuntimeError("somebody else is already waiting on this connection")
        self._waiter = waiter = self.loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None  # not when it is woken: what comes before it runs is its own to find

    def check(self) -> None:
        """Raise what the exchange failed of, if it did."""
        if self.failure is not None:
            kind, words = self.failure
            raise kind(self._name, words)

    def fail(self, kind: type[UpstreamError], words: str) -> None:
        """End an exchange that is not complete; the first reason given is the one told."""
        self.failure = self.failure or (kind, words)
        self.abort()

    def resume(self) -> None:
        """Let the instance go on after it was made to wait."""
        if self.paused and self._transport is not None:
            self.paused = False
            self.last_data = self.loop.time()
            self._transport.resume_reading()

    def rest(self) -> bool:
        """Be ready for the next exchange. False where anything of this one is left over: then only `abort` is right."""
        answer, transport = self.answer, self._transport
        if answer is None or transport is None or transport.is_closing():
            return False
        if not (answer.done and answer.keep) or answer.surplus:
            return False
        if self._unsent or transport.get_write_buffer_size():
            return False
        self.resume()
        self.answer = self.on_changed = None
        self.idle_since = self.loop.time()
        return True

    def abort(self) -> None:
        """Close the socket now, whatever is under way, and wake whoever waits."""
        transport, self._transport = self._transport, None
        self.failure = self.failure or (ConnectionLost, "the connection was closed")
        if self.answer is not None:
            self.answer.stop()
        if transport is not None:
            transport.abort()
        self._gone(self)
        self._wake()

    def _settled(self, answer: Answer) -> bool:
        return self.failure is not None or answer.status != 0

    def _wake(self) -> None:
        if self._waiter is None:
            if self.on_changed is not None:
                self.on_changed()
        elif not self._waiter.done():
            self._waiter.set_result(None)

    def _ended(self, *, clean: bool) -> None:
        if self.answer is not None and not (clean and self.answer.end()):
            began = "cut its answer short" if self.answer.heard else "closed the connection without an answer"
            self.failure = self.failure or (ConnectionLost, began)
        self.abort()

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        if self.failure is not None:  # whoever asked for it has left meanwhile
            self.abort()
            return
        sock = transport.get_extra_info("socket")
        self._unread.register(sock.fileno(), select.POLLIN)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if answer is None:
            self.abort()
            return
        self.last_data = self.loop.time()
        try:
            answer.feed(data)
        except ValueError as error:
            self.fail(BadAnswer, str(error))
            return
        if answer.untaken > MAX_UNTAKEN and not self.paused and self._transport is not None:
            self.paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._ended(clean=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(clean=exc is None)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()
