"""uvicorn's HTTP protocol with bounds of ours: what is read of one client's connection before any endpoint sees it.

A head, its headers and its trailers have a bound, an offer of HTTP/2 is passed over, and a connection whose client
still sends is not closed before it could read why it was refused.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.dialects import render
from gateway.errors import InvalidCall

MAX_HEAD = 64 * 1024  # bytes of a head; of chunk framing or trailers between two pieces of body
MAX_HEADERS = 256  # of a head, its trailers with them


class Patient:
    """The transport of a connection's last request: it is not closed while the client still sends.

    Closing then would reset the connection, and the client might never read why it was refused. What still comes is
    thrown away; the protocol closes at its end, or after the idle limit.
    """

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self.write, self.is_closing = transport.write, transport.is_closing

    def close(self) -> None:
        if not self._cycle.more_body:
            self._transport.close()


class Protocol(HttpToolsProtocol):
    """uvicorn's own, but for what it says to a request that is no HTTP, and what it makes of an offer of HTTP/2."""

    _since_body = 0  # bytes read after the last whole head, piece of body or end of a message: the parser has no bound

    def data_received(self, data: bytes) -> None:
        self._since_body += len(data)
        if not self._answered_for_good():
            self._unset_keepalive_if_required()
        unread = memoryview(data)
        try:
            while unread:  # each offer in it stops the parser once
                unread = self._fed(unread)
            if self._since_body > MAX_HEAD:
                self.send_400_response("")
        except httptools.HttpParserError:
            self.send_400_response("")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")  # for the parser, which stops there

    def on_body(self, body: bytes) -> None:
        self._since_body = 0
        super().on_body(body)

    def _fed(self, data: memoryview) -> memoryview:
        """Feed the parser; what is unread where it stopped at an offer."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            if self._offered():
                self._read_anew()
                return data[stopped.args[0] :]
        return data[:0]

    def on_headers_complete(self) -> None:
        self._since_body = 0
        if self._offered():
            return
        super().on_headers_complete()
        if not self.cycle.keep_alive:
            self.cycle.transport = cast(asyncio.Transport, Patient(self.transport, self.cycle))

    def on_message_complete(self) -> None:
        self._since_body = 0
        if self._offered():
            return
        super().on_message_complete()
        if self.cycle.response_complete and not self.cycle.keep_alive:
            self.transport.close()

    def _offered(self) -> bool:
        """Whether the request offers another protocol than a WebSocket's: the parser then skips its body."""
        offered = self.parser.should_upgrade() and self._get_upgrade() not in (None, b"websocket")
        return offered and self.parser.get_method() != b"CONNECT"  # which is an upgrade without any offer, too

    def _answered_for_good(self) -> bool:
        """Whether no further request is read: what still comes must not put off the end of the connection."""
        return self.cycle is not None and self.cycle.response_complete and isinstance(self.cycle.transport, Patient)

    def _read_anew(self) -> None:
        """Read the head once more, without its offer: nobody has to accept one (clients.md §9 A 13)."""
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"connection")]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            kept.append((b"connection", b"close"))
        first = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets its own
        self.parser.feed_data(b"\r\n".join([first, *(b"%b: %b" % header for header in kept), b"", b""]))

    def send_400_response(self, msg: str) -> None:
        body = render("openai", InvalidCall("this is not a valid HTTP request"), "")
        head = (b"content-type: application/json", f"content-length: {len(body)}".encode(), b"connection: close")
        self.transport.write(STATUS_LINE[400] + b"\r\n".join(head) + b"\r\n\r\n" + body)
        self.transport.close()
