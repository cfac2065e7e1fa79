"""The head of a request, judged strictly: what two readers could take for two things is refused. Pure.

The parser is strict about line ends, lengths and names; what it lets pass is judged here (faults.md §8.1). RFC 9112
asks servers to bear some of it (an absolute target, an empty line before a request); nobody who calls us sends it, and
every such liberty has been somebody's way past a front door.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.errors import CallError, MalformedRequest, TargetTooLong, UnsupportedVersion, WrongMethod

MAX_TARGET = 8 * 1024  # bytes
METHODS = "GET, HEAD, POST, OPTIONS"

_HASH = ord("#")  # a number is found in bytes ten times sooner than bytes are
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\])(?::[0-9]{0,5})?")


def flaw(method: bytes, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> CallError | None:
    """Why this head is not taken, None if it is. `headers` have lower-case names and stripped values."""
    if version not in ("1.1", "1.0"):
        return UnsupportedVersion("only HTTP/1.1 and HTTP/1.0 are spoken here")
    if method == b"CONNECT":
        return WrongMethod(f"this is no proxy: it takes {METHODS}", allow=METHODS)
    if len(target) > MAX_TARGET:
        return TargetTooLong(f"the request target is longer than {MAX_TARGET} bytes")
    if not target.startswith(b"/") and (method, target) != (b"OPTIONS", b"*"):
        return MalformedRequest("the request target must be a path, beginning with /")
    if _HASH in target:
        return MalformedRequest("the request target holds a fragment")
    return _flaw_of_fields(version, headers)


def _flaw_of_fields(version: str, headers: Sequence[tuple[bytes, bytes]]) -> CallError | None:
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if hosts > 1 or _HOST.fullmatch(value) is None:
                return MalformedRequest("the Host header must be one host, and given once")
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
            return MalformedRequest("the only Transfer-Encoding taken is chunked, in HTTP/1.1")
    if not hosts and version == "1.1":
        return MalformedRequest("the Host header is missing")
    return None
