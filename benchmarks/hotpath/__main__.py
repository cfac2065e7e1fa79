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

from benchmarks.hotpath import goals, kernel, memory, page
from benchmarks.hotpath.contenders import Contender, field, nginx_program, version
from benchmarks.hotpath.load import Told, drive
from benchmarks.hotpath.outcome import Outcome, report
from benchmarks.hotpath.work import WORKS, Work

SETTLED = 0.03  # of a core
MEMORY = "memory"
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
                for work in works if number == 0 else [one for one in works if not one.once]:
                    told: dict[str, Told] = {}
                    for one in turns(work, found, chance):
                        await settle([pid for pid in everybody if pid not in rest])
                        told[one.name] = await drive(work.load, one.address, one.pids, rest)
                    outcome.add(work, told)
                print(f"  round {number + 1} of {count} done", file=sys.stderr, flush=True)
    return outcome


def options() -> argparse.Namespace:
    known = [*(work.name for work in WORKS), MEMORY]
    found = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--full", action="store_true", help="seven rounds in place of three")
    found.add_argument("--rounds", type=int, help="how often each has its turn")
    found.add_argument("--only", help=f"some of the work, with commas: {', '.join(known)}")
    found.add_argument("--contenders", default="nginx,naive", help="who beside the gateway and no gateway at all")
    found.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    found.add_argument("--strict", action="store_true", help="exit with 1 where something that must be is not")
    found.add_argument("--json", type=Path, help="write every single turn there")
    return found.parse_args()


async def everything(given: argparse.Namespace, names: list[str]) -> tuple[Outcome, dict[str, float]]:
    wanted = given.only.split(",") if given.only else [MEMORY, *(work.name for work in WORKS)]
    works = [work for work in WORKS if work.name in wanted]
    outcome, idle = Outcome(), dict[str, float]()
    if works:
        who = [name for name in names if name != "naive" or any(work.naive for work in works)]
        outcome = await rounds(works, given.rounds or (7 if given.full else 3), who)
    if MEMORY in wanted:
        with tempfile.TemporaryDirectory(prefix="bench-") as home:
            idle = await memory.of_each([name for name in names if name != "naive"], Path(home))
    return outcome, idle


def contenders(given: str) -> list[str]:
    names = ["gateway", *(name for name in given.split(",") if name)]
    if "nginx" in names and nginx_program() is None:
        print("no nginx in the PATH or $NGINX_PROGRAM: no ratios", file=sys.stderr)
        names.remove("nginx")
    return names


def main() -> None:
    given = options()
    kernel.many_files()
    kernel.pin(kernel.REST)
    with kernel.first():
        outcome, idle = uvloop.run(everything(given, contenders(given.contenders)))
    kept = goals.goals(outcome, idle)
    control = {"nginx": version((nginx_program() or "nginx", "-v")).rpartition("/")[2]}
    told = [page.environment(**control), goals.table(kept), report(outcome)]
    told += [f"**Memory, {memory.STREAMS:,} idle streams**\n\n{memory.table(idle)}"] if idle else []
    text = "\n\n".join(part for part in told if part)
    print(text)
    if given.json:
        given.json.write_text(json.dumps(outcome.summary(), indent=2))
    if given.write:
        page.write("speed", text)
    wrong = [work.name for work in outcome.rows if outcome.errors(work, "gateway")]
    sys.exit(bool(wrong) or (given.strict and any(goal.met == "NOT MET" for goal in kept)))


if __name__ == "__main__":
    main()
