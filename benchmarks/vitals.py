"""What a gateway has, seen from outside (/proc) and in its own words (/metrics): for runs that look for leaks."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Address

Words = dict[str, float]

_STATES = {"01": "established", "02": "connecting", "08": "close_wait", "0A": "listening"}
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_IDLE = ("held", "draining", "line", "in_flight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """A gateway at one moment. `fds` and `sockets` are the kernel's count, all else is what it says itself."""

    rss: float  # MiB
    fds: int
    sockets: Counter[str]  # by state
    held: int
    draining: int
    line: int
    in_flight: int
    clients: int  # open connections
    upstreams: int  # open connections, idle ones included
    tasks: int
    names: frozenset[str]  # of all series, with their labels

    @property
    def series(self) -> int:
        return len(self.names)

    @property
    def values(self) -> frozenset[str]:
        """Every value that a label has, but for the bounds of histograms."""
        return frozenset(value for name in self.names for label, value in _LABEL.findall(name) if label != "le")

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not any(getattr(self, name) for name in _IDLE)

    @property
    def own_fds(self) -> int:
        """Those that are no connection: what must be the same at any two idle moments."""
        return self.fds - self.clients - self.upstreams


def memory(pid: int) -> float:
    """MiB in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def _inodes(pid: int) -> tuple[int, set[str]]:
    """How many descriptors are open, and the sockets among them."""
    count, inodes = 0, set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            count += 1
            target = str(link.readlink())
            if target.startswith("socket:"):
                inodes.add(target[8:-1])
    return count, inodes


def _sockets(pid: int, inodes: set[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[9] in inodes:
                found[_STATES.get(fields[3], "other")] += 1
    return found


def parsed(text: str) -> Words:
    """A scrape, by name with labels."""
    rows = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def total(words: Words, name: str, without: str = "\n") -> int:
    """The sum of all children of `name` but those whose labels hold `without`."""
    return int(sum(value for key, value in words.items() if key.partition("{")[0] == name and without not in key))


async def fetch(address: Address, path: str) -> str:
    """The body of a GET, on a connection of its own."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    assert head.startswith(b"HTTP/1.1 200"), head
    return body.decode()


async def take(pid: int, address: Address) -> Vitals:
    """The vitals now. The connection that asks for them is not counted."""
    words = parsed(await fetch(address, "/metrics"))
    fds, inodes = _inodes(pid)
    return Vitals(
        rss=memory(pid),
        fds=fds,
        sockets=_sockets(pid, inodes),
        held=total(words, "gateway_upstream_in_flight"),
        draining=total(words, "gateway_upstream_draining"),
        line=total(words, "gateway_line_depth"),
        in_flight=total(words, "gateway_requests_in_flight", without='"ops"'),
        clients=total(words, "gateway_client_connections") - 1,
        upstreams=total(words, "gateway_upstream_connections"),
        tasks=total(words, "gateway_asyncio_tasks"),
        names=frozenset(words),
    )


async def at_rest(pid: int, address: Address, limit: float = 20.0) -> Vitals:
    """The vitals once nothing is under way; what they are after `limit` seconds where that does not come about."""
    until = time.monotonic() + limit
    while True:
        await asyncio.sleep(1.1)  # a scrape is rendered once a second
        now = await take(pid, address)
        gone = now.sockets["established"] <= now.upstreams and not now.clients
        if (now.idle and gone) or time.monotonic() > until:
            return now


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: the slope, and its standard error if the points were independent."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    fit = statistics.linear_regression(xs, ys)
    middle = statistics.fmean(xs)
    spread = sum((x - middle) ** 2 for x in xs)
    rest = sum((y - fit.slope * x - fit.intercept) ** 2 for x, y in points)
    return fit.slope, (rest / max(1, len(xs) - 2) / spread) ** 0.5


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values: the smallest that at least `share` of them do not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]
