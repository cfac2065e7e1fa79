"""Read a body in any dialect once, make it a `Call`, and have it relayed. The same for every operation."""

from __future__ import annotations

import re
from io import BytesIO
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from gateway.api.keys import caller
from gateway.api.presence import Crowd, Stay, client_of
from gateway.api.relay import relay_reply, relay_stream, send_body
from gateway.api.routes import Choose
from gateway.call import Call, Operation, Priority, Record, Wish
from gateway.config import Config
from gateway.dialects import anthropic
from gateway.dispatch import Dispatch
from gateway.engine import Engine
from gateway.errors import BodyTooLarge, ClientLeft, InvalidCall, LineFull
from gateway.offload import sized
from gateway.routing import HINTS, split_alias
from gateway.wire import Named, encoding, response_headers

INFLATES = 64  # times its size that a compressed body is taken to have
MAX_TASK = 64  # characters of a task's name

_TIMEOUT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")  # seconds

_LIMITS = frozenset({b"x-request-timeout", b"x-stainless-read-timeout", b"x-stainless-timeout"})
_HINTS = frozenset(HINTS)


class Inference:
    """The ASGI endpoint of one operation, or of the few that share a path and are told apart by their body."""

    def __init__(self, engine: Engine, crowd: Crowd, intake: Intake, operation: Operation | Choose) -> None:
        self._engine = engine
        self._crowd = crowd
        self._intake = intake
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["gateway.record"]
        config: Config = scope["gateway.config"]
        body = await self._intake.read(scope, receive)
        operation = self._operation
        if callable(operation):
            operation = await sized(len(body), operation, body)
        record.operation, record.dialect = operation.name, operation.dialect
        wish = await sized(len(body), operation.read, body)
        record.stream, record.asked = wish.stream, wish.model
        call = _call(scope, operation, wish, body, record, self._engine.route_headers, config)
        dispatch: Dispatch = self._engine.dispatch
        client = client_of(scope)
        if wish.stream:
            await relay_stream(
                dispatch, call, record, client=client, send=send, crowd=self._crowd, config=config.stream
            )
        else:
            await relay_reply(dispatch, call, record, client=client, crowd=self._crowd)


class Intake:
    """Reads bodies. Each has a bound, all on their way in have one together, and a shutdown ends those that dawdle."""

    def __init__(self, engine: Engine, crowd: Crowd) -> None:
        self._engine = engine
        self._crowd = crowd
        self.held = 0  # bytes of bodies that are not complete yet

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, inflated where it came compressed; the same one when it is asked for again.

        Raises BodyTooLarge beyond `server.max_body`, before or after that, UnsupportedEncoding, InvalidCall, LineFull,
        ClientLeft, ShuttingDown.
        """
        body: bytes | None = scope.get("gateway.body")
        if body is not None:
            return body
        headers: Named = scope["gateway.headers"]
        config: Config = scope["gateway.config"]
        limit = config.server.max_body
        coding = encoding.named(named.decode("latin-1")) if (named := headers.get(b"content-encoding")) else None
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)
        body = client_of(scope).whole_body()
        if body is None:
            body = await self._pieces(receive, limit)
        elif len(body) > limit:
            raise _too_large(limit)
        if coding is not None:
            body = await sized(len(body) * INFLATES, encoding.inflated, body, coding, limit)
        scope["gateway.body"] = body
        return body

    async def _pieces(self, receive: Receive, limit: int) -> bytes:
        body = BytesIO()  # whose value is no copy; a list of pieces, of two bytes each, would cost many times the body
        size, more = 0, True  # counted here: one that finds no memory to grow does not even know its size any more
        try:
            with Stay(self._crowd):
                while more:
                    piece, more = await _next(receive)
                    size += len(piece)
                    self.held += len(piece)
                    self._check(size, limit, more=more)
                    body.write(piece)
        finally:
            self.held -= size
        return body.getvalue()

    def _check(self, size: int, limit: int, *, more: bool) -> None:
        """Whether a body of which so much has come may go on."""
        if size > limit:
            raise _too_large(limit)
        most = self._engine.config.line.max_bytes
        if more and self.held > most and self.held > size:  # whole, the line's own bounds hold; alone, only its own
            words = f"bodies that are on their way in may hold at most {most} bytes (line.max_bytes)"
            raise LineFull(words, retry_after=1.0)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    """A piece of a body, and whether there is more to come."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise message.get("error") or ClientLeft
    return message.get("body", b""), message.get("more_body", False)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes (server.max_body)")


class TokenCount:
    """POST /v1/messages/count_tokens: an estimate, made here and now; no instance is asked (clients.md §9 I 91)."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._intake.read(scope, receive)
        told = b'{"input_tokens":%d}' % await sized(len(body), anthropic.estimated_tokens, body)
        await send_body(send, 200, told, response_headers())


def _call(
    scope: Scope,
    operation: Operation,
    wish: Wish,
    body: bytes,
    record: Record,
    route_headers: frozenset[str],
    config: Config,
) -> Call:
    headers: Named = scope["gateway.headers"]
    model, alias_task = split_alias(wish.model)
    task, source = _task(scope, headers, alias_task, wish.task)
    return Call(
        request_id=record.request_id,
        operation=operation,
        wish=wish,
        body=body,
        arrived=record.arrived,
        task=task,
        task_from=source,
        model=model,
        headers=_looked_at(headers, route_headers) if route_headers else {},
        conversation="" if _HINTS.isdisjoint(headers) else _conversation(headers),
        caller=caller(scope, config.server),
        priority=_priority(headers) if b"x-priority" in headers else None,
        deadline=None if _LIMITS.isdisjoint(headers) else _deadline(headers, wish, record.arrived),
        agent=headers.get(b"user-agent", b"").decode("latin-1"),
        trace=headers.get(b"traceparent", b"").decode("latin-1"),
        no_store=b"cache-control" in headers and b"no-store" in headers[b"cache-control"],
        reasoning_content=config.openai.reasoning_content,
    )


def _looked_at(headers: Named, by_routes: frozenset[str]) -> dict[str, str]:
    return {name: text for name in by_routes if (text := _text(headers, name.encode()))}


def _conversation(headers: Named) -> str:
    return next(_text(headers, name) for name in HINTS if name in headers)


def _text(headers: Named, name: bytes) -> str:
    """The value of a header, "" where there is none."""
    return headers[name].decode("latin-1") if name in headers else ""


def _priority(headers: Named) -> Priority | None:
    """The class asked for with X-Priority, None where none is. Raises InvalidCall."""
    asked = _text(headers, b"x-priority").strip().upper()
    if asked and asked not in Priority.__members__:
        raise InvalidCall(f"X-Priority must be one of {', '.join(Priority.__members__).lower()}", param="X-Priority")
    return Priority[asked] if asked else None


def _deadline(headers: Named, wish: Wish, arrived: float) -> float | None:
    """The loop time until which the client waits, None where it does not say. Raises InvalidCall.

    OpenAI's SDKs tell how long they wait for the next byte (clients.md §3), which counts for a whole answer only: a
    stream is kept alive.
    """
    if b"x-request-timeout" in headers:
        match = _TIMEOUT.fullmatch(_text(headers, b"x-request-timeout").strip())
        if match is None:
            raise InvalidCall('X-Request-Timeout must be seconds, as in "30" or "2.5"', param="X-Request-Timeout")
        return arrived + float(match[0])
    own = _text(headers, b"x-stainless-read-timeout") or _text(headers, b"x-stainless-timeout")
    match = _TIMEOUT.fullmatch(own) if own and not wish.stream else None
    return arrived + float(match[0]) if match else None


def _task(scope: Scope, headers: Named, alias: str, body: str) -> tuple[str, str]:
    """The task and where it was named: the first of header, path, alias, query and body (D2)."""
    asked = scope.get("query_string", b"")
    query = parse_qs(asked.decode("latin-1")).get("task", [""])[0] if asked else ""
    named = (
        (_text(headers, b"x-task-type"), "header"),
        (scope.get("gateway.task", ""), "path"),
        (alias, "alias"),
        (query, "query"),
        (body, "body"),
    )
    for task, source in named:
        if task:
            if len(task) > MAX_TASK:
                raise InvalidCall("the task's name is too long", param="task_type")
            return task, source
    return "", ""
