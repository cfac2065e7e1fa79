"""The line: the calls that wait for an instance, and the rule by which one of them goes next.

One line for the whole pool, so that a call waits for whichever of its candidates frees first. It is bounded in calls
and in bytes here, in time by each caller's patience. A grant is handed over: it belongs to the waiter from that moment,
whether or not its asyncio task has run since. Whoever leaves with a grant in hand must give it on (`Pool` does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from gateway.call import Candidate
from gateway.errors import CapacityError
from gateway.instances.instance import Instance, Lease


class Waiter:
    """One call in line. `since` is when it came, in loop time; `size` the bytes of its body."""

    __slots__ = ("_wake", "candidates", "outcome", "since", "size")

    def __init__(self, candidates: Sequence[Candidate], *, size: int, since: float) -> None:
        self.candidates = tuple(candidates)
        self.size = size
        self.since = since
        self.outcome: Lease | CapacityError | None = None
        self._wake: asyncio.Future[None] | None = None

    @property
    def wants(self) -> bool:
        """Still without an outcome, and not leaving: cancelled or out of time, though its asyncio task has not run."""
        return self.outcome is None and not (self._wake and self._wake.done())

    def settle(self, outcome: Lease | CapacityError) -> None:
        """Hand over what it waited for; it learns of it when its asyncio task runs."""
        self.outcome = outcome
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    async def settled(self) -> None:
        """Wait for an outcome."""
        if self.outcome is None:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def result(self) -> Lease:
        """The lease it was granted. Raises the CapacityError it got instead."""
        if not isinstance(self.outcome, Lease):
            raise self.outcome or AssertionError("asked before there was an outcome")
        return self.outcome


class Order(Protocol):
    """The rule of the line: pure, and the only thing to replace for another one."""

    def choose(
        self, waiting: Iterable[Waiter], options: Callable[[Waiter], Sequence[Candidate]]
    ) -> Iterator[tuple[Waiter, Candidate]]:
        """Who goes where, one after the other.

        `waiting` is in order of arrival. `options(waiter)` are the candidates that could take it at this moment, best
        first; each pair yielded is granted before the next is asked for, so it reflects them. The caller may stop
        asking at any time: it does when no instance has room.
        """


class FirstCome:
    """In order of arrival; a call none of whose candidates has room lets others by, to instances it does not want."""

    def choose(
        self, waiting: Iterable[Waiter], options: Callable[[Waiter], Sequence[Candidate]]
    ) -> Iterator[tuple[Waiter, Candidate]]:
        for waiter in waiting:
            if free := options(waiter):
                yield waiter, free[0]


class Line:
    """Who waits, in order of arrival."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self._waiting: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiter]:
        """Those who still want a lease."""
        return (waiter for waiter in self._waiting if waiter.wants)

    def join(self, waiter: Waiter) -> None:
        self._waiting[waiter] = None
        self.held_bytes += waiter.size

    def leave(self, waiter: Waiter) -> None:
        """Idempotent. Frees no instance, so nobody else need be asked."""
        if waiter in self._waiting:
            del self._waiting[waiter]
            self.held_bytes -= waiter.size

    def oldest(self, now: float) -> float:
        """Seconds the head has waited; 0.0 when nobody waits."""
        head = next(iter(self._waiting), None)
        return now - head.since if head else 0.0

    def overfull(self, max_calls: int, max_bytes: int) -> str:
        """Which bound it exceeds, in words that name the setting; "" where it exceeds none."""
        if len(self) > max_calls:
            return f"the line is full: at most {max_calls} calls may wait (line.max_calls)"
        if self.held_bytes > max_bytes:
            return f"the line is full: bodies of waiting calls may hold at most {max_bytes} bytes (line.max_bytes)"
        return ""


def eligible(candidates: Iterable[Candidate], instances: Mapping[str, Instance], now: float) -> list[Candidate]:
    """The candidates of the lowest tier that has any fit instance; none where nothing is fit.

    A later tier is something the client did not ask for: being busy is no reason for it, being unhealthy is.
    """
    fit = [c for c in candidates if c.instance in instances and instances[c.instance].fit(now)]
    tier = min((c.tier for c in fit), default=0)
    return [c for c in fit if c.tier == tier]


def free(
    candidates: Iterable[Candidate], instances: Mapping[str, Instance], now: float, random: Callable[[], float]
) -> list[Candidate]:
    """The eligible candidates that can take a call now: the least loaded first, then by rank, then by chance."""
    able = [c for c in eligible(candidates, instances, now) if instances[c.instance].available(now)]
    if len(able) < 2:
        return able
    return sorted(able, key=lambda c: (instances[c.instance].load, c.rank, random()))
