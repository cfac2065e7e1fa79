"""What happens to a gateway while it is watched: instances that die and come back, configurations that change.

The instances are simulated ones in processes of their own.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from benchmarks.processes import MODEL, running
from benchmarks.traffic import EMBEDDER, Client, post

PARALLEL = 8  # answers at once of one instance
DEATHS = 100  # one of so many answers dies, half of them by FIN, half by RST


@dataclass
class Instances:
    """The simulated ones, each with its faults; one is killed now and then, and is back on its port."""

    ports: list[int]
    restarts: int = 0
    _stacks: dict[int, AsyncExitStack] = field(default_factory=dict)

    async def start(self, port: int) -> None:
        stack = self._stacks[port] = AsyncExitStack()
        pace = ("--first-token", "0.02", "--per-second", "150", "--parallel", str(PARALLEL), "--load-time", "0.2")
        models = ("--model", MODEL, "--model", EMBEDDER)
        await stack.enter_async_context(running("simulate", "--port", str(port), *models, *pace, ready="answers at"))
        for path in ("/v1/", "/api/chat"):
            for kind, after in (("cut", 3), ("reset", 2)):
                fault = {"kind": kind, "times": None, "path": path, "every": 2 * DEATHS, "after": after}
                heard = await Client(("127.0.0.1", port)).ask(post("/simulator/faults", fault, "Connection: close"))
                assert heard.status == 201, heard

    async def restart_one(self, port: int) -> None:
        await self._stacks.pop(port).aclose()
        await asyncio.sleep(0.5)
        await self.start(port)
        self.restarts += 1

    async def stop(self) -> None:
        for stack in self._stacks.values():
            await stack.aclose()


def free_ports(count: int) -> list[int]:
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return ports


class Configurations:
    """The file, and what it is changed into."""

    def __init__(self, path: Path, ports: list[int]) -> None:
        self.path = path
        self.taken = self.refused = 0
        self._ports = ports
        self._next = cycle((self._fewer, self._routed, self._usual, _mistaken))
        self.usual()

    def usual(self) -> None:
        self._write(self._usual())

    def change(self) -> bool:
        """The next one; whether it is one that may be used."""
        text = next(self._next)()
        self._write(text)
        sound = "nmae" not in text
        self.taken, self.refused = self.taken + sound, self.refused + (not sound)
        return sound

    def _write(self, text: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.path)

    def _usual(self, skip: int = -1, limit: int = PARALLEL) -> str:
        rows = [
            f"  - {{name: i{number}, url: 'http://127.0.0.1:{port}', max_concurrent: {limit}}}\n"
            for number, port in enumerate(self._ports)
            if number != skip
        ]
        return (
            "instances:\n" + "".join(rows) + "cache: {max_bytes: 512KiB}\nline: {drain_grace: 1s}\n"
            "health: {interval: 1s}\nbreaker: {cooldown: 2s}\nserver: {drain_delay: 0}\n"
        )

    def _fewer(self) -> str:
        """One instance has gone: what it works on is finished."""
        return self._usual(skip=0)

    def _routed(self) -> str:
        """All to one instance that takes fewer calls than there are: they wait in line."""
        to = "[{instance: i1}, {instance: i2}]"
        return (
            self._usual(limit=PARALLEL // 2)
            + f"routes: [{{name: all, match: {{model: ['{MODEL}', '{EMBEDDER}']}}, to: {to}}}]\n"
        )


def _mistaken() -> str:
    return "instances: [{nmae: i0}]\n"
