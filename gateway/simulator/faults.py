"""How to misbehave: the armed faults, and what each kind does to an answer.

`Faults` is a first-in, first-out list; a fault is used up by the requests it applies to. A kind acts in one of three
places, each a table or a check of its own: instead of an answer (`INSTEAD`), at a point of it (`DURING`), or around a
whole one (in `Exchange` itself).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from gateway.simulator.behaviour import model_key
from gateway.simulator.shapes import JSON, TEXT, error_body

if TYPE_CHECKING:
    from gateway.simulator.connection import Exchange

MAX_ARMED = 1_000


class Kind(StrEnum):
    """Every way to misbehave. Instead of an answer, then at a point of the answer, then around a whole answer."""

    REFUSE = "refuse"  # nobody listens: connects get ECONNREFUSED until cleared or `seconds` have passed
    DROP = "drop"  # accept, then close; with a path or model: close when such a request has come
    STATUS = "status"  # `status` with `text` as the error; an empty text means an empty body
    REDIRECT = "redirect"  # 302 to `text`
    GARBAGE = "garbage"  # `text` as raw bytes (latin-1) instead of HTTP, then close
    ENDLESS_HEADERS = "endless_headers"  # a head that never ends

    HANG_BEFORE_HEADERS = "hang_before_headers"
    HANG_BEFORE_FIRST_TOKEN = "hang_before_first_token"  # noqa: S105  the head, on /v1 the role, then silence
    HANG_MID_STREAM = "hang_mid_stream"  # silence after `after` frames
    CUT = "cut"  # FIN after `after` frames, no end marker
    RESET = "reset"  # RST after `after` frames; 0 = before the head
    ERROR_IN_BAND = "error_in_band"  # an error frame with `text`, then a clean end
    SWALLOWED_ERROR = "swallowed_error"  # /v1: a chunk with model "", then the end; native: just the end
    BAD_FRAME = "bad_frame"  # one frame that is no JSON; the answer goes on
    ENDLESS_FRAME = "endless_frame"  # a frame that never ends

    EXTRA_FRAMES = "extra_frames"  # the end marker twice, with a frame between
    EXTRA_BYTES = "extra_bytes"  # `text` after a complete answer
    SHORT_LENGTH = "short_length"  # fewer bytes than announced, then close
    SLOW = "slow"  # the whole answer byte by byte, `seconds` apart
    CLOSE_IDLE = "close_idle"  # close after the answer without having said so


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One armed misbehaviour. It applies to requests below `path`, for `model`, and there to every `every`-th."""

    kind: Kind
    times: int | None = 1  # how many requests it applies to; None = until cleared
    path: str = ""  # prefix; "" = any
    model: str = ""
    every: int = 1
    after: int = 0  # frames sent before it happens
    status: int = 500
    text: str = "simulated failure"
    retry_after: float | None = None  # seconds, told with `status`
    seconds: float = 0.0  # how long to refuse, 0 = until cleared; how slow to drip

    def __post_init__(self) -> None:
        if self.every < 1 or self.after < 0 or self.seconds < 0 or (self.times is not None and self.times < 1):
            raise ValueError("every and times must be 1 or more, after and seconds 0 or more")
        if not 200 <= self.status <= 599:
            raise ValueError("status must be between 200 and 599")
        if self.kind is Kind.REDIRECT and ("\r" in self.text or "\n" in self.text):
            raise ValueError("the address of a redirect must be one line")


# ollama.md §4.1: the texts a gateway may have to tell apart. A preset is a fault's name with some fields filled in.
PRESETS: Mapping[str, Mapping[str, object]] = {
    "busy": {"status": 503, "text": "server busy, please try again.  maximum pending requests exceeded"},
    "out_of_memory": {"text": "model requires more system memory (24.0 GiB) than is available (7.5 GiB)"},
    "full_gpu": {"text": "unable to load full model on GPU"},
    "startup_oom": {"text": "llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory"},
    "terminated": {"text": "llama-server process has terminated: exit status 2"},
    "load_timeout": {"text": "timed out waiting for llama-server to start: context deadline exceeded"},
    "runner_stopped": {
        "text": "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error,"
        " check ollama server logs for details"
    },
    "model_not_found": {"status": 404, "text": "model 'x' not found"},
    "rate_limited": {"status": 429, "text": "too many requests", "retry_after": 2.0},
    "forbidden": {"status": 403, "text": ""},
}


@dataclass(slots=True)
class _Armed:
    fault: Fault
    left: int | None
    seen: int = 0


@dataclass(slots=True)
class Faults:
    """The armed faults, oldest first. Every change is told to `changed`."""

    changed: Callable[[], None]
    _armed: list[_Armed] = field(default_factory=list)

    def arm(self, what: str, **details: object) -> Fault:
        """Arm a kind (`cut`) or a preset (`busy`) with a `Fault`'s fields. Raises ValueError for anything unknown."""
        preset = PRESETS.get(what)
        named = {"kind": what} if preset is None else {"kind": Kind.STATUS, **preset}
        unknown = sorted(set(details) - set(Fault.__slots__))
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}; there are {', '.join(Fault.__slots__)}")
        if preset is None and what not in set(Kind):
            raise ValueError(f"unknown kind {what!r}; there are {', '.join([*Kind, *PRESETS])}")
        return self.add(msgspec.convert({**named, **details}, Fault))

    def add(self, fault: Fault) -> Fault:
        """Arm a fault behind the others. Raises ValueError when too many are armed."""
        if len(self._armed) >= MAX_ARMED:
            raise ValueError(f"{MAX_ARMED} faults are armed already")
        self._armed.append(_Armed(fault, fault.times))
        self.changed()
        return fault

    def clear(self) -> None:
        """Disarm everything; whoever hangs already goes on hanging."""
        self._armed.clear()
        self.changed()

    @property
    def armed(self) -> tuple[Fault, ...]:
        """Those not used up yet."""
        return tuple(entry.fault for entry in self._armed)

    @property
    def refusing(self) -> Fault | None:
        """The fault that keeps the door shut."""
        return next((entry.fault for entry in self._armed if entry.fault.kind is Kind.REFUSE), None)

    def remove(self, fault: Fault) -> None:
        """Disarm one fault; nothing happens if it is gone."""
        kept = [entry for entry in self._armed if entry.fault is not fault]
        if len(kept) != len(self._armed):
            self._armed = kept
            self.changed()

    def at_accept(self) -> bool:
        """Whether a new connection is to be dropped."""
        return bool(self._armed) and self._take(_drops_at_accept) is not None

    def at_request(self, path: str, model: str) -> Fault | None:
        """The first armed fault that applies to this request, used up once."""
        if not self._armed:
            return None
        key = model_key(model) if model else ""

        def applies(fault: Fault) -> bool:
            if fault.kind is Kind.REFUSE or _drops_at_accept(fault):
                return False
            return path.startswith(fault.path) and (not fault.model or model_key(fault.model) == key)

        return self._take(applies)

    def _take(self, applies: Callable[[Fault], bool]) -> Fault | None:
        for entry in self._armed:
            if not applies(entry.fault):
                continue
            entry.seen += 1
            if entry.seen % entry.fault.every:
                continue
            if entry.left is not None:
                entry.left -= 1
                if not entry.left:
                    self._armed.remove(entry)
            return entry.fault
        return None


def _drops_at_accept(fault: Fault) -> bool:
    return fault.kind is Kind.DROP and not fault.path and not fault.model


# Faults, one short function each. First those that take the place of an answer.


def _drop(exchange: Exchange, fault: Fault) -> None:
    exchange.close()


def _status(exchange: Exchange, fault: Fault) -> None:
    more = b"" if fault.retry_after is None else b"Retry-After: %d\r\n" % round(fault.retry_after)
    body = error_body(exchange.seen.path, fault.status, fault.text) if fault.text else b""
    exchange.send(fault.status, body, JSON, more)


def _redirect(exchange: Exchange, fault: Fault) -> None:
    exchange.send(302, b"", TEXT, b"Location: %b\r\n" % fault.text.encode("latin-1", "replace"))


def _garbage(exchange: Exchange, fault: Fault) -> None:
    exchange.raw(fault.text.encode("latin-1", "replace"))
    exchange.close()


def _endless_headers(exchange: Exchange, fault: Fault) -> None:
    exchange.raw(b"HTTP/1.1 200 OK\r\n")
    exchange.pump(b"X-Filler: %b\r\n" % (b"x" * 4_000))


INSTEAD: dict[Kind, Callable[[Exchange, Fault], None]] = {
    Kind.DROP: _drop,
    Kind.STATUS: _status,
    Kind.REDIRECT: _redirect,
    Kind.GARBAGE: _garbage,
    Kind.ENDLESS_HEADERS: _endless_headers,
}

# Then those that happen at a point of an answer: before the next frame, or before a whole `body`. True: it goes on.


def _hang(exchange: Exchange, fault: Fault, body: bytes | None) -> bool:
    if fault.kind is Kind.HANG_BEFORE_HEADERS:
        return False
    if body is not None:
        exchange.half(body if fault.kind is Kind.HANG_MID_STREAM else b" ")
        return False
    if exchange.voice is not None:
        exchange.open(exchange.voice.stream_type)
        if fault.kind is Kind.HANG_BEFORE_FIRST_TOKEN and (opening := exchange.voice.opening()):
            exchange.frame(opening)
    exchange.flush()
    return False


def _cut(exchange: Exchange, fault: Fault, body: bytes | None) -> bool:
    _begin(exchange, body)
    exchange.close()
    return False


def _rst(exchange: Exchange, fault: Fault, body: bytes | None) -> bool:
    if fault.after:
        _begin(exchange, body)
    exchange.reset()
    return False


def _begin(exchange: Exchange, body: bytes | None) -> None:
    if body is not None:
        exchange.half(body)
    elif exchange.voice is not None:
        exchange.open(exchange.voice.stream_type)
        exchange.flush()


def _error_in_band(exchange: Exchange, fault: Fault, body: bytes | None) -> bool:
    if body is not None or exchange.voice is None:  # a whole answer gets the real status (ollama.md §4.4)
        exchange.send(500, error_body(exchange.seen.path, 500, fault.text))
    else:
        exchange.open(exchange.voice.stream_type)
        exchange.end([exchange.voice.error(fault.text)])
    return False


def _swallowed_error(exchange: Exchange, fault: Fault, body: bytes | None) -> bool:
    if body is not None or exchange.voice is None:  # the answer itself says no reason; see `Generation`
        return True
    exchange.open(exchange.voice.stream_type)
    exchange.end([frame for frame in [exchange.voice.swallowed()] if frame])
    return False


def _bad_frame(exchange: Exchange, fault: Fault, body: bytes | None) -> bool:
    if body is not None or exchange.voice is None:
        exchange.send(200, (body or b"")[:-2])
        return False
    exchange.open(exchange.voice.stream_type)
    exchange.frame(b"data: {]\n\n" if exchange.seen.path.startswith("/v1") else b"{]\n")
    return True


def _endless_frame(exchange: Exchange, fault: Fault, body: bytes | None) -> bool:
    kind = exchange.voice.stream_type if body is None and exchange.voice is not None else JSON
    exchange.open(kind)
    exchange.flush()
    exchange.pump(b"2000\r\n%b\r\n" % (b"x" * 0x2000))
    return False


DURING: dict[Kind, Callable[[Exchange, Fault, bytes | None], bool]] = {
    Kind.HANG_BEFORE_HEADERS: _hang,
    Kind.HANG_BEFORE_FIRST_TOKEN: _hang,
    Kind.HANG_MID_STREAM: _hang,
    Kind.CUT: _cut,
    Kind.RESET: _rst,
    Kind.ERROR_IN_BAND: _error_in_band,
    Kind.SWALLOWED_ERROR: _swallowed_error,
    Kind.BAD_FRAME: _bad_frame,
    Kind.ENDLESS_FRAME: _endless_frame,
}
