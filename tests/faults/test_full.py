"""Row L7 of the fault matrix: no room for the log."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from gateway.simulator import Behaviour, Simulator
from tests.faults.test_reload import until
from tests.faults.test_shutdown import fetched
from tests.house import LIMIT, NO_TLS, ask
from tests.test_cli import ended, serving

CALLS = 20
CHAT = "/v1/chat/completions"


class Gateway:
    """A gateway in a process of its own, and one client of it."""

    def __init__(self, pid: int, url: str, client: httpx.AsyncClient) -> None:
        self.pid, self.url, self._client = pid, url, client

    async def calls(self, count: int, first: int = 0) -> None:
        """Calls that must be answered, one after the other; their ids count up."""
        for number in range(first, first + count):
            ident = {"x-request-id": f"call-{number}"}
            reply = await self._client.post(CHAT, json=ask(f"say: {number}"), headers=ident)
            assert reply.json()["choices"][0]["message"]["content"] == str(number), reply.text

    async def has_lost(self, count: int) -> None:
        """Until it says that so many lines of its log are lost: it may be answered before it is logged."""
        async with asyncio.timeout(LIMIT):
            while await self.lost() != count:
                await asyncio.sleep(0.1)

    async def lost(self) -> int:
        text = (await fetched(self.url, "/metrics")).decode()
        (line,) = [line for line in text.splitlines() if line.startswith("gateway_log_lines_lost_total ")]
        return int(float(line.split()[1]))


@asynccontextmanager
async def logging_to(errors: int, cwd: Path) -> AsyncIterator[Gateway]:
    """At its end it is told to leave, and must do so with status 0."""
    async with Simulator(Behaviour()) as simulator, httpx.AsyncClient(timeout=LIMIT, verify=NO_TLS) as client:
        config = {"instances": [{"name": "alpha", "url": simulator.url}], "server": {"drain_delay": 0}}
        (cwd / "routes.yaml").write_text(json.dumps(config))
        serves = serving("serve", cwd=cwd, errors=errors)
        process, url, _ = await asyncio.to_thread(serves.__enter__)
        try:
            client.base_url = httpx.URL(url)
            yield Gateway(process.pid, url, client)
            status, _ = await asyncio.to_thread(ended, process, signal.SIGTERM)
            assert status == 0
        finally:
            serves.__exit__(None, None, None)


def told(lines: list[str]) -> list[str]:
    """The ids of the calls that a log tells of."""
    events = [json.loads(line) for line in lines]
    return [event["id"] for event in events if event["event"] == "call.done"]


async def test_l7_a_log_on_a_full_disk_stops_no_call_and_what_is_lost_is_counted(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with logging_to(full, tmp_path) as gateway:
            before = await gateway.lost()
            await gateway.calls(CALLS)
            await gateway.has_lost(before + CALLS)
    finally:
        os.close(full)


async def test_l7_when_the_disk_has_room_again_the_log_goes_on_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as log:
        async with logging_to(log.fileno(), tmp_path) as gateway:
            await gateway.calls(CALLS)
            await until(lambda: f'"call-{CALLS - 1}"' in path.read_text())
            written = path.stat().st_size
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (written + 10, resource.RLIM_INFINITY))
            await gateway.calls(CALLS, first=CALLS)
            await gateway.has_lost(CALLS)
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await gateway.calls(CALLS, first=2 * CALLS)
    lines = path.read_text().splitlines()
    torn = [line for line in lines if not line.endswith("}")]
    assert [len(line) for line in torn] == [10]
    assert told([line for line in lines if line not in torn]) == [
        f"call-{number}" for number in (*range(CALLS), *range(2 * CALLS, 3 * CALLS))
    ]


async def test_l7_a_log_that_nobody_reads_stops_no_call_and_is_written_once_somebody_does(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    try:
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
        async with logging_to(writes, tmp_path) as gateway:
            os.close(writes)
            writes = -1
            await gateway.calls(3 * CALLS)
            assert await gateway.lost() == 0
            reading = asyncio.create_task(asyncio.to_thread(_all_of, reads), name="reader")
        lines = (await reading).decode().splitlines()
        assert told(lines) == [f"call-{number}" for number in range(3 * CALLS)]
        assert '"event":"drain.end"' in lines[-1]
    finally:
        os.close(reads)
        if writes >= 0:
            os.close(writes)


def _all_of(file: int) -> bytes:
    found = b""
    while data := os.read(file, 65536):
        found += data
    return found
