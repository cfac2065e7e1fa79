"""How the gateway speaks to its operator: events and their facts, one line per call and one per change.

Readable text on a terminal, JSON lines otherwise. Prompts and answers never appear; what a client supplied is cut to
256 characters and stripped of control characters, so that a line stays a line. No call waits for a line to be written.
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import msgspec
import structlog

from gateway.call import Record
from gateway.config import LogConfig

MAX_TEXT = 256  # characters of any one value
MAX_KEPT = 1024 * 1024  # bytes of lines that a reader who is late may have before him
LAST_WORDS = 0.5  # seconds such a reader is given at the end
_CONTROL = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029, *range(0xD800, 0xE000)), " ")
_LINE_ENDS = {char: f"\\u{char:04x}" for char in (0x85, 0x2028, 0x2029)}  # for some readers; JSON allows them
_CONTROL_IN_TRACE = {char: space for char, space in _CONTROL.items() if char not in (9, 10)}

Facts = MutableMapping[str, Any]


def configure(config: LogConfig, out: TextIO = sys.stderr) -> None:
    """Send every event of ours and of the libraries to `out` in one form."""
    as_text = config.format == "text" or (config.format == "auto" and out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if as_text else "iso", utc=not as_text),
        _tame,
    ]
    last: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(), pad_event_to=14, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
        if as_text
        else structlog.processors.JSONRenderer(serializer=_json)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = _handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,  # here, so that exceptions of the libraries are text as well
                _tame_trace,
                last,
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(config.level.upper())
    for noisy in ("httpx", "asyncio", "uvicorn"):  # what they have to say, we say in our own words
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Outlet(logging.Handler):
    """Writes to a file, a pipe or a terminal, and never waits for it: no call may depend on a disk or on a reader.

    What a pipe has no room for is kept until it has, within a bound. What is beyond, or what a full disk refuses, is
    lost and counted.
    """

    def __init__(self, file: int) -> None:
        super().__init__()
        self.lost = 0  # lines
        self._file = file
        self._room = select.poll()
        self._room.register(file, select.POLLOUT)
        self._kept: deque[bytes] = deque()
        self._size = 0  # bytes kept
        self._begun = False  # some of the first that is kept is written
        self._torn = False  # what was written last ends in the middle of a line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)
            return
        if self._size + len(line) <= MAX_KEPT:
            self._kept.append(line)
            self._size += len(line)
        else:
            self.lost += 1
        self.flush()

    def flush(self) -> None:
        """Write what there is room for."""
        self.acquire()
        try:
            while self._kept and self._room.poll(0) and self._write():
                pass
        finally:
            self.release()

    def close(self) -> None:
        ends = time.monotonic() + LAST_WORDS
        while self._kept and (left := ends - time.monotonic()) > 0 and self._room.poll(left * 1000):
            self.flush()
        super().close()

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


def _handler(out: TextIO) -> logging.Handler:
    try:
        return Outlet(out.fileno())
    except io.UnsupportedOperation:  # nothing of the system's: a text in memory
        return logging.StreamHandler(out)


def _outlets() -> list[Outlet]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, Outlet)]


def catch_up() -> None:
    """Write what was kept, where there is room now."""
    for outlet in _outlets():
        outlet.flush()


def lines_lost() -> int:
    return sum(outlet.lost for outlet in _outlets())


def call_facts(record: Record, duration: float) -> dict[str, Any]:
    """The access line of one request: what was asked, who answered, how long each part took. Times in seconds."""
    facts: dict[str, Any] = {
        "id": record.request_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "seconds": round(duration, 4),
    }
    optional = {
        "route": record.route,
        "task": record.task,
        "asked": record.asked,
        "model": record.model,
        "instance": record.instance,
        "attempts": record.attempts,
        "stream": record.stream,
        "cache": record.cache,
        "substituted": record.substitution,
        "wait": round(record.waited, 4),
        "ttft": None if record.first_token is None else round(record.first_token, 4),
        "in": record.usage.input if record.usage else None,
        "out": record.usage.output if record.usage else None,
        "reason": record.reason,
    }
    return facts | {name: value for name, value in optional.items() if value}


def _tame(_: Any, __: str, event: Facts) -> Mapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = value.translate(_CONTROL)[:MAX_TEXT]
    return event


def _tame_trace(_: Any, __: str, event: Facts) -> Mapping[str, Any]:
    if "exception" in event:
        event["exception"] = event["exception"].translate(_CONTROL_IN_TRACE)
    return event


def _json(event: Mapping[str, Any], **_: Any) -> str:
    first = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return msgspec.json.encode(first | dict(event), enc_hook=str).decode().translate(_LINE_ENDS)
