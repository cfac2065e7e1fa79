"""What the gateway costs a call and a frame, beside nginx doing the same in the same minutes. `make bench`.

Every contender is started, then they take turns, in another order each round. What counts is the processor time that
the kernel charges to each, and the ratio of ours to nginx's round by round: a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.hotpath import goals, kernel, memory, page
from benchmarks.hotpath.contenders import KINDS, Kind, nginx_program, version
from benchmarks.hotpath.outcome import Outcome, report
from benchmarks.hotpath.turns import rounds
from benchmarks.hotpath.work import NAIVE, WORKS

MEMORY = "memory"


def options() -> argparse.Namespace:
    known = [*(work.name for work in WORKS), MEMORY]
    found = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--full", action="store_true", help="seven rounds in place of three")
    found.add_argument("--rounds", type=int, help="how often each has its turn")
    found.add_argument("--only", help=f"some of the work, with commas: {', '.join(known)}")
    found.add_argument("--without", default="", help=f"leave some out: nginx,{NAIVE}")
    found.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    found.add_argument(
        "--alone", action="store_true", help="nothing else may run meanwhile (root): p99 on a busy machine"
    )
    found.add_argument("--strict", action="store_true", help="exit with 1 where something that must be is not")
    found.add_argument("--json", type=Path, help="write every single turn there")
    return found.parse_args()


async def everything(given: argparse.Namespace, home: Path) -> tuple[Outcome, dict[str, float]]:
    wanted = given.only.split(",") if given.only else [MEMORY, *(work.name for work in WORKS)]
    works = [work for work in WORKS if work.name in wanted]
    kinds = contenders(given.without.split(","))
    outcome, idle = Outcome(), dict[str, float]()
    if works:
        needed = {name: kind for name, kind in kinds.items() if any(name not in work.without for work in works)}
        outcome = await rounds(works, given.rounds or (7 if given.full else 3), needed, home, alone=given.alone)
    if MEMORY in wanted:
        idle = await memory.of_each([name for name in kinds if name != NAIVE], home)
    return outcome, idle


def contenders(without: list[str]) -> dict[str, Kind]:
    kinds = {name: kind for name, kind in KINDS.items() if name not in without}
    if "nginx" in kinds and nginx_program() is None:
        print("no nginx in the PATH or $NGINX_PROGRAM: no ratios", file=sys.stderr)
        del kinds["nginx"]
    return kinds


def main() -> None:
    given = options()
    kernel.many_files()
    kernel.pin(kernel.REST)
    with kernel.first(), tempfile.TemporaryDirectory(prefix="bench-") as home:
        outcome, idle = uvloop.run(everything(given, Path(home)))
    kept = goals.goals(outcome, idle)
    control = {"nginx": version((nginx_program() or "nginx", "-v")).rpartition("/")[2]}
    alone = " Nothing else could run meanwhile." if given.alone else ""
    told = [page.environment(**control) + alone, goals.table(kept), report(outcome)]
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
