"""How soon a gateway that is started serves its first call, and what it has in memory then. `make bench-start`

From a warm disk: the first start is not counted. Exits with 1 where it takes longer, or more, than it should.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.hotpath import kernel, page
from benchmarks.hotpath.contenders import gateway, instance
from benchmarks.hotpath.load import Address, Load, Run

STARTS = 7
SECONDS, MIB = 1.0, 80.0  # at most
ONE = Load(callers=1, calls=1, warm_up=0.0)


async def start(home: Path, upstream: Address) -> tuple[float, float]:
    """Seconds to the first answer, and MiB before it."""
    began = time.monotonic()
    async with gateway(home, upstream) as one:
        held = kernel.resident(one.pids[0]) / 2**20
        async with Run(ONE, one.address) as run:
            await run.until_done()
        assert not run.told.errors, run.told.errors
        return time.monotonic() - began, held


async def starts(home: Path) -> list[tuple[float, float]]:
    async with instance() as behind:
        return [await start(home, behind.address) for _ in range(STARTS + 1)][1:]


def main() -> None:
    options = argparse.ArgumentParser(prog="make bench-start ARGS=")
    options.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    given = options.parse_args()
    kernel.pin(kernel.REST)
    with kernel.first(), tempfile.TemporaryDirectory(prefix="bench-") as home:
        found = uvloop.run(starts(Path(home)))
    times, sizes = [one[0] for one in found], [one[1] for one in found]
    took, held = statistics.median(times), statistics.median(sizes)
    rows = [
        "| start | median | slowest | at most | |\n|---|---|---|---|---|",
        f"| first call served after, s | {took:.2f} | {max(times):.2f} | {SECONDS} | {_kept(took, SECONDS)} |",
        f"| in memory then, MiB | {held:.0f} | {max(sizes):.0f} | {MIB:.0f} | {_kept(held, MIB)} |",
    ]
    text = "\n".join([f"{page.environment()}\n", *rows])
    print(text)
    if given.write:
        page.write("start", text)
    sys.exit(took > SECONDS or held > MIB)


def _kept(value: float, bound: float) -> str:
    return "kept" if value <= bound else "NOT KEPT"


if __name__ == "__main__":
    main()
