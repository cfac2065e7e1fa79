"""Rows C9 and C10 of the fault matrix: departures at random points, and exactly at the moment of a grant."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gateway.errors import LineTimeout
from gateway.instances import Lease, Pool, Ticket
from gateway.simulator import Behaviour
from tests.faults.leaving import WAYS, leave
from tests.house import MODEL, House, Wire, ask, request
from tests.instances.pools import Heard, a_config, chain
from tests.instances.test_pool_state_machine import VirtualLoop

SEED = int(os.environ.get("FAULTS_SEED", "9"))


# C9


class Crowd:
    """Clients that come one after another and leave where chance has it."""

    def __init__(self, house: House, chance: random.Random) -> None:
        self._house = house
        self._chance = chance
        self.asked: set[str] = set()  # the ids of requests that the gateway must have seen whole

    async def come(self, name: str) -> None:
        chance, house = self._chance, self._house
        path, body = chance.choice(ASKS)
        sent = request(path, json.dumps({**body, "seed": chance.randrange(40)}).encode(), f"X-Request-Id: {name}")
        async with house.wire() as wire:
            if chance.random() < 0.2:
                await wire.send(sent[: chance.randrange(1, len(sent))])
            else:
                await wire.send(sent)
                await self._stay(wire)
                self.asked.add(name)
            leave(wire, chance.choice(WAYS))

    async def _stay(self, wire: Wire) -> None:
        """Until the gateway has seen the request, and then for some turns of the loop, or some bytes of the answer."""
        tasks = self._house.server.server_state.tasks
        before = set(tasks)
        if self._chance.random() < 0.5:
            await self._house.until(lambda: bool(tasks - before) or bool(wire.reader._buffer))  # type: ignore[attr-defined]
            for _ in range(self._chance.randrange(40)):
                await asyncio.sleep(0)
        else:
            await wire.reader.read(self._chance.randrange(1, 4096))


ASKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", ask("x", stream=True)),
    ("/v1/chat/completions", ask("x")),
    ("/v1/completions", {"model": MODEL, "prompt": "x", "stream": True}),
    ("/api/chat", ask("x", stream=True)),
    ("/api/generate", {"model": MODEL, "prompt": "x"}),
    ("/api/chat", {"message": "x"}),
    ("/v1/messages", ask("x", stream=True, max_tokens=40)),
    ("/v1/models", {}),
    ("/v1/no-such-path", {}),
)


async def test_c9_a_thousand_clients_that_leave_at_random_points_leave_nothing_behind() -> None:
    chance = random.Random(SEED)  # noqa: S311
    behaviour = Behaviour(parallel=2, first_token=0.002, per_second=4000, tokens=40)
    limits = {"alpha": {"max_concurrent": 2}, "beta": {"max_concurrent": 2}}
    async with House({"alpha": behaviour, "beta": behaviour}, {"line": {"drain_grace": 0.01}}, limits, True) as house:
        open_before, crowd = descriptors(house), Crowd(house, chance)

        async def come(worker: int) -> None:
            for number in range(50):
                await crowd.come(f"c9-{worker}-{number}")

        await asyncio.gather(*(come(worker) for worker in range(20)))
        await house.quiet()
        await house.until(lambda: descriptors(house) <= open_before)
        gc.collect()
        lines = Counter(line["id"] for line in house.lines if line["event"] == "call.done")
        assert crowd.asked <= lines.keys(), f"seed {SEED}"
        statuses = Counter(line["status"] for line in house.lines if line["event"] == "call.done")
        assert statuses[499] > 200
        assert statuses.keys() <= {200, 404, 405, 499}, statuses
        assert all(simulator.peak <= 2 for simulator in house.simulators.values())
        assert house.engine.pool.callers == len(house.engine.pool._charges) == 0
        assert {one.state(0.0) for one in house.engine.pool.instances.values()} == {"healthy"}


def descriptors(house: House) -> int:
    """Files and sockets open in this process; but for those of connections that wait for their next use."""
    idle = sum(one.upstream.idle for one in house.engine._attached.values())
    return len(list(Path("/proc/self/fd").iterdir())) - 2 * idle  # both ends are here


# C10

STEPS = 6
POOLS = 1_000
RACES = int(os.environ.get("FAULTS_RACES", "5000"))  # by hand 100,000: see docs/reliability.md


@dataclass
class Race:
    """One pool with one place, which is given back as the first of two that wait for it leaves."""

    pool: Pool
    loop: VirtualLoop
    released: float = 0.0  # the step in which the place comes free, and (the fraction) the order within it
    left: float = 0.0
    patience: bool = False  # it leaves because its time is over
    drains: bool = False  # the place comes free a while after it was given back
    held: Lease = field(init=False)
    first: asyncio.Task[Lease] = field(init=False)
    second: asyncio.Task[Lease] = field(init=False)

    def begin(self, chance: random.Random) -> None:
        self.released, self.left = chance.randrange(STEPS) + chance.random(), chance.randrange(STEPS) + chance.random()
        self.patience = chance.random() < 0.3
        self.held = self._at_once()
        self.drains = chance.random() < 0.3
        if self.drains:
            self.held.sent()
        self.first = self._waits(int(self.left) + 1.0 if self.patience else 60.0)
        self.second = self._waits(60.0)

    def step(self, number: int) -> None:
        due = [(self.released, self.held.release)]
        if not self.patience:
            due.append((self.left, self.first.cancel))  # type: ignore[arg-type]
        for at, act in sorted(due, key=lambda one: one[0]):
            if int(at) == number:
                act()

    @property
    def same_moment(self) -> bool:
        """Granted and gone with no turn of the loop between: the first has not run since."""
        return not self.drains and int(self.released) == int(self.left) and (self.patience or self.released < self.left)

    def end(self) -> str:
        """What became of the first; if it has the place it gives it back. The second is to have it in any case."""
        alpha, outcome = self.pool.instances["alpha"], "granted"
        if self.first.cancelled():
            outcome = "cancelled"
        elif isinstance(self.first.exception(), LineTimeout):
            outcome = "out of time"
        else:
            assert (alpha.held, alpha.draining, self.pool.depth) == (1, 0, 1)
            self.first.result().release()
        if self.same_moment:
            assert outcome == ("granted" if self.patience else "cancelled")
            outcome += " in the same moment"
        assert (alpha.held, alpha.draining, self.pool.depth, self.pool.held_bytes) == (1, 0, 0, 0)
        return outcome

    def over(self) -> None:
        alpha = self.pool.instances["alpha"]
        self.second.result().release()
        counts = (alpha.held, alpha.draining, self.pool.depth, self.pool.held_bytes, self.pool.callers)
        assert (counts, self.pool._charges) == ((0, 0, 0, 0, 0), {})

    def _ticket(self) -> Ticket:
        return Ticket(candidates=CHAIN, size=3)

    def _waits(self, patience: float) -> asyncio.Task[Lease]:
        return self.loop.create_task(self.pool.lease(self._ticket(), patience=patience), name="waits")

    def _at_once(self) -> Lease:
        try:
            self.pool.lease(self._ticket(), patience=60.0).send(None)
        except StopIteration as end:
            return cast(Lease, end.value)
        raise AssertionError("it had to wait")


CHAIN = chain("alpha")


def test_c10_a_place_is_never_lost_or_doubled_where_its_grant_meets_a_departure() -> None:
    chance, loop = random.Random(SEED), VirtualLoop()  # noqa: S311
    asyncio.set_event_loop(loop)
    try:
        config = a_config("alpha", line={"drain_grace": 2.0})
        clock: dict[str, Any] = {"now": loop.time, "later": loop.call_later, "random": chance.random}
        races = [Race(Pool(config, **clock, observer=Heard()), loop) for _ in range(POOLS)]
        outcomes: Counter[str] = Counter()
        for _ in range(RACES // POOLS):
            outcomes += one_round(races, loop, chance)
        assert not loop.timers()
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert outcomes.total() == RACES
    kinds = ("cancelled", "out of time", "granted", "cancelled in the same moment", "granted in the same moment")
    assert min(outcomes[kind] for kind in kinds) > RACES // 100, outcomes


def one_round(races: list[Race], loop: VirtualLoop, chance: random.Random) -> Counter[str]:
    """A race on every pool, side by side: a turn of the loop serves them all."""
    for race in races:
        race.begin(chance)
    loop.turn()
    for number in range(STEPS):
        for race in races:
            race.step(number)
        loop.seconds += 1.0
        loop.turn()
    loop.seconds += 3.0  # what drains is free by then
    loop.settle()
    outcomes = Counter(race.end() for race in races)
    loop.settle()
    for race in races:
        race.over()
    return outcomes
