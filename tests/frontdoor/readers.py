"""What others read in the same bytes: h11 and httptools in process, nginx in front of a server that writes down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import h11
import httptools


class Request(NamedTuple):
    """One request as far as readers must agree on it."""

    method: bytes
    target: bytes
    body: bytes


@dataclass(frozen=True)
class Reading:
    """The requests that came whole, and how it ended.

    `clean`: ready for another. `open`: waiting for the rest of one. `refused`: what follows is no request. `closed`: no
    further request was wanted.
    """

    requests: tuple[Request, ...] = ()
    end: str = "clean"
    why: str = ""


def by_h11(data: bytes) -> Reading:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=128 * 1024)
    connection.receive_data(data)
    found: list[Request] = []
    head, body = h11.Request(method="GET", target="/", headers=[("host", "x")]), bytearray()
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                begun = connection.their_state is h11.SEND_BODY or bool(connection.trailing_data[0])
                return Reading(tuple(found), "open" if begun else "clean")
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return Reading(tuple(found), "closed")
            if isinstance(event, h11.Request):
                head, body = event, bytearray()
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                found.append(Request(head.method, head.target, bytes(body)))
                connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return Reading(tuple(found), "closed")
                connection.start_next_cycle()
    except h11.RemoteProtocolError as problem:
        return Reading(tuple(found), "refused", str(problem))


@dataclass
class _Notes:
    """What httptools calls."""

    found: list[Request] = field(default_factory=list)
    url: bytes = b""
    body: bytes = b""
    begun: bool = False
    closed: bool = False
    parser: httptools.HttpRequestParser | None = None

    def on_message_begin(self) -> None:
        self.url, self.body, self.begun = b"", b"", True

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        assert self.parser is not None
        if not self.closed:
            self.found.append(Request(self.parser.get_method(), self.url, self.body))
        self.begun, self.closed = False, not self.parser.should_keep_alive()


def by_httptools(data: bytes) -> Reading:
    notes = _Notes()
    notes.parser = httptools.HttpRequestParser(notes)
    try:
        notes.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return Reading(tuple(notes.found), "closed", "an upgrade")
    except httptools.HttpParserError as problem:
        return Reading(tuple(notes.found), "closed" if notes.closed else "refused", str(problem))
    return Reading(tuple(notes.found), "closed" if notes.closed else "open" if notes.begun else "clean")
