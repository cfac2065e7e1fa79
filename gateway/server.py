"""uvicorn with our signals and drain.

A SIGTERM is answered as faults.md §5 describes: not ready at once, the listener stays open for `drain_delay`, streams
in progress finish within `drain_timeout`, what is left is told in-band, and the exit status is 0. Ctrl-C skips the
delay; a second signal ends the wait. SIGHUP reads the configuration anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import Any, cast

import structlog
import uvicorn

from gateway.app import App
from gateway.config import ServerConfig
from gateway.errors import ShuttingDown
from gateway.frontdoor import Door, Protocol
from gateway.sidedoor import SideDoor

LAST_WORDS = 2.0  # seconds for streams to end in-band after the drain timeout

log = structlog.get_logger("gateway.server")


class Server(uvicorn.Server):
    """One process, one gateway (D14)."""

    def __init__(self, app: App, config: ServerConfig) -> None:
        metrics = app.engine.metrics
        door = Door(lambda: app.engine.config.server, lambda reason: metrics.refusals(reason).inc())
        metrics.connections.set_function(door.__len__)
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                http=partial(Protocol, door=door),  # type: ignore[arg-type]  # uvicorn asks for a class, and calls it
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=2048,
            )
        )
        self._app = app
        self._limits = config
        self._hurry = asyncio.Event()  # a second signal: wait no longer
        self._patient = True  # SIGTERM waits for balancers to look away, Ctrl-C does not
        self.listening = asyncio.Event()
        self.side_door: SideDoor | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port in use; the port is the kernel's choice where 0 was configured."""
        name = self.servers[0].sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until a signal ends it, or `handle_exit`. Raises OSError where `ops_port` is taken."""
        with ExitStack() as stack:
            if self._limits.ops_port is not None:
                self.side_door = stack.enter_context(SideDoor(self._app.engine, self._limits))
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals over, and give them back without raising them again: a drained exit is a success."""
        loop = asyncio.get_running_loop()
        handlers: dict[int, Any] = {}
        for leave in (signal.SIGINT, signal.SIGTERM):
            handlers[leave] = signal.getsignal(leave)
            signal.signal(leave, lambda number, frame: loop.call_soon_threadsafe(self.handle_exit, number, frame))
        handlers[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._app.engine.reload))
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: begin to leave; the second time, leave."""
        if self.should_exit:
            self._hurry.set()
        self._patient = self._patient and sig == signal.SIGTERM
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, in the order of faults.md §5; bounded by the delay, the timeout and a few seconds."""
        app = self._app
        app.engine.draining = app.closing = True
        calls = len(app.crowd)
        log.info("drain.begin", calls=calls)
        if self._patient:
            await self._until_hurried(self._limits.drain_delay)
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._until_hurried(self._limits.drain_timeout, finish=True)
        cut = app.crowd.interrupt(ShuttingDown())
        await self._until_quiet(LAST_WORDS)
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            cast(Protocol, connection).abort()
        log.info("drain.end", cut=cut)

    async def _until_hurried(self, seconds: float, *, finish: bool = False) -> None:
        hurried = asyncio.create_task(self._hurry.wait(), name="second signal")
        quiet = asyncio.create_task(self._until_quiet(seconds) if finish else asyncio.sleep(seconds), name="drain")
        await asyncio.wait((hurried, quiet), return_when=asyncio.FIRST_COMPLETED)
        for task in (hurried, quiet):
            task.cancel()

    async def _until_quiet(self, seconds: float) -> None:
        """Until no request is in progress, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while tasks := set(self.server_state.tasks):
                    await asyncio.wait(tasks)
