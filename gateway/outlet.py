"""Where the lines of the log go. Nobody waits for one to be written: no call may depend on a disk or on a reader."""

from __future__ import annotations

import io
import logging
import os
import select
import stat
import threading
import time
from collections import deque
from typing import TextIO

MAX_KEPT = 1024 * 1024  # bytes of lines that a reader who is late may have before him
LAST_WORDS = 0.5  # seconds such a reader is given at the end


class Outlet:
    """Writes to a file, a pipe or a terminal, and never waits for it: no call may depend on a disk or on a reader.

    What a pipe has no room for is kept until it has, within a bound. What is beyond, or what a full disk refuses, is
    lost and counted.
    """

    def __init__(self, file: int) -> None:
        self.lost = 0  # lines
        self._file = file
        self._turn = threading.RLock()  # side doors and libraries have threads of their own
        self._is_plain = stat.S_ISREG(os.fstat(file).st_mode)  # there always is room in a file on a disk
        self._room = select.poll()
        self._room.register(file, select.POLLOUT)
        self._kept: deque[bytes] = deque()
        self._size = 0  # bytes kept
        self._begun = False  # some of the first that is kept is written
        self._torn = False  # what was written last ends in the middle of a line

    def write(self, text: str) -> None:
        line = f"{text}\n".encode(errors="backslashreplace")
        if self._size + len(line) <= MAX_KEPT:
            self._kept.append(line)
            self._size += len(line)
        else:
            self.lost += 1
        self.flush()

    def flush(self) -> None:
        """Write what there is room for."""
        with self._turn:
            while self._kept and (self._is_plain or self._room.poll(0)) and self._write():
                pass

    def close(self) -> None:
        ends = time.monotonic() + LAST_WORDS
        while self._kept and (left := ends - time.monotonic()) > 0 and self._room.poll(left * 1000):
            self.flush()

    def _write(self) -> bool:
        """The next piece, small enough for a pipe that says it has room; False where it had none after all."""
        line = self._kept.popleft()
        self._size -= len(line)
        written = 0
        try:
            if self._torn:
                os.write(self._file, b"\n")
                self._torn = False
            written = os.write(self._file, line[: select.PIPE_BUF])
        except BlockingIOError:
            pass
        except OSError:
            self.lost += 1
            self._torn, self._begun = self._torn or self._begun, False
            return True
        if rest := line[written:]:
            self._kept.appendleft(rest)
            self._size += len(rest)
        self._begun = bool(rest) and (written > 0 or self._begun)
        return written > 0


class Memory:
    """A text in memory, as a test has it."""

    lost = 0

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        self._out.write(f"{text}\n")

    def flush(self) -> None:
        """All is written."""

    close = flush


class Handler(logging.Handler):
    """What libraries have to say goes to the same place."""

    def __init__(self, outlet: Outlet | Memory) -> None:
        super().__init__()
        self.outlet = outlet

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.outlet.write(self.format(record))
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)

    def close(self) -> None:
        self.outlet.close()
        super().close()


def outlet_for(out: TextIO) -> Outlet | Memory:
    try:
        return Outlet(out.fileno())
    except io.UnsupportedOperation:
        return Memory(out)


def _outlets() -> list[Outlet | Memory]:
    return [handler.outlet for handler in logging.getLogger().handlers if isinstance(handler, Handler)]


def catch_up() -> None:
    """Write what was kept, where there is room now."""
    for outlet in _outlets():
        outlet.flush()


def lines_lost() -> int:
    return sum(outlet.lost for outlet in _outlets())
