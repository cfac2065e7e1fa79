"""A network without sockets: connections of a loop whose time is virtual, between the gateway and what plays an Ollama.

It stands where asyncio's own transports do, so that everything of ours above it is the real thing. What it says to the
gateway it says as those do: a connection is made a turn after it was asked for, and lost a turn after it was closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol

from tests.virtual import VirtualLoop

START = 1000.0  # seconds; no loop of a real machine begins at 0


class Peer(Protocol):
    """Who is at the other end."""

    def connecting(self) -> float:
        """Seconds until a new connection stands. Raises OSError where there is none."""

    def connected(self, wire: Wire) -> None: ...

    def received(self, wire: Wire, data: bytes) -> None: ...

    def gone(self, wire: Wire) -> None:
        """It was closed, by either side."""


_SILENT = socket.socketpair()  # nothing is ever there to be read


class _Socket:
    def setsockopt(self, *_: object) -> None:
        """Nothing to set."""

    def fileno(self) -> int:
        """What has something unread has been told of it already."""
        return _SILENT[0].fileno()


class Wire(asyncio.Transport):
    """One connection. The gateway has it as its transport; its peer uses `say`, `end` and `reset`."""

    def __init__(self, loop: SimulatedLoop, protocol: asyncio.Protocol, peer: Peer) -> None:
        super().__init__()
        self.used = 0  # requests that came on it
        self._loop = loop
        self._protocol = protocol
        self._peer = peer
        self._closing = False
        self._paused = False
        self._held_back: list[Callable[[], None]] = []  # while the gateway does not read

    # what the gateway does

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._loop.on_sending()
        self._loop.call_soon(self._deliver, bytes(data))

    def abort(self) -> None:
        self._lose(None)

    close = abort

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        held, self._held_back = self._held_back, []
        for act in held:
            self._loop.call_soon(self._act, act)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _Socket() if name == "socket" else default

    # what the peer does

    def say(self, data: bytes) -> None:
        self._act(lambda: self._protocol.data_received(data))

    def end(self) -> None:
        """Close it in an orderly way."""
        self._act(self._end)

    def reset(self) -> None:
        self._lose(ConnectionResetError())

    def _act(self, act: Callable[[], None]) -> None:
        if self._closing:
            return
        if self._paused:
            self._held_back.append(act)
        else:
            act()

    def _end(self) -> None:
        self._protocol.eof_received()
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, error)
            self._peer.gone(self)

    def _deliver(self, data: bytes) -> None:
        if not self._closing:
            self.used += 1
            self._peer.received(self, data)


def _nothing() -> None:
    """Nobody listens."""


class SimulatedLoop(VirtualLoop):
    """`hosts` are those that can be reached. `on_connecting`, `on_sending` and `on_failing` are called in the asyncio
    task that asks for a connection, writes to one, or is refused one.
    """

    def __init__(self) -> None:
        super().__init__(START)
        self.hosts: dict[str, Peer] = {}
        self.on_connecting: Callable[[], None] = _nothing
        self.on_sending: Callable[[], None] = _nothing
        self.on_failing: Callable[[], None] = _nothing

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int, **_: Any
    ) -> tuple[Wire, asyncio.Protocol]:
        self.on_connecting()
        peer = self.hosts[host]
        try:
            if (delay := peer.connecting()) > 0:
                await asyncio.sleep(delay)
                peer.connecting()  # is it still there?
        except OSError:
            self.on_failing()
            raise
        except asyncio.CancelledError:
            self.on_failing()
            raise
        protocol = factory()
        wire = Wire(self, protocol, peer)
        stands = self.create_future()
        self.call_soon(protocol.connection_made, wire)
        self.call_soon(_tell, stands)
        peer.connected(wire)
        try:
            await stands
        except BaseException:
            wire.close()
            raise
        return wire, protocol


def _tell(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
