"""Probes and metrics on a port and a thread of their own, so that a busy event loop shows as what it is.

The thread has an event loop for itself. It asks the gateway's for a look at things and waits a second for it; where
none comes, /livez still answers, /readyz says that the gateway is stuck, and /metrics tells what was seen last, with
`gateway_event_loop_stall_seconds`. There are no keys here: give it an address only its watchers reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from functools import partial
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.api.relay import send_body
from gateway.config import ServerConfig
from gateway.dialects import render
from gateway.engine import Engine
from gateway.errors import UnknownPath
from gateway.frontdoor import Door, Protocol
from gateway.metrics import CONTENT_TYPE, Reading, Scrapes

PATIENCE = 1.0  # seconds to wait for the gateway's event loop
DEAD = 30.0  # seconds after which a stuck event loop is not expected to come back
PLAIN = b"text/plain; charset=utf-8"


class SideDoor:
    """`with SideDoor(engine, limits):` serves at `ops_host` and `ops_port`. Raises OSError where it cannot."""

    def __init__(self, engine: Engine, limits: ServerConfig) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._seen = Reading()
        self._scrapes = Scrapes(engine.metrics.render)
        self._socket = socket.create_server((limits.ops_host, limits.ops_port or 0), reuse_port=False)
        door = Door(lambda: limits, lambda reason: engine.metrics.refusals(reason).inc())
        config = uvicorn.Config(
            self._answer,
            http=partial(Protocol, door=door),  # type: ignore[arg-type]  # uvicorn asks for a class, and calls it
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="side door", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        name = self._socket.getsockname()
        return str(name[0]), int(name[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()

    def _run(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(self._server.serve(sockets=[self._socket]))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        pages = {"/livez": self._live, "/readyz": self._ready, "/metrics": self._metrics}
        page = pages.get(scope["path"])
        if page is None or scope["method"] not in ("GET", "HEAD"):
            error = UnknownPath("here are /livez, /readyz and /metrics, to GET")
            await send_body(send, error.status, render("openai", error, ""), [(b"content-type", b"application/json")])
            return
        status, kind, body = await page()
        await send_body(send, status, body, [(b"content-type", kind)])

    async def _live(self) -> tuple[int, bytes, bytes]:
        stall = self._engine.stall
        return (200, PLAIN, b"alive") if stall < DEAD else (503, PLAIN, b"stuck for %d s" % stall)

    async def _ready(self) -> tuple[int, bytes, bytes]:
        reading = await self._look()
        if reading is None:
            return 503, PLAIN, b"the event loop does not answer"
        problem = reading.unready
        return (503, PLAIN, problem.encode()) if problem else (200, PLAIN, b"ready")

    async def _metrics(self) -> tuple[int, bytes, bytes]:
        return 200, CONTENT_TYPE.encode(), await self._scrapes.text(time.monotonic(), self._last_seen)

    async def _last_seen(self) -> Reading:
        self._seen = await self._look() or self._seen
        return self._seen

    async def _look(self) -> Reading | None:
        """The gateway now, as its own event loop sees it; None where that has no time."""
        asked = asyncio.run_coroutine_threadsafe(self._engine.look(), self._loop)
        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.wrap_future(asked)
        except TimeoutError:
            return None
