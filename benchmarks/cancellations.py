"""Clients that hang up, in every window, and what is left of them. `make bench-cancellations COUNT=200000`.

A gateway and its instances in processes of their own; the clients are bare sockets, one call each, many at once. They
leave by RST, by FIN, or by closing their sending side only. What was measured is found out afterwards from what the
others wrote down: an instance when it saw its client close, the gateway one log line for each call. A call that no
instance may have heard of, as it was in line or connecting, is timed to that line. Exits with 1 where a promise of
docs/reliability.md is broken.

What is late may be late because others use the machine. So it is told with each time how much of it the gateway wanted
a processor and had none (`starved`); the promise is judged by the whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import vitals
from benchmarks.processes import Address, running
from benchmarks.starved import Machine, Starved
from benchmarks.traffic import Client, post
from benchmarks.vitals import Vitals

PER_WINDOW = 8  # clients at once
MOST_A_SECOND = 400  # departures; fewer while the gateway has no time for more
STAY = (0.0, 0.08)  # seconds in the window, at random
# Milliseconds from a departure to its notice, at p99.9, beyond what the same takes without a gateway in the same run:
# on a machine that others use as well, that is not always nothing.
IN_TIME = float(os.environ.get("NOTICED_MS") or "250")
MISSED = 0.9  # the share of a window's clients that may have left before their call had come there: a race of its own
DRIFT, WARM = 1.5, 60.0  # MiB, seconds: see soak.py
CALLER_ADDRESSES = 8
MANNERS = ("RST", "FIN", "half")


@dataclass(frozen=True, slots=True)
class Window:
    name: str
    model: str
    streams: tuple[bool, ...]
    sign: bytes = b""  # a stream's client leaves only after it read this
    contacts: bool = True  # an instance hears of the call
    straight: bool = False  # there is no gateway between: what the machine and the measuring take


WINDOWS = (
    Window("in line", "full:1b", (True, False), b"in line", contacts=False),
    Window("connecting", "deaf:1b", (True, False), contacts=False),
    Window("waiting for the head", "head:1b", (True, False)),
    Window("waiting for the first token", "token:1b", (True,)),
    Window("in the middle of a stream", "talk:1b", (True,), b'"content"'),
    Window("while a whole answer is made", "talk:1b", (False,)),
    Window("(without a gateway)", "talk:1b", (True,), b'"content"', straight=True),
)
CONTROL = WINDOWS[-1]


@dataclass(slots=True)
class Departure:
    window: Window
    left: float  # time.monotonic()
    at: float  # unix time


@dataclass
class Crowd:
    """All that left, and what went otherwise."""

    address: Address
    instance: Address
    departures: dict[str, Departure] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    lag: float = 0.0  # seconds the gateway takes for next to nothing

    async def feel(self) -> None:
        """Note how busy the gateway is: clients that kept coming however late it is would pile up, and be measured."""
        while True:
            began = time.monotonic()
            await vitals.fetch(self.address, "/livez")
            self.lag = time.monotonic() - began
            await asyncio.sleep(0.1)

    async def leave_again_and_again(self, window: Window, number: int, count: int, pace: float) -> None:
        chance = random.Random(f"{window.name} {number}")  # noqa: S311 - not for secrets
        for turn in range(count):
            began = time.monotonic()
            name = f"{WINDOWS.index(window)}-{number}-{turn}"
            try:
                async with asyncio.timeout(10):
                    await self._once(window, name, chance)
            except (OSError, TimeoutError) as error:
                self.wrong.append(f"{window.name}: {type(error).__name__} {error}")
            await asyncio.sleep(max(0.0, pace - (time.monotonic() - began), 10 * self.lag))

    async def _once(self, window: Window, name: str, chance: random.Random) -> None:
        loop = asyncio.get_running_loop()
        streamed, manner, stay = chance.choice(window.streams), chance.choice(MANNERS), chance.uniform(*STAY)
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: as many ports as there are pairs
            sock.bind((f"127.0.0.{2 + chance.randrange(CALLER_ADDRESSES)}", 0))
            await loop.sock_connect(sock, self.instance if window.straight else self.address)
            await loop.sock_sendall(sock, request(window.model, name, streamed=streamed))
            if streamed and window.sign:
                await self._until(sock, window.sign)
            await asyncio.sleep(stay)
            self.departures[name] = Departure(window, time.monotonic(), time.time())
            if manner == "RST":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif manner == "half":
                sock.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(sock, 65536):
                    pass

    async def _until(self, sock: socket.socket, sign: bytes) -> None:
        seen = b""
        while sign not in seen:
            data = await asyncio.get_running_loop().sock_recv(sock, 65536)
            if not data:
                raise ConnectionError(f"the gateway closed: {seen[:300]!r}")
            seen = seen[-20:] + data


def request(model: str, name: str, *, streamed: bool, tokens: int = 1000) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": tokens, "stream": streamed}
    return post("/v1/chat/completions", body, f"X-Request-Id: {name}")


@contextmanager
def deaf(port: int) -> Iterator[None]:
    """Take no connection at the port: its backlog is full, so the kernel lets further ones wait."""
    with ExitStack() as sockets:
        door = sockets.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(door.getsockname())
        yield


@dataclass(frozen=True, slots=True)
class House:
    gateway: Process
    address: Address
    instance: Address  # that which takes all calls
    log: Path
    journals: tuple[Path, ...]


@asynccontextmanager
async def house(directory: Path) -> AsyncIterator[House]:
    """The gateway, and three instances: one that takes all calls, one that takes one, and one that has gone deaf."""
    instances = {"open": ["head:1b", "token:1b", "talk:1b"], "full": ["full:1b"], "deaf": ["deaf:1b"]}
    rows, hearing, addresses = [], AsyncExitStack(), {}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(hearing)
        for name, models in instances.items():
            witness = running(str(directory / name), *models, module="benchmarks.witness", ready="answers at")
            _, addresses[name] = await (hearing if name == "deaf" else stack).enter_async_context(witness)
            host, port = addresses[name]
            limit = 1 if name == "full" else 1024
            rows.append(f"  - {{name: {name}, url: 'http://{host}:{port}', max_concurrent: {limit}}}\n")
        config, log = directory / "routes.yaml", directory / "log"
        config.write_text(
            "instances:\n" + "".join(rows) + "cache: {enabled: false}\nstream: {hold: 20ms}\n"
            "timeouts: {connect: 60s}\nhealth: {interval: 1h, catalog: 1h}\n"
            "line: {drain_grace: 100ms, max_calls: 10000, max_calls_per_caller: 10000}\n"
        )
        errors = stack.enter_context(log.open("wb"))
        serve = running("serve", "--config", str(config), "--port", "0", ready="API", errors=errors)
        gateway, address = await stack.enter_async_context(serve)
        await hearing.aclose()
        stack.enter_context(deaf(addresses["deaf"][1]))
        yield House(gateway, address, addresses["open"], log, (directory / "open", directory / "full"))


# What the others wrote down


@dataclass
class Written:
    """By request id: when an instance saw its client leave (0: it was served), and the gateway's line and its time."""

    seen: dict[str, float] = field(default_factory=dict)
    lines: dict[str, tuple[dict[str, Any], float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def read(house: House) -> Written:
    found = Written()
    for journal in house.journals:
        for line in journal.read_text().splitlines():
            name, left = line.split()
            found.seen[name] = float(left)
    with house.log.open() as lines:
        for line in lines:
            event = json.loads(line)
            if event["event"] != "call.done":
                if event["level"] == "error" or "exception" in event:
                    found.wrong.append(line[:2000])
                continue
            if event["id"] in found.lines:
                found.wrong.append(f"a second line for {event['id']}")
            at = datetime.fromisoformat(event["timestamp"]).timestamp()
            found.lines[event["id"]] = (event, at)
    return found


@dataclass
class Told:
    """The departures of one window: seconds until they were noticed, and those that were elsewhere."""

    took: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)  # the same, without the time in which the gateway had no processor
    elsewhere: list[float] = field(default_factory=list)  # before the call had come to its window
    over: int = 0  # the answer was complete by then


def sort(crowd: Crowd, written: Written, starved: Starved) -> dict[Window, Told]:
    """Each departure where it belongs. What is wrong with one is added to `written.wrong`."""

    def noticed(told: Told, left: float, took: float) -> None:
        told.took.append(max(0.0, took))
        told.own.append(max(0.0, took) - starved.within(left, left + max(0.0, took)))

    found = {window: Told() for window in WINDOWS}
    for name, departure in crowd.departures.items():
        window, told = departure.window, found[departure.window]
        line, at = written.lines.get(name, ({}, 0.0))
        seen = written.seen.get(name)
        if window.straight:
            told.took.append(max(0.0, (seen or 0.0) - departure.left))
        elif line.get("status") == 200 and "reason" not in line:
            told.over += 1
        elif line.get("reason") != "client_cancelled" or (seen is not None and not window.contacts):
            written.wrong.append(f"{window.name}: {line or 'no line of the log'}")
        elif seen is not None:
            noticed(told, departure.left, seen - departure.left)
        elif not window.contacts and "asked" in line and ("attempts" in line) is (window.name == "connecting"):
            noticed(told, departure.left, at - departure.at)
        else:
            told.elsewhere.append(max(0.0, at - departure.at))
    return found


def report(found: dict[Window, Told], took: float) -> list[str]:
    """Print the times; what is broken of the promises."""
    broken = []
    count = sum(len(told.took) + len(told.elsewhere) for window, told in found.items() if not window.straight)
    print(f"  {count} clients left in {took:.0f} s; milliseconds from a departure to its notice by the instance")
    print("  (in line and connecting: by the gateway), and the same without the gateway's waits for a processor")
    print(f"  {'':<30}{'count':>8}{'p50':>8}{'p99':>8}{'p99.9':>8}{'max':>8}{'its own p99.9':>15}{'max':>8}")
    machine, _ = show("(without a gateway)", found[CONTROL])
    for window, told in found.items():
        if window.straight:
            continue
        late, own = show(window.name, told)
        if late > IN_TIME + machine:
            broken.append(f"{window.name}: noticed after {late:.0f} ms at p99.9; its own {own:.0f} ms")
        meant = len(told.took) + len(told.elsewhere) + told.over
        if len(told.took) < (1 - MISSED) * meant:
            broken.append(f"{window.name}: only {len(told.took)} of {meant} left there")
    show("on the way there", Told(took=[seconds for told in found.values() for seconds in told.elsewhere]))
    return broken


def show(name: str, told: Told) -> tuple[float, float]:
    """Print a row of times; milliseconds at p99.9, and of them the gateway's own."""
    if not told.took:
        return 0.0, 0.0
    marks = [vitals.percentile(sorted(told.took), share) * 1000 for share in (0.5, 0.99, 0.999, 1)]
    own = [vitals.percentile(sorted(told.own), share) * 1000 for share in (0.999, 1)] if told.own else []
    print(f"  {name:<30}{len(told.took):>8}" + "".join(f"{mark:>8.1f}" for mark in marks), end="")
    print(f"{own[0]:>15.1f}{own[1]:>8.1f}" if own else "")
    return marks[2], own[0] if own else 0.0


def leftovers(before: Vitals, after: Vitals, memory: list[tuple[float, float]]) -> list[str]:
    """Print what the gateway has; what is more than before."""
    print(f"\n  {'at rest':<30}{'before':>8}{'after':>8}")
    for name in ("held", "draining", "line", "in_flight", "clients", "own_fds", "tasks", "series"):
        print(f"  {name:<30}{getattr(before, name):>8}{getattr(after, name):>8}")
    for state in ("close_wait", "connecting"):
        print(f"  {'sockets ' + state:<30}{before.sockets[state]:>8}{after.sockets[state]:>8}")
    third = memory[len(memory) // 3 :]
    slope, error = vitals.slope(third)
    grown = slope * (third[-1][0] - third[0][0])
    print(f"  {'MiB':<30}{before.rss:>8.1f}{after.rss:>8.1f}   {grown:+.2f} in the last two thirds")
    broken = [] if after.idle and not after.clients else [f"not at rest: {after}"]
    broken += [f"{name}: {getattr(before, name)} -> {getattr(after, name)}" for name in ("own_fds", "tasks")
               if getattr(before, name) != getattr(after, name)]  # fmt: skip
    broken += [f"sockets {state}: {after.sockets[state]}" for state in ("close_wait", "connecting")
               if after.sockets[state]]  # fmt: skip
    judged = memory[-1][0] - memory[0][0] > WARM * 3
    return [*broken, f"memory grew by {grown:.2f} MiB"] if judged and grown > DRIFT and slope > 3 * error else broken


async def leave_all(crowd: Crowd, count: int, memory: list[tuple[float, float]], starved: Starved) -> None:
    async def watch() -> None:
        while True:
            memory.append((time.monotonic(), vitals.memory(starved.pid)))
            await asyncio.sleep(1.0)

    lanes = PER_WINDOW * (len(WINDOWS) - 1)  # those through the gateway
    pace, turns = lanes / MOST_A_SECOND, -(-count // lanes)
    watching = [asyncio.create_task(work, name="watch") for work in (watch(), crowd.feel(), starved.watch())]
    try:
        async with asyncio.TaskGroup() as group:
            for window in WINDOWS:
                for number in range(PER_WINDOW):
                    group.create_task(crowd.leave_again_and_again(window, number, turns, pace), name="client")
    finally:
        for task in watching:
            task.cancel()


async def still_serves(address: Address) -> bool:
    body = {"model": "talk:1b", "messages": [{"role": "user", "content": "say: still here"}]}
    heard = await Client(address).ask(post("/v1/chat/completions", body, "Connection: close"))
    return heard.complete and json.loads(heard.body)["choices"][0]["message"]["content"] == "still here"


async def main() -> None:
    count = int(os.environ.get("COUNT") or "200000")
    memory: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        async with asyncio.timeout(120 + count / 60), house(Path(name)) as at:
            await still_serves(at.address)
            await asyncio.sleep(2.5)  # until it has given up its second look at the deaf one
            before = await vitals.at_rest(at.gateway.pid, at.address)
            crowd, holder = Crowd(at.address, at.instance), Client(at.address)
            holding = asyncio.create_task(
                holder.ask(request("full:1b", "holder", streamed=True, tokens=100_000), leave=3600)
            )
            await asyncio.sleep(1.0)
            began = time.monotonic()
            machine, starved = Machine.now(), Starved(at.gateway.pid)
            await leave_all(crowd, count, memory, starved)
            took, told = time.monotonic() - began, Machine.now().since(machine)
            waited = starved.words()
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)
            holder.close()
            after = await vitals.at_rest(at.gateway.pid, at.address)
            serves = await still_serves(at.address)
            written = read(at)
        broken = [
            *report(sort(crowd, written, starved), took),
            *leftovers(before, after, memory),
            *crowd.wrong,
            *written.wrong,
        ]
        if not serves:
            broken.append("it serves no more")
    print(f"  machine: {told}\n  the gateway wanted a processor and had none for {waited}")
    for problem in broken[:20]:
        print(f"! {problem}")
    if len(broken) > 20:
        print(f"! and {len(broken) - 20} more")
    sys.exit(bool(broken))


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
