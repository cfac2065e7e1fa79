"""Outermost: gives every request an id, finds its endpoint, turns errors into its dialect, and accounts for it once.

Whatever way a request ends, success, error or hang-up, it passes through `Guard.__call__`'s one exit.
"""

from __future__ import annotations

import asyncio
import secrets

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.relay import send_error
from gateway.api.routes import Surface
from gateway.call import Record
from gateway.errors import ClientLeft, GatewayError, InternalError
from gateway.log import call_facts
from gateway.metrics import Metrics
from gateway.wire import sane_request_id

CLIENT_LEFT = 499  # nginx's status for a client that hung up: seen in logs and metrics only


class Guard:
    """The ASGI application. `lifespan` is told to whoever starts and stops the engine."""

    def __init__(self, surface: Surface, metrics: Metrics, lifespan: ASGIApp) -> None:
        self._surface = surface
        self._metrics = metrics
        self._lifespan = lifespan
        self._log = structlog.get_logger("gateway.access")
        self.closing = False  # shutting down: connections are not kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        now = asyncio.get_running_loop().time
        record = Record(request_id=_request_id(scope), arrived=now(), method=scope["method"])
        scope["gateway.record"] = record
        answered = Answered(send, record, closing=self.closing)
        entry = None
        try:
            entry = self._surface.find(scope, record)
            self._metrics.in_flight(entry.operation).inc()
            await entry.endpoint(scope, receive, answered)
        except ClientLeft:
            record.status, record.reason = CLIENT_LEFT, "client_cancelled"
        except GatewayError as error:
            await self._refuse(answered, record, error)
        except Exception as error:  # noqa: BLE001 - the one place where a defect becomes a 500
            self._log.exception("call.defect", id=record.request_id)
            await self._refuse(answered, record, InternalError(_defect(error)))
        finally:
            if entry is not None:
                self._metrics.in_flight(entry.operation).dec()
            self._account(record, now() - record.arrived)

    async def _refuse(self, answered: Answered, record: Record, error: GatewayError) -> None:
        record.reason = error.reason
        if answered.started:
            raise error  # too late for words: the server closes the connection, so the client sees a cut answer
        await send_error(answered, record, error)

    def _account(self, record: Record, duration: float) -> None:
        self._metrics.finished(record, duration)
        if record.operation == "ops" and record.status < 400:
            return  # probes and scrapes would drown the calls
        self._log.info("call.done", **call_facts(record, duration))


class Answered:
    """`send`, which adds what every response carries and notes its status."""

    def __init__(self, send: Send, record: Record, *, closing: bool) -> None:
        self._send = send
        self._record = record
        self._closing = closing
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._record.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self._record.request_id.encode())]
            if self._closing:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)


def _request_id(scope: Scope) -> str:
    """The client's own, if it is one that can be written anywhere; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return sane_request_id(value) or secrets.token_hex(8)
    return secrets.token_hex(8)


def _defect(error: Exception) -> str:
    return f"a defect in the gateway ({type(error).__name__}); its log has the details under this request id"
