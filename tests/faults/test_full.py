"""Row L7 of the fault matrix: no room for the log, no memory for another call."""

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
from tests.faults.test_reload import MEBI, until
from tests.faults.test_shutdown import connected, fetched
from tests.house import LIMIT, NO_TLS, ask, request
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

    async def refused(self) -> bool:
        """Whether there was no memory for a small call, or not even to read it."""
        try:
            reply = await self._client.post(CHAT, json=ask("say: small"))
        except (httpx.ReadError, httpx.RemoteProtocolError):
            return True
        assert reply.status_code == 200 or (reply.status_code == 503 and "gateway_exhausted" in reply.text), reply.text
        return reply.status_code == 503

    async def has_lost(self, count: int) -> None:
        """Until it says that so many lines of its log are lost: it may be answered before it is logged."""
        async with asyncio.timeout(LIMIT):
            while await self.lost() != count:
                await asyncio.sleep(0.1)

    async def lost(self) -> int:
        return await self.metric("gateway_log_lines_lost_total")

    async def metric(self, name: str) -> int:
        """The sum of a family."""
        lines = (await fetched(self.url, "/metrics")).decode().splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))))


@asynccontextmanager
async def logging_to(errors: int, cwd: Path) -> AsyncIterator[Gateway]:
    """At its end it is told to leave, and must do so with status 0."""
    async with Simulator(Behaviour()) as simulator, httpx.AsyncClient(timeout=LIMIT, verify=NO_TLS) as client:
        config = {
            "instances": [{"name": "alpha", "url": simulator.url, "max_concurrent": 4}],
            "server": {"drain_delay": 0},
            "line": {"drain_grace": 0.2},
        }
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


def room_for(pid: int, more: int) -> None:
    """Let a process have `more` bytes of address space than now; as much as it likes where that is negative."""
    now = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    soft = now + more if more >= 0 else resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))


async def outcome(url: str, body: bytes) -> bytes:
    """The answer's head and body; b"" where the connection was reset."""
    try:
        async with connected(url) as wire:
            await wire.send(request(CHAT, body, "Connection: close"))
            answer: bytes = await wire.rest()
            return answer
    except ConnectionError:
        return b""


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


async def test_l7_without_memory_for_large_calls_it_refuses_them_serves_small_ones_and_keeps_nothing(
    tmp_path: Path,
) -> None:
    path, large = tmp_path / "log", json.dumps(ask("say: large " + "x" * 4 * MEBI)).encode()
    with path.open("wb") as log:
        async with logging_to(log.fileno(), tmp_path) as gateway:
            await gateway.calls(1)
            for more in (16 * MEBI, 4 * MEBI, MEBI):
                room_for(gateway.pid, more)
                outcomes = await asyncio.gather(*(outcome(gateway.url, large) for _ in range(8)))
                told = [one for one in outcomes if one.startswith(b"HTTP/1.1 503 ")]
                assert told
                assert all(b'"code":"gateway_exhausted"' in one and b"retry-after: 1\r\n" in one for one in told)
                assert all(one[:13] in (b"HTTP/1.1 503 ", b"HTTP/1.1 200 ", b"") for one in outcomes)
                async with asyncio.timeout(LIMIT):
                    while await gateway.refused():
                        pass
            room_for(gateway.pid, -1)
            await gateway.calls(1)
            for family in ("gateway_upstream_in_flight", "gateway_upstream_draining", "gateway_line_depth"):
                assert await gateway.metric(family) == 0
            assert b'"state":"healthy"' in await fetched(gateway.url, "/gateway/status")
    logged = path.read_text()
    for event in ("breaker.change", "instance.down", "call.defect"):
        assert event not in logged


def _all_of(file: int) -> bytes:
    found = b""
    while data := os.read(file, 65536):
        found += data
    return found
