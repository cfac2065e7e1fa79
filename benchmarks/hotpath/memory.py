"""What a stream costs that says nothing: memory of a fresh process with a thousand of them, and without."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from benchmarks.hotpath import kernel
from benchmarks.hotpath.contenders import KINDS, instance
from benchmarks.hotpath.load import Load, Run, drive

STREAMS = 1000
IDLE = Load(callers=STREAMS, frames=1, interval=-1, warm_up=2.0)
BEFORE = Load(callers=20, frames=5, seconds=0.3)  # so that what the first calls bring in is not counted
HANG = 30.0  # seconds


async def per_stream(name: str, home: Path) -> float:
    """Bytes of one idle stream through this contender."""
    async with instance() as behind, KINDS[name](home / name, behind.address) as one:
        await drive(BEFORE, one.address)
        await asyncio.sleep(0.5)
        before = kernel.memory(one.pids)
        async with Run(IDLE, one.address) as run, asyncio.timeout(HANG):
            await run.until_answered(STREAMS)
            await asyncio.sleep(1.0)
            return (kernel.memory(one.pids) - before) / STREAMS


async def of_each(names: Iterable[str], home: Path) -> dict[str, float]:
    return {name: await per_stream(name, home / "idle") for name in names}


def table(found: dict[str, float]) -> str:
    rows = [f"| {name} | {size / 1024:.1f}{_ratio(found, name)} |" for name, size in found.items()]
    return "\n".join(["| | KiB/idle stream |", "|---|---|", *rows])


def ratio(found: dict[str, float], name: str) -> float | None:
    """To nginx."""
    return found[name] / found["nginx"] if found.get("nginx") and name in found else None


def _ratio(found: dict[str, float], name: str) -> str:
    value = None if name == "nginx" else ratio(found, name)
    return "" if value is None else f" ({value:.2f})"
