"""Row L3 of the fault matrix: replicas behind a balancer are restarted one after another, and no client notices."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from gateway.simulator import Behaviour, Simulator
from tests.house import Wire, ask, request
from tests.test_cli import environment

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
RESTARTS = int(os.environ.get("FAULTS_RESTARTS", "3"))  # by hand 60: every replica twenty times
REPLICAS = 3
CLIENTS = 10
GRACE = 20.0  # seconds; guards against a hang
PLACE = "127.0.0.1"

BALANCER = """
defaults
  mode http
  timeout connect 1s
  timeout client 30s
  timeout server 30s
  timeout check 10s
  retries 2
  option redispatch
  default-server check inter 100ms fall 1 rise 1
listen gateways
  bind {place}:{port}
  balance roundrobin
  option httpchk GET /readyz
"""


class Replica:
    """One gateway in a process of its own, on a port that it keeps."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self.port = folder, port
        self._process: subprocess.Popen[str] | None = None

    def log(self) -> str:
        return (self._folder / f"{self.port}.log").read_text()

    def start(self) -> None:
        with (self._folder / f"{self.port}.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--port", str(self.port)],
                cwd=self._folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        while "status   http" not in (line := self._process.stdout.readline()):
            assert line, self.log()

    def stop(self) -> int:
        """Have it leave; its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=GRACE)
        return self._process.returncode

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def free_ports(count: int) -> list[int]:
    taken = [socket.create_server((PLACE, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


@contextmanager
def balancing(folder: Path, port: int, replicas: list[Replica]) -> Iterator[None]:
    servers = (f"  server r{one.port} {PLACE}:{one.port}\n" for one in replicas)
    (folder / "haproxy.cfg").write_text(BALANCER.format(place=PLACE, port=port) + "".join(servers))
    assert HAPROXY is not None
    process = subprocess.Popen([HAPROXY, "-db", "-q", "-f", str(folder / "haproxy.cfg")])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    wire = Wire(*await asyncio.open_connection(PLACE, port))
    try:
        yield wire
    finally:
        wire.leave()


class Client:
    """Asks again and again, streamed and whole in turns, until it is told to stop."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.outcomes: Counter[str] = Counter()
        self.stopped = False

    async def run(self) -> None:
        stream = False
        while not self.stopped:
            stream = not stream
            self.outcomes[await self.ask(stream=stream)] += 1

    async def ask(self, *, stream: bool) -> str:
        try:
            async with connected(self._port) as wire:
                body = json.dumps(ask("say: one two three four", stream=stream)).encode()
                await wire.send(request("/v1/chat/completions", body, "Connection: close"))
                answer = await wire.rest()
        except OSError as error:
            return type(error).__name__
        if not answer.startswith(b"HTTP/1.1 200 "):
            return answer.decode()
        return "whole" if (b"data: [DONE]" if stream else b'"content":"one two three four"') in answer else "cut"


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
async def test_l3_replicas_behind_a_balancer_restart_one_after_another_and_no_request_is_lost(tmp_path: Path) -> None:
    async with Simulator(Behaviour(parallel=64, first_token=0.05, per_second=40)) as simulator:
        config = {
            "instances": [{"name": "alpha", "url": simulator.url, "max_concurrent": 16}],
            "server": {"drain_delay": 0.5},
            "log": {"level": "warning"},
        }
        (tmp_path / "routes.yaml").write_text(json.dumps(config))
        port, *ports = free_ports(1 + REPLICAS)
        replicas = [Replica(tmp_path, one) for one in ports]
        async with AsyncExitStack() as stack:
            for replica in replicas:
                stack.callback(replica.kill)
            await asyncio.gather(*(asyncio.to_thread(replica.start) for replica in replicas))
            stack.enter_context(balancing(tmp_path, port, replicas))
            await until_served(port)
            clients = [Client(port) for _ in range(CLIENTS)]
            work = [asyncio.create_task(client.run(), name="client") for client in clients]
            for number in range(RESTARTS):
                replica = replicas[number % REPLICAS]
                assert await asyncio.to_thread(replica.stop) == 0
                await asyncio.to_thread(replica.start)
                await until_served(replica.port)
            for client in clients:
                client.stopped = True
            await asyncio.gather(*work)
        outcomes = sum((client.outcomes for client in clients), Counter[str]())
        assert outcomes.keys() == {"whole"}, outcomes
        assert outcomes["whole"] > 10 * RESTARTS
        assert not any("Traceback" in replica.log() for replica in replicas)
        await simulator.until(lambda: simulator.busy == simulator.waiting == simulator.connections == 0)


async def until_served(port: int) -> None:
    async with asyncio.timeout(GRACE):
        while await ready(port) != b"HTTP/1.1 200 OK":
            await asyncio.sleep(0.01)


async def ready(port: int) -> bytes:
    try:
        async with connected(port) as wire:
            await wire.send(request("/readyz", b"", "Connection: close", method="GET"))
            return (await wire.rest()).split(b"\r\n")[0]
    except ConnectionError:
        return b""
