"""uvicorn with our signals and drain.

A SIGTERM is answered as faults.md §5 describes: not ready at once, the listener stays open for `drain_delay`, streams
in progress finish within `drain_timeout`, what is left is told in-band, and the exit status is 0. Ctrl-C skips the
delay; a second signal ends the wait. SIGHUP reads the configuration anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Coroutine, Iterator
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
SPREAD = 2.0  # seconds at most over which idle connections are closed, so that not all clients come back at once
PER_CONNECTION = 0.01  # seconds: with few of them it takes less
BACKLOG = 2048  # connections that the kernel holds until they are taken
DOORS = 8  # connections taken each time around the loop; each that finds nobody there costs 3 us

log = structlog.get_logger("gateway.server")


class Server(uvicorn.Server):
    """One process, one gateway (D14)."""

    def __init__(self, app: App, config: ServerConfig) -> None:
        metrics = app.engine.metrics
        door = Door(lambda: app.engine.config.server, lambda reason: metrics.refusals(reason).inc())
        metrics.connections.set_function(door.__len__)
        self._protocol = partial(Protocol, door=door)
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                http=self._protocol,  # type: ignore[arg-type]  # uvicorn asks for a class, and calls it
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
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
            await self._open_doors()
            self.listening.set()

    async def _open_doors(self) -> None:
        """Take more than one connection each time around.

        asyncio takes all that wait; uvloop one for each descriptor it listens on (libuv/libuv#3696). While calls keep
        the loop busy, newcomers would wait for a turn each, in the kernel's queue, where nobody sees them. So it gets
        the same socket several times. (To accept them here costs more: an asyncio task for each connection.)
        """
        loop = asyncio.get_running_loop()
        if isinstance(loop, asyncio.BaseEventLoop):
            return
        for listener in [listener for server in self.servers for listener in server.sockets]:
            for _ in range(DOORS - 1):
                door = socket.socket(fileno=os.dup(listener.fileno()))
                self.servers.append(await loop.create_server(self._connection, sock=door, backlog=BACKLOG))

    def _connection(self) -> asyncio.Protocol:
        return self._protocol(self.config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals over, and give them back without raising them again: a drained exit is a success."""
        loop = asyncio.get_running_loop()
        handlers: dict[int, Any] = {}
        for leave in (signal.SIGINT, signal.SIGTERM):
            handlers[leave] = signal.getsignal(leave)
            signal.signal(leave, lambda number, frame: loop.call_soon_threadsafe(self.handle_exit, number, frame))
        handlers[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._app.engine.reload_soon))
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
        self.should_exit = self._app.engine.draining = self._app.closing = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, in the order of faults.md §5; bounded by the delay, the timeout and a few seconds."""
        app = self._app
        log.info("drain.begin", calls=len(app.crowd))
        if self._patient:
            await self._unless_hurried(asyncio.sleep(self._limits.drain_delay))
        for server in self.servers:
            server.close()
        await self._unless_hurried(self._finish(), self._limits.drain_timeout)
        cut = app.crowd.interrupt(ShuttingDown())
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._until_gone()
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            cast(Protocol, connection).abort()
        log.info("drain.end", cut=cut)

    async def _finish(self) -> None:
        """Let what is under way end, and what is idle go."""
        connections = cast(set[Protocol], set(self.server_state.connections))
        idle = [one for one in connections if one.idle]
        for connection in connections.difference(idle):
            connection.shutdown()  # after its answer
        pause = min(PER_CONNECTION, SPREAD / max(1, len(idle))) if self._patient else 0.0
        for connection in idle:
            await asyncio.sleep(pause)
            connection.shutdown()
        await self._until_gone()

    async def _until_gone(self) -> None:
        """Until no request is in progress, and what was answered has been sent."""
        state = self.server_state
        while state.tasks or state.connections:
            if state.tasks:
                await asyncio.wait(set(state.tasks))
                continue
            for connection in list(state.connections):  # one may have come in while the door was closed
                connection.shutdown()
            await asyncio.sleep(0.005)  # nobody tells of the end of a connection

    async def _unless_hurried(self, work: Coroutine[None, None, None], seconds: float | None = None) -> None:
        """Do `work`, for at most so many seconds and until a second signal."""
        working = asyncio.create_task(work, name="drain")
        hurried = asyncio.create_task(self._hurry.wait(), name="second signal")
        await asyncio.wait((working, hurried), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (working, hurried):
            task.cancel()
