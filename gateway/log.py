"""How the gateway speaks to its operator: events and their facts, one line per call and one per change.

Readable text on a terminal, JSON lines otherwise. Prompts and answers never appear; what a client supplied is cut to
256 characters and stripped of control characters, so that a line stays a line. Where lines go: `gateway.outlet`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, TextIO

import msgspec
import structlog

from gateway.call import Record
from gateway.config import LogConfig
from gateway.outlet import Handler, outlet_for

MAX_TEXT = 256  # characters of any one value
_LEVELS = ("debug", "info", "warning", "error", "critical")
_TOLD = (
    "route",
    "task",
    "asked",
    "model",
    "instance",
    "attempts",
    "stream",
    "cache",
)  # where there is any
_BACKSLASH, _DELETE = ord("\\"), 0x7F
_CONTROL = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029, *range(0xD800, 0xE000)), " ")
_LINE_ENDS = {char: f"\\u{char:04x}" for char in (0x85, 0x2028, 0x2029)}  # for some readers; JSON allows them
_CONTROL_IN_TRACE = {char: space for char, space in _CONTROL.items() if char not in (9, 10)}

Facts = MutableMapping[str, Any]


def configure(config: LogConfig, out: TextIO = sys.stderr) -> None:
    """Send every event of ours and of the libraries to `out` in one form.

    Ours go there straight from structlog: through the standard library's records each would cost five times as much.
    """
    outlet = outlet_for(out)
    as_text = config.format == "text" or (config.format == "auto" and out.isatty())
    level = logging.getLevelNamesMapping()[config.level.upper()]
    chain = _for_people(out) if as_text else [_json]
    ours = SimpleNamespace(**dict.fromkeys(_LEVELS, outlet.write))
    structlog.configure(
        processors=chain,
        logger_factory=lambda *_: ours,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = Handler(outlet)
    unmarked = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[unmarked, *chain]))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "asyncio", "uvicorn"):  # what they have to say, we say in our own words
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _for_people(out: TextIO) -> list[structlog.typing.Processor]:
    return [
        _told_in_full,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        _tame,
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(), pad_event_to=14, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


def call_facts(record: Record, duration: float) -> dict[str, Any]:
    """The access line of one request: what was asked, who answered, how long each part took. Times in seconds."""
    facts: dict[str, Any] = {
        "id": record.request_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "seconds": _rounded(duration),
    }
    for name in _TOLD:
        if value := getattr(record, name):
            facts[name] = value
    if record.substitution:
        facts["substituted"] = record.substitution
    if record.waited and (waited := _rounded(record.waited)):
        facts["wait"] = waited
    if record.first_token and (first_token := _rounded(record.first_token)):
        facts["ttft"] = first_token
    read, written = record.usage or (0, 0)
    if read:
        facts["in"] = read
    if written:
        facts["out"] = written
    if record.reason:
        facts["reason"] = record.reason
    return facts


def _rounded(seconds: float) -> float:
    """To four digits. `round` writes the number out and reads it again."""
    return int(seconds * 10_000 + 0.5) / 10_000


def _tame(_: Any, __: str, event: Facts) -> Facts:
    for name, value in event.items():
        if isinstance(value, str) and name != "exception":
            event[name] = _tamed(value)
    return event


def _tamed(text: str) -> str:
    return (text if text.isprintable() else text.translate(_CONTROL))[:MAX_TEXT]


def _told_in_full(logger: Any, level: str, event: Facts) -> Facts:
    """With the traceback where there is an exception."""
    event = structlog.processors.format_exc_info(logger, level, event)
    if "exception" in event:
        event["exception"] = event["exception"].translate(_CONTROL_IN_TRACE)
    return event


def _is_tame(line: bytes, event: Facts) -> bool:
    """Whether nothing in it had to be escaped, and no value is too long: so it is with nearly every line."""
    if not line.isascii() or _BACKSLASH in line or _DELETE in line:
        return False
    for value in event.values():  # noqa: SIM110 - a generator takes twice as long
        if isinstance(value, str) and len(value) > MAX_TEXT:
            return False
    return True


def _json(logger: Any, level: str, event: Facts) -> str:
    if "exc_info" in event:
        event = _told_in_full(logger, level, event)
    line: Facts = {"timestamp": datetime.now(UTC), "level": level, "event": "", **event}
    try:
        data = _ENCODER.encode(line)
        if _is_tame(data, event):
            return data.decode("ascii")
    except UnicodeEncodeError:
        pass  # there is something to tame
    text = _ENCODER.encode(_tame(logger, level, line)).decode()
    return text if text.isascii() else text.translate(_LINE_ENDS)


_ENCODER = msgspec.json.Encoder(enc_hook=str)
