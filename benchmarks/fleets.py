"""Fleets with more models than memory, the calls they get, and an Ollama in virtual time to serve them.

The fleets and the traffic are those by which the rules of the line were found: one minute in four three times as busy,
service lognormal with a mean of 6 s, models as popular as Zipf has it, 8 s for a load unless said, two calls at once.
In the busy minutes most calls come from one greedy caller.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

SERVICE = 6.0  # seconds, the mean
SPREAD = 0.8  # of the logarithm of a service time
SLOTS = 2  # calls at once for each instance, and for each of its models
GREEDY = "greedy"


@dataclass(frozen=True)
class Fleet:
    """`fit` is how many models an instance holds at once, `rho` the work offered against what all slots can do."""

    instances: int
    fit: int
    models: int
    rho: float
    load: float = 8.0  # seconds

    def __str__(self) -> str:
        load = "" if self.load == 8.0 else f"; load {self.load:g} s"
        return f"{self.instances} × {self.fit}; {self.models}; ρ {self.rho:g}{load}"

    @property
    def names(self) -> list[str]:
        return [f"i{number}" for number in range(self.instances)]

    @property
    def model_names(self) -> list[str]:
        return [f"m{number}:latest" for number in range(self.models)]

    @property
    def tight(self) -> bool:
        """More models are wanted than fit."""
        return self.models > self.instances * self.fit


FLEETS = (
    Fleet(4, 1, 6, 0.7),
    Fleet(4, 1, 6, 0.4),
    Fleet(4, 2, 6, 0.7),
    Fleet(4, 2, 6, 0.9),
    Fleet(3, 1, 3, 0.7),
    Fleet(4, 1, 5, 0.5, load=40.0),
)


@dataclass(frozen=True)
class Arrival:
    at: float
    model: str
    caller: str
    service: float


def trace(fleet: Fleet, calls: int, seed: int) -> list[Arrival]:
    """The same calls for every order."""
    chance = random.Random(seed)  # noqa: S311 - for a benchmark
    rate = fleet.rho * fleet.instances * SLOTS / SERVICE / 1.5
    popularity = [1 / (number + 1) for number in range(fleet.models)]
    arrivals: list[Arrival] = []
    at = 0.0
    while len(arrivals) < calls:
        busy = int(at // 60) % 4 == 0
        at += chance.expovariate(3 * rate if busy else rate)
        caller = GREEDY if chance.random() < (0.6 if busy else 0.1) else f"caller {chance.randrange(4)}"
        service = chance.lognormvariate(0, SPREAD) * SERVICE / math.exp(SPREAD**2 / 2)
        arrivals.append(Arrival(at, chance.choices(fleet.model_names, popularity)[0], caller, service))
    return arrivals


@dataclass
class Outcome:
    """What one order made of one trace. Times are seconds; a wait is from arrival to the first token."""

    loads: int = 0
    waits: list[float] = field(default_factory=list)
    modest: list[float] = field(default_factory=list)  # the waits of all but the greedy caller
    took: float = 0.0
    longest_service: float = 0.0
    starved: float = 0.0  # the longest that calls waited for a model that was neither loaded nor being loaded anywhere

    def served(self, one: Arrival, wait: float) -> None:
        self.waits.append(wait)
        if one.caller != GREEDY:
            self.modest.append(wait)


class Homes:
    """Where each model is, who waits for one that is nowhere, and since when."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.longest = 0.0
        self._now = now
        self._homes: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._since: dict[str, float] = {}

    def waits(self, model: str, calls: int) -> None:
        self._waiting[model] += calls
        self._look(model)

    def holds(self, model: str, instances: int) -> None:
        self._homes[model] += instances
        self._look(model)

    def _look(self, model: str) -> None:
        if self._waiting[model] and not self._homes[model]:
            self._since.setdefault(model, self._now())
        elif (since := self._since.pop(model, None)) is not None:
            self.longest = max(self.longest, self._now() - since)


class World:
    """An Ollama in virtual time: loads are serial, an idle model makes room, the first by name (ollama.md §6)."""

    def __init__(self, fleet: Fleet, homes: Homes, changed: Callable[[], None]) -> None:
        self.loaded: dict[str, int] = {}  # model -> calls it works on
        self.loads = 0
        self._fleet = fleet
        self._homes = homes
        self._changed = changed
        self._turn = asyncio.Condition()
        self._loading = False

    async def serve(self, model: str, seconds: float, started: Callable[[], None]) -> None:
        """Work on one call; `started` is told of its first token."""
        async with self._turn:
            while self.loaded.get(model, SLOTS) >= SLOTS:
                if model not in self.loaded and not self._loading and self._has_room():
                    await self._load(model)
                else:
                    await self._turn.wait()
            self.loaded[model] += 1
        started()
        await asyncio.sleep(seconds)
        async with self._turn:
            self.loaded[model] -= 1
            self._turn.notify_all()

    def _has_room(self) -> bool:
        return len(self.loaded) < self._fleet.fit or not all(self.loaded.values())

    async def _load(self, model: str) -> None:
        if len(self.loaded) >= self._fleet.fit:
            idle = min(name for name, busy in self.loaded.items() if not busy)
            del self.loaded[idle]
            self._homes.holds(idle, -1)
        self._homes.holds(model, 1)
        self._loading = True
        self.loads += 1
        self._turn.release()
        await asyncio.sleep(self._fleet.load)
        await self._turn.acquire()
        self.loaded[model] = 0
        self._loading = False
        self._turn.notify_all()
        self._changed()
