"""Request bodies that come compressed: gzip and zstd, inflated no further than the limit. Codex sends zstd.

The promise: a body of any ratio costs at most the limit and one step in memory, for it is inflated in steps and given
up at the first that passes the limit. Exactly one coding and one whole member or frame: what follows it is refused,
because many empty ones would cost time without ever costing size.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple, Protocol

import zstandard

from gateway.errors import BodyTooLarge, InvalidCall, UnsupportedEncoding
from gateway.offload import give_way

SMALLEST_WINDOW = 8 * 2**20  # bytes a zstd frame may ask to be remembered: what every decoder must grant (RFC 8878)


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class Coding(NamedTuple):
    """One way to compress a body."""

    name: str
    inflater: Callable[[int], _Inflater]  # of the limit
    step: int  # compressed bytes at a time; none become more than 8 MiB


def _gzip(_limit: int) -> _Inflater:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


def _zstd(limit: int) -> _Inflater:
    return zstandard.ZstdDecompressor(max_window_size=max(limit, SMALLEST_WINDOW)).decompressobj()


_CODINGS = {
    "gzip": Coding("gzip", _gzip, 4096),
    "x-gzip": Coding("gzip", _gzip, 4096),
    "zstd": Coding("zstd", _zstd, 256),
}


def named(content_encoding: str) -> Coding | None:
    """The coding a Content-Encoding names, None where the body came as it is. Raises UnsupportedEncoding."""
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in _CODINGS:
        shown = content_encoding[:32]
        raise UnsupportedEncoding(f"Content-Encoding {shown!r} is not supported: send gzip, zstd or none")
    return _CODINGS[name]


def inflated(body: bytes, coding: Coding, limit: int) -> bytes:
    """The body as it was before. Raises BodyTooLarge beyond `limit` bytes, InvalidCall for what is no such body."""
    inflater = coding.inflater(limit)
    whole = BytesIO()  # whose value is no copy
    for at in range(0, len(body), coding.step):
        if inflater.eof:
            raise InvalidCall("the compressed body goes on after its end")
        try:
            give_way()
            whole.write(inflater.decompress(body[at : at + coding.step]))
        except (zlib.error, zstandard.ZstdError):
            raise InvalidCall(f"the body is not valid {coding.name}") from None
        if whole.tell() > limit:
            raise BodyTooLarge(f"the body is larger than {limit} bytes when decompressed (server.max_body)")
    if not inflater.eof:
        raise InvalidCall("the compressed body ends too early")
    if inflater.unused_data:
        raise InvalidCall("the compressed body goes on after its end")
    return whole.getvalue()
