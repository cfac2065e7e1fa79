"""The gateway, and for how long its event loop is held by one thing: `serve` as ever. Told at SIGUSR1, then anew.

Every millisecond a timer is due. Between two of its turns the loop was held for as long as they are apart, but not for
longer than this process worked in that time: what a neighbour on the machine took is not the gateway's.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import time
from itertools import pairwise
from pathlib import Path

import gateway.server
from gateway.cli import main
from gateway.server import Server

BEAT = 0.001  # seconds
EDGES = (1, 2, 5, 10, 20, 50, 100)  # milliseconds
FILE = "BENCH_STALLS"  # the environment variable that says where to tell


class Ticker:
    """Looks at the clock every millisecond, as often as the loop lets it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: list[int] = []
        self._before = (time.monotonic_ns(), time.process_time_ns())
        self._collecting = self._collection = 0
        gc.callbacks.append(self._collects)
        self._tick()

    def _tick(self) -> None:
        now = (time.monotonic_ns(), time.process_time_ns())
        self._held.append(min(now[0] - self._before[0], now[1] - self._before[1]) // 1000)
        self._before = now
        self._loop.call_later(BEAT, self._tick)

    def _collects(self, phase: str, _: object) -> None:
        """Garbage: Python stops for it."""
        now = time.thread_time_ns() // 1000
        if phase == "start":
            self._collecting = now
        else:
            self._collection = max(self._collection, now - self._collecting)

    def tell(self) -> None:
        """Microseconds, and how many there were up to each of the edges."""
        held, self._held = sorted(self._held), []
        collection, self._collection = self._collection, 0
        bounds = (0, *(edge * 1000 for edge in EDGES), 10**12)
        told = {
            "p50": held[len(held) // 2],
            "p99": held[len(held) * 99 // 100],
            "max": held[-1],
            "collection": collection,
            "counts": [sum(low < one <= high for one in held) for low, high in pairwise(bounds)],
        }
        path = Path(os.environ[FILE])
        path.with_suffix(".new").write_text(json.dumps(told))
        path.with_suffix(".new").replace(path)


class Watched(Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, Ticker().tell)


if __name__ == "__main__":
    gateway.server.Server = Watched  # type: ignore[misc]
    main()
