"""Everybody does all of the work, turn by turn, in another order each round."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.hotpath import kernel
from benchmarks.hotpath.contenders import Contender, Kind, field
from benchmarks.hotpath.load import Told, drive
from benchmarks.hotpath.outcome import Outcome
from benchmarks.hotpath.work import Work

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
    who = [one for one in found if one.name not in work.without]
    chance.shuffle(who)
    return who


async def rounds(
    works: Sequence[Work], count: int, kinds: Mapping[str, Kind], home: Path, *, alone: bool = False
) -> Outcome:
    """What came of it; the gateways run from the first to the last of them, and `alone` if so asked.

    Callers and instance share a core; where they fill it, the kernel's usual ways divide it better between them.
    """
    outcome, chance = Outcome(), random.Random(count)  # noqa: S311 - for an order
    async with field(kinds, home) as (found, rest):
        pids = [pid for one in found for pid in one.pids]
        if alone:
            kernel.alone(pids)
        for number in range(count):
            for work in works if number == 0 else [one for one in works if not one.once]:
                told: dict[str, Told] = {}
                if alone:
                    kernel.alone(rest, wanted=not work.fills)
                for one in turns(work, found, chance):
                    await settle(pids)
                    told[one.name] = await drive(work.load, one.address, one.pids, rest)
                outcome.add(work, told)
            print(f"  round {number + 1} of {count} done", file=sys.stderr, flush=True)
    return outcome
