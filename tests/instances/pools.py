"""A pool on a clock that passes when told to, and short ways to ask it for things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.call import Candidate
from gateway.config import Config
from gateway.errors import ConnectFailed, ConnectionLost, UpstreamError
from gateway.instances import Contents, Lease, Pool, Ticket

Task = asyncio.Task[Lease]


class VirtualTimer:
    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.timers: list[VirtualTimer] = []

    def now(self) -> float:
        return self.seconds

    def later(self, delay: float, callback: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(self.seconds + delay, callback)
        self.timers.append(timer)
        return timer

    def pending(self) -> list[VirtualTimer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def advance(self, seconds: float) -> None:
        end = self.seconds + seconds
        while due := [timer for timer in self.pending() if timer.at <= end]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.seconds = max(self.seconds, timer.at)
            timer.callback()
        self.seconds = end


class Heard:
    """What an observer was told."""

    def __init__(self) -> None:
        self.of: list[tuple[str, ...]] = []

    def health_changed(self, instance: str, healthy: bool, why: str) -> None:
        self.of.append((instance, "healthy" if healthy else "down", why))

    def breaker_changed(self, instance: str, model: str, state: str, why: str) -> None:
        self.of.append((f"{instance} {model}".strip(), state, why))


def a_config(
    *names: str,
    limit: int = 1,
    drain: str = "",
    per_model: int | None = None,
    line: dict[str, Any] | None = None,
    breaker: dict[str, Any] | None = None,
    **settings: Any,
) -> Config:
    """Nobody waits for what is away, unless `line` says so, and nothing starts slowly unless `breaker` does."""
    instances = [
        {
            "name": name,
            "url": f"http://{name}:11434",
            "max_concurrent": limit,
            "max_per_model": per_model,
            "drain": name == drain,
        }
        for name in names
    ]
    usual = {"failures": 2, "connects": 2, "cooldown": 10.0, "slow_start": 0.0}
    return Config.model_validate(
        {
            "instances": instances,
            "breaker": usual | (breaker or {}),
            "line": {"hold": 0} | (line or {}),
            **settings,
        }
    )


class Desk:
    """A pool on a virtual clock, and short ways to ask it for things."""

    def __init__(self, *names: str, limit: int = 1, **settings: Any) -> None:
        self.clock = VirtualClock()
        self.heard = Heard()
        self.pool = Pool(
            a_config(*names, limit=limit, **settings),
            now=self.clock.now,
            later=self.clock.later,
            random=lambda: 0.5,
            observer=self.heard,
        )

    async def lease(self, *names: str, model: str = "m", size: int = 1, patience: float = 5.0, **ticket: Any) -> Lease:
        candidates = chain(*names, model=model)
        return await self.pool.lease(Ticket(candidates=candidates, size=size, **ticket), patience=patience)

    async def waiting(self, *names: str, patience: float = 5.0, **ticket: Any) -> Task:
        """A caller that has joined the line."""
        depth = self.pool.depth
        task = asyncio.create_task(self.lease(*names, patience=patience, **ticket), name="caller")
        await turns(1)
        assert self.pool.depth == depth + 1
        return task

    def tell(self, name: str, *loaded: str, size: int = 4) -> None:
        """The instance says which models it has in memory, each of `size` bytes."""
        installed = dict.fromkeys(("m:latest", "n:latest", "o:latest"), size)
        holds = dict.fromkeys((f"{model}:latest" for model in loaded), size)
        self.pool.told(name, Contents(installed, holds), self.clock.now())

    async def serve(self, name: str, model: str = "m", *, load: float = 0.0, seconds: float = 1.0) -> None:
        """One call from its grant to its end."""
        with await self.lease(name, model=model) as lease:
            lease.sent()
            self.clock.advance(load)
            lease.answered()
            self.clock.advance(seconds)

    def holds(self, name: str) -> set[str]:
        return {model.partition(":")[0] for model in self.pool.instances[name].memory.residents}

    async def fail(self, name: str, times: int = 2, error: UpstreamError | None = None, model: str = "m") -> None:
        for _ in range(times):
            with await self.lease(name, model=model) as lease:
                lease.sent()
                lease.failed(error or ConnectionLost(name, "reset"))

    async def refuse(self, name: str) -> None:
        """Nobody listens there, which two calls find out."""
        await self.fail(name, error=ConnectFailed(name, "refused"))

    def state(self, name: str) -> str:
        return self.pool.instances[name].state(self.clock.now())

    def counts(self, name: str) -> tuple[int, int]:
        instance = self.pool.instances[name]
        return instance.held, instance.draining


def chain(*names: str, model: str = "m") -> tuple[Candidate, ...]:
    """Candidates of one tier; "a>b" puts b one tier after a."""
    tiers = [name.split(">") for name in names]
    return tuple(Candidate(instance=n, model=model, tier=tier) for each in tiers for tier, n in enumerate(each))


def granted_without_suspending(pool: Pool, *names: str, model: str = "m", **ticket: Any) -> Lease:
    """Runs `lease` by hand: it must end at its first step."""
    with pytest.raises(StopIteration) as end:
        pool.lease(Ticket(candidates=chain(*names, model=model), size=1, **ticket), patience=60.0).send(None)
    lease = end.value.value
    assert isinstance(lease, Lease)
    return lease


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def result(task: Task) -> Lease:
    async with asyncio.timeout(10):
        return await task
