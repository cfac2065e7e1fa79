"""What can go wrong, sorted by who is to blame; each error knows its status and code, never its JSON.

GatewayError
├── CallError        the client's doing    InvalidCall 400 · Unauthenticated 401 · Forbidden 403 · UnknownPath 404
│                                          UnknownModel 404 · WrongMethod 405 · BodyTooLarge 413
│                                          UnsupportedEncoding 415 · UpgradeRefused 426 · RequestTimeout 408
│                                          MalformedRequest 400 · TargetTooLong 414 · HeadTooLarge 431
│                                          UnsupportedVersion 505
├── CapacityError    nobody's: come back   LineFull 429 · LineTimeout 429 · DeadlineUnreachable 429 · NoInstance 503
│                                          ShuttingDown 503 · TooManyConnections 503
│                                          OutOfMemory 503
├── UpstreamError    an instance's doing   ConnectFailed 502 · ConnectionLost 502 · BadAnswer 502 · Refused (its status)
│                                          Exhausted 503: ours, but it ends an attempt all the same
│                                          FirstTokenTimeout 504 · IdleTimeout 504 · CallTimeout 504 · StreamBroken
└── InternalError 500                      ours: a defect, never a way to answer bad input
ClientLeft           nobody's: the client hung up; not an error anyone is told of
ConfigError          before we serve anyone

The dialect renders them (`gateway.dialects`). Messages name instances by their configured name, never by address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_ASKED_FOR = 10.0  # seconds an instance may have us wait by Retry-After; where it asks for more, the client is told


class GatewayError(Exception):
    """Something a client is told about. `reason` is the closed-set word used in metrics and logs."""

    status = 500
    code = "internal_error"
    kind = "api_error"  # the `type` of the OpenAI error object
    reason = "internal"
    retry_after: float | None = None  # seconds
    retryable: bool | None = None  # told as x-should-retry where it is known

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class CallError(GatewayError):
    """The client's doing; sending the same call again changes nothing."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"
    reason = "bad_request"
    retryable = False


class InvalidCall(CallError):
    """The body cannot be understood: `param` names the field where one is to blame."""


class Unauthenticated(CallError):
    """No key, or none that is known. Never says which."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"
    reason = "auth"


class Forbidden(CallError):
    status = 403
    code = "forbidden"
    kind = "permission_error"
    reason = "forbidden"


class UnknownPath(CallError):
    status = 404
    code = "unknown_path"
    kind = "not_found_error"
    reason = "not_found"


class UnknownModel(CallError):
    status = 404
    code = "model_not_found"
    kind = "not_found_error"
    reason = "not_found"

    def __init__(self, model: str, hint: str = "") -> None:
        super().__init__(f"model '{model}' not found{hint}", param="model")
        self.model = model


class WrongMethod(CallError):
    status = 405
    code = "method_not_allowed"
    reason = "not_found"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class MalformedRequest(CallError):
    """Not HTTP, or HTTP that two readers could take for two things."""

    code = "malformed_request"
    reason = "malformed"


class TargetTooLong(CallError):
    status = 414
    code = "target_too_long"
    reason = "malformed"


class HeadTooLarge(CallError):
    status = 431
    code = "head_too_large"
    reason = "malformed"


class UnsupportedVersion(CallError):
    status = 505
    code = "unsupported_version"
    reason = "malformed"


class RequestTimeout(CallError):
    """The request itself came too slowly."""

    status = 408
    code = "request_timeout"
    reason = "request_timeout"


class BodyTooLarge(CallError):
    status = 413
    code = "body_too_large"
    reason = "body_too_large"


class UnsupportedEncoding(CallError):
    """A Content-Encoding we do not undo."""

    status = 415
    code = "unsupported_encoding"


class UpgradeRefused(CallError):
    """A WebSocket: there are none; clients that try one first go on without."""

    status = 426
    code = "upgrade_refused"


class CapacityError(GatewayError):
    """Nobody's doing: the same call may succeed later."""

    status = 429
    code = "rate_limit_exceeded"
    kind = "rate_limit_error"
    retryable = True

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LineFull(CapacityError):
    """The line is at its bound, in calls or in bytes; the message names the setting."""

    reason = "line_full"
    code = "line_full"


class LineTimeout(CapacityError):
    """The call waited its whole allowance and no lease came free."""

    reason = "line_timeout"
    code = "line_timeout"


class DeadlineUnreachable(CapacityError):
    """The call cannot be served in the time it has; told at once rather than when that has passed."""

    reason = "deadline"
    code = "deadline_unreachable"


class TooManyConnections(CapacityError):
    """Told before a request was read."""

    status = 503
    kind = "api_error"
    code = "too_many_connections"
    reason = "connections"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=1.0)


class OutOfMemory(CapacityError):
    """The gateway itself had no memory left for the request, or no thread."""

    status = 503
    kind = "api_error"
    code = "gateway_exhausted"
    reason = "exhausted"

    def __init__(self) -> None:
        super().__init__("the gateway has no memory left for this request", retry_after=1.0)


class NoInstance(CapacityError):
    """Nothing that is healthy could ever serve this call now."""

    status = 503
    kind = "api_error"
    code = "no_instance"
    reason = "no_instance"


class NotToldYet(NoInstance):
    """Nothing can be said of this call before an instance that has just come has told its models."""


class ShuttingDown(CapacityError):
    status = 503
    kind = "api_error"
    code = "server_shutting_down"
    reason = "draining"

    def __init__(self) -> None:
        super().__init__("the gateway is shutting down", retry_after=1.0)


class UpstreamError(GatewayError):
    """An instance's doing. `sent` says whether it may have begun the work."""

    status = 502
    code = "upstream_error"
    kind = "api_error"
    reason = "upstream_error"
    sent = True
    failover = True  # another candidate may be tried while the client has heard nothing
    repeatable = True  # the same instance may do better at once
    counts = True  # against a breaker
    busy = False  # saturated, not broken
    cause = ""  # a word of ours where the instance's own tell that it is the model that fails, not the whole instance
    unloadable = False  # the model cannot be loaded there now; others may do well

    def __init__(self, instance: str, message: str) -> None:
        super().__init__(f"instance {instance}: {message}")
        self.instance = instance

    def _read(self, words: str) -> None:
        """Find the cause in the instance's own words, where they are about the model alone."""
        words = words.casefold()
        self.cause = next((cause for cause, signs in _OF_MODEL.items() if any(sign in words for sign in signs)), "")
        self.unloadable = self.cause in ("no_memory", "load_failed")
        self.repeatable = not self.unloadable


_OF_MODEL = {  # what Ollama says when it is the model that fails (ollama.md §4.1), by our word for it
    "no_memory": (
        "more system memory", "out of memory", "out-of-memory", "not enough memory", "insufficient memory",
        "cudamalloc failed", "failed to allocate", "unable to load full model",
    ),
    "load_failed": ("process has terminated", "timed out waiting for llama", "incompatible with your version of"),
    "runner_stopped": ("runner has unexpectedly stopped",),
}  # fmt: skip


class ConnectFailed(UpstreamError):
    """Refused, unreachable or too slow to accept: nothing was sent, but on a kept connection that was lost before."""

    code = "upstream_unavailable"
    reason = "connect"
    sent = False


class Exhausted(ConnectFailed):
    """The gateway itself had no file or memory left for a connection. No instance is to blame."""

    status = 503
    code = "gateway_exhausted"
    reason = "exhausted"
    retry_after = 1.0
    retryable = True
    failover = False
    counts = False

    def __init__(self, instance: str) -> None:
        words = "the gateway could not connect to an instance: it has reached its limit of open files, or of memory"
        GatewayError.__init__(self, words)
        self.instance = instance


class ConnectionLost(UpstreamError):
    """Reset or closed after the request was sent and before the reply was complete."""

    reason = "upstream_reset"


class BadAnswer(UpstreamError):
    """Bytes that are not an HTTP reply, or a reply no Ollama gives."""

    code = "bad_upstream_response"
    reason = "bad_answer"


class FirstTokenTimeout(UpstreamError):
    status = 504
    code = "first_token_timeout"
    reason = "upstream_timeout_first_token"
    repeatable = False


class IdleTimeout(UpstreamError):
    """It spoke, then fell silent for longer than the limit between two frames."""

    status = 504
    code = "idle_timeout"
    reason = "upstream_timeout_idle"


class CallTimeout(UpstreamError):
    """The whole call took longer than its limit, whoever was to blame."""

    status = 504
    code = "timeout"
    reason = "timeout"
    failover = False
    counts = False

    def __init__(self, seconds: float) -> None:
        GatewayError.__init__(self, f"the call took longer than its limit of {seconds:g} s (timeouts.total)")
        self.instance = ""


class StreamBroken(UpstreamError):
    """The stream ended without its end marker, or said in-band that it failed."""

    code = "stream_interrupted"
    reason = "stream_broken"

    def __init__(self, instance: str, message: str) -> None:
        super().__init__(instance, message)
        self._read(message)


class Refused(UpstreamError):
    """The instance answered with an error status of its own.

    Most 4xx are the client's to read: relayed once, never tried elsewhere, never counted. 401 and 403 are not: the
    gateway sends no credentials of a client, so they mean the instance is set up wrongly (ollama.md §4.5).
    """

    def __init__(
        self, instance: str, status: int, message: str, *, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(instance, message)
        self.retry_after = retry_after
        self.busy = status == 429 or (status == 503 and "busy" in message)  # saturated, not broken (ollama.md §4.1)
        self.failover = status >= 500 or status in (401, 403, 404, 408, 429)
        self.repeatable = status >= 500 or self.busy
        self.counts = status >= 500 and not self.busy
        if not self.failover:
            self.message, self.retryable = message, False
            self.kind, self.code, self.reason = "invalid_request_error", code or "invalid_request", "bad_request"
        elif status == 404:
            self.message = message
            self.kind, self.code, self.reason = "not_found_error", code or "model_not_found", "not_found"
        else:
            self.reason = "upstream_busy" if self.busy else f"upstream_{status // 100}xx"
            if self.counts:
                self._read(message)
        self.status = 502 if status in (401, 403, 408) else status


class InternalError(GatewayError):
    """A defect of ours; the log has the traceback, the client only the request id."""


class ClientLeft(Exception):
    """The client hung up. Nobody's failure; logged as 499."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration. `line` and `column` count from 1; 0 means no place in a file."""

    where: str
    message: str
    line: int = 0
    column: int = 0


class ConfigError(Exception):
    """Every problem of one configuration at once."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(self.render())

    def render(self) -> str:
        """The text a person reads: a count, then a line per problem with its place."""
        count = len(self.problems)
        head = f"{self.source} has {count} problem{'' if count == 1 else 's'}:"
        width = max((len(p.where) for p in self.problems), default=0)
        rows = [f"  {_place(p):<16}{p.where:<{width}}  {p.message}" for p in self.problems]
        return "\n".join([head, "", *rows])


def _place(problem: Problem) -> str:
    return f"line {problem.line}:{problem.column}" if problem.line else "-"
