"""How it travels: bytes cut into frames, JSON read strictly, headers from allow-lists. No I/O, no asyncio."""

from gateway.wire import encoding, headers, json, multipart, ndjson, sse
from gateway.wire.headers import (
    Headers,
    Named,
    ascii_value,
    request_headers,
    response_headers,
    retry_after,
    sane_request_id,
)
from gateway.wire.splitter import FrameTooLong

__all__ = [
    "FrameTooLong",
    "Headers",
    "Named",
    "ascii_value",
    "encoding",
    "headers",
    "json",
    "multipart",
    "ndjson",
    "request_headers",
    "response_headers",
    "retry_after",
    "sane_request_id",
    "sse",
]
