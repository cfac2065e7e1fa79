"""One Ollama over HTTP: send a request, read its answer as it comes, keep connections for the next.

There is no hidden limit and no queue here: a call that may go gets a connection, an idle one or a new one. Whoever
leaves, at any await, leaves nothing behind: the socket is closed at once, which is what makes an Ollama stop
generating (ollama.md §4.6). A redirect is a status like any other; nothing is followed, inflated or stored.

The only second attempt made here: a connection that was kept open and is lost before the first byte of an answer was
most likely closed by the instance as we wrote (ollama.md §4.6, faults.md U5). That request goes out once more, on a
fresh connection. Where there is none to be had that is told of a request that was sent: the instance may have begun.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import math
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Self
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.errors import BadAnswer, ConnectFailed, ConnectionLost, Exhausted, FirstTokenTimeout, IdleTimeout
from gateway.upstream.connection import Answer, Connection

OURS = frozenset({b"host", b"content-length", b"transfer-encoding", b"accept-encoding", b"connection"})

GLANCE = 0.01  # seconds for a last look at what has come: loops that run timers before they read see it by then

_CR, _LF, _NUL = b"\r\n\0"  # numbers: bytes are looked for among bytes at ten times the cost (CPython)
_UNSAFE_LINE = re.compile(rb"[\x00-\x20\x7f]")
_WORDS = {  # of a connection that failed; `probe` adds the likely fix
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "no route to it",
    errno.ENETUNREACH: "no route to it",
}
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Request(Struct, frozen=True):
    """What to send. `headers` come from an allow-list and hold none of `OURS`: those are written here."""

    method: bytes
    path: bytes  # a constant of ours, never the client's
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    def __repr__(self) -> str:
        return f"<request {self.method!r} {self.path!r}>"


class Response:
    """An open answer. Leaving the block gives the connection back, or closes it where the answer is not complete.

    Until `spoke` is called the whole answer has one absolute limit, whatever bytes arrive; from then on each silence
    has one. While the reader is the slow one, nobody is silent.
    """

    __slots__ = (
        "_answer",
        "_closed",
        "_connection",
        "_due",
        "_idle",
        "_late",
        "_release",
        "_timer",
        "_until",
        "connected",
        "delimited",
        "headers",
        "name",
        "reused",
        "status",
    )

    def __init__(
        self, name: str, connection: Connection, release: Callable[[Connection], None], *, head_only: bool
    ) -> None:
        self.name = name  # the instance's
        self.status = 0
        self.headers: tuple[tuple[bytes, bytes], ...] = ()  # names lower-case
        self.delimited = True  # False: only the stream's own end marker can tell that it is complete
        self.connected = 0.0  # seconds spent connecting
        self.reused = False
        self._connection = connection
        self._release = release
        self._answer = Answer(head_only=head_only)
        self._closed = False
        self._until = self._due = math.inf  # loop time: the limit for the first token; when the timer fires
        self._idle: float | None = None  # seconds
        self._late = False  # time was up when it was last looked
        self._timer: asyncio.TimerHandle | None = None

    @property
    def heard(self) -> bool:
        """At least one byte came back."""
        return self._answer.heard

    @property
    def whole(self) -> bool:
        """All of it is here, read or not: the instance has nothing more to do for it."""
        return self._answer.done

    @property
    def waits(self) -> bool:
        """The instance has yet to say more, and all it said was read."""
        answer = self._answer
        return not (answer.untaken or answer.done or self._closed or self._connection.failure)

    @property
    def over(self) -> bool:
        """Nothing more will come: it is whole, or broken off. What came may be unread yet."""
        return self._answer.done or self._closed or self._connection.failure is not None

    def check(self) -> None:
        """Raise what it broke off with, if it did before it was whole."""
        if not (self._answer.done or self._closed):
            self._connection.check()

    def when_changed(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called when more of it came, or it failed, while nobody reads."""
        if not self._closed:
            self._connection.on_changed = callback

    async def begin(self, head: bytes, body: bytes, until: float, sending: Callable[[], None] | None) -> Self:
        """Send, and wait for the head of the answer, until `until` (loop time). Only `Upstream.open` calls this."""
        answer, connection = self._answer, self._connection
        try:
            self._until = until
            self._arm(until)
            if sending is not None:
                sending()
            await connection.send(answer, head, body)
            while not answer.status:
                connection.check()
                await connection.changed()
        except BaseException:
            self._drop()
            raise
        self.status, self.headers, self.delimited = answer.status, tuple(answer.headers), answer.delimited
        return self

    async def read(self) -> bytes:
        """All of the body that came since the last read, as soon as there is any; b"" at the end.

        Raises ConnectionLost, BadAnswer, FirstTokenTimeout, IdleTimeout, each after what came before it was read.
        One reader at a time; a reader that is cancelled closes the connection.
        """
        answer = self._answer
        while not answer.untaken and not answer.done:
            self._connection.check()
            try:
                await self._connection.changed()
            except BaseException:
                self._drop()
                raise
        return self.unread()

    def unread(self) -> bytes:
        """All of the body that came since the last read, without waiting for any."""
        data = self._answer.take()
        if self._connection.paused and not self._closed:
            self._connection.resume()
        return data

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body. Raises what `read` raises, and BadAnswer beyond `limit` bytes."""
        pieces: list[bytes] = []
        room, answer = limit, self._answer
        while answer.untaken or not answer.done:
            data = self.unread() or await self.read()
            room -= len(data)
            if room < 0:
                self._drop()
                raise BadAnswer(self.name, f"an answer of more than {limit} bytes")
            pieces.append(data)
        return b"".join(pieces)

    def spoke(self, idle: float) -> None:
        """The first content is here: from now on each silence may last `idle` seconds."""
        self._idle = idle
        if not self._closed and not self._answer.done:
            self._arm(self._connection.loop.time() + idle)

    def close(self) -> None:
        if self._closed:
            return
        self._leave()
        self._release(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self) -> None:
        if not self._closed:
            self._leave()
            self._connection.abort()

    def _leave(self) -> None:
        self._closed = True
        self._connection.on_changed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        """Have the timer fire at `due` or before. It looks for itself whether time is up: no timer per frame."""
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._connection.loop.call_at(due, self._check_time)

    def _check_time(self) -> None:
        self._timer = None
        connection = self._connection
        if self._answer.done:
            return
        now = connection.loop.time()
        due = self._until
        if self._idle is not None:
            due = (now if connection.paused else connection.last_data) + self._idle
        if now < due:
            self._late = False
            self._arm(due)
        elif not self._late:  # who was stopped or stuck meanwhile has yet to read what came
            self._late = True
            self._arm(now + GLANCE)
        elif self._idle is None:
            connection.fail(FirstTokenTimeout, "no token within its time limit")
        else:
            connection.fail(IdleTimeout, f"silent for {self._idle:g} s (timeouts.idle)")


class Upstream:
    """The connections to one instance: idle ones are reused, the latest first, and closed after `idle_for` seconds."""

    def __init__(self, name: str, url: str, *, max_idle: int = 32, idle_for: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an address: {url!r}")
        tls = parts.scheme == "https"
        authority = parts.netloc.encode("ascii" if parts.netloc.isascii() else "idna")
        self.name = name
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port = parts.hostname, parts.port or (443 if tls else 80)
        self._tls = ssl.create_default_context() if tls else None
        # Its own authority and never the client's: Ollama refuses others (ollama.md §4.5).
        self._opening = b"host: " + authority + b"\r\naccept-encoding: identity"
        self._max_idle, self._idle_for = max_idle, idle_for
        self._idle: deque[Connection] = deque()  # the longest idle first
        self._busy: set[Connection] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def idle(self) -> int:
        """Sockets open and waiting to be used."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """Sockets in use, or being opened."""
        return len(self._busy)

    async def open(
        self, request: Request, *, connect: float, first: float, sending: Callable[[], None] | None = None
    ) -> Response:
        """Send `request`; returns when the head of the answer is there.

        `connect` seconds for a new connection, `first` seconds from sending to the call of `Response.spoke`. `sending`
        is called before the first byte goes out: from then on the instance may have begun the work.
        Raises ConnectFailed or Exhausted, ConnectionLost, BadAnswer, FirstTokenTimeout; ValueError for no request.
        """
        head = self._head(request)
        loop = asyncio.get_running_loop()
        now, until = loop.time(), math.inf
        kept = self._take(now)
        if kept is not None:
            response = self._response(kept, request)
            response.reused = True
            until = now + first
            try:
                return await response.begin(head, request.body, until, sending)
            except ConnectionLost:
                if response.heard:
                    raise
        began = time.perf_counter()
        try:
            connection = await self._connect(loop, connect)
        except ConnectFailed as error:
            error.sent = kept is not None  # once, on the connection that was lost
            raise
        response = self._response(connection, request)
        response.connected = time.perf_counter() - began
        return await response.begin(head, request.body, min(until, loop.time() + first), sending)

    def close(self) -> None:
        """Close idle connections now and the others when their exchange ends; nothing can be opened any more."""
        self._closed = True
        for connection in tuple(self._idle):
            connection.abort()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _head(self, request: Request) -> bytes:
        lines = [*map(b": ".join, request.headers)]
        told = b"".join(lines)
        if _CR in told or _LF in told or _NUL in told:
            raise ValueError("a header that would end its own line")
        if not OURS.isdisjoint([name.lower() for name, _ in request.headers]):
            raise ValueError("a header that is not the caller's to set")
        if request.body or request.method not in (b"GET", b"HEAD"):
            lines.append(b"content-length: %d" % len(request.body))
        return b"\r\n".join([_request_line(request.method, request.path), self._opening, *lines, b"", b""])

    def _response(self, connection: Connection, request: Request) -> Response:
        return Response(self.name, connection, self._give_back, head_only=request.method == b"HEAD")

    def _take(self, now: float) -> Connection | None:
        while self._idle and not self._closed:
            connection = self._idle[-1]
            if connection.usable and now - connection.idle_since < self._idle_for:
                self._busy.add(self._idle.pop())
                return connection
            connection.abort()  # and is gone from the deque
        return None

    async def _connect(self, loop: asyncio.AbstractEventLoop, limit: float) -> Connection:
        if self._closed:
            raise ConnectFailed(self.name, "no longer in use")
        connection = Connection(self.name, loop, self._gone)
        self._busy.add(connection)
        options = _several_addresses(loop, self._host)
        try:
            async with asyncio.timeout(limit):
                await loop.create_connection(lambda: connection, self._host, self._port, ssl=self._tls, **options)
            connection.check()  # lost or closed as it was made
        except BaseException as error:
            connection.abort()
            if isinstance(error, OSError) and _ours(error):
                raise Exhausted(self.name) from error
            if isinstance(error, OSError | UnicodeError | ConnectionLost):
                raise ConnectFailed(self.name, _words(error, limit)) from error
            raise
        return connection

    def _give_back(self, connection: Connection) -> None:
        if self._closed or not connection.rest():
            connection.abort()
            return
        self._busy.discard(connection)
        self._idle.append(connection)
        if len(self._idle) > self._max_idle:
            self._idle[0].abort()
        if self._expiry is None:
            self._expiry = connection.loop.call_later(self._idle_for, self._expire, connection.loop)

    def _gone(self, connection: Connection) -> None:
        self._busy.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self._idle and self._idle[0].idle_since + self._idle_for <= now:  # as the timer was set
            self._idle[0].abort()
        self._expiry = None
        if self._idle:
            self._expiry = loop.call_at(self._idle[0].idle_since + self._idle_for, self._expire, loop)


@lru_cache(maxsize=64)
def _request_line(method: bytes, path: bytes) -> bytes:
    if _UNSAFE_LINE.search(method) or _UNSAFE_LINE.search(path):
        raise ValueError("a method or path no request line can hold")
    return b"%b %b HTTP/1.1" % (method, path)


def _several_addresses(loop: asyncio.AbstractEventLoop, host: str) -> dict[str, Any]:
    """How to try the addresses of a name: staggered where the loop can (uvloop tries one after the other)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return {"happy_eyeballs_delay": 0.25} if isinstance(loop, asyncio.BaseEventLoop) else {}
    return {}


def _ours(error: OSError) -> bool:
    """Whether there was no connection for want of files or memory of our own."""
    if isinstance(error, socket.gaierror):  # which has no word for it: looking a name up takes a file, too
        try:
            socket.socket().close()
        except OSError as tried:
            error = tried
    return any(_means(error, code) for code in _EXHAUSTED)


def _means(error: BaseException, code: int) -> bool:
    # Where several addresses failed, the loop joins their texts and drops the numbers.
    return getattr(error, "errno", None) == code or f"[Errno {code}]" in str(error)


def _words(error: BaseException, limit: float) -> str:
    """Why there is no connection, without the address."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return "its name does not resolve"
    if isinstance(error, TimeoutError):
        return f"no connection within {limit:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "does not speak TLS as we do"
    for code, words in _WORDS.items():
        if _means(error, code):
            return words
    return "no connection"
