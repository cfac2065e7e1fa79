"""What is said to a client before any application has seen its request: why there is nothing to see."""

from __future__ import annotations

import re

import httptools

from gateway.api.routes import family
from gateway.dialects import render, status_headers
from gateway.errors import GatewayError, MalformedRequest, OutOfMemory, UnsupportedVersion, WrongMethod
from gateway.frontdoor.cycle import header_lines, status_line
from gateway.frontdoor.head import METHODS

MAX_METHOD = 1024  # bytes that are looked at to tell a method nobody knows from what is no HTTP

_REQUEST_LINE = re.compile(rb"[A-Za-z-]+ /[^ ]* HTTP/")


def refusal(problem: GatewayError, url: bytes) -> bytes:
    """A whole response, in the shape of the family that `url` belongs to."""
    body = render(family(url.partition(b"?")[0].decode("ascii", "replace")), problem, "")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *status_headers(problem),
        (b"connection", b"close"),
    ]
    return status_line(problem.status) + header_lines(tuple(headers)) + b"\r\n" + body


def problem_of(error: httptools.HttpParserError, head: bytes) -> GatewayError:
    """What the parser did not like about a message that began so."""
    if isinstance(error.__context__, MemoryError):
        return OutOfMemory()
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(head[:MAX_METHOD]):
        return WrongMethod(f"a method that is not spoken here: it takes {METHODS}", allow=METHODS)
    if "HTTP version" in str(error):
        return UnsupportedVersion("only HTTP/1.1 and HTTP/1.0 are spoken here")
    return MalformedRequest("this is not a valid HTTP request")
