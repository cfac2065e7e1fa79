"""The simulator itself: what listens, what it has seen, and how to wait for it. The package's docstring explains it.

Everything happens in callbacks of one event loop; a request is answered at once unless it has to wait for its model.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Self

from gateway.simulator import routes
from gateway.simulator.behaviour import Behaviour, SimulatedModel, model_key
from gateway.simulator.connection import Connection, Exchange, Request, Seen
from gateway.simulator.engine import Engine, Generation
from gateway.simulator.faults import INSTEAD, Faults
from gateway.simulator.prompt import Ask, Refusal, decode
from gateway.simulator.shapes import Voice, error_body

MAX_REQUESTS = 10_000
MAX_KEPT = 256 * 1024 * 1024  # bytes of bodies remembered


class Simulator:
    """An Ollama that holds no model. Use it as an async context manager, or `start` and `stop` it."""

    def __init__(self, behaviour: Behaviour | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port  # the real one once started
        self.requests: deque[Seen] = deque()
        self.faults = Faults(self._rearmed)
        self._waiters: set[tuple[Callable[[], bool], asyncio.Future[None]]] = set()
        self._engine = Engine(behaviour or Behaviour(), self.changed)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._refusal: asyncio.TimerHandle | None = None
        self._started = False
        self._serial = 0
        self._kept = 0
        self._index()

    # life

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        self._started = True
        await self._listen(self._bind())

    async def stop(self) -> None:
        """Close the door, every socket and every timer. Doing it again does nothing."""
        self._started = False
        if self._refusal is not None:
            self._refusal.cancel()
        if self._reopening is not None:
            await self._reopening
        self._shut()
        for connection in list(self._connections):
            connection.stop()
        await self.until(lambda: not self._connections)
        self._engine.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    # what it knows

    @property
    def behaviour(self) -> Behaviour:
        """Settable at any time; answers under way keep what they have already taken from it."""
        return self._engine.behaviour

    @behaviour.setter
    def behaviour(self, behaviour: Behaviour) -> None:
        self._engine.behaviour = behaviour
        self._index()
        self._engine.settle()
        self.changed()

    @property
    def busy(self) -> int:
        """Generations running now, those that hang included."""
        return self._engine.busy

    @property
    def waiting(self) -> int:
        """Requests waiting for a model or a slot, without having heard a word."""
        return self._engine.waiting

    @property
    def loads(self) -> int:
        """Loads begun since the start."""
        return self._engine.loads

    @property
    def peak(self) -> int:
        """The most generations at once since the start, or since it was set to 0."""
        return self._engine.peak

    @peak.setter
    def peak(self, value: int) -> None:
        self._engine.peak = value

    @property
    def connections(self) -> int:
        """Sockets of clients open now."""
        return len(self._connections)

    @property
    def loaded(self) -> list[str]:
        return [model.full_name for model, _ in self._engine.loaded()]

    async def until(self, predicate: Callable[[], bool], timeout: float = 5.0) -> None:
        """Wait until `predicate` holds; it is asked at every change. Raises TimeoutError, which tells the state."""
        if predicate():
            return
        waiter = (predicate, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter[1]
        except TimeoutError:
            state = f"busy {self.busy}, waiting {self.waiting}, connections {self.connections}"
            raise TimeoutError(f"not within {timeout:g} s: {state}, {len(self.requests)} requests seen") from None
        finally:
            self._waiters.discard(waiter)

    def changed(self) -> None:
        """Ask the predicates again."""
        if not self._waiters:
            return
        for predicate, future in list(self._waiters):
            if future.done():
                continue
            try:
                holds = predicate()
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
                future.set_exception(error)
            else:
                if holds:
                    future.set_result(None)

    # the door

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # The protocol is named: else asyncio leaves Nagle's algorithm on, and a frame waits for the last one's ACK.
        door = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((self.host, self.port))
            door.listen(1_024)
        except OSError:
            door.close()
            raise
        self.port = door.getsockname()[1]
        return door

    async def _listen(self, door: socket.socket) -> None:
        self._server = await asyncio.get_running_loop().create_server(partial(Connection, self), sock=door)
        if not self._started or self.faults.refusing is not None:  # it changed its mind meanwhile
            self._shut()

    def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _rearmed(self) -> None:
        """Shut or open the door as the armed faults say. Connects are refused, or accepted, from here on."""
        refusal = self.faults.refusing
        if refusal is not None and self._server is not None:
            self._shut()
            for connection in [one for one in self._connections if one.idle]:
                connection.stop()
            if refusal.seconds:
                loop = asyncio.get_running_loop()
                self._refusal = loop.call_later(refusal.seconds, self.faults.remove, refusal)
        elif refusal is None and self._server is None and self._started:
            door = self._bind()
            self._reopening = asyncio.get_running_loop().create_task(self._listen(door), name="simulator-reopens")
        self.changed()

    # what a connection asks of its house

    def opened(self, connection: Connection) -> bool:
        self._connections.add(connection)
        self.changed()
        return not self.faults.at_accept()

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.changed()

    def answer(self, connection: Connection, request: Request) -> None:
        if request.path.startswith("/simulator"):
            routes.control(self, Exchange(connection, _seen(0, request), None, request.keep_alive), request.body)
            return
        seen = self._remember(request)
        fault = self.faults.at_request(seen.path, seen.model)
        exchange = Exchange(connection, seen, fault, request.keep_alive)
        self.changed()
        if fault is not None and fault.kind in INSTEAD:
            INSTEAD[fault.kind](exchange, fault)
            return
        try:
            routes.answer(self, exchange, request.body)
        except Refusal as refusal:
            exchange.reply(refusal.status, error_body(seen.path, refusal.status, refusal.message))

    def _remember(self, request: Request) -> Seen:
        self._serial += 1
        seen = _seen(self._serial, request)
        if self.faults.armed and request.body:  # a fault may ask for the model before anyone has read it
            seen.model = _model_of(request.body)
        self.requests.append(seen)
        self._kept += len(seen.body)
        while len(self.requests) > MAX_REQUESTS or (self._kept > MAX_KEPT and len(self.requests) > 1):
            self._kept -= len(self.requests.popleft().body)
        return seen

    # what the routes ask of it

    def model(self, name: str) -> SimulatedModel | None:
        """The installed model of that name, however it is spelt."""
        return self._models.get(model_key(name)) if name else None

    def generate(self, exchange: Exchange, model: SimulatedModel, ask: Ask, voice: Voice) -> None:
        """Answer through the engine: now, or when it is this one's turn."""
        self._engine.admit(Generation(self._engine, exchange, model, ask, voice))

    def keep(self, model: SimulatedModel, seconds: float | None) -> bool:
        """See `Engine.keep`."""
        return self._engine.keep(model, seconds)

    def expiries(self) -> list[tuple[SimulatedModel, float]]:
        """Loaded models and the Unix times they would be unloaded at."""
        return self._engine.loaded()

    def forget(self) -> None:
        """Empty `requests` and set `peak` to what runs now."""
        self.requests.clear()
        self._kept = 0
        self.peak = self.busy
        self.changed()

    def _index(self) -> None:
        self._models = {model_key(model.name): model for model in self.behaviour.models}


def _seen(number: int, request: Request) -> Seen:
    return Seen(id=number, method=request.method, path=request.path, headers=request.headers, body=request.body)


def _model_of(body: bytes) -> str:
    try:
        return str(decode(body).get("model") or "")
    except Refusal:
        return ""


async def serve(behaviour: Behaviour, host: str, port: int, stop: asyncio.Event) -> None:
    """Simulate until `stop` is set. Raises OSError when the port is taken."""
    async with Simulator(behaviour, host=host, port=port):
        await stop.wait()
