"""How many instructions a call and a frame take, counted by valgrind. `make bench-instructions`

No busy machine changes these. The gateway runs under callgrind, which counts what it executes itself, not what the
kernel does for it. The counts are held to those in instructions.json, of the same interpreter: more than a tenth more
is a failure. `--record` puts the counts of this run there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.hotpath import kernel, page
from benchmarks.hotpath.contenders import Contender, gateway, instance, version
from benchmarks.hotpath.load import Load, Run

RECORD = Path(__file__).with_name("instructions.json")
BOUND = 1.10  # of what is recorded
HANG = 240.0  # seconds
CALLERS = 8
MANY, FEW, APART = 60, 10, 100.0  # frames of long and of short streams, milliseconds between frames
CALLS = Load(callers=CALLERS, calls=25)
STREAMS = {frames: Load(callers=CALLERS, frames=frames, calls=2, interval=APART) for frames in (FEW, MANY)}
MOST = {"call": 180_000, "frame": 14_000}  # what we want to keep, whatever is recorded


async def callgrind(pid: int, *order: str) -> None:
    """Tell callgrind something, and wait until it has heard it."""
    command = ("callgrind_control", *order, str(pid))
    quiet = asyncio.subprocess.DEVNULL
    running = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    async with asyncio.timeout(HANG):
        assert await running.wait() == 0, f"{command} failed"


async def work(load: Load, one: Contender) -> None:
    async with Run(load, one.address) as run, asyncio.timeout(HANG):
        await run.until_done()
        assert not run.told.errors, run.told.errors


async def counted(load: Load, one: Contender, home: Path) -> int:
    """Instructions of all its calls together."""
    pid = one.pids[0]
    await callgrind(pid, "--zero")
    await work(load, one)
    await callgrind(pid, "--dump")
    return _total(home)


def _total(home: Path) -> int:
    """Of the newest dump."""
    newest = max(home.glob("callgrind.*"), key=lambda path: path.stat().st_mtime_ns)
    found = re.search(r"(?m)^(?:totals|summary): (\d+)", newest.read_text())
    assert found is not None, f"no total in {newest.name}"
    return int(found[1])


async def measured(home: Path) -> dict[str, int]:
    """Instructions of one whole call, and of one frame: what long streams take more than short ones."""
    under = ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={home}/callgrind.%p")
    async with instance() as behind, gateway(home, behind.address, under=under) as one:
        await work(CALLS, one)
        await callgrind(one.pids[0], "--instr=on")
        await work(STREAMS[FEW], one)
        calls = await counted(CALLS, one, home)
        few, many = [await counted(load, one, home) for load in STREAMS.values()]
    streams = STREAMS[MANY].callers * STREAMS[MANY].calls
    return {"call": calls // (CALLS.callers * CALLS.calls), "frame": (many - few) // (streams * (MANY - FEW))}


def interpreter() -> str:
    return f"CPython {platform.python_version()} {page.build()}, {platform.machine()}"


def judged(found: dict[str, int], recorded: dict[str, int]) -> tuple[str, bool]:
    """A table, and whether all is within bounds."""
    lines, kept = ["| instructions of a | now | recorded | at most, some day |", "|---|---|---|---|"], True
    for what, count in found.items():
        before = recorded.get(what)
        more = "" if before is None else f" ({count / before - 1:+.1%})"
        was = "-" if before is None else f"{before:,}"
        lines.append(f"| {what} | {count:,}{more} | {was} | {MOST[what]:,} |")
        kept = kept and (before is None or count <= before * BOUND)
    return "\n".join(lines), kept


def main() -> None:
    options = argparse.ArgumentParser(prog="make bench-instructions ARGS=")
    options.add_argument("--record", action="store_true", help=f"keep the counts in {RECORD.name}")
    options.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    given = options.parse_args()
    if shutil.which("callgrind_control") is None:
        sys.exit("needs valgrind: apt-get install valgrind")
    kernel.pin(kernel.REST)
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        found = uvloop.run(measured(Path(home)))
    records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    table, kept = judged(found, records.get(interpreter(), {}))
    text = f"{page.environment(valgrind=version(('valgrind', '--version')).rpartition('-')[2])}\n\n{table}"
    print(text)
    if given.record:
        records[interpreter()] = found
        RECORD.write_text(json.dumps(records, indent=2, sort_keys=True) + "\n")
    if given.write:
        page.write("instructions", text)
    sys.exit(not kept)


if __name__ == "__main__":
    main()
