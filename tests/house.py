"""The whole gateway on real sockets, in front of simulators, for a test; leaving it checks that nothing is left over.

    async with House({"alpha": Behaviour(), "beta": Behaviour()}) as house:
        reply = await house.chat("hello")

The quiescence check is Q of faults.md: no lease, no draining, an empty line, no open exchange, no request in flight, no
idle socket too many, no socket that its other end has left, no asyncio task that was not there before, no exception
that nobody retrieved, and exactly one access-log line for each request.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from structlog.testing import capture_logs

from gateway.app import App
from gateway.config import Config, Loaded
from gateway.engine import Engine
from gateway.server import Server
from gateway.simulator import Behaviour, Seen, Simulator
from tests.faults.proxy import Proxy

MODEL = "llama3.1:8b"
ALPHA_FIRST = {"name": "alpha-first", "match": {"model": "*"}, "to": [{"instance": "alpha"}, {"instance": "beta"}]}
LIMIT = 10.0  # seconds; guards against a hang, never a measurement
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx would read all authorities anew for each client, for 25 ms
CLOSE_WAIT = 8  # Linux: a socket whose other end has left, and which nobody closes


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP response."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def instance(self) -> str | None:
        found: str | None = self.headers.get("x-gateway-instance")
        return found

    @property
    def events(self) -> list[str]:
        """The data of each SSE event; keep-alives between them are no events."""
        lines = self.body.decode().split("\n")
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]

    @property
    def text(self) -> str:
        """The answer's text, streamed or whole."""
        if not self.headers["content-type"].startswith("text/event-stream"):
            return str(self.json["choices"][0]["message"]["content"])
        chunks = [json.loads(event) for event in self.events if event != "[DONE]"]
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", []))


@dataclass
class Wire:
    """A client's raw connection: it sends what it is told and leaves when it likes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: bytearray = field(default_factory=bytearray)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, text: bytes) -> bytes:
        """Read until `text` has come; all that came so far."""
        looked = 0
        async with asyncio.timeout(LIMIT):
            while self.seen.find(text, looked) < 0:
                looked = max(0, len(self.seen) - len(text))
                data = await self.reader.read(65536)
                if not data:
                    raise AssertionError(f"closed before {text!r}: {bytes(self.seen[-2000:])!r}")
                self.seen += data
        return bytes(self.seen)

    async def rest(self) -> bytes:
        """Read until the other side closes."""
        async with asyncio.timeout(LIMIT):
            self.seen += await self.reader.read()
        return bytes(self.seen)

    def leave(self) -> None:
        self.writer.transport.abort()


@dataclass
class House:
    """One gateway; `behaviours` by instance name. `instance` keys are added to each instance's configuration; with
    `warm` every instance has its models in memory from the start. Those `proxied` are reached through `proxies`.
    """

    behaviours: Mapping[str, Behaviour]
    config: dict[str, Any] = field(default_factory=dict)
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    warm: bool = False
    proxied: Sequence[str] = ()

    async def __aenter__(self) -> Self:
        self._before = asyncio.all_tasks()
        self._stack = AsyncExitStack()
        self.complaints: list[dict[str, Any]] = []  # of the event loop: what nobody retrieved, callbacks that failed
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, told: self.complaints.append(told))
        self._stack.callback(loop.set_exception_handler, None)
        self.lines: list[Any] = self._stack.enter_context(capture_logs())
        self.simulators = {
            name: await self._stack.enter_async_context(Simulator(behaviour))
            for name, behaviour in self.behaviours.items()
        }
        if self.warm:
            await self._warm_up()
        self.proxies = {
            name: await self._stack.enter_async_context(Proxy(one.host, one.port))
            for name, one in self.simulators.items()
            if name in self.proxied
        }
        self.engine = await self._stack.enter_async_context(Engine(self.loaded()))
        self.app = App(self.engine)
        self.server = Server(self.app, self.engine.config.server)
        self._serving = asyncio.create_task(self.server.serve(), name="server under test")
        async with asyncio.timeout(LIMIT):
            await self.server.listening.wait()
        host, port = self.server.address
        self.address = (host, port)
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.client = await self._stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, timeout=LIMIT, trust_env=False, verify=NO_TLS)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self.quiet()
        finally:
            self.server.handle_exit(2, None)
            self.server.handle_exit(2, None)
            await self._serving
            await self._stack.aclose()
        if error is None:
            self._check_lines()
            assert asyncio.all_tasks() == self._before, "asyncio tasks are left over"
            assert not self.complaints, f"the event loop complains: {self.complaints}"

    async def _warm_up(self) -> None:
        async with httpx.AsyncClient(timeout=LIMIT, trust_env=False, verify=NO_TLS) as client:
            for simulator in self.simulators.values():
                for model in simulator.behaviour.models:
                    path, body = "/api/generate", {"model": model.name}
                    if "embedding" in model.capabilities:
                        path, body = "/api/embed", {"model": model.name, "input": "x"}
                    (await client.post(f"{simulator.url}{path}", json=body)).raise_for_status()
                simulator.forget()

    def loaded(self, **changed: Any) -> Loaded:
        """The configuration, with top-level keys of it replaced."""
        instances = [
            {"name": name, "url": self.proxies.get(name, simulator).url, "max_concurrent": 4}
            | self.instances.get(name, {})
            for name, simulator in self.simulators.items()
        ]
        quick = {
            "instances": instances,
            "health": {"interval": 60},
            "line": {"drain_grace": 0.2},
            "server": {"port": 0, "drain_delay": 0},
            "retry": {"backoff": 0},
        }
        keys = {
            name: value | self.config.get(name, {}) if isinstance(value, dict) else value
            for name, value in quick.items()
        }
        config = Config.model_validate({**keys, **self.config, **_dicts(keys), **changed})
        return Loaded(config=config, source="the test", digest=f"{hash(config.model_dump_json()) & 0xFFFFFFFF:08x}")

    def simulator(self, name: str) -> Simulator:
        return self.simulators[name]

    def seen(self, name: str) -> Seen:
        """The last call that an instance got."""
        return next(one for one in reversed(self.simulator(name).requests) if one.method == "POST")

    async def post(self, path: str, body: Any, **headers: str) -> Reply:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.client.post(path, content=content, headers=sent)
        return Reply(response.status_code, response.headers, response.content)

    async def get(self, path: str, method: str = "GET") -> Reply:
        response = await self.client.request(method, path)
        return Reply(response.status_code, response.headers, response.content)

    async def chat(self, prompt: str = "hello", *, model: str = MODEL, stream: bool = False, **headers: str) -> Reply:
        return await self.post("/v1/chat/completions", ask(prompt, model=model, stream=stream), **headers)

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            yield Wire(reader, writer)
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def asking(self, body: Any, path: str = "/v1/chat/completions") -> AsyncIterator[Wire]:
        """A raw connection on which one request was sent and nothing was read yet."""
        async with self.wire() as wire:
            await wire.send(request(path, json.dumps(body).encode()))
            yield wire

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something of ours holds."""
        async with asyncio.timeout(LIMIT):
            while not holds():
                await asyncio.sleep(0)

    async def quiet(self) -> None:
        """Wait until nothing is under way; tells what is where that does not come about."""
        try:
            await self.until(lambda: not self._unrest())
        except TimeoutError:
            raise AssertionError(f"not quiet: {self._unrest()}") from None

    def _unrest(self) -> dict[str, object]:
        pool = self.engine.pool
        found: dict[str, object] = {
            "held": sum(one.held for one in pool.instances.values()),
            "draining": sum(one.draining for one in pool.instances.values()),
            "line": pool.depth,
            "line bytes": pool.held_bytes,
            "callers": pool.callers,
            "exchanges": sum(one.upstream.busy for one in self.engine._attached.values()),
            "present": len(self.app.crowd),
            "requests": len(self.server.server_state.tasks),
            "in flight": sum(one.value for one in self.engine.metrics.in_flight._children.values()),
            "left by their other end": len(self._left_open()),
            "idle connections too many": sum(
                max(0, one.upstream.idle - one.upstream._max_idle) for one in self.engine._attached.values()
            ),
            "flights": self.engine.cache.flights,
            "generations": sum(one.busy + one.waiting for one in self.simulators.values()),
        }
        return {name: value for name, value in found.items() if value}

    def _left_open(self) -> list[socket.socket]:
        """Sockets of the gateway that wait for it to close them."""
        upstreams = [one.upstream for one in self.engine._attached.values()]
        outward: list[Any] = [each for one in upstreams for each in (*one._idle, *one._busy) if each.usable]
        inward: list[Any] = list(self.server.server_state.connections)
        transports = [each._transport for each in outward] + [each.transport for each in inward if each.transport]
        sockets = [each.get_extra_info("socket") for each in transports if not each.is_closing()]
        return [each for each in sockets if each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSE_WAIT]

    def _check_lines(self) -> None:
        ids = Counter(line["id"] for line in self.lines if line["event"] == "call.done")
        assert all(count == 1 for count in ids.values()), f"more than one access-log line: {ids}"
        defects = [line for line in self.lines if line["event"] == "call.defect"]
        assert not defects, f"a defect was logged: {defects}"

    def line(self, request_id: str) -> dict[str, Any]:
        """The access-log line of one request."""
        found: dict[str, Any] = next(
            line for line in self.lines if line["event"] == "call.done" and line["id"] == request_id
        )
        return found

    def last_line(self) -> dict[str, Any]:
        last: dict[str, Any] = [line for line in self.lines if line["event"] == "call.done"][-1]
        return last

    async def metric(self, name: str, **labels: str) -> float:
        """The value of one series now; 0.0 where it was never counted."""
        value = self.engine.metrics.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value


def _dicts(keys: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in keys.items() if isinstance(value, dict)}


def ask(prompt: str, *, model: str = MODEL, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": stream, **more}


def request(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
