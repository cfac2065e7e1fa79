"""What our own front door does with raw bytes, on a socket, before an application that writes down what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.config import ServerConfig
from gateway.errors import GatewayError
from gateway.frontdoor import Door, Protocol
from gateway.frontdoor.protocol import Reading as State
from tests.frontdoor.readers import Reading, Request
from tests.house import LIMIT

Address = tuple[str, int]


class Watched(Protocol):
    """The protocol as it is, which tells how much it has read and what became of it."""

    got = 0
    pieces = 0  # that it gave its parser, of heads and of chunks
    over = False
    problem = ""

    def _refuse(self, problem: GatewayError) -> None:
        self.problem = f"{problem.status} {problem.message}"
        super()._refuse(problem)

    def _feed_framed(self, piece: bytes) -> None:
        self.pieces += 1
        super()._feed_framed(piece)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.got += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.over = True

    def settled(self, sent: int) -> bool:
        """Whether nothing will change until more comes."""
        answered = self._cycle is None or self._cycle.complete or self._cycle is self._filling
        return self.over or ((self._deaf or self.got >= sent) and answered and not self._ahead)

    @property
    def deaf(self) -> bool:
        return self._deaf

    @property
    def end(self) -> tuple[str, str]:
        if self.problem:
            return "refused", self.problem
        if self._deaf:
            return "closed", ""
        return ("clean" if self._reading is State.NOTHING else "open"), ""


class OurDoor:
    """Ask it with `read`."""

    def __init__(self) -> None:
        self._seen: dict[Address, list[Request]] = {}
        self._protocols: dict[Address, Watched] = {}
        self.pieces = 0  # in which the last message was read

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        seen = self._seen.setdefault(scope["client"], [])
        seen.append(Request(scope["method"].encode(), target, body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def protocol(self, config: uvicorn.Config, state: ServerState, door: Door) -> Watched:
        protocol = Watched(config, state, {}, door=door)
        made = protocol.connection_made

        def connection_made(transport: asyncio.BaseTransport) -> None:
            made(transport)
            self._protocols[transport.get_extra_info("peername")] = protocol

        protocol.connection_made = connection_made  # type: ignore[method-assign]
        return protocol

    async def read(self, data: bytes, cuts: Sequence[int] = ()) -> Reading:
        """Send it on a connection of its own, in as many pieces as `cuts` make; what it was taken for."""
        reader, writer = await asyncio.open_connection(*self.address)
        here: Address = writer.get_extra_info("sockname")
        bounds = [*sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
        try:
            async with asyncio.timeout(LIMIT):
                while here not in self._protocols:
                    await asyncio.sleep(0)
                protocol = self._protocols.pop(here)
                for start, end in zip([0, *bounds], bounds, strict=False):
                    writer.write(data[start:end])
                    while not protocol.settled(end):
                        await asyncio.sleep(0)
                    if protocol.deaf:
                        break  # it listens no more
                became, why = protocol.end
                self.pieces = protocol.pieces
                if protocol.transport is not None:
                    protocol.transport.close()
                with contextlib.suppress(ConnectionError):  # what it refused is left unread
                    await reader.read()
        finally:
            writer.transport.abort()
        return Reading(tuple(self._seen.pop(here, ())), became, why)

    @property
    def address(self) -> Address:
        return self._server.sockets[0].getsockname()[:2]  # type: ignore[no-any-return]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[OurDoor]:
        limits = ServerConfig(max_connections=100_000, max_connections_per_address=100_000)
        config = uvicorn.Config(self.app, interface="asgi3", lifespan="off", log_config=None, proxy_headers=False)
        config.load()
        state = ServerState()
        door = Door(lambda: limits, lambda _: None)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(partial(self.protocol, config, state, door), "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._server.close()
            async with asyncio.timeout(LIMIT):
                while state.connections or state.tasks:
                    await asyncio.sleep(0)
