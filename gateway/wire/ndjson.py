"""Newline-delimited JSON: one frame is one line, and only byte 0x0A ends a line.

Never split with `splitlines` or a text iterator: those also split at U+2028 and its kin, which JSON strings may hold.
"""

from __future__ import annotations

from gateway.wire import splitter


class Splitter(splitter.Splitter):
    """Cuts a stream into lines, each with its line feed."""

    def _end(self, source: bytes | bytearray, start: int, searched: int) -> int:
        return source.find(b"\n", max(start, searched)) + 1
