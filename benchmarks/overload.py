"""Ten times as many calls as the instances can take, for a minute. `make bench-overload`.

A gateway and its simulated instances in processes of their own, and open-loop callers from eight addresses: they come
at their rate whatever happens to those before. Told are the served calls against what the same instances did in the
same run when they were just kept busy, how soon a refusal is heard, the gateway's memory, and how soon a new call is
served as usual after the flood. Exits with 1 where one of these is not as docs/line.md says.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import Address, request, running

INSTANCES, SLOTS, SERVICE = 4, 2, 0.5  # seconds a call
CAPACITY = INSTANCES * SLOTS / SERVICE  # calls a second
WARM_UP, FLOOD, TIMES = 10.0, 60.0, 10  # seconds, seconds, how many times the capacity
CALLERS = [f"127.0.0.{number}" for number in range(1, 9)]
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}


@dataclass
class Heard:
    """How calls ended: seconds each took, by status."""

    took: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        self.took.setdefault(status, []).append(seconds)

    def count(self, status: int) -> int:
        return len(self.took.get(status, ()))


async def call(address: Address, caller: str, heard: Heard) -> int:
    """The status of one call on a connection of its own."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address, local_addr=(caller, 0))
    writer.write(request(BODY))
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))
    took = time.perf_counter() - began
    writer.close()
    heard.add(status := int(head[9:12]), took)
    return status


async def keep_busy(address: Address, heard: Heard, seconds: float) -> None:
    """As many calls as there are slots, and a few that wait, again and again."""
    ends = time.monotonic() + seconds

    async def caller(name: str) -> None:
        while time.monotonic() < ends:
            await call(address, name, heard)

    await asyncio.gather(*(caller(name) for name in CALLERS for _ in range(2)))


async def flood(address: Address, heard: Heard, seconds: float) -> list[asyncio.Task[int]]:
    """Returns when all have come; some of them still wait."""
    began, tasks = time.monotonic(), []
    for number in range(int(TIMES * CAPACITY * seconds)):
        await asyncio.sleep(max(0.0, number / (TIMES * CAPACITY) - (time.monotonic() - began)))
        tasks.append(asyncio.create_task(call(address, CALLERS[number % len(CALLERS)], heard), name="caller"))
    return tasks


def memory(process: Process) -> float:
    """MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@asynccontextmanager
async def house() -> AsyncIterator[tuple[Process, Address]]:
    pace = str(BODY["max_tokens"] / SERVICE)  # type: ignore[operator]
    simulate = ("simulate", "--port", "0", "--first-token", "0", "--per-second", pace, "--parallel", str(SLOTS))
    async with AsyncExitStack() as stack:
        rows = []
        for number in range(INSTANCES):
            _, (host, port) = await stack.enter_async_context(running(*simulate, ready="answers at"))
            rows.append(f"  - {{name: i{number}, url: 'http://{host}:{port}', max_concurrent: {SLOTS}}}\n")
        config = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".yaml"))  # noqa: SIM115 - the stack closes it
        config.write("instances:\n" + "".join(rows) + "cache: {enabled: false}\nlog: {level: error}\n")
        config.flush()
        yield await stack.enter_async_context(running("serve", "--config", config.name, "--port", "0", ready="API"))


async def main() -> None:
    async with house() as (gateway, address):
        await keep_busy(address, Heard(), 5.0)  # until every instance has the model
        usual, flooded = Heard(), Heard()
        began = time.monotonic()
        await keep_busy(address, usual, WARM_UP)
        capacity = usual.count(200) / (time.monotonic() - began)
        flooded_at = time.monotonic()
        flooding = asyncio.create_task(flood(address, flooded, FLOOD), name="flood")
        await asyncio.sleep(FLOOD / 4)
        before = memory(gateway)
        await asyncio.sleep(FLOOD / 2)
        after = memory(gateway)
        waiting = await flooding
        over = time.monotonic()
        while await call(address, CALLERS[0], Heard()) != 200:  # noqa: ASYNC110 - nobody tells when there is room
            await asyncio.sleep(0.1)
        recovered = time.monotonic() - over
        await asyncio.gather(*waiting)
        took = time.monotonic() - flooded_at
    goodput = flooded.count(200) / took / capacity
    refused = sorted(flooded.took[429])
    p99 = refused[len(refused) * 99 // 100] * 1000
    print(f"  just busy               {capacity:6.1f} calls/s")
    print(f"  served in the flood     {goodput:6.1%} of that ({flooded.count(200)} served, {len(refused)} refused)")
    print(f"  a refusal is heard      p50 {refused[len(refused) // 2] * 1000:.1f} ms   p99 {p99:.1f} ms")
    print(f"  memory                  {before:.1f} -> {after:.1f} MiB from a quarter to three quarters of it")
    print(f"  a new call afterwards   {recovered:.1f} s until it is served, of which {SERVICE:g} s are its own")
    others = {status: len(took) for status, took in flooded.took.items() if status not in (200, 429)}
    sys.exit(goodput < 0.95 or p99 > 20 or after > 1.03 * before or recovered > 5 + SERVICE or bool(others))


if __name__ == "__main__":
    asyncio.run(main())
