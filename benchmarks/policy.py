"""The order of the line against what others do: the same calls, fleets and pool. `make bench-policy`.

First in virtual time, thousands of calls through the real pool and line, with an Ollama that is as exact as its rules
(`fleets`); then, shorter and forty times as fast, a whole engine against simulators on real sockets. With `--write` the
tables go into docs/line.md. Exits with 1 where the order does not keep what that page promises.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.fleets import FLEETS, SLOTS, Arrival, Fleet, Homes, Outcome, World, trace
from benchmarks.orders import Bound, least_connections, loaded_first, round_robin
from gateway.call import Call, Candidate, Record
from gateway.config import Config, LineConfig, Loaded
from gateway.dialects import openai
from gateway.engine import Engine
from gateway.instances import Contents, MakeOrder, Pool, Ticket
from gateway.simulator import Behaviour, SimulatedModel, Simulator
from tests.virtual import run

PAGE = Path(__file__).parent.parent / "docs" / "line.md"
CALLS, SEEDS = 3000, 3
PER_SECOND = 100.0  # tokens, of a simulator
REAL_CALLS, FASTER, REAL_FLEETS = 300, 40, (FLEETS[0], FLEETS[2])
PATIENCE = 30.0  # seconds to the first token that a served call may take to count as good
ORDERS: dict[str, MakeOrder | None] = {
    "round robin": lambda roster, _: Bound(roster, round_robin),
    "least connections": lambda roster, _: Bound(roster, least_connections),
    "loaded first": lambda roster, _: Bound(roster, loaded_first),
    "this line": None,
}


class Silent:
    def health_changed(self, instance: str, healthy: bool, why: str) -> None:
        """Nobody listens."""

    def breaker_changed(self, instance: str, model: str, state: str, why: str) -> None:
        """Nobody listens."""


# in virtual time


async def in_virtual_time(fleet: Fleet, arrivals: list[Arrival], order: MakeOrder | None, seed: int) -> Outcome:
    loop = asyncio.get_running_loop()
    config = Config.model_validate(
        {
            "instances": [{"name": name, "url": f"http://{name}:1", "max_concurrent": SLOTS} for name in fleet.names],
            "line": {"max_calls": 1_000_000, "max_calls_per_caller": 1_000_000},
        }
    )
    chance = random.Random(seed)  # noqa: S311 - for a benchmark
    pool = Pool(config, now=loop.time, later=loop.call_later, random=chance.random, observer=Silent(), order=order)
    outcome, installed = Outcome(), dict.fromkeys(fleet.model_names, 1)

    def tells(name: str) -> Callable[[], None]:
        return lambda: pool.told(name, Contents(installed, dict.fromkeys(worlds[name].loaded, 1)), loop.time())

    homes = Homes(loop.time)
    worlds = {name: World(fleet, homes, tells(name)) for name in fleet.names}
    for name in fleet.names:
        tells(name)()
    plans = {model: tuple(Candidate(instance=i, model=model) for i in fleet.names) for model in fleet.model_names}

    async def call(one: Arrival) -> None:
        homes.waits(one.model, 1)
        with await pool.lease(Ticket(candidates=plans[one.model], caller=one.caller), patience=1e9) as lease:
            homes.waits(one.model, -1)
            lease.sent()

            def started() -> None:
                lease.answered()
                outcome.served(one, loop.time() - one.at)

            await worlds[lease.instance.name].serve(one.model, one.service, started)

    async with asyncio.TaskGroup() as group:
        for one in arrivals:
            await asyncio.sleep(one.at - loop.time())
            group.create_task(call(one), name="call")
    outcome.took, outcome.loads = loop.time(), sum(world.loads for world in worlds.values())
    outcome.longest_service, outcome.starved = max(one.service for one in arrivals), homes.longest
    pool.close()
    return outcome


# in real time


async def in_real_time(fleet: Fleet, arrivals: list[Arrival], order: MakeOrder | None) -> Outcome:
    """The same a good deal faster, on real sockets; all times are given as if it had not been."""
    models = tuple(SimulatedModel(name=name, size=1) for name in fleet.model_names)
    behaviour = Behaviour(
        models=models,
        per_second=PER_SECOND,
        load_time=fleet.load / FASTER,
        max_loaded=fleet.fit,
        parallel=SLOTS,
    )
    async with AsyncExitStack() as stack:
        simulators = [await stack.enter_async_context(Simulator(behaviour)) for _ in fleet.names]
        loaded = Loaded(config=real_config(fleet, simulators), source="bench", digest="")
        engine = await stack.enter_async_context(Engine(loaded, order=order))
        outcome, began = Outcome(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for one in arrivals:
                await asyncio.sleep(one.at / FASTER - (time.monotonic() - began))
                group.create_task(real_call(engine, one, outcome), name="call")
        outcome.took = (time.monotonic() - began) * FASTER
        outcome.loads = sum(simulator.loads for simulator in simulators)
        return outcome


def real_config(fleet: Fleet, simulators: list[Simulator]) -> Config:
    instances = [
        {"name": name, "url": one.url, "max_concurrent": SLOTS}
        for name, one in zip(fleet.names, simulators, strict=True)
    ]
    usual = LineConfig()
    return Config.model_validate(
        {
            "instances": instances,
            "line": {
                "max_calls": 1_000_000,
                "max_calls_per_caller": 1_000_000,
                **{key: getattr(usual, key) / FASTER for key in ("ageing", "switch_after", "keep_loaded")},
            },
            "timeouts": {"line": 3600},
            "cache": {"enabled": False},
        }
    )


async def real_call(engine: Engine, one: Arrival, outcome: Outcome) -> None:
    body = {
        "model": one.model,
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "max_tokens": max(1, round(one.service / FASTER * PER_SECOND)),
    }
    text = json.dumps(body).encode()
    arrived = asyncio.get_running_loop().time()
    asked = Call(
        request_id="bench",
        operation=openai.CHAT,
        wish=openai.CHAT.read(text),
        body=text,
        arrived=arrived,
        model=one.model,
        caller=one.caller,
    )
    record = Record(request_id="bench", arrived=arrived)
    async with engine.dispatch.exchange(asked, record) as exchange:
        while frames := await exchange.frames():
            if frames[-1].last:
                await exchange.settle()
                break
    outcome.served(one, (record.first_token or 0.0) * FASTER)


# what came of it


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


class Row:
    """The medians over the seeds."""

    def __init__(self, outcomes: list[Outcome], calls: int) -> None:
        median = statistics.median
        self.loads = median(one.loads for one in outcomes)
        self.p50, self.p95, self.p99 = (median(quantile(one.waits, q) for one in outcomes) for q in (0.5, 0.95, 0.99))
        self.modest = median(quantile(one.modest, 0.95) for one in outcomes)
        self.good = median(sum(wait <= PATIENCE for wait in one.waits) / calls for one in outcomes)
        self.took = median(one.took for one in outcomes)
        self.starved = max(one.starved for one in outcomes)
        self.longest_service = max(one.longest_service for one in outcomes)

    def against(self, other: Row) -> Iterator[str]:
        """Its figures as ratios to those of `other`; what is no ratio as it is."""
        yield f"{self.loads:.0f} ({self.loads / other.loads:.2f})"
        for name in ("p50", "p95", "p99", "modest"):
            mine, theirs = getattr(self, name), getattr(other, name)
            yield f"{mine:.0f} ({mine / max(theirs, 0.1):.2f})"
        yield f"{self.good:.0%}"
        yield f"{self.took:.0f} ({self.took / other.took:.2f})"


HEAD = "| fleet | order | reloads | TTFT p50 | p95 | p99 | p95 of the modest | within 30 s | all served after |"


def table(results: dict[Fleet, dict[str, Row]]) -> str:
    lines = [HEAD, "|---" * 9 + "|"]
    for fleet, rows in results.items():
        for name, row in rows.items():
            first = str(fleet) if name == next(iter(rows)) else ""
            lines.append(f"| {' | '.join([first, name, *row.against(rows['loaded first'])])} |")
    return "\n".join(lines)


def starved(results: dict[Fleet, dict[str, Row]]) -> str:
    lines = ["| fleet | bound | longest service | loaded first | this line |\n|---|---|---|---|---|"]
    for fleet, rows in results.items():
        ours, theirs = rows["this line"], rows["loaded first"]
        times = (bound(fleet), ours.longest_service, theirs.starved, ours.starved)
        lines.append(f"| {fleet} | {' | '.join(f'{seconds:.0f} s' for seconds in times)} |")
    return "\n".join(lines)


def broken(results: dict[Fleet, dict[str, Row]]) -> Iterator[str]:
    """Promises that were not kept."""
    for fleet, rows in results.items():
        ours, theirs = rows["this line"], rows["loaded first"]
        if fleet.tight and ours.loads > theirs.loads / 2:
            yield f"{fleet}: more than half the reloads"
        if ours.p95 > theirs.p95:
            yield f"{fleet}: a worse p95"
        if theirs.good < 0.5 and ours.p95 > theirs.p95 / 2:
            yield f"{fleet}: more than half the p95 under pressure"
        if ours.starved > bound(fleet) + ours.longest_service:
            yield f"{fleet}: a model was waited for beyond the bound"


def bound(fleet: Fleet) -> float:
    """Seconds until an instance gives way: what a call has to have waited, and what that one keeps what it loaded."""
    line = LineConfig()
    return line.switch_after + max(line.keep_loaded, 3 * fleet.load)


def virtual() -> dict[Fleet, dict[str, Row]]:
    return {
        fleet: {
            name: Row([run(in_virtual_time(fleet, trace(fleet, CALLS, s), order, s)) for s in range(SEEDS)], CALLS)
            for name, order in ORDERS.items()
        }
        for fleet in FLEETS
    }


def real() -> dict[Fleet, dict[str, Row]]:
    return {
        fleet: {
            name: Row([asyncio.run(in_real_time(fleet, trace(fleet, REAL_CALLS, 0), order))], REAL_CALLS)
            for name, order in ORDERS.items()
        }
        for fleet in REAL_FLEETS
    }


def main() -> None:
    results, timed = virtual(), real()
    parts = {
        "virtual": table(results),
        "real": table(timed),
        "starved": starved(results),
    }
    print("\n\n".join(parts.values()))
    if "--write" in sys.argv:
        text = PAGE.read_text()
        for name, part in parts.items():
            before, _, rest = text.partition(f"<!-- {name} -->\n")
            _, _, after = rest.partition("<!-- end -->")
            text = f"{before}<!-- {name} -->\n{part}\n<!-- end -->{after}"
        PAGE.write_text(text)
    problems = [*broken(results), *broken(timed)]
    print("\n".join(problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
