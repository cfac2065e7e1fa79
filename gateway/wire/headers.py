"""Which headers cross the gateway, and how a text of others becomes a value of ours.

Both directions start from nothing: what is not named here stays behind, whatever it is called (faults.md §8.2). Of a
client's headers an instance sees its user agent and its trace; of an instance's headers a client sees none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

Headers = list[tuple[bytes, bytes]]
Named = Mapping[bytes, bytes]  # by lower-case name; of several the first

MAX_VALUE = 256
OUR_AGENT = b"ollama-gateway"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))
_CUT_ESCAPE = re.compile(r"%[0-9A-F]?\Z")


def request_headers(
    request_id: str, agent: str = "", traceparent: str = "", content_type: bytes = b"application/json"
) -> Headers:
    """What an instance is told beside what the connection says itself: host, length, no compression.

    The user agent matters: Ollama answers some clients differently (ollama.md §2.6). A `traceparent` goes on only where
    it is well-formed.
    """
    headers = [
        (b"content-type", content_type),
        (b"accept", b"application/json, application/x-ndjson, text/event-stream"),
        (b"user-agent", ascii_value(agent) or OUR_AGENT),
        (b"x-request-id", ascii_value(request_id)),
    ]
    if _TRACEPARENT.fullmatch(traceparent):
        headers.append((b"traceparent", traceparent.encode("ascii")))
    return headers


def response_headers(stream_type: bytes = b"", *, whole: bytes = b"application/json") -> Headers:
    """What a client is told of an answer: a stream of that type, or where none is given a finished one, usually JSON.

    A stream must not be held back or changed on its way (clients.md §7). Nothing of the instance's own headers passes.
    """
    if not stream_type:
        return [(b"content-type", whole)]
    return [
        (b"content-type", stream_type),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-accel-buffering", b"no"),
    ]


def retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """The seconds that an instance asks to be left alone for, a day at most; None where it gives no plain number."""
    value = next((value for name, value in headers if name == b"retry-after"), b"")
    return min(float(value), 86400.0) if value.isdigit() else None


def sane_request_id(value: bytes | str) -> str | None:
    """A client's request id where it is 1 to 64 of `A-Za-z0-9._-`, else None: it goes into logs and headers."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text if _REQUEST_ID.fullmatch(text) else None


def ascii_value(text: str) -> bytes:
    """Any text as a header value: control characters, `%` and all beyond ASCII percent-encoded, at most 256 bytes."""
    if len(text) <= MAX_VALUE and text.isascii() and text.isprintable() and "%" not in text:
        return text.strip().encode("ascii")
    escaped = quote(text[:MAX_VALUE].strip(), safe=_PLAIN, errors="replace")
    if len(escaped) > MAX_VALUE:
        escaped = _CUT_ESCAPE.sub("", escaped[:MAX_VALUE])
    return escaped.encode("ascii").strip()
