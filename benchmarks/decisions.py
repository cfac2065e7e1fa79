"""What one decision of the line costs, and how that grows. `make bench-line`.

The real pool with every instance busy: a release that gives its room to the call whose turn it is, an arrival that has
to wait, a departure; by the number of calls that wait and of instances. Medians of one run: read the growth, not the
microseconds. An arrival and a departure include a step of their asyncio task; the last column is one that only waits.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time

from gateway.call import Candidate, Priority
from gateway.config import Config
from gateway.instances import Contents, Lease, Pool, Ticket

MODELS, CALLERS, ROUNDS = 50, 100, 300
GROWTH = (("waiting", 100, 200), ("waiting", 1_000, 200), ("waiting", 10_000, 200), ("instances", 10_000, 10),
          ("instances", 10_000, 100), ("instances", 10_000, 1_000))  # fmt: skip


class Silent:
    def health_changed(self, instance: str, healthy: bool, why: str) -> None:
        """Nobody listens."""

    def breaker_changed(self, instance: str, model: str, state: str, why: str) -> None:
        """Nobody listens."""


class Bench:
    """A pool of instances with two of the models in memory each, one call at once, and all of them busy."""

    def __init__(self, instances: int) -> None:
        names = [f"i{number}" for number in range(instances)]
        loop = asyncio.get_running_loop()
        self.chance = random.Random(instances)  # noqa: S311 - for a benchmark
        self.held: list[Lease] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.pool = Pool(
            Config.model_validate(
                {
                    "instances": [{"name": name, "url": f"http://{name}:1"} for name in names],
                    "line": {"max_calls": 1_000_000, "max_calls_per_caller": 1_000_000, "switch_after": 3600},
                }
            ),
            now=loop.time,
            later=loop.call_later,
            random=self.chance.random,
            observer=Silent(),
        )
        models = [f"m{number}:latest" for number in range(MODELS)]
        for number, name in enumerate(names):
            held = {models[number % MODELS]: 1, models[(number + 7) % MODELS]: 1}
            self.pool.told(name, Contents(dict.fromkeys(models, 1), held), loop.time())
        self.plans = [tuple(Candidate(instance=name, model=model) for name in names) for model in models]

    async def wait_for_turn(self) -> None:
        ticket = Ticket(
            candidates=self.plans[min(int(self.chance.expovariate(0.1)), MODELS - 1)],
            size=1000,
            caller=f"caller {self.chance.randrange(CALLERS)}",
            priority=self.chance.choice(list(Priority)),
            conversation=str(self.chance.randrange(1000)),
        )
        lease = await self.pool.lease(ticket, patience=1e6)
        self.held.append(lease)

    async def arrive(self) -> None:
        self.tasks.append(asyncio.create_task(self.wait_for_turn(), name="caller"))
        await asyncio.sleep(0)

    async def release(self) -> None:
        self.held.pop(self.chance.randrange(len(self.held))).release()

    async def depart(self) -> None:
        self.leaver.cancel()
        await asyncio.sleep(0)

    def choose_leaver(self) -> None:
        self.tasks = [task for task in self.tasks if not task.done()]
        self.leaver = self.chance.choice(self.tasks)

    async def nothing(self) -> None:
        """What an asyncio task costs that only waits: it is part of an arrival."""
        ended = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            await ended

        task = asyncio.create_task(wait(), name="nothing")
        await asyncio.sleep(0)
        task.cancel()

    async def cost(self, what: str) -> float:
        """Median microseconds of one `arrive`, `release` or `depart`; each is made good for before the next."""
        took = []
        for _ in range(ROUNDS):
            self.choose_leaver()
            began = time.perf_counter()
            await getattr(self, what)()
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0)
            self.choose_leaver()
            await (self.depart() if what == "arrive" else self.arrive())
            await asyncio.sleep(0)
        return statistics.median(took) * 1e6


async def measured(waiting: int, instances: int) -> tuple[float, ...]:
    bench = Bench(instances)
    while bench.pool.depth < waiting:
        await bench.arrive()
    costs = [await bench.cost(what) for what in ("release", "arrive", "depart", "nothing")]
    for task in bench.tasks:
        task.cancel()
    await asyncio.gather(*bench.tasks, return_exceptions=True)
    bench.pool.close()
    return tuple(costs)


async def main() -> None:
    heads = " ".join(f"{what:>9}" for what in ("release", "arrival", "departure", "a task"))
    print(f"  {'waiting':>8} {'instances':>10}   {heads}   us, medians")
    for _, waiting, instances in GROWTH:
        costs = await measured(waiting, instances)
        print(f"  {waiting:>8} {instances:>10}   " + " ".join(f"{cost:9.1f}" for cost in costs))


if __name__ == "__main__":
    asyncio.run(main())
