"""How the gateway speaks to its operator: events and their facts, one line per call and one per change.

Readable text on a terminal, JSON lines otherwise. Prompts and answers never appear; what a client supplied is cut to
256 characters and stripped of control characters, so that a line stays a line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import msgspec
import structlog

from gateway.call import Record
from gateway.config import LogConfig

MAX_TEXT = 256  # characters of any one value
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
    handler = logging.StreamHandler(out)
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
