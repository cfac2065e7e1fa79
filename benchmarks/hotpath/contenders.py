"""What is measured: each a process before the same instance, on the core for contenders."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.hotpath import kernel
from benchmarks.hotpath.load import Address
from benchmarks.hotpath.upstream import LISTENING

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds until a contender listens

_GATEWAY = """
instances: [{{name: one, url: "{url}", max_concurrent: 4096}}]
server: {{max_connections: 16384, max_connections_per_address: 16384, drain_delay: 0, drain_timeout: 1}}
"""  # limits are raised, and it goes at once when it is told to; nothing is turned off
_NGINX = """
daemon off; pid {home}/nginx.pid; error_log {home}/errors.log; worker_processes 1; worker_rlimit_nofile 65536; {user}
events {{ worker_connections 16384; }}
http {{
  access_log {home}/access.log;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  keepalive_requests 100000000; client_max_body_size 64m;
  upstream instance {{ server {upstream}; keepalive 4096; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://instance; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 3600s;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    address: Address
    pids: tuple[int, ...] = ()  # none: the instance itself, asked directly


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def nginx_program() -> str | None:
    """Where nginx is, if there is one."""
    return os.environ.get("NGINX_PROGRAM") or shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@asynccontextmanager
async def process(
    command: Sequence[str],
    cores: list[int],
    *,
    errors: IO[bytes] | int = DEVNULL,
    output: int = DEVNULL,
    env: dict[str, str] | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """It runs on these cores until the block is left; all that it started ends with it."""
    running = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        cwd="/",
        stdout=output,
        stderr=errors,
        preexec_fn=lambda: kernel.child(cores),
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await running.wait()
        if running.returncode is None:
            for pid in reversed(kernel.tree(running.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            await running.wait()


async def listening(address: Address) -> None:
    """Until it takes connections."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            _, writer = await asyncio.open_connection(*address)
        except OSError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


@asynccontextmanager
async def instance(*more: str) -> AsyncIterator[Contender]:
    """The instance behind all of them."""
    command = (sys.executable, "-m", "benchmarks.hotpath.upstream", *more)
    async with process(command, kernel.REST, output=PIPE) as running:
        yield Contender("direct", await _said(running, LISTENING), ())


async def _said(running: asyncio.subprocess.Process, before: str) -> Address:
    """The address that it prints behind those words."""
    assert running.stdout is not None
    async with asyncio.timeout(PATIENCE):
        async for line in running.stdout:
            found = re.search(re.escape(before) + r"(\d+)", re.sub(r" +", " ", line.decode()))
            if found:
                return "127.0.0.1", int(found[1])
    raise RuntimeError("it ended before it listened")


def written(home: Path, name: str, text: str) -> Path:
    """A file of a contender's."""
    home.mkdir(parents=True, exist_ok=True)
    (home / name).write_text(text)
    return home / name


@asynccontextmanager
async def gateway(
    home: Path, upstream: Address, *, config: str = _GATEWAY, under: Sequence[str] = (), module: str = "gateway"
) -> AsyncIterator[Contender]:
    """Ours, with everything on that is on by default, its log in a file; `under` a program that watches it."""
    file = written(home, "routes.yaml", config.format(url=url(upstream)))
    command = (*under, sys.executable, "-m", module, "serve", "--config", str(file), "--port", "0")
    with (home / "log").open("wb") as log:
        async with process(command, kernel.CONTENDER, output=PIPE, errors=log) as running:
            address = await _said(running, "API http://127.0.0.1:")
            yield Contender("gateway", address, tuple(kernel.tree(running.pid)))


@asynccontextmanager
async def nginx(home: Path, upstream: Address) -> AsyncIterator[Contender]:
    """The control: one worker, nothing buffered, a line in a file for each call."""
    address = ("127.0.0.1", free_port())
    user = "user root;" if os.geteuid() == 0 else ""
    text = _NGINX.format(home=home, user=user, upstream=f"{upstream[0]}:{upstream[1]}", port=address[1])
    file = written(home, "nginx.conf", text)
    command = (nginx_program() or "nginx", "-p", str(home), "-c", str(file), "-e", str(home / "errors.log"))
    async with process(command, kernel.CONTENDER) as running:
        await listening(address)
        await asyncio.sleep(0.2)  # the worker, which does the work, is there a little after the listener
        yield Contender("nginx", address, tuple(kernel.tree(running.pid)))


@asynccontextmanager
async def naive(home: Path, upstream: Address) -> AsyncIterator[Contender]:
    """starlette and httpx, as one would write it."""
    address = ("127.0.0.1", free_port())
    command = (sys.executable, "-m", "benchmarks.hotpath.naive", str(address[1]), url(upstream))
    async with process(command, kernel.CONTENDER) as running:
        await listening(address)
        yield Contender("starlette + httpx", address, tuple(kernel.tree(running.pid)))


def url(address: Address) -> str:
    return f"http://{address[0]}:{address[1]}"


Kind = Callable[[Path, Address], AbstractAsyncContextManager[Contender]]
KINDS: dict[str, Kind] = {"gateway": gateway, "nginx": nginx, "starlette + httpx": naive}


@asynccontextmanager
async def field(kinds: Mapping[str, Kind], home: Path) -> AsyncIterator[tuple[list[Contender], list[int]]]:
    """All of them, running, the instance first; and the pids of the callers (us) and the instance."""
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(instance())
        contexts = [kind(home / str(number), behind.address) for number, kind in enumerate(kinds.values())]
        found = [behind, *[await stack.enter_async_context(one) for one in contexts]]
        ours = {pid for one in found for pid in one.pids}
        rest = [pid for pid in kernel.tree(os.getpid()) if pid not in ours]
        yield found, rest


def version(program: Sequence[str]) -> str:
    """What it says of itself, in one line."""
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(program, capture_output=True, text=True, timeout=10, check=False)
        return (told.stdout or told.stderr).strip().splitlines()[0]
    return "unknown"
