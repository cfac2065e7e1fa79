"""Read a body in any dialect once, make it a `Call`, and have it relayed. The same for every operation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from gateway.api.keys import caller
from gateway.api.presence import Crowd
from gateway.api.relay import relay_reply, relay_stream, send_body
from gateway.call import Call, Operation, Priority, Record, Wish
from gateway.config import Config
from gateway.dialects import anthropic
from gateway.dispatch import Dispatch
from gateway.engine import Engine
from gateway.errors import BodyTooLarge, ClientLeft, InvalidCall
from gateway.offload import sized
from gateway.routing import HINTS, split_alias
from gateway.wire import encoding, response_headers

INFLATES = 64  # times its size that a compressed body is taken to have
MAX_TASK = 64  # characters of a task's name

_TIMEOUT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")  # seconds

Choose = Callable[[bytes], Operation]


class Inference:
    """The ASGI endpoint of one operation, or of the few that share a path and are told apart by their body."""

    def __init__(self, engine: Engine, crowd: Crowd, choose: Choose) -> None:
        self._engine = engine
        self._crowd = crowd
        self._choose = choose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["gateway.record"]
        config = self._engine.config
        headers = _headers(scope)
        body = await read_body(headers, receive, config.server.max_body)
        operation = await sized(len(body), self._choose, body)
        record.operation, record.dialect = operation.name, operation.dialect
        wish = await sized(len(body), operation.read, body)
        record.stream, record.asked = wish.stream, wish.model
        call = _call(scope, headers, operation, wish, body, record, self._engine.route_headers, config)
        dispatch: Dispatch = self._engine.dispatch
        if wish.stream:
            await relay_stream(
                dispatch, call, record, receive=receive, send=send, crowd=self._crowd, config=config.stream
            )
        else:
            await relay_reply(dispatch, call, record, receive=receive, send=send, crowd=self._crowd)


async def read_body(headers: Mapping[str, str], receive: Receive, limit: int) -> bytes:
    """The whole body, inflated where it came compressed.

    Raises BodyTooLarge beyond `limit` bytes, before or after that, UnsupportedEncoding, InvalidCall, ClientLeft.
    """
    coding = encoding.named(headers.get("content-encoding", ""))
    declared = headers.get("content-length", "")
    too_large = f"the body is larger than {limit} bytes (server.max_body)"
    if declared.isdigit() and int(declared[:20]) > limit:
        raise BodyTooLarge(too_large)
    body = bytearray()  # not a list of pieces: a client that sends two bytes at a time would cost many times its body
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise message.get("error") or ClientLeft
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLarge(too_large)
        more = message.get("more_body", False)
    return (
        bytes(body)
        if coding is None
        else await sized(len(body) * INFLATES, encoding.inflated, bytes(body), coding, limit)
    )


class TokenCount:
    """POST /v1/messages/count_tokens: an estimate, made here and now; no instance is asked (clients.md §9 I 91)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(_headers(scope), receive, self._engine.config.server.max_body)
        told = b'{"input_tokens":%d}' % await sized(len(body), anthropic.estimated_tokens, body)
        await send_body(send, 200, told, response_headers())


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; the first of several wins."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    return headers


def _call(
    scope: Scope,
    headers: Mapping[str, str],
    operation: Operation,
    wish: Wish,
    body: bytes,
    record: Record,
    route_headers: frozenset[str],
    config: Config,
) -> Call:
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
        headers={name: headers[name] for name in route_headers if name in headers},
        conversation=next((headers[name] for name in HINTS if name in headers), ""),
        caller=caller(scope, config.server),
        priority=_priority(headers),
        deadline=_deadline(headers, wish, record.arrived),
        agent=headers.get("user-agent", ""),
        no_store="no-store" in headers.get("cache-control", ""),
        reasoning_content=config.openai.reasoning_content,
    )


def _priority(headers: Mapping[str, str]) -> Priority | None:
    """The class asked for with X-Priority, None where none is. Raises InvalidCall."""
    asked = headers.get("x-priority", "").strip().upper()
    if asked and asked not in Priority.__members__:
        raise InvalidCall(f"X-Priority must be one of {', '.join(Priority.__members__).lower()}", param="X-Priority")
    return Priority[asked] if asked else None


def _deadline(headers: Mapping[str, str], wish: Wish, arrived: float) -> float | None:
    """The loop time until which the client waits, None where it does not say. Raises InvalidCall.

    OpenAI's SDKs tell how long they wait for the next byte (clients.md §3), which counts for a whole answer only: a
    stream is kept alive.
    """
    told = headers.get("x-request-timeout")
    if told is not None:
        match = _TIMEOUT.fullmatch(told.strip())
        if match is None:
            raise InvalidCall('X-Request-Timeout must be seconds, as in "30" or "2.5"', param="X-Request-Timeout")
        return arrived + float(match[0])
    own = headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout") or ""
    match = _TIMEOUT.fullmatch(own)
    return arrived + float(match[0]) if match and not wish.stream else None


def _task(scope: Scope, headers: Mapping[str, str], alias: str, body: str) -> tuple[str, str]:
    """The task and where it was named: the first of header, path, alias, query and body (D2)."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("task", [""])[0]
    named = (
        (headers.get("x-task-type", ""), "header"),
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
