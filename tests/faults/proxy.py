"""A bad line between the gateway and an instance: a TCP proxy that slows, cuts, resets and swallows what passes.

    async with Proxy(simulator.host, simulator.port) as proxy:
        proxy.downstream = Reset(after=100)  # of what the instance says 100 bytes come through, then RST
        proxy.upstream = Flow(piece=1)  # what the gateway says comes in single bytes

Each direction has one flow and may be given another at any time; it counts bytes from then on, on each connection by
itself. The door is open at first: `refuse` shuts it, `ignore` lets connections wait for ever, `listen` opens it again.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

READ = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Flow:
    """How bytes pass in one direction."""

    piece: int = READ  # bytes at most that arrive at a time
    latency: float = 0.0  # seconds before each piece
    rate: float = math.inf  # bytes per second


@dataclass(frozen=True, kw_only=True)
class Ending(Flow):
    """After `after` bytes, or with the first one where that is 0, something happens; `times` in all, None is always."""

    after: int = 0
    times: int | None = None

    async def strike(self, way: Way) -> None:
        """What happens. The direction is over when it returns."""
        raise NotImplementedError


class Cut(Ending):
    """FIN to both sides: whoever listened got less than it was promised."""

    async def strike(self, way: Way) -> None:
        await way.part()


class Reset(Ending):
    """RST to both sides."""

    async def strike(self, way: Way) -> None:
        way.reset()


class HalfClose(Ending):
    """FIN in this direction; the other goes on."""

    async def strike(self, way: Way) -> None:
        way.writer.write_eof()
        await way.swallow()


class BlackHole(Ending):
    """The rest is taken and never arrives, nor does its end."""

    async def strike(self, way: Way) -> None:
        await way.swallow()


@dataclass(frozen=True, kw_only=True)
class Say(Ending):
    """These bytes in place of the rest; then silence or, with `close`, FIN to both sides."""

    data: bytes
    close: bool = False

    async def strike(self, way: Way) -> None:
        await way.pass_on(self, self.data)
        if self.close:
            await way.part()
        await way.swallow()


class Direction:
    """Upstream or downstream: its flow, and what became of it."""

    def __init__(self) -> None:
        self.flow = Flow()
        self.struck = 0  # connections on which this flow has ended
        self.passed = 0  # bytes, on all connections, ever

    def bend(self, flow: Flow) -> None:
        self.flow, self.struck = flow, 0

    def ends(self, passed: int) -> Ending | None:
        """The ending, where it is due on a connection on which `passed` bytes have come."""
        flow = self.flow
        if not isinstance(flow, Ending) or passed < max(flow.after, 1) or self.struck == flow.times:
            return None
        self.struck += 1
        return flow


class Proxy:
    """Stands in front of `host` and `port`, on a free port of its own."""

    def __init__(self, host: str, port: int) -> None:
        self.up, self.down = Direction(), Direction()
        self.accepted = 0  # connections, ever
        self._target = host, port
        self._port = 0
        self._door: asyncio.Server | None = None
        self._backlog: list[socket.socket] = []  # a listener nobody accepts from, and who waits there
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def open(self) -> int:
        """Connections that are not over."""
        return len(self._serving)

    @property
    def over(self) -> int:
        """Connections that both sides have left."""
        return self.accepted - self.open

    @property
    def upstream(self) -> Flow:
        """What the gateway says."""
        return self.up.flow

    @upstream.setter
    def upstream(self, flow: Flow) -> None:
        self.up.bend(flow)

    @property
    def downstream(self) -> Flow:
        """What the instance says."""
        return self.down.flow

    @downstream.setter
    def downstream(self, flow: Flow) -> None:
        self.down.bend(flow)

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def listen(self) -> None:
        """Open the door."""
        await self.refuse()
        self._door = await asyncio.start_server(self._serve, sock=self._bound())

    async def refuse(self) -> None:
        """Shut the door: connects are refused, what is open ends."""
        if self._door is not None:
            self._door.close()
            self._door = None
        while self._backlog:
            self._backlog.pop().close()
        while self._serving:
            for task in self._serving:
                task.cancel()
            await asyncio.wait(self._serving)

    async def ignore(self) -> None:
        """A full backlog that nobody accepts from: connects get no answer at all, what is open ends."""
        await self.refuse()
        listener = self._bound()
        listener.listen(0)
        self._backlog.append(listener)
        for _ in range(8):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
            self._backlog.append(waiting)

    def _bound(self) -> socket.socket:
        door = socket.socket(proto=socket.IPPROTO_TCP)  # named, so that asyncio turns Nagle's algorithm off
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", self._port))
        self._port = door.getsockname()[1]
        return door

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.accepted += 1
        ends = [writer]
        try:
            with suppress(asyncio.CancelledError):  # of `refuse`
                await self._carry(reader, ends)
        finally:
            for end in ends:
                end.transport.abort()
            self._serving.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, ends: list[asyncio.StreamWriter]) -> None:
        try:
            far, writer = await asyncio.open_connection(*self._target)
            ends.append(writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(Way(self.up, reader, ends[1], ends).carry())
                both.create_task(Way(self.down, far, ends[0], ends).carry())
        except* (OSError, Over):
            pass


class Over(Exception):
    """Nothing more passes on this connection, in either direction."""


class Way:
    """One direction of one connection."""

    def __init__(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: list[asyncio.StreamWriter],
    ) -> None:
        self.writer = writer
        self._direction = direction
        self._reader = reader
        self._ends = ends
        writer.transport.set_write_buffer_limits(0)  # what is drained has left us

    async def carry(self) -> None:
        flow, passed = self._direction.flow, 0
        while data := await self._reader.read(READ):
            if flow is not self._direction.flow:
                flow, passed = self._direction.flow, 0
            if ending := self._direction.ends(passed + len(data)):
                await self.pass_on(ending, data[: ending.after - passed])
                await ending.strike(self)
                return
            await self.pass_on(flow, data)
            passed += len(data)
        self.writer.write_eof()

    async def pass_on(self, flow: Flow, data: bytes) -> None:
        for start in range(0, len(data), flow.piece):
            piece = data[start : start + flow.piece]
            if flow.latency:
                await asyncio.sleep(flow.latency)
            self.writer.write(piece)
            await self.writer.drain()
            self._direction.passed += len(piece)
            if flow.rate < math.inf:
                await asyncio.sleep(len(piece) / flow.rate)
            if flow.piece < READ:  # twice: then a reader on this very loop has had this piece before the next is sent
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    async def swallow(self) -> None:
        while await self._reader.read(READ):
            pass

    async def part(self) -> None:
        for end in self._ends:
            end.close()
            await end.wait_closed()
        raise Over

    def reset(self) -> None:
        for end in self._ends:
            sock = end.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Over
