"""Mixed traffic for as long as asked, and whether anything grows meanwhile. `make soak MINUTES=20`.

A gateway and its simulated instances in processes of their own. Of the calls 5 % are left by their client at some
moment, of the answers 1 % are cut or reset by their instance, an instance is killed and comes back every 75 s, and
the configuration changes every minute, each fourth time into one that must be refused. Now and then the traffic holds
its breath, and what the gateway then has must be what it had the time before. Exits with 1 where anything drifts, or
where a client got an answer that it may not get.

The memory's slope is that of least squares over one look a second, after a warm-up of a third. It counts as drift
where it is larger than three times its own error, and larger than what noise gives: see `DRIFT`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from benchmarks import vitals
from benchmarks.processes import Address, running
from benchmarks.starved import Machine
from benchmarks.traffic import COINED, Ask, Client, Heard, Wrong, any_of
from benchmarks.troubles import Configurations, Instances, free_ports
from benchmarks.vitals import Vitals
from gateway import errors

CALLERS, PAUSE = 24, 0.10  # how many call, one call after the other; seconds between two calls of one, on average
ABORTS = 0.05  # of calls
INSTANCES = 3
RELOADS, RESTARTS, CALMS = 60.0, 75.0, 12  # seconds, seconds, how many in a run
UNLUCKY = 0.04  # the share of calls that the deaths above may cost

# Drift of memory: MiB that the measured time may add. Short of it a slope says nothing: the allocator takes memory in
# steps of up to 1 MiB, and a run of calls that happens to be busier than those before needs a few more at once. In 20
# minutes that is 25 bytes for each call: what leaks an object a call is seen, and so is what leaks one in fifty.
DRIFT = 1.5
WARM = 60.0  # seconds of warm-up; where a run has less, memory and series are told but not judged


@dataclass
class Seen:
    """What became of the calls."""

    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    first: list[tuple[float, float]] = field(default_factory=list)  # when, and seconds to the first byte of a stream
    kept: int = 0  # answers from the cache

    def add(self, ask: Ask, heard: Heard, outcome: str) -> None:
        self.by_kind.setdefault(ask.kind, Counter())[outcome] += 1
        self.kept += heard.headers.get("cache-status", "").endswith("hit")
        if "streamed" in ask.kind and outcome == "served":
            self.first.append((time.monotonic(), heard.first))

    @property
    def calls(self) -> int:
        return sum(outcomes.total() for outcomes in self.by_kind.values())

    def count(self, outcome: str) -> int:
        return sum(outcomes[outcome] for outcomes in self.by_kind.values())


class Traffic:
    """The callers, and how to make them hold their breath."""

    def __init__(self, address: Address) -> None:
        self.seen = Seen()
        self._address = address
        self._go = asyncio.Event()
        self._callers: list[asyncio.Task[None]] = []
        self._calling = 0
        self._still = asyncio.Event()

    def begin(self) -> None:
        self._go.set()
        self._callers = [asyncio.create_task(self._caller(number), name="caller") for number in range(CALLERS)]

    async def hold(self) -> None:
        """Until no call is under way."""
        self._go.clear()
        self._still.clear()
        if self._calling:
            await self._still.wait()

    def go_on(self) -> None:
        self._go.set()

    async def end(self) -> None:
        await self.hold()
        for caller in self._callers:
            caller.cancel()
        for result in await asyncio.gather(*self._callers, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _caller(self, number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - not for secrets
        client = Client(self._address, f"127.0.0.{2 + number % 8}")
        while True:
            if not self._go.is_set() or chance.random() < 0.1:
                client.close()
            await self._go.wait()
            self._calling += 1
            try:
                await self._call(client, chance)
            finally:
                self._calling -= 1
                if not self._calling and not self._go.is_set():
                    client.close()
                    self._still.set()
            await asyncio.sleep(chance.expovariate(1 / PAUSE))

    async def _call(self, client: Client, chance: random.Random) -> None:
        ask = any_of(chance)
        leave = chance.uniform(0, 0.3) if chance.random() < ABORTS else None
        heard = Heard()
        try:
            heard = await client.ask(ask.request, leave=leave, reset=chance.random() < 0.5)
            outcome = "left" if heard.left else ask.judge(heard)
        except (Wrong, TimeoutError, ValueError, LookupError) as error:
            outcome = "wrong"
            self.seen.wrong.append(f"{ask.kind}: {str(error) or 'no end'}")
        self.seen.add(ask, heard, outcome)


@dataclass
class Run:
    """One soak: what is under way, and what was seen of it."""

    gateway: Process
    address: Address
    instances: Instances
    configurations: Configurations
    traffic: Traffic
    began: float
    seconds: float
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds since the beginning, MiB
    rests: list[tuple[float, Vitals]] = field(default_factory=list)
    died: int = 0  # attempts
    again: int = 0  # attempts after the first
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)  # no trouble while it rests

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    async def watch(self) -> None:
        """Look at the memory once a second; hold the traffic now and then; show how far it is."""
        due = [self.seconds * (number + 1) / CALMS for number in range(CALMS)]
        while due:
            await asyncio.sleep(1.0)
            self.memory.append((self.now, vitals.memory(self.gateway.pid)))
            if self.now >= due[0]:
                due.pop(0)
                await self._rest()

    async def _rest(self) -> None:
        """What it has while nothing is under way, under the usual configuration."""
        async with self.alone:
            await self._look()

    async def _look(self) -> None:
        await self.traffic.hold()
        self.configurations.usual()
        self.gateway.send_signal(signal.SIGHUP)
        now = await vitals.at_rest(self.gateway.pid, self.address)
        self.rests.append((self.now, now))
        print(f"  {self.now:6.0f} s  {self.traffic.seen.calls:8} calls  {words(now)}", flush=True)
        self.traffic.go_on()

    async def reload(self) -> None:
        """A new configuration now and then, and that the gateway took it or refused it as it should."""
        while True:
            await asyncio.sleep(min(RELOADS, self.seconds / 8))
            async with self.alone:
                sound = self.configurations.change()
                self.gateway.send_signal(signal.SIGHUP)
                if not await self._taken(sound):
                    self.traffic.seen.wrong.append(
                        f"a {'sound' if sound else 'bad'} configuration was not told as such"
                    )

    async def _taken(self, sound: bool) -> bool:
        for _ in range(20):
            await asyncio.sleep(0.5)
            told = json.loads(await vitals.fetch(self.address, "/gateway/status"))["config"]
            if told["reload_ok"] is sound:
                return True
        return False

    async def restart(self) -> None:
        for port in cycle(self.instances.ports):
            await asyncio.sleep(min(RESTARTS, self.seconds / 5))
            async with self.alone:
                await self.instances.restart_one(port)


def words(now: Vitals) -> str:
    sockets = ", ".join(f"{count} {state}" for state, count in sorted(now.sockets.items()))
    return (
        f"{now.rss:6.1f} MiB, {now.fds} fds ({now.own_fds} its own), {now.tasks} tasks, "
        f"leases {now.held}+{now.draining}, line {now.line}, {now.series} series, sockets: {sockets}"
    )


@asynccontextmanager
async def under_way(seconds: float, directory: Path) -> AsyncIterator[Run]:
    ports = free_ports(INSTANCES)
    configurations, instances = Configurations(directory / "routes.yaml", ports), Instances(ports)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(instances.stop)
        for port in ports:
            await instances.start(port)
        log = stack.enter_context((directory / "log").open("wb"))
        serve = ("serve", "--config", str(configurations.path), "--port", "0")
        gateway, address = await stack.enter_async_context(running(*serve, ready="API", errors=log))
        traffic = Traffic(address)
        yield Run(gateway, address, instances, configurations, traffic, time.monotonic(), seconds)


async def soak(run: Run) -> None:
    """Traffic and troubles for as long as they were asked for. Raises what went wrong with the soak itself."""
    run.traffic.begin()
    troubles = [asyncio.create_task(work, name="trouble") for work in (run.reload(), run.restart())]
    watching = asyncio.create_task(run.watch(), name="watch")
    done, _ = await asyncio.wait((watching, *troubles), return_when=asyncio.FIRST_COMPLETED)
    for task in (watching, *troubles):
        task.cancel()
    await asyncio.gather(*troubles, return_exceptions=True)
    for task in done:
        task.result()
    await run.traffic.end()
    scrape = await vitals.fetch(run.address, "/metrics")
    told = vitals.parsed(scrape)
    run.died = vitals.total(told, "gateway_upstream_errors_total")
    run.again = vitals.total(told, "gateway_upstream_retries_total")
    if COINED in scrape:
        run.traffic.seen.wrong.append("a client's own words are in the metrics")


def complaints(log: Path) -> list[str]:
    """What the gateway's log holds that should not be there, and whether each call has one line of its own."""
    ids: Counter[str] = Counter()
    found = []
    with log.open() as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                found.append(f"no line of the log: {line[:200]}")
                continue
            if event["event"] == "call.done" and not event["id"].startswith(COINED):
                ids[event["id"]] += 1
            elif "exception" in event or (event["level"] == "error" and not event["event"].startswith("config.")):
                found.append(line[:2000])
    found += [f"{count} lines for the call {one}" for one, count in ids.items() if count > 1]
    return found


def report(run: Run, found: list[str]) -> bool:
    """Print it all; True if a promise was broken."""
    show_calls(run)
    measured = [rest for at, rest in run.rests if at >= run.seconds / 3]
    show_rests(measured[0], measured[-1])
    broken = [*run.traffic.seen.wrong, *found, *drifts([rest for _, rest in run.rests], measured[0], measured[-1])]
    slow = [*show_memory(run), *new_values(measured[0], measured[-1])]
    broken += slow if run.seconds / 3 >= WARM else []
    show_times(run)
    seen, calls = run.traffic.seen, run.traffic.seen.calls
    if seen.count("told") + seen.count("refused") > UNLUCKY * calls:
        broken.append(f"more than {UNLUCKY:.0%} of the calls failed")
    for problem in broken[:20]:
        print(f"! {problem}")
    if len(broken) > 20:
        print(f"! and {len(broken) - 20} more")
    return bool(broken)


def show_calls(run: Run) -> None:
    seen, changed = run.traffic.seen, run.configurations
    print(f"\n  {'calls':<24}{'all':>9}{'served':>9}{'left':>7}{'told':>7}{'refused':>9}{'wrong':>7}")
    for kind, outcomes in sorted(seen.by_kind.items()):
        row = [outcomes[outcome] for outcome in ("served", "left", "told", "refused", "wrong")]
        print(f"  {kind:<24}{outcomes.total():>9}{row[0]:>9}{row[1]:>7}{row[2]:>7}{row[3]:>9}{row[4]:>7}")
    print(f"  {seen.calls} calls, {seen.kept} of them answered from the cache")
    print(f"  attempts that died {run.died}, and were made good by another {run.again}")
    print(f"  instances killed {run.instances.restarts}, ", end="")
    print(f"configurations taken {changed.taken}, refused {changed.refused}")


def show_rests(first: Vitals, last: Vitals) -> None:
    print(f"\n  {'at rest':<24}{'after a third':>16}{'at the end':>16}")
    for name in ("held", "draining", "line", "in_flight", "clients", "own_fds", "tasks", "series"):
        print(f"  {name:<24}{getattr(first, name):>16}{getattr(last, name):>16}")
    print(f"  {'values of labels':<24}{len(first.values):>16}{len(last.values):>16}")
    print(f"  {'close_wait, connecting':<24}{_stray(first):>16}{_stray(last):>16}")
    print(f"  {'MiB':<24}{first.rss:>16.1f}{last.rss:>16.1f}")
    fresh = sorted({name.partition("{")[0] for name in last.names - first.names if "_bucket" not in name})
    print(f"  new series of {', '.join(fresh) or 'nothing'}")


def show_memory(run: Run) -> list[str]:
    """Print its slope; what is broken of the promise."""
    points = [(at / 3600, rss) for at, rss in run.memory if at >= run.seconds / 3]
    slope, error = vitals.slope(points)
    grown = slope * (points[-1][0] - points[0][0])
    print(f"  memory {slope:+.2f} MiB/h (its error {error:.2f}): {grown:+.2f} MiB in the measured time")
    return [f"memory grew by {grown:.2f} MiB"] if grown > DRIFT and slope > 3 * error else []


def show_times(run: Run) -> None:
    third = run.seconds / 3
    early = sorted(took for at, took in run.traffic.seen.first if third <= at - run.began < 2 * third)
    late = sorted(took for at, took in run.traffic.seen.first if at - run.began >= 2 * third)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        before, after = (vitals.percentile(took, share) * 1000 for took in (early, late))
        print(f"  first byte {name}: {before:.0f} ms in the second third, {after:.0f} ms in the last")


def _stray(now: Vitals) -> int:
    return now.sockets["close_wait"] + now.sockets["connecting"]


def drifts(rests: list[Vitals], first: Vitals, last: Vitals) -> list[str]:
    """What was held at rest, or is more at the end than it was after the warm-up."""
    found = [f"not at rest: {words(rest)}" for rest in rests if not rest.idle or rest.clients or _stray(rest)]
    found += [f"{name}: {getattr(first, name)} -> {getattr(last, name)}" for name in ("own_fds", "tasks")
              if getattr(last, name) > getattr(first, name)]  # fmt: skip
    return found


def new_values(first: Vitals, last: Vitals) -> list[str]:
    """What a label says that it did not say after the warm-up, but for what only something rare makes it say."""
    kinds = (kind for kind in vars(errors).values() if isinstance(kind, type))
    rare = {str(code) for code in range(600)} | {getattr(kind, "reason", "") for kind in kinds}
    rare.add("failed")  # what a probe finds, where one came while an instance was being killed
    return [f"a new value of a label: {value}" for value in last.values - first.values - rare]


async def main() -> None:
    seconds = 60 * float(os.environ.get("MINUTES") or "20")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with asyncio.timeout(1.5 * seconds + 300), under_way(seconds, directory) as run:
            machine = Machine.now()
            await soak(run)
            told = Machine.now().since(machine)
            run.gateway.terminate()
            status = await run.gateway.wait()
        found = complaints(directory / "log")
        if status:
            found.append(f"the gateway's exit status is {status}")
        broken = report(run, found)
    print(f"  machine: {told}")
    sys.exit(broken)


if __name__ == "__main__":
    asyncio.run(main())
