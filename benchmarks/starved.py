"""How long a process wanted a processor and had none: what is late by that is the machine's doing, not its own.

The kernel counts it for every thread (the second field of schedstat). It is looked at often, so that it is known for
any span of time, about. On a machine that others use as well it says how much of a delay was theirs.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

LOOK = 0.005  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Wait:
    """`seconds` of waiting, somewhere in a span of time."""

    begin: float
    end: float
    seconds: float

    def within(self, begin: float, end: float) -> float:
        """How much of it fell into this span, if it was spread evenly."""
        overlap = min(self.end, end) - max(self.begin, begin)
        return max(0.0, overlap) * self.seconds / (self.end - self.begin)


@dataclass
class Starved:
    """The main thread of the process `pid`: a gateway's event loop."""

    pid: int
    began: float = field(default_factory=time.monotonic)
    waits: list[Wait] = field(default_factory=list)
    _longest: float = 0.0

    async def watch(self) -> None:
        """Look, until cancelled. A wait is booked at its end, so it may have begun before the last look."""
        before, at = _waited(self.pid), time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            total, now = _waited(self.pid), time.monotonic()
            if total > before:
                wait = Wait(min(at, now - (total - before)), now, total - before)
                self.waits.append(wait)
                self._longest = max(self._longest, wait.end - wait.begin)
            before, at = total, now

    def within(self, begin: float, end: float) -> float:
        """Seconds of waiting in this span."""
        at, found = bisect_right(self.waits, begin, key=lambda wait: wait.end), 0.0
        while at < len(self.waits) and self.waits[at].end < end + self._longest:
            found += self.waits[at].within(begin, end)
            at += 1
        return min(end - begin, found)

    def words(self) -> str:
        waited, longest = sum(wait.seconds for wait in self.waits), max((w.seconds for w in self.waits), default=0.0)
        share = waited / (time.monotonic() - self.began)
        return f"{share:.1%} of the time, {longest * 1000:.0f} ms at most"


def _waited(pid: int) -> float:
    """Seconds that its main thread has waited for a processor so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


@dataclass(frozen=True, slots=True)
class Machine:
    """Counts of the whole machine."""

    at: float
    all: int  # ticks
    stolen: int  # ticks that the hypervisor gave to others
    idle: int  # ticks
    pressure: float  # seconds in which something waited for a processor

    @classmethod
    def now(cls) -> Machine:
        ticks = [int(count) for count in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        try:
            pressure = int(Path("/proc/pressure/cpu").read_text().split("\n", 1)[0].rpartition("=")[2]) / 1e6
        except OSError:  # a kernel without
            pressure = 0.0
        return cls(time.monotonic(), sum(ticks), ticks[7], ticks[3] + ticks[4], pressure)

    def since(self, before: Machine) -> str:
        ticks = max(1, self.all - before.all)
        busy, stolen = 1 - (self.idle - before.idle) / ticks, (self.stolen - before.stolen) / ticks
        waiting = (self.pressure - before.pressure) / (self.at - before.at)
        return f"{busy:.0%} busy, {stolen:.1%} stolen; something waited for a processor {waiting:.0%} of the time"
