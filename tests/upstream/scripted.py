"""An instance that says exactly the bytes a test gives it, and sees exactly what was done to its sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.errors import UpstreamError
from gateway.upstream import Request, Upstream

GET = Request(b"GET", b"/api/tags")
POST = Request(b"POST", b"/api/chat", ((b"content-type", b"application/json"),), b'{"model":"m"}')

BIG = Request(b"POST", b"/api/chat", (), os.urandom(2**20) * 8)

NO_SUCH_NAME = ".".join(["a" * 60] * 5)  # longer than a name can be, so no DNS is asked for it

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
STARTED = CHUNKED + b"5\r\nhello\r\n"


class Peer:
    """One connection, seen from the instance."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number  # from 1
        self.heads: list[bytes] = []  # of the requests that came
        self.bodies: list[bytes] = []
        self.gone = asyncio.Event()  # the other side closed it
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """The next request's body. Raises EOFError or OSError when there is none."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        self.heads.append(head)
        self.bodies.append(await self._reader.readexactly(length))
        return self.bodies[-1]

    async def head(self) -> bytes:
        """Only the head of the next request; its body stays unread."""
        self.heads.append(await self._reader.readuntil(b"\r\n\r\n"))
        return self.heads[-1]

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def until_gone(self) -> None:
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass
        self.gone.set()

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """RST rather than FIN."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Instance:
    def __init__(self, script: Script) -> None:
        self.url = ""
        self.peers: list[Peer] = []
        self.open = 0  # connections neither side has closed
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(len(self.peers) + 1, reader, writer)
        self.peers.append(peer)
        self.open += 1
        try:
            with suppress(OSError, EOFError, asyncio.CancelledError):  # `leave` cancels, and waits for the end
                await self._script(peer)
        finally:
            self.open -= 1
            writer.close()
            self._tasks.discard(task)

    async def leave(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def speaking(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Instance]:
    """An instance on a free port; `script` runs once for every connection."""
    instance = Instance(script)
    server = await asyncio.start_server(instance.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    instance.url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        async with asyncio.timeout(60):
            yield instance
    finally:
        server.close()
        await instance.leave()
        await asyncio.sleep(0)


@asynccontextmanager
async def reaching(url: str, *, max_idle: int = 32, idle_for: float = 30.0) -> AsyncIterator[Upstream]:
    upstream = Upstream("alpha", url, max_idle=max_idle, idle_for=idle_for)
    try:
        yield upstream
    finally:
        upstream.close()
        await until(lambda: upstream.idle == 0)
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], limit: float = 10.0) -> None:
    """Poll until it holds; a guard against hangs, never a wait for time to pass."""
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0)


def answering(*answers: bytes) -> Script:
    """Give each request the next of `answers`, on whatever connection it comes; the last one from then on."""
    left = list(answers)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(left.pop(0) if len(left) > 1 else left[0])

    return script


def once(answer: bytes, *, then_close: bool = True) -> Script:
    """Answer the first request of each connection, then close it, or wait for the other side to."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer)
        if not then_close:
            await peer.until_gone()

    return script


def silent(after: bytes = b"") -> Script:
    """Take the request, say `after`, and nothing more until the other side closes."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(after)
        await peer.until_gone()

    return script


async def ask(upstream: Upstream, request: Request = POST) -> tuple[int, bytes]:
    with await upstream.open(request, connect=5, first=20) as response:
        return response.status, await response.read_all(2**24)


def quiet(upstream: Upstream) -> bool:
    return upstream.busy == 0


async def refuses(upstream: Upstream, kind: type[UpstreamError], request: Request = POST) -> str:
    with pytest.raises(kind) as caught:
        await ask(upstream, request)
    assert quiet(upstream)
    return caught.value.message


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """An address that takes connections into a full backlog, where nothing more is accepted."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(listener.getsockname())
            fillers.append(filler)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for filler in fillers:
                filler.close()


def body(content: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> bytes:
    """A whole answer around `content`."""
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (status, kind, len(content)) + content


NOT_FOUND = body(b"404 page not found", b"404 Not Found", b"text/plain")


def at_paths(answers: dict[str, bytes]) -> Script:
    """Answer by path, with Ollama's own 404 for all others; b"" stands for silence."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            answer = answers.get(peer.heads[-1].split(b" ")[1].decode(), NOT_FOUND)
            if not answer:
                await peer.until_gone()
                return
            await peer.say(answer)

    return script
