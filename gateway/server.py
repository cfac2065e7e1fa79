"""uvicorn with our signals and drain, and with errors in our words where a request is no HTTP.

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
from types import FrameType
from typing import Any, cast

import httptools
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.app import App
from gateway.config import ServerConfig
from gateway.dialects import render
from gateway.errors import InvalidCall, ShuttingDown

LAST_WORDS = 2.0  # seconds for streams to end in-band after the drain timeout

log = structlog.get_logger("gateway.server")


class Patient:
    """The transport of a connection's last request: it is not closed while the client still sends.

    Closing then would reset the connection, and the client might never read why it was refused. What still comes is
    thrown away; the protocol closes at its end, or after the idle limit.
    """

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self.write, self.is_closing = transport.write, transport.is_closing

    def close(self) -> None:
        if not self._cycle.more_body:
            self._transport.close()


class Protocol(HttpToolsProtocol):
    """uvicorn's own, but for what it says to a request that is no HTTP, and what it makes of an offer of HTTP/2."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as stopped:
            if self._offered():
                self._read_on(data[stopped.args[0] :])

    def on_headers_complete(self) -> None:
        if self._offered():
            return
        super().on_headers_complete()
        if not self.cycle.keep_alive:
            self.cycle.transport = cast(asyncio.Transport, Patient(self.transport, self.cycle))

    def on_message_complete(self) -> None:
        if self._offered():
            return
        super().on_message_complete()
        if self.cycle.response_complete and not self.cycle.keep_alive:
            self.transport.close()

    def _offered(self) -> bool:
        """Whether the request offers another protocol than a WebSocket's: the parser then skips its body."""
        return self.parser.should_upgrade() and self._get_upgrade() not in (None, b"websocket")

    def _read_on(self, rest: bytes) -> None:
        """Read the request once more, without its offer: nobody has to accept one (clients.md §9 A 13)."""
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"connection")]
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url), *(b"%b: %b" % header for header in kept)]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", b""]) + rest)

    def send_400_response(self, msg: str) -> None:
        body = render("openai", InvalidCall("this is not a valid HTTP request"), "")
        head = (b"content-type: application/json", f"content-length: {len(body)}".encode(), b"connection: close")
        self.transport.write(STATUS_LINE[400] + b"\r\n".join(head) + b"\r\n\r\n" + body)
        self.transport.close()


class Server(uvicorn.Server):
    """One process, one gateway (D14)."""

    def __init__(self, app: App, config: ServerConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(config.keep_alive),
                backlog=2048,
            )
        )
        self._app = app
        self._limits = config
        self._hurry = asyncio.Event()  # a second signal: wait no longer
        self._patient = True  # SIGTERM waits for balancers to look away, Ctrl-C does not
        self.listening = asyncio.Event()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port in use; the port is the kernel's choice where 0 was configured."""
        name = self.servers[0].sockets[0].getsockname()
        return str(name[0]), int(name[1])

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
            connection.transport.abort()
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
