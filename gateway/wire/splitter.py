"""What the two framings share: bytes go in however they were cut, whole frames come out, nothing is lost or added.

The promise: all frames joined, plus `rest`, are the bytes that were fed; and each byte is searched once, so a frame
that arrives a byte at a time costs no more than one that arrives whole.
"""

from __future__ import annotations

LIMIT = 8 * 2**20  # Ollama's own bound for one line (ollama.md §2.1)
_OVERLAP = 3  # the longest end of a frame is four bytes: three of them may have come earlier


class FrameTooLong(ValueError):
    """One frame is longer than the limit: whoever sends it is not speaking this framing."""


class Splitter:
    """Cuts a stream of bytes into frames of at most `limit` bytes each."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self.pending = bytearray()  # what came and is not a whole frame yet

    def feed(self, data: bytes) -> list[bytes]:
        """The frames made whole by `data`, byte-exact and with their ends. Raises FrameTooLong."""
        source: bytes | bytearray = data
        searched = max(0, len(self.pending) - _OVERLAP)
        if self.pending:
            self.pending += data
            source = self.pending
        frames = []
        start = 0
        while end := self._end(source, start, searched):
            if end - start > self._limit:
                raise self._too_long()
            frames.append(bytes(source[start:end]))
            start = searched = end
        if len(source) - start > self._limit:
            raise self._too_long()
        if source is self.pending:
            del self.pending[:start]
        elif start < len(data):
            self.pending += data[start:]
        return frames

    def _end(self, source: bytes | bytearray, start: int, searched: int) -> int:
        """Where the frame that begins at `start` ends, or 0; no end lies wholly before `searched`."""
        raise NotImplementedError

    def _too_long(self) -> FrameTooLong:
        return FrameTooLong(f"a frame is longer than the limit of {self._limit} bytes")
