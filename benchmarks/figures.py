"""What the gateway costs, and how soon an instance hears that a client left. `make bench`.

Times on a shared machine mean little by themselves. So the gateway's own CPU time is counted, by the kernel, per whole
call and per streamed frame, and set against the simulated instance's in the same run, turn by turn; and a departure is
timed by the simulator, on the same clock, from the client's close to its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO

from gateway.simulator import Behaviour, Simulator

ROOT = Path(__file__).parent.parent
MODEL = "llama3.1:8b"
ROUNDS, CALLS, AT_ONCE, FRAMES, LEAVERS = 5, 400, 16, 400, 100

WINDOWS: dict[str, dict[str, object]] = {
    "before the head": {"kind": "hang_before_headers"},
    "before the first token": {"kind": "hang_before_first_token"},
    "in the middle of a stream": {},
    "while a whole answer is made": {"stream": False},
}

Address = tuple[str, int]


@asynccontextmanager
async def running(
    *arguments: str, ready: str, module: str = "gateway", errors: IO[bytes] | int = DEVNULL
) -> AsyncIterator[tuple[Process, Address]]:
    """A process of ours and the address it printed; what it says of itself, its log, goes to `errors`."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, env=env, cwd="/", stdout=PIPE, stderr=errors
    )
    assert process.stdout is not None
    try:
        while True:
            line = (await process.stdout.readline()).decode()
            assert line, "it ended before it listened"
            found = re.search(ready + r" http://([\d.]+):(\d+)", re.sub(r" +", " ", line))
            if found:
                break
        yield process, (found[1], int(found[2]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def cpu(process: Process) -> float:
    """Seconds of processor time so far, all threads."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def request(body: dict[str, object]) -> bytes:
    content = json.dumps({"model": MODEL, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def whole_calls(address: Address, count: int) -> None:
    """`count` finished answers over one connection."""
    sent = request({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12})
    reader, writer = await asyncio.open_connection(*address)
    for _ in range(count):
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
    writer.close()


async def stream(address: Address, frames: int) -> None:
    """One streamed answer, to its end marker."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(
        request({"messages": [{"role": "user", "content": "hello"}], "max_tokens": frames, "stream": True, "seed": 2})
    )
    seen = b""
    while b"[DONE]" not in seen:
        data = await reader.read(65536)
        assert data, "cut"
        seen = seen[-16:] + data
    writer.close()


async def cost(process: Process, address: Address) -> tuple[float, float]:
    """Microseconds of the process's CPU for one whole call, and for one streamed frame."""
    await whole_calls(address, 20)
    before = cpu(process)
    await asyncio.gather(*(whole_calls(address, CALLS // AT_ONCE) for _ in range(AT_ONCE)))
    between = cpu(process)
    await asyncio.gather(*(stream(address, FRAMES) for _ in range(AT_ONCE)))
    return (between - before) / CALLS * 1e6, (cpu(process) - between) / (AT_ONCE * FRAMES) * 1e6


@asynccontextmanager
async def gateway(url: str) -> AsyncIterator[tuple[Process, Address]]:
    """A gateway in front of one instance, with room for all and nothing kept."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(
            f"instances: [{{name: one, url: '{url}', max_concurrent: 64}}]\n"
            "cache: {enabled: false}\nline: {drain_grace: 0}\n"
        )
        config.flush()
        async with running("serve", "--config", config.name, "--port", "0", ready="API") as found:
            yield found


async def departures() -> None:
    """From the client's close to the moment the instance sees it, by window."""
    for window, fault in WINDOWS.items():
        async with (
            Simulator(Behaviour(parallel=64, per_second=100)) as simulator,
            gateway(simulator.url) as (_, address),
        ):
            took = sorted([await departure(simulator, address, fault) for _ in range(LEAVERS)])
        p50, p99 = took[LEAVERS // 2], took[LEAVERS * 99 // 100]
        print(f"  {window:<30} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   max {took[-1]:6.2f} ms")


async def departure(simulator: Simulator, address: Address, fault: dict[str, object]) -> float:
    simulator.requests.clear()
    details = dict(fault)
    streamed = details.pop("stream", True)
    if kind := details.pop("kind", None):
        simulator.faults.arm(str(kind), path="/v1", **details)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request({"messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000, "stream": streamed}))
    await simulator.until(lambda: any(seen.path == "/v1/chat/completions" for seen in simulator.requests))
    if streamed and not kind:
        await reader.readuntil(b"data: ")
    seen = next(seen for seen in simulator.requests if seen.path == "/v1/chat/completions")
    left = time.monotonic()
    writer.transport.abort()
    await simulator.until(lambda: seen.left_at is not None)
    assert seen.left_at is not None
    simulator.faults.clear()
    return (seen.left_at - left) * 1000


async def costs() -> None:
    """CPU of the gateway and of the instance behind it, turn by turn."""
    simulate = ("simulate", "--port", "0", "--first-token", "0", "--per-second", "0", "--parallel", "64", "--steer")
    async with AsyncExitStack() as stack:
        instance, behind = await stack.enter_async_context(running(*simulate, ready="answers at"))
        ours, front = await stack.enter_async_context(gateway(f"http://{behind[0]}:{behind[1]}"))
        rows = [(await cost(instance, behind), await cost(ours, front)) for _ in range(ROUNDS)]
    for index, what in enumerate(("whole call", "streamed frame")):
        gateway_us = statistics.median(row[1][index] for row in rows)
        instance_us = statistics.median(row[0][index] for row in rows)
        ratio = statistics.median(row[1][index] / row[0][index] for row in rows)
        print(f"  per {what:<15} gateway {gateway_us:7.1f} us   instance {instance_us:7.1f} us   ratio {ratio:.2f}")


async def main() -> None:
    print("CPU time:")
    await costs()
    print("an instance hears that a client left:")
    await departures()


if __name__ == "__main__":
    asyncio.run(main())
