"""Three gateways behind HAProxy, restarted one after the other under load. `make bench-rolling RESTARTS=100`.

Nothing may be noticed: every call through HAProxy gets its answer, every stream its last word. HAProxy is set up as
one would in production: it asks for readiness, and tries another gateway only where no connection could be made. It is
not told to send a request a second time once it was sent (`retry-on` has its default, conn-failure alone): that would
hide what is looked for here. Nor should it need what it may do: its own count of retries and redispatches must be 0.
Exits with 1 where a call failed or HAProxy had to help, with 2 where there is no HAProxy.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import vitals
from benchmarks.processes import Address, running
from benchmarks.starved import Machine
from benchmarks.traffic import Ask, Client, Wrong, chat_stream, chat_whole, native_stream
from benchmarks.troubles import free_ports

GATEWAYS, INSTANCES = 3, 2
CALLERS, PAUSE = 40, 0.05  # how many call, one call after the other; seconds between two calls of one, on average
LONGEST = 200  # words of an answer: two seconds
SETTLE = 0.5  # seconds of calm between two restarts
LIMIT = 30.0  # seconds for a gateway to drain, and for one to be up

MISSING = """HAProxy is not here. On Debian:

    apt-get install --no-install-recommends haproxy
"""


@dataclass
class Load:
    """Callers through HAProxy, all the time, and what became of their calls."""

    address: Address
    calls: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  # seconds to the first byte of a stream
    failed: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    ended: bool = False

    async def caller(self, number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - not for secrets
        client = Client(self.address)
        while not self.ended:
            if chance.random() < 0.3:
                client.close()
            await self._call(client, chance.choice((chat_stream, chat_stream, chat_whole))(chance, LONGEST))
            if chance.random() < 0.2:
                await self._call(client, native_stream(chance))
            await asyncio.sleep(chance.expovariate(1 / PAUSE))
        client.close()

    async def _call(self, client: Client, ask: Ask) -> None:
        self.calls[ask.kind] += 1
        try:
            heard = await client.ask(ask.request)
        except TimeoutError:
            self.failed.append(f"{ask.kind}: no end")
            return
        try:
            outcome = ask.judge(heard)
        except (Wrong, ValueError, LookupError) as error:
            outcome = str(error)
        if outcome == "served":
            self.first += [heard.first] if "streamed" in ask.kind else []
        elif heard.status == 200:
            self.truncated.append(f"{ask.kind}: {outcome}")
        else:
            self.failed.append(f"{ask.kind}: status {heard.status}, {bytes(heard.body[:200])!r}")


def settings(front: int, ports: list[int], control: Path) -> str:
    servers = "".join(f"    server g{number} 127.0.0.1:{port}\n" for number, port in enumerate(ports))
    return f"""
global
    stats socket {control} mode 600 level operator
    maxconn 2000
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 1s
    retries 3
    option redispatch
    option http-no-delay
frontend front
    bind 127.0.0.1:{front}
    default_backend gateways
backend gateways
    balance roundrobin
    option httpchk GET /readyz
    default-server inter 100ms fall 2 rise 2 check
{servers}"""


class Balancer:
    """HAProxy, and what it says of the gateways."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self.leaving = ""  # the gateway that is being restarted
        self.fell: list[str] = []  # others that it took for down, and why

    async def watch(self) -> None:
        """Note each gateway that it takes for down though nobody restarts it."""
        up: dict[str, bool] = {}
        while True:
            for name, row in (await self.told()).items():
                is_up = row["status"].startswith("UP")
                if up.get(name, True) and not is_up and name not in (self.leaving, "BACKEND"):
                    self.fell.append(f"{name}: {row['check_status']} {row['check_code']}, {row['check_duration']} ms")
                up[name] = is_up
            await asyncio.sleep(0.05)

    async def told(self) -> dict[str, dict[str, str]]:
        """`show stat`, by server."""
        reader, writer = await asyncio.open_unix_connection(str(self._control))
        writer.write(b"show stat\n")
        text = (await reader.read()).decode()
        writer.close()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "gateways"}

    async def until(self, server: str, status: str) -> None:
        async with asyncio.timeout(LIMIT):
            while not (await self.told())[server]["status"].startswith(status):  # noqa: ASYNC110 - it does not tell
                await asyncio.sleep(0.05)

    async def helped(self) -> dict[str, int]:
        """What it did so that clients did not notice, and what they did notice."""
        row = (await self.told())["BACKEND"]
        names = {"retries": "wretr", "redispatches": "wredis", "connections failed": "econ", "answers failed": "eresp"}
        return {name: int(row[key] or 0) for name, key in names.items()}


class Gateway:
    """One of them, on its port: started, drained, started again."""

    def __init__(self, name: str, port: int, config: Path, log: Path) -> None:
        self.name = name
        self._port, self._config, self._log = port, config, log
        self._stack = AsyncExitStack()
        self._process: Process

    async def start(self) -> None:
        errors = self._stack.enter_context(self._log.open("ab"))
        serve = ("serve", "--config", str(self._config), "--port", str(self._port))
        self._process, _ = await self._stack.enter_async_context(running(*serve, ready="API", errors=errors))

    async def drain(self) -> int:
        """Its exit status."""
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT):
            status = await self._process.wait()
        await self.stop()
        return status

    async def stop(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def house(directory: Path) -> AsyncIterator[tuple[Address, Balancer, list[Gateway]]]:
    front, *ports = free_ports(1 + GATEWAYS)
    control, config = directory / "haproxy.sock", directory / "routes.yaml"
    async with AsyncExitStack() as stack:
        rows = []
        pace = ("--first-token", "0.02", "--per-second", "100", "--parallel", "64")
        for number in range(INSTANCES):
            simulate = running("simulate", "--port", "0", *pace, ready="answers at")
            _, (host, port) = await stack.enter_async_context(simulate)
            rows.append(f"  - {{name: i{number}, url: 'http://{host}:{port}', max_concurrent: 16}}\n")
        config.write_text(
            "instances:\n"
            + "".join(rows)
            + "server: {drain_delay: 1s}\nhealth: {interval: 1s}\nlog: {level: warning}\n"
        )
        gateways = [Gateway(f"g{number}", port, config, directory / "log") for number, port in enumerate(ports)]
        for gateway in gateways:
            stack.push_async_callback(gateway.stop)
            await gateway.start()
        (directory / "haproxy.cfg").write_text(settings(front, ports, control))
        arguments = ("haproxy", "-db", "-f", str(directory / "haproxy.cfg"))
        process = await asyncio.create_subprocess_exec(*arguments, stdout=DEVNULL, stderr=DEVNULL)
        stack.push_async_callback(_end, process)
        balancer = Balancer(control)
        async with asyncio.timeout(LIMIT):
            while not control.exists():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
        for gateway in gateways:
            await balancer.until(gateway.name, "UP")
        yield ("127.0.0.1", front), balancer, gateways


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def roll(gateways: list[Gateway], balancer: Balancer, restarts: int) -> tuple[list[float], list[int]]:
    """One gateway after the other. Seconds from SIGTERM until HAProxy sends calls to it again; the exit statuses."""
    took, statuses = [], []
    for number in range(restarts):
        gateway = gateways[number % len(gateways)]
        began, balancer.leaving = time.monotonic(), gateway.name
        statuses.append(await gateway.drain())
        await gateway.start()
        await balancer.until(gateway.name, "UP")
        took.append(time.monotonic() - began)
        await asyncio.sleep(SETTLE)
        if (number + 1) % 10 == 0:
            print(f"  {number + 1:4} restarts", flush=True)
    return took, statuses


async def main() -> None:
    restarts = int(os.environ.get("RESTARTS") or "100")
    if shutil.which("haproxy") is None:
        print(MISSING)
        sys.exit(2)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with asyncio.timeout(60 + restarts * 15), house(directory) as (address, balancer, gateways):
            load = Load(address)
            callers = [asyncio.create_task(load.caller(number), name="caller") for number in range(CALLERS)]
            machine = Machine.now()
            watching = asyncio.create_task(balancer.watch(), name="watch")
            took, statuses = await roll(gateways, balancer, restarts)
            watching.cancel()
            busy = Machine.now().since(machine)
            load.ended = True
            await asyncio.gather(*callers)
            helped = await balancer.helped()
        events = [json.loads(line) for line in (directory / "log").read_text().splitlines()]
    print(f"  restarts                {restarts:>8}   {statuses.count(0)} with exit status 0")
    print(f"  SIGTERM until up again  p50 {vitals.percentile(sorted(took), 0.5):.1f} s   max {max(took):.1f} s")
    defects = [event for event in events if event["level"] == "error"]
    show(load)
    print("  HAProxy: " + told(helped))
    print("  taken for down, though not restarted: " + (", ".join(balancer.fell) or "none"))
    print("  gateways' warnings: " + told(Counter(event["event"] for event in events if event["level"] == "warning")))
    print(f"  machine: {busy}")
    for problem in [*load.failed, *load.truncated, *defects][:20]:
        print(f"! {problem}")
    sys.exit(bool(load.failed or load.truncated or any(statuses) or any(helped.values()) or defects))


def show(load: Load) -> None:
    for kind, count in sorted(load.calls.items()):
        print(f"  {kind:<24}{count:>8}")
    first = sorted(load.first)
    print(f"  first byte of a stream  p50 {vitals.percentile(first, 0.5) * 1000:.0f} ms", end="")
    print(f"   p99 {vitals.percentile(first, 0.99) * 1000:.0f} ms   max {first[-1] * 1000:.0f} ms")
    print(f"  failed                  {len(load.failed):>8}\n  truncated               {len(load.truncated):>8}")


def told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


if __name__ == "__main__":
    asyncio.run(main())
