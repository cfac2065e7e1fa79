"""What the gateway costs a call and a frame, beside nginx doing the same in the same minutes. `make bench`.

Every contender is started, then they take turns, in another order each round. What counts is the processor time that
the kernel charges to each, and the ratio of ours to nginx's round by round: a busy machine slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.hotpath import kernel
from benchmarks.hotpath.contenders import Contender, field, nginx_program
from benchmarks.hotpath.load import Told, drive
from benchmarks.hotpath.outcome import Outcome, report
from benchmarks.hotpath.work import WORKS, Work

SETTLED = 0.03  # of a core
LIMIT = 3.0  # seconds to wait for that


async def settle(pids: Sequence[int]) -> None:
    """Until nothing is left to do from the turn before."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        before = kernel.cpu(pids)
        await asyncio.sleep(0.1)
        if kernel.cpu(pids) - before < SETTLED * 0.1 * 1e9:
            return


def turns(work: Work, found: list[Contender], chance: random.Random) -> list[Contender]:
    """Who does this work, in the order of this round."""
    who = [one for one in found if work.naive or one.name != "starlette + httpx"]
    chance.shuffle(who)
    return who


async def rounds(works: Sequence[Work], count: int, names: Sequence[str]) -> Outcome:
    outcome, chance = Outcome(), random.Random(count)  # noqa: S311 - for an order
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        async with field(names, Path(home)) as (found, rest):
            everybody = [*rest, *(pid for one in found for pid in one.pids)]
            for number in range(count):
                for work in works:
                    told: dict[str, Told] = {}
                    for one in turns(work, found, chance):
                        await settle([pid for pid in everybody if pid not in rest])
                        told[one.name] = await drive(work.load, one.address, one.pids, rest)
                    outcome.add(work, told)
                print(f"  round {number + 1} of {count} done", file=sys.stderr, flush=True)
    return outcome


def options() -> argparse.Namespace:
    known = [work.name for work in WORKS]
    found = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--full", action="store_true", help="twice the rounds")
    found.add_argument("--rounds", type=int, help="how often each has its turn; default 5")
    found.add_argument("--only", help=f"some of the work, with commas: {', '.join(known)}")
    found.add_argument("--contenders", default="nginx,naive", help="who beside the gateway and no gateway at all")
    found.add_argument("--json", type=Path, help="write every single turn there")
    return found.parse_args()


def main() -> None:
    given = options()
    wanted = given.only.split(",") if given.only else [work.name for work in WORKS]
    works = [work for work in WORKS if work.name in wanted]
    names = ["gateway", *(name for name in given.contenders.split(",") if name)]
    if "nginx" in names and nginx_program() is None:
        print("no nginx in the PATH or $NGINX_PROGRAM: no ratios", file=sys.stderr)
        names.remove("nginx")
    if not any(work.naive for work in works) and "naive" in names:
        names.remove("naive")
    kernel.many_files()
    kernel.pin(kernel.REST)
    with kernel.first():
        outcome = uvloop.run(rounds(works, given.rounds or (10 if given.full else 5), names))
    if given.json:
        given.json.write_text(json.dumps(outcome.summary(), indent=2))
    print(report(outcome))


if __name__ == "__main__":
    main()
