"""A gateway as its users run it, in front of simulators, and the clients as their users run them.

The gateway is a process of its own; the simulators live in this one. Which model a client names decides what happens
to it, so that any client can be asked anything at any time: `MODEL` and `EMBEDDER` answer, `CUT` loses its instance
after three frames, `SILENT` thinks for two seconds, `BUSY` has no room. Clients are processes with an empty HOME, no
way out but loopback, and an end in time. What they tell is `programs/tell.py`'s.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.simulator import Behaviour, SimulatedModel, Simulator
from tests.clients.clients import Client
from tests.house import request

ROOT = Path(__file__).parent.parent.parent
LIMIT = 60.0  # seconds for one client; guards against a hang

MODEL, EMBEDDER, CUT, BUSY, SILENT, HUNG = (
    "llama3.1:8b", "nomic-embed-text:latest", "cut:8b", "busy:8b", "silent:8b", "hung:8b"
)  # fmt: skip
SILENCE = 2.0  # seconds before the first token of SILENT

BEHAVIOURS = {
    "plain": Behaviour(
        models=(
            SimulatedModel(name=MODEL),
            SimulatedModel(name=EMBEDDER, capabilities=("embedding",), family="nomic-bert", context_length=2048),
        ),
        parallel=8,
    ),
    "cutting": Behaviour(models=(SimulatedModel(name=CUT),), parallel=8),
    "busy": Behaviour(models=(SimulatedModel(name=BUSY),), parallel=8),
    "silent": Behaviour(models=(SimulatedModel(name=SILENT),), parallel=8, first_token=SILENCE),
    "hanging": Behaviour(models=(SimulatedModel(name=HUNG),)),
}
CONFIG = {
    "stream": {"hold": 0.5, "keep_alive": 0.3},
    "line": {"max_calls": 0},
    "timeouts": {"idle": "1h"},
    "health": {"interval": 1},
    "breaker": {"failures": 1000},
    "cache": {"enabled": False},
    "server": {"drain_delay": 0},
    "aliases": {"gpt-4o": MODEL, "claude-*": MODEL},
}


@dataclass
class Stage:
    """One gateway with what is behind it and where it writes."""

    url: str
    simulators: Mapping[str, Simulator]
    home: Path
    log: Path
    _found: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    async def ask(self, client: Client, scenario: str) -> dict[str, Any]:
        """What the client told, or raised, in one scenario; all that need no watching are run at once and kept."""
        if (client.name, scenario) not in self._found:
            for finding in await self.run(client, client.scenarios):
                self._found[client.name, finding["scenario"]] = finding
        return self._found[client.name, scenario]

    async def run(
        self, client: Client, scenarios: Iterable[str], limit: float = LIMIT, **changed: str
    ) -> list[dict[str, Any]]:
        """Run a client's program, with some variables of its environment changed."""
        printed = await self.printed(*client.command, *scenarios, limit=limit, **changed)
        return [json.loads(line) for line in printed.splitlines() if line.startswith('{"scenario"')]

    async def printed(self, *command: str, limit: float = LIMIT, **changed: str) -> str:
        """What a command prints to stdout. Fails the test with its stderr where it fails, or does not end in time."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.home,
            env=self._environment() | changed,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(limit):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"{command} ended with {process.returncode}: {err.decode()[-2000:]}"
        return out.decode()

    def lines(self) -> list[dict[str, Any]]:
        """The access log so far, one entry for each call."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [entry for entry in entries if entry["event"] == "call.done"]

    def _environment(self) -> dict[str, str]:
        nowhere = "http://127.0.0.1:9"  # nothing may leave this machine: a client that tries fails at once
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "LANG": "C.UTF-8",
            "NO_PROXY": "127.0.0.1,localhost",
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere),
            "GATEWAY": self.url,
            "MODEL": MODEL,
            "EMBEDDER": EMBEDDER,
            "MODEL_CUT": CUT,
            "MODEL_BUSY": BUSY,
            "MODEL_SILENT": SILENT,
        }


@asynccontextmanager
async def staged(folder: Path, behaviours: Mapping[str, Behaviour], config: Mapping[str, Any]) -> AsyncIterator[Stage]:
    """Simulators and a gateway in front of them; leaving it checks that the gateway logged no defect."""
    async with AsyncExitStack() as stack:
        simulators = {name: await stack.enter_async_context(Simulator(each)) for name, each in behaviours.items()}
        instances = [
            {
                "name": name,
                "url": each.url,
                "max_concurrent": 1 if name == "busy" else 8,
                "capabilities": ["general" if name == "plain" else "trouble"],  # nobody gets there by task
            }
            for name, each in simulators.items()
        ]
        (folder / "routes.yaml").write_text(json.dumps({"instances": instances, **config}))
        url = await stack.enter_async_context(_serving(folder))
        stage = Stage(url, simulators, folder / "home", folder / "log")
        stage.home.mkdir()
        yield stage
        assert "Traceback" not in stage.log.read_text()
        assert "call.defect" not in stage.log.read_text()


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "ENABLE_"))}
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "serve", "--port", "0"),
            cwd=folder,
            env=kept | {"PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    try:
        printed = ""
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT):
            while "status   http" not in printed:
                line = await process.stdout.readline()
                assert line, (folder / "log").read_text()
                printed += line.decode()
        address = re.search(r"API +(http://\S+)/v1", printed)
        assert address is not None
        yield address[1]
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def no_room(stage: Stage) -> AsyncIterator[None]:
    """Hold the one place that BUSY has, with a call that does not end before the block does."""
    stage.simulators["busy"].faults.arm("hang_mid_stream", model=BUSY, after=1)
    host, port = stage.url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        body = {"model": BUSY, "stream": True, "messages": [{"role": "user", "content": "hold"}]}
        writer.write(request("/v1/chat/completions", json.dumps(body).encode()))
        async with asyncio.timeout(LIMIT):
            await reader.readuntil(b"data: ")
        yield
    finally:
        writer.transport.abort()
