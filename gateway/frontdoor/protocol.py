"""One client's connection: its bytes become requests, strictly and within bounds, and its responses go out.

Of uvicorn it needs what every protocol of its server has: `shutdown`, and a place among its connections and asyncio
tasks. The parser is httptools'; it has no bound of its own for a head, for the framing between two pieces of a body, or
for trailers, so its input is counted here. Nor does it tell where in its input a message began, so it is never given
more than the end of one: each message is judged by its own first bytes, wherever in a read they stood. Requests sent
ahead of a response wait, up to a bound.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections import deque
from enum import Enum
from typing import cast
from urllib.parse import unquote

import httptools
import uvicorn
from starlette.types import Scope
from uvicorn.server import ServerState

from gateway.api.presence import EXTENSION
from gateway.config import ServerConfig
from gateway.errors import CallError, GatewayError, HeadTooLarge, MalformedRequest, RequestTimeout
from gateway.frontdoor.cycle import Cycle, Room, header_lines
from gateway.frontdoor.door import Door
from gateway.frontdoor.head import MAX_TARGET, flaw
from gateway.frontdoor.refusal import problem_of, refusal

MAX_HEAD = 32 * 1024  # bytes; clients need as much (clients.md §9 A 20)
MAX_HEADERS = 100  # its trailers have as many
MAX_FRAMING = 4 * 1024  # bytes between two pieces of a chunked body, or of its trailers
SLICE = 4 * 1024  # of a chunked body: fed at a time, so that what lies between two pieces of it is noticed
SOME_AHEAD = 16  # requests sent ahead of a response; then no more is read
MAX_AHEAD = 1024  # the same of one read
SLOW_AFTER = 10.0  # seconds a body may take before its rate counts
QUIET = 0.25  # seconds without a byte, after which a connection waits in the lobby
LINGER = 2.0  # seconds a client that was refused may go on sending, so that it comes to read why

_BLANK_LINE = b"\r\n\r\n"  # with one ends every head, and every chunked body
_NEXT = re.compile(  # one that ends a line, and that a request follows, or nothing as yet
    rb"\r\n\r\n(?<![\r\n]\r\n\r\n)(?=[\r\n]*+(?:[^\r\n ]+ [^\r\n ]+ HTTP/|[^\r\n]*\Z))"
)


class Reading(Enum):
    """What the client is to send next."""

    NOTHING = "nothing"  # between two messages
    HEAD = "head"
    BODY = "body"


NOTHING, HEAD, BODY = Reading  # to find one by its class takes longer than all that is done with it


class Protocol(asyncio.Protocol):
    """`door` is the same for all connections. The other arguments are what uvicorn gives to a protocol."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        door: Door,
    ) -> None:
        self.peer = ""
        self.client: tuple[str, int] | None = None  # its address, once connected
        self.leaving = False  # the server shuts down: no further request after this one
        self.transport: asyncio.Transport | None = None
        self.descriptor = -1
        self._app = config.loaded_app
        self._loop = _loop or asyncio.get_running_loop()
        self._server = server_state
        self._door = door
        self._parser = httptools.HttpRequestParser(self)
        self._cycle: Cycle | None = None  # the one whose response is under way, or was the last
        self._filling: Cycle | None = None  # the one whose body comes now
        self._ahead: deque[Cycle] = deque()
        self._reading = NOTHING
        self._since = self._loop.time()  # when it began to wait for what is to come next
        self._stalled = math.inf  # since when the client has read nothing of what is there
        self._unread = 0  # bytes it had left to read at the last look
        self._size = 0  # bytes of the body so far
        self._length = 0  # that it is to have, where that was told
        self._counted = 0  # bytes of this head, or since the last piece of body
        self._seam = b""  # the last bytes of a read that ended within a message
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._trailers, self._expects = 0, False
        self._raw = b""  # this head as it came, as far as it can matter
        self._refusal: CallError | None = None
        self._parting = b""  # why no more is taken, for when all that came before is answered
        self._deaf = False  # nothing that comes is looked at any more
        self._closes_by = math.inf
        self._fresh = True  # nothing was ever heard
        self._paused = False
        self.room = Room()

    # what uvicorn's server does with it

    def shutdown(self) -> None:
        """Serve what is under way, then no more."""
        self.leaving = True
        if self._cycle is None or self._cycle.complete:
            self._close()

    # the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)  # type: ignore[arg-type]  # uvicorn's set is typed for its own protocols
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.client = (self.peer, int(peer[1])) if self.peer else None
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.descriptor = raw.fileno()
        if problem := self._door.enter(self):
            self._door.refused(problem.reason)
            self.write(refusal(problem, b""))
            self._linger()
            self._loop.call_later(LINGER, self.abort)  # the door does not look after it

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._door.leave(self)
        self.transport = None
        del self._parser  # it points back at us; this spares the collector the circle
        self.room.told = None
        if not self.idle:
            for cycle in self._cycles:
                cycle.gone = True
            self._door.see_off(self)

    @property
    def _cycles(self) -> list[Cycle]:
        return [cycle for cycle in (self._cycle, self._filling, *self._ahead) if cycle is not None]

    def departed(self) -> None:
        """End what the client asked for. Told by the door, to some at a time."""
        for cycle in self._cycles:
            cycle.left()
        self._ahead.clear()
        self.room.change(is_open=True)

    def pause_writing(self) -> None:
        self.room.change(is_open=False)
        self._stalled, self._unread = self._loop.time(), 0

    def resume_writing(self) -> None:
        self._stalled = math.inf
        self.room.change(is_open=True)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or problem_of(error, self._raw))
            return
        if (self._filling is not None or self._ahead) and self._brimful:
            self._pause()

    def _feed(self, data: bytes) -> None:
        """In pieces, of which none goes beyond the end of a message: so each message begins with a piece."""
        at, size = 0, len(data)
        while at < size and not self._deaf:
            if self._reading is NOTHING:
                self._begin()
            if self._reading is BODY and self._size < self._length:
                piece = data[at : at + self._length - self._size]
                self._parser.feed_data(piece)
                at += len(piece)
            else:
                end = self._end(data, at)
                self._feed_framed(data[at:end])
                at = end
        if self._reading is not NOTHING:
            self._seam = (self._seam + data[-3:])[-3:]

    def _begin(self) -> None:
        """A message begins."""
        self._reading, self._since, self._fresh = HEAD, self._loop.time(), False
        self._url, self._seam, self._headers = b"", b"", []
        self._counted = self._trailers = self._length = self._size = 0
        self._expects = False

    def _end(self, data: bytes, at: int) -> int:
        """Where a piece of a head, or of chunks, ends that begins `at`: with a blank line, or where it is enough.

        Within chunks any number of blank lines may stand that end nothing; so only those count that could.
        """
        if not at and self._seam:
            found = (self._seam + data[:3]).find(_BLANK_LINE)
            if found >= 0:
                return found + len(_BLANK_LINE) - len(self._seam)
        if self._reading is HEAD:
            most = at + MAX_HEAD - self._counted
            found = data.find(_BLANK_LINE, at, most)
            return found + len(_BLANK_LINE) if found >= 0 else min(most, len(data))
        most = at + SLICE
        blank = _NEXT.search(data, at, most + 3)  # none stands across two slices
        return blank.end() if blank else min(most, len(data))

    def _feed_framed(self, piece: bytes) -> None:
        """Of a head, or of chunks: what is not body is counted."""
        reading, had = self._reading, self._size
        if reading is HEAD and len(self._raw) <= MAX_TARGET + SLICE:
            self._raw += piece
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._read_anew()
        came = self._reading is not reading or self._size != had
        self._counted = 0 if came else self._counted + len(piece)
        if self._counted >= MAX_HEAD and reading is HEAD:
            self._raise(HeadTooLarge(f"the head is larger than {MAX_HEAD} bytes"))
        if self._counted > MAX_FRAMING and reading is BODY:
            self._raise(MalformedRequest(f"more than {MAX_FRAMING} bytes of chunk extensions or trailers"))

    # the parser's callbacks

    def on_url(self, url: bytes) -> None:
        if self._reading is NOTHING:  # within a piece: no request line stood where it had to
            self._raise(MalformedRequest("a request must begin right after the one before"))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is BODY:
            self._trailers += 1  # and dropped: nobody asked for any
            if self._trailers > MAX_HEADERS:
                self._raise(MalformedRequest(f"more than {MAX_HEADERS} trailers"))
            return
        name = name.lower()
        self._headers.append((name, value))
        if name == b"content-length":
            self._length = int(value)  # the parser has judged it
        elif name == b"expect" and value.lower() == b"100-continue":
            self._expects = True

    def on_headers_complete(self) -> None:
        if len(self._headers) > MAX_HEADERS:
            self._raise(HeadTooLarge(f"more than {MAX_HEADERS} headers"))
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if problem := flaw(method, self._url, version, self._headers):
            self._raise(problem)
        if not self._raw.startswith(method + b" " + self._url + b" HTTP/"):
            self._raise(MalformedRequest("the request line is not a method, a target and HTTP/1.1, with single spaces"))
        self._raw = b""
        if self._parser.should_upgrade():
            return  # it would skip the body: the head is read anew
        if len(self._ahead) >= MAX_AHEAD:
            self._raise(MalformedRequest(f"more than {MAX_AHEAD} requests ahead of their answers"))
        keep = version == "1.1" and self._parser.should_keep_alive()
        scope = self._scope(method, version)
        cycle = scope["extensions"][EXTENSION] = Cycle(self, scope, keep=keep, expects=self._expects)
        self._filling, self._reading = cycle, BODY
        if self._cycle is None or self._cycle.complete:
            self._start(cycle)
        else:
            self._ahead.append(cycle)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._filling is not None and not self._filling.complete:
            self._filling.came(body)

    def on_message_complete(self) -> None:
        if self._reading is not BODY:
            return  # an offer, which is read anew
        self._reading = NOTHING
        cycle, self._filling = self._filling, None
        if cycle is not None:
            self._deaf = not cycle.keep  # whatever follows, nobody is to answer it
            cycle.ended()
            if cycle.complete:
                self._rest(cycle)

    def _read_anew(self) -> None:
        """Read the head once more, without its offer: nobody has to accept one (clients.md §9 A 13).

        A WebSocket's offer stays to be seen, under another name: the application refuses it in words.
        """
        kept = [(name, value) for name, value in self._headers if name not in (b"upgrade", b"connection")]
        for name, value in self._headers:
            if name == b"connection" and b"close" in value.lower():
                kept.append((b"connection", b"close"))
            if name == b"upgrade" and value.lower() == b"websocket":
                kept.append((b"upgrade", value))
        first = b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, self._parser.get_http_version().encode())
        self._begin()
        self._raw = b"\r\n".join([first, *(b"%b: %b" % header for header in kept), b"", b""])
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(self._raw)

    def _scope(self, method: bytes, version: str) -> Scope:
        path, _, query = self._url.partition(b"?")
        decoded = path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": method.decode("ascii"),
            "scheme": "http",
            "path": unquote(decoded) if "%" in decoded else decoded,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "client": self.client,
            "server": None,
            "extensions": {},
        }

    def _raise(self, problem: CallError) -> None:
        """Out of the parser, which takes any exception for its own."""
        self._refusal = problem
        raise httptools.HttpParserError(problem.message)

    # what a cycle does with it

    def always(self) -> bytes:
        """The header lines of every response: the date, which uvicorn puts forward."""
        return header_lines(tuple(self._server.default_headers))

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def take_more(self) -> None:
        if self._paused and self.transport is not None and not self._brimful:
            self._paused = False
            self._since = self._loop.time()  # while it was made to wait it could not be slow
            self.transport.resume_reading()

    def finished(self, cycle: Cycle) -> None:
        """The response is complete."""
        self._server.total_requests += 1
        self._rest(cycle)

    def _rest(self, cycle: Cycle) -> None:
        """After a response: the next that waits, or an end, or a pause. Not before its request has come whole, else the
        client might never read the answer.
        """
        self._since = self._loop.time()
        if self._deaf and cycle.more_body:
            self._linger()
        elif cycle.more_body:
            self.take_more()
        elif not cycle.keep:
            self._close()
        elif self._ahead:
            self._start(self._ahead.popleft())  # also when leaving: it came before anybody was told
        elif self._parting:
            self.write(self._parting)
            self._linger()
        elif self.leaving:
            self._close()
        elif self._paused:
            self.take_more()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _start(self, cycle: Cycle) -> None:
        self._cycle = cycle
        task = self._loop.create_task(cycle.run(self._app), name="request")
        task.add_done_callback(self._server.tasks.discard)
        self._server.tasks.add(task)

    @property
    def _brimful(self) -> bool:
        """Whether nothing more is to be read for now. Not sooner than needed: meanwhile a departure goes unseen."""
        return len(self._ahead) >= SOME_AHEAD or (self._filling is not None and self._filling.full)

    def _pause(self) -> None:
        if self.transport is not None and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _close(self) -> None:
        self._deaf = True
        if self.transport is not None and self._closes_by == math.inf:
            self._closes_by = self._loop.time() + self._door.limits.write_stall
            self.transport.close()

    def _linger(self) -> None:
        """Nothing more will be said; what still comes is thrown away for a moment. Closing at once would reset it."""
        self._deaf = True
        if self.transport is not None and self._closes_by == math.inf:
            self._closes_by = self._loop.time() + LINGER
            try:
                self.transport.write_eof()
            except OSError:  # it is gone already, which nobody has been told yet
                self.transport.abort()

    # time, and what was refused

    def check_time(self, now: float, limits: ServerConfig) -> None:
        """Called now and then: close it where it takes too long."""
        waited = now - self._since
        if now > self._closes_by:
            self.abort()
        elif self._stalls(now, limits.write_stall):
            self._door.refused("write_stall")
            self.abort()
        elif self._deaf:
            return
        elif self._fresh and waited > limits.head_timeout:
            self._door.refused(RequestTimeout.reason)
            self._close()
        elif self._paused:
            return  # it is made to wait, so it is not slow
        elif self._reading is HEAD and waited > limits.head_timeout:
            self._refuse(RequestTimeout(f"no whole head within {limits.head_timeout:g} s (server.head_timeout)"))
        elif self._reading is BODY and self._filling is not None:
            self._check_body(self._filling, waited, limits)
        elif self.idle and waited > limits.keep_alive:
            self._close()

    def quiet(self, now: float) -> bool:
        """Whether it has sent nothing for a while, and is not about to be closed."""
        if self._reading is not NOTHING or self._paused or self._deaf or self.descriptor < 0:
            return False
        return now - self._since > QUIET and self.transport is not None and not self.transport.is_closing()

    def pause(self) -> None:
        """Read nothing for now."""
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    @property
    def idle(self) -> bool:
        """Whether no request is under way, nor coming in."""
        return self._reading is NOTHING and (self._cycle is None or self._cycle.complete)

    def _stalls(self, now: float, limit: float) -> bool:
        """Whether the client has read nothing for so long, though there is something."""
        if self._stalled == math.inf or self.transport is None:
            return False
        unread = self.transport.get_write_buffer_size()
        if unread != self._unread:
            self._unread, self._stalled = unread, now
        return now - self._stalled > limit

    def _check_body(self, cycle: Cycle, waited: float, limits: ServerConfig) -> None:
        if cycle.complete:  # it was answered, and goes on sending
            if waited > limits.head_timeout:
                self._close()
        elif waited > limits.body_timeout:
            self._refuse(RequestTimeout(f"no whole body within {limits.body_timeout:g} s (server.body_timeout)"))
        elif waited > SLOW_AFTER and self._size < limits.body_rate * waited:
            self._refuse(RequestTimeout(f"the body came slower than {limits.body_rate} bytes/s (server.body_rate)"))

    def _refuse(self, problem: GatewayError) -> None:
        """Say why, once all that came before is answered, and close. Where a head was sound the application says it."""
        self._door.refused(problem.reason)
        cycle, filling, self._filling = self._cycle, self._filling, None
        self._deaf = True
        if filling is not None and not filling.complete:
            filling.late(problem)
        elif filling is not None:  # it was answered already
            self._linger()
        else:
            url = self._url if self._reading is HEAD else b""  # else that of the one before
            self._parting = refusal(problem, url)
            if cycle is None or cycle.complete:
                self.write(self._parting)
                self._linger()
