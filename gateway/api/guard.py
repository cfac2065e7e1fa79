"""Outermost: gives every request an id, finds its caller and endpoint, turns errors into its dialect, accounts for it.

Whatever way a request ends, success, error or hang-up, it passes through `Guard.__call__`'s one exit.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from urllib.parse import parse_qs

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.cors import Cors
from gateway.api.keys import Keys
from gateway.api.presence import EXTENSION, Client
from gateway.api.relay import send_error
from gateway.api.routes import Entry, Surface, locate
from gateway.call import Record
from gateway.config import Config
from gateway.errors import ClientLeft, GatewayError, InternalError, OutOfMemory, Unauthenticated, UpgradeRefused
from gateway.log import call_facts
from gateway.metrics import Metrics
from gateway.routing import BY_MODEL, BY_TASK, split_alias, stands_for
from gateway.wire import Headers, Named, ascii_value, sane_request_id

IDS_AT_ONCE = 256
_IDS = frozenset({b"x-request-id", b"x-client-request-id"})
CLIENT_LEFT = 499  # nginx's status for a client that hung up: seen in logs and metrics only


class Guard:
    """The ASGI application. `lifespan` is told to whoever starts and stops the engine.

    `config` gives the configuration in force; keys and origins follow it at the next request.
    """

    def __init__(self, surface: Surface, metrics: Metrics, lifespan: ASGIApp, config: Callable[[], Config]) -> None:
        self._surface = surface
        self._metrics = metrics
        self._lifespan = lifespan
        self._config = config
        self._use(config())
        self._log = structlog.get_logger("gateway.access").bind()  # once: it costs as much as a line
        self._ids: list[str] = []  # for requests to come
        self.closing = False  # shutting down: connections are not kept

    def _use(self, config: Config) -> None:
        self._used, self._keys, self._cors = config, Keys(config.auth), Cors(config.cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        if (config := self._config()) is not self._used:
            self._use(config)
        now = asyncio.get_running_loop().time
        noted: Named = dict(reversed(scope["headers"]))
        request_id = (None if _IDS.isdisjoint(noted) else _own_id(noted)) or (self._ids or self._drawn()).pop()
        record = Record(request_id=request_id, arrived=now(), method=scope["method"])
        scope["gateway.record"], scope["gateway.headers"], scope["gateway.config"] = record, noted, self._used
        answered = Answered(send, scope, noted, self._used, closing=self.closing)
        if b"origin" in noted:
            answered.more += self._cors.headers(noted[b"origin"])
        in_flight = None
        try:
            path = locate(scope, record)
            if scope["method"] == "OPTIONS":
                await self._preflight(answered, record, noted)
                return
            entry = self._admit(path, scope, record, noted)
            in_flight = self._metrics.in_flight(entry.operation)
            in_flight.inc()
            await entry.endpoint(scope, receive, answered)
        except ClientLeft:
            record.status, record.reason = CLIENT_LEFT, "client_cancelled"
        except GatewayError as error:
            await self._refuse(answered, record, error)
        except Exception as error:  # noqa: BLE001 - the one place where a defect becomes a 500
            if _exhausted(error):
                await self._refuse(answered, record, OutOfMemory())
                return
            self._log.exception("call.defect", id=record.request_id)
            await self._refuse(answered, record, InternalError(_defect(error)))
        finally:
            if in_flight is not None:
                in_flight.dec()
            self._account(scope, record, now() - record.arrived)

    def _drawn(self) -> list[str]:
        """New ids. Chance is asked for many at a time: it takes as long as for one."""
        drawn = os.urandom(IDS_AT_ONCE * 8).hex()
        self._ids += [drawn[at : at + 16] for at in range(0, len(drawn), 16)]
        return self._ids

    def _admit(self, path: str, scope: Scope, record: Record, noted: Named) -> Entry:
        """The entry for a request that may be made. Nothing of its body has been read. Raises CallError."""
        record.operation = "none"
        if b"upgrade" in noted and noted[b"upgrade"].lower() == b"websocket":
            raise UpgradeRefused("there are no WebSockets here: send a plain request")
        if b"origin" in noted:
            self._cors.admit(noted[b"origin"], noted.get(b"sec-fetch-site", b""))
        if self._keys.needed(scope["method"], path):
            scope["gateway.caller"] = self._keys.owner(scope["headers"], scope.get("gateway.key", ""))
        return self._surface.find(path, scope, record)

    async def _preflight(self, answered: Answered, record: Record, noted: Named) -> None:
        """OPTIONS, anywhere: a browser asks it without a key before it makes the call."""
        record.operation = "ops"
        headers: Headers = []
        if b"origin" in noted:
            asked = noted.get(b"access-control-request-headers", b"")
            private = noted.get(b"access-control-request-private-network", b"")
            headers = self._cors.preflight(noted[b"origin"], asked, private)
        await answered({"type": "http.response.start", "status": 204, "headers": headers})
        await answered({"type": "http.response.body", "body": b""})

    async def _refuse(self, answered: Answered, record: Record, error: GatewayError) -> None:
        record.reason = error.reason
        if answered.started:
            raise error  # too late for words: the server closes the connection, so the client sees a cut answer
        await send_error(answered, record, error)

    def _account(self, scope: Scope, record: Record, duration: float) -> None:
        self._metrics.finished(record, duration)
        if record.operation == "ops" and record.status < 400:
            return  # probes and scrapes would drown the calls
        facts = call_facts(record, duration)
        if "gateway.caller" in scope:
            facts["key"] = scope["gateway.caller"]
        self._log.info("call.done", **facts)


class Answered:
    """`send`, and the client beside it, which add what every response carries and note its status.

    `more` are headers known by now.
    """

    __slots__ = (
        "_client", "_config", "_noted", "_record", "_scope", "_send", "end", "more", "push", "room", "started", "watch",
        "whole_body",
    )  # fmt: skip

    def __init__(self, send: Send, scope: Scope, noted: Named, config: Config, *, closing: bool) -> None:
        self._send = send
        self._scope = scope
        self._noted = noted
        self._config = config
        self._record: Record = scope["gateway.record"]
        self.more: Headers = [(b"connection", b"close")] if closing else []
        self.started = False
        extensions = scope.get("extensions", {})
        if (client := extensions.get(EXTENSION)) is not None:
            extensions[EXTENSION] = self
            self._client: Client = client
            self.whole_body, self.push, self.end = client.whole_body, client.push, client.end
            self.watch, self.room = client.watch, client.room

    def start(self, status: int, headers: Headers) -> None:
        self._client.start(status, self._begun(status, headers))

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": self._begun(message["status"], message["headers"])}
        await self._send(message)

    def _begun(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """All headers of the response that begins with these."""
        self.started = True
        record = self._record
        record.status = status
        request_id = record.request_id.encode()
        headers = [*headers, *self.more, (b"x-request-id", request_id)]
        if record.dialect == "anthropic":
            headers.append((b"request-id", request_id))
        if status == Unauthenticated.status:
            headers.append((b"www-authenticate", b"Bearer"))
        if status == UpgradeRefused.status:
            headers.append((b"upgrade", b"HTTP/1.1"))
        if record.task and (task := task_told(self._scope, self._noted, record, self._config)):
            headers.append((b"x-gateway-task", ascii_value(task)))
        return headers


def task_told(scope: Scope, noted: Named, record: Record, config: Config) -> str:
    """The task that decided, where it was named, and who was overruled: `planning; from=header; ignored=query:x`.

    "" where no task decided. Without `from` it was named in the body, or by nobody. What names no task is `unknown`.
    """
    if not record.task or record.route == BY_MODEL:
        return ""
    query = scope.get("query_string", b"")
    sources = {
        "header": noted.get(b"x-task-type", b"").decode("latin-1"),
        "path": scope.get("gateway.task", ""),
        "alias": split_alias(stands_for(record.asked, config.aliases))[1],
        "query": parse_qs(query.decode("latin-1")).get("task", [""])[0] if b"task=" in query else "",
    }
    named = [(source, task) for source, task in sources.items() if task]
    if not named:
        by_task = record.route == BY_TASK or any(
            route.name == record.route and route.match.task is not None for route in config.routes
        )
        return record.task if by_task else ""
    known = config.all_tasks
    others = [f"{source}:{task if task in known else 'unknown'}" for source, task in named[1:] if task != record.task]
    return f"{record.task}; from={named[0][0]}" + (f"; ignored={','.join(others)}" if others else "")


def _own_id(noted: Named) -> str | None:
    """The id that the client gave to its request, if it is one that can be written anywhere."""
    own = noted.get(b"x-request-id") or noted.get(b"x-client-request-id")
    return sane_request_id(own) if own else None


def _exhausted(error: Exception) -> bool:
    """Whether it is no defect: there was no memory, or no thread could be started, for which Python has no type."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "start new thread" in str(error))


def _defect(error: Exception) -> str:
    return f"a defect in the gateway ({type(error).__name__}); its log has the details under this request id"
