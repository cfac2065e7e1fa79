"""What holds the event loop, and for how long. `make bench-stalls`

Each thing is done to a real gateway in a process of its own, while streams run through it or calls wait in it. Exits
with 1 where one of them holds the loop for longer than the bound: for so long nobody else hears anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

from benchmarks.hotpath import kernel, page
from benchmarks.hotpath.contenders import Contender, gateway, instance
from benchmarks.hotpath.load import SOURCES, Address, Load, Run
from benchmarks.hotpath.upstream import MODEL
from benchmarks.hotpath.watched import EDGES, FILE

BOUND = 10.0  # milliseconds
INSTANCES, MODELS, ROUTES, WAITING = 50, 200, 50, 10_000
HANG = 60.0  # seconds
STREAMS = Load(callers=50, frames=100, interval=20)
FULL = Load(callers=8, frames=50_000, interval=20, warm_up=0.5)
QUEUE = Load(callers=WAITING, frames=5, interval=20, warm_up=12.0, calls=1)  # seconds over which they come

REFUSALS = f"{WAITING:,} idle clients are refused at once"

_SERVER = "max_connections: 16384, max_connections_per_address: 16384, head_timeout: 1m"
_LIMITS = f"server: {{{_SERVER}, drain_delay: 0, drain_timeout: 1}}\n"
_HEALTH = "health: {interval: 1s, catalog: 3s}\n"  # more often than by default, so that a round comes soon
_LINE = "line: {max_calls: 20000, max_calls_per_caller: 20000}\ntimeouts: {line: 1h}\n"
_SHORT = "line: {max_calls: 4, max_calls_per_caller: 4}\ntimeouts: {line: 1h}\n"


def many(port: int, routes: int = ROUTES, health: str = "") -> str:
    """A configuration of many instances and routes."""
    rows = [f'- {{name: i{n}, url: "http://127.0.0.{n}:{port}", max_concurrent: 512}}' for n in range(1, INSTANCES + 1)]
    ways = [f'- {{name: r{n}, match: {{model: "other-{n}*"}}, to: [{{model: "{MODEL}"}}]}}' for n in range(routes)]
    listed = ["instances:", *rows, "routes:", *ways]
    return "\n".join(listed) + f"\n{_LIMITS}{health}"


def full(port: int) -> str:
    """A configuration whose line is soon full."""
    return f'instances: [{{name: one, url: "http://127.0.0.1:{port}", max_concurrent: 4}}]\n{_LIMITS}{_SHORT}'


def one(port: int) -> str:
    """A configuration of one instance that takes four calls at once."""
    return f'instances: [{{name: one, url: "http://127.0.0.1:{port}", max_concurrent: 4}}]\n{_LIMITS}{_LINE}'


@dataclass(slots=True)
class Stage:
    """A gateway, watched, and what was seen so far."""

    gateway: Contender
    port: int  # of the instances
    home: Path
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def address(self) -> Address:
        return self.gateway.address

    async def during(self, what: str, work: Work) -> None:
        """Do it, and note for how long the loop was held meanwhile."""
        await self._told()
        await work(self)
        await asyncio.sleep(0.2)
        self.seen[what] = await self._told()
        print(f"  {what}: {self.seen[what]['max'] / 1000:.1f} ms", file=sys.stderr, flush=True)

    async def _told(self) -> dict[str, Any]:
        path = told_at(self.home)
        path.unlink(missing_ok=True)
        os.kill(self.gateway.pids[0], signal.SIGUSR1)
        async with asyncio.timeout(HANG):
            while not path.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.02)
        return dict(json.loads(path.read_text()))


Work = Callable[[Stage], Awaitable[None]]


def told_at(home: Path) -> Path:
    return home / "stalls.json"


async def ask(address: Address, request: bytes) -> bytes:
    """The whole answer; a refusal is an error."""
    async with asyncio.timeout(HANG):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
    return answer


def kept(request: bytes) -> bytes:
    """The same, on a connection that is to be used again."""
    return request.replace(b"Connection: close\r\n", b"")


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode()


def post(**body: object) -> bytes:
    content = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **body}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


# each of the things


async def nothing(_: Stage) -> None:
    await asyncio.sleep(3)


async def nothing_more(_: Stage) -> None:
    """No preparation."""


async def use_models(stage: Stage) -> None:
    """So that each has its series."""
    for number in range(1, MODELS):
        await ask(stage.address, post(model=f"bench-{number}:8b"))


async def scrape(stage: Stage) -> None:
    for _ in range(3):
        await ask(stage.address, get("/metrics"))
        await asyncio.sleep(1.1)  # it is rendered once a second


async def reload(stage: Stage) -> None:
    for more in (1, 2, 3):
        await configure(stage, many(stage.port, ROUTES + more))


async def configure(stage: Stage, text: str) -> None:
    (stage.home / "routes.yaml").write_text(text)
    os.kill(stage.gateway.pids[0], signal.SIGHUP)
    await asyncio.sleep(1)


async def probes(_: Stage) -> None:
    await asyncio.sleep(6)  # two rounds of lists, six of probes


async def large_body(stage: Stage) -> None:
    words = "a calm river under old stone bridges; " * (20 * 2**20 // 38)
    for _ in range(3):
        await ask(stage.address, post(messages=[{"role": "user", "content": words}]))


async def large_frame(stage: Stage) -> None:
    for _ in range(3):
        answer = await ask(stage.address, post(stream=True, max_tokens=3, presence_penalty=0.001, frequency_penalty=1))
        assert b"[DONE]" in answer, "no end"
        assert len(answer) > 2**20, "no large frame"


async def often_asked(stage: Stage) -> None:
    await configure(stage, many(stage.port, health=_HEALTH))


AMONG_STREAMS: dict[str, Work] = {
    "nothing else": nothing,
    f"a scrape, {MODELS} models": scrape,
    f"a reload, {INSTANCES} instances, {ROUTES} routes": reload,
    "a body of 20 MB": large_body,
    "a frame of 1 MiB": large_frame,
    f"probes and lists, {INSTANCES} instances of {MODELS} models": probes,
}
BEFORE: dict[Work, Work] = {probes: often_asked}


async def everything(only: str) -> dict[str, dict[str, Any]]:
    """All of it, or what has this word in its name."""
    seen: dict[str, dict[str, Any]] = {}
    wanted = {what: work for what, work in AMONG_STREAMS.items() if only in what}
    if wanted:
        async with stage(many, f"--addresses={INSTANCES}", f"--models={MODELS}") as first:
            await use_models(first)
            async with Run(STREAMS, first.address) as run:
                for what, work in wanted.items():
                    await BEFORE.get(work, nothing_more)(first)
                    await first.during(what, work)
            assert not run.told.errors, run.told.errors
        seen |= first.seen
    if not only or only in "calls":
        async with stage(one) as second:
            await crowd(second)
        seen |= second.seen
    if only in REFUSALS:
        async with stage(full) as third:
            await refusals(third)
        seen |= third.seen
    return seen


async def crowd(stage: Stage) -> None:
    """Many calls come to wait, wait, and leave, all at the same moment."""
    run = Run(QUEUE, stage.address)

    async def come(_: Stage) -> None:
        await run.__aenter__()

    async def leave(_: Stage) -> None:
        await run.__aexit__()
        await asyncio.sleep(3)

    await stage.during(f"{WAITING:,} calls come to wait", come)
    await stage.during(f"{WAITING:,} calls wait", nothing)
    await stage.during(f"{WAITING:,} calls leave at once", leave)
    assert not run.told.errors, run.told.errors


class Refused(asyncio.Protocol):
    """A client that asks when it is told to, and is refused."""

    def __init__(self, heard: asyncio.Queue[bytes]) -> None:
        self._heard = heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard.put_nowait(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._heard.put_nowait(b"lost")

    def ask(self, request: bytes) -> None:
        self._transport.write(request)

    def leave(self) -> None:
        self._transport.abort()


async def refusals(stage: Stage) -> None:
    """The line is full, and many whose connections were idle ask at the same moment."""
    loop, heard, request = asyncio.get_running_loop(), asyncio.Queue[bytes](), kept(post())
    async with Run(FULL, stage.address):
        clients: list[Refused] = []
        for number in range(WAITING):
            source = (f"127.0.0.{2 + number % SOURCES}", 0)
            _, client = await loop.create_connection(lambda: Refused(heard), *stage.address, local_addr=source)
            clients.append(client)
        await asyncio.sleep(2)

        async def ask_all(_: Stage) -> None:
            for client in clients:
                client.ask(request)
            async with asyncio.timeout(HANG):
                for _client in clients:
                    told = await heard.get()
                    assert told.startswith(b"HTTP/1.1 429"), told[:300]

        await stage.during(REFUSALS, ask_all)
        for client in clients:
            client.leave()


@asynccontextmanager
async def stage(config: Callable[[int], str], *more: str) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="bench-") as where:
        home = Path(where)
        os.environ[FILE] = str(told_at(home))
        async with instance(*more) as behind:
            text = config(behind.address[1]).replace("{", "{{").replace("}", "}}")
            module = "benchmarks.hotpath.watched"
            async with gateway(home, behind.address, config=text, module=module) as watched:
                yield Stage(watched, behind.address[1], home)


def table(seen: dict[str, dict[str, Any]]) -> str:
    heads = [f"≤ {EDGES[0]} ms", *(f"≤ {edge}" for edge in EDGES[1:]), f"> {EDGES[-1]}"]
    first = "held during | p99 ms | longest ms | longest collection ms"
    lines = [f"| {first} | {' | '.join(heads)} | |", "|---" * (len(heads) + 5) + "|"]
    for what, told in seen.items():
        kept = "kept" if told["max"] <= BOUND * 1000 else "NOT KEPT"
        counts = " | ".join(str(count) for count in told["counts"])
        times = " | ".join(f"{told[name] / 1000:.1f}" for name in ("p99", "max", "collection"))
        lines.append(f"| {what} | {times} | {counts} | {kept} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(prog="make bench-stalls ARGS=")
    options.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    options.add_argument("--only", default="", metavar="WORD", help="of it what has WORD in its name: scrape, calls")
    given = options.parse_args()
    kernel.many_files()
    kernel.pin(kernel.REST)
    with kernel.first():
        seen = uvloop.run(everything(given.only))
    text = f"{page.environment()}\n\n{table(seen)}"
    print(text)
    if given.write and not given.only:
        page.write("stalls", text)
    sys.exit(any(told["max"] > BOUND * 1000 for told in seen.values()))


if __name__ == "__main__":
    main()
