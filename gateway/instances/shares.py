"""Whose turn is it? Between classes, between callers, between the calls of one caller: all of it fair, and O(log n).

*Classes*: interactive before normal before batch; a class that waits for `ageing` seconds without a turn is moved up
one for its next call, so that none starves and each keeps its meaning. *Callers* within a class: deficit round robin by
weight. The deficit is kept as virtual time (`Turns`), because an instance takes only the part of the line whose models
it holds, and a round over part of the line is no round. *Calls* of one caller: the earlier first.

Callers take turns within each `Want`, which is all waiting calls that may go to the same places (`line`); where an
instance could take calls of several wants, they take turns there, too. Nobody's turns in one place depend on those it
had in another, but for what it has running when it comes. So a flood delays a newcomer by what runs, and no more.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

MAX_STARTS = 1024  # callers a place may remember before it forgets those that are not ahead
MAX_LAG = 60.0  # seconds of service by weight

NEVER = float("inf")


class Waits(Protocol):
    """A call in line, as far as shares go: whose it is, and when it came."""

    caller: Caller
    since: float


W = TypeVar("W", bound=Waits)


class Caller:
    """One of those who share the line. `busy` is the seconds that its running calls will take, all together; `levels`
    are the places its calls wait at.
    """

    __slots__ = ("allowed", "busy", "levels", "name", "running", "waiting", "weight")

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 1.0
        self.allowed: int | None = None  # calls at once; None: as many as there is room for
        self.busy = 0.0
        self.running = 0
        self.waiting = 0
        self.levels: dict[Level[Any], None] = {}

    @property
    def capped(self) -> bool:
        return self.allowed is not None and self.running >= self.allowed


class Turns:
    """One place where callers take turns: who has the lowest `start` goes next.

    `time` is where the last turn began. Nobody comes in before it, so nothing is saved up by idling, or by waiting for
    something slow elsewhere. Who comes in anew starts as far after it as what it has running takes, by weight, and
    `MAX_LAG` at most: what one has elsewhere counts, but shuts it out of nothing. From then on its turns here decide.
    """

    __slots__ = ("_most", "_starts", "time")

    def __init__(self) -> None:
        self.time = 0.0
        self._starts: dict[str, float] = {}  # by name, so that who leaves and comes back is known
        self._most = MAX_STARTS

    def come_in(self, caller: Caller, before: Caller | None = None) -> None:
        """`caller` takes part from now on; nothing changes for one who is ahead from before. `before` is who would have
        the next turn: a newcomer is not behind that one, not even if all it has running ends sooner than it was to.
        """
        floor = self.time if before is None else min(self.time, self.start(before) - before.busy / before.weight)
        if self._starts.get(caller.name, -1.0) < floor:
            self._starts[caller.name] = floor + min(caller.busy / caller.weight, MAX_LAG)
            if len(self._starts) > self._most:
                self._forget()

    def start(self, caller: Caller) -> float:
        """Where the next turn of one who came in starts."""
        return self._starts.get(caller.name, self.time)

    def take(self, caller: Caller, seconds: float) -> None:
        """The caller has its turn, which will take so long."""
        start = self._starts.get(caller.name, self.time)
        self.time = max(self.time, start)
        self._starts[caller.name] = start + seconds / caller.weight
        if len(self._starts) > self._most:
            self._forget()

    def correct(self, caller: Caller, seconds: float) -> None:
        """It took so much longer; less than 0 where it was shorter."""
        if caller.name in self._starts:
            self._starts[caller.name] += seconds / caller.weight

    def _forget(self) -> None:
        self._starts = {name: start for name, start in self._starts.items() if start > self.time}
        self._most = max(MAX_STARTS, 2 * len(self._starts))


class Callers:
    """All who have calls running or waiting."""

    def __init__(self) -> None:
        self._by_name: dict[str, Caller] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Caller]:
        return iter(self._by_name.values())

    def joins(self, name: str) -> Caller:
        """A call of this caller came: it `begins` at once, or `waits`."""
        caller = self._by_name.get(name)
        if caller is None:
            caller = self._by_name[name] = Caller(name)
        return caller

    def waits(self, caller: Caller) -> None:
        """One of its calls has to wait."""
        caller.waiting += 1

    def leaves(self, caller: Caller) -> None:
        """One of its calls waits no longer."""
        caller.waiting -= 1
        self._forget(caller)

    def begins(self, caller: Caller, seconds: float) -> None:
        """One of its calls was given a lease, and will take so long."""
        caller.running += 1
        caller.busy += seconds

    def ends(self, caller: Caller, seconds: float) -> None:
        """A call ended that was to take so long."""
        caller.busy = max(0.0, caller.busy - seconds) if caller.running > 1 else 0.0
        if caller.capped:
            self.allow(caller, caller.allowed, ended=1)
        else:
            caller.running -= 1
        self._forget(caller)

    def allow(self, caller: Caller, allowed: int | None, *, ended: int = 0) -> None:
        """It may have so many calls at once from now on, and so many of those it had have ended."""
        capped = caller.capped
        caller.allowed, caller.running = allowed, caller.running - ended
        if capped and not caller.capped:
            for level in caller.levels:
                level.note(caller)

    def _forget(self, caller: Caller) -> None:
        if not caller.waiting and not caller.running:
            self._by_name.pop(caller.name, None)


Entry = tuple[float, float, int, Caller]  # start, arrival of the first call, a number to tell two apart


class Level(Generic[W]):
    """The waiting calls of one class of one want, by caller."""

    __slots__ = ("_calls", "_heap", "_serial", "_turns", "callers", "turn_at")

    def __init__(self) -> None:
        self.callers: dict[Caller, OrderedDict[W, None]] = {}
        self.turn_at = 0.0  # loop time of its last turn
        self._calls: OrderedDict[W, None] = OrderedDict()
        self._turns = Turns()  # of its own: else a class that rarely has a turn would forget whose was the last
        self._heap: list[Entry] = []
        self._serial = count()

    @property
    def oldest(self) -> float:
        """When the first of its calls came."""
        first = next(iter(self._calls), None)
        return NEVER if first is None else first.since

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, waiter: W) -> None:
        """Among its caller's calls, by when they came."""
        caller = waiter.caller
        _insert(waiter, self._calls)
        if caller in self.callers:
            _insert(waiter, self.callers[caller])
            return
        head = self.head()
        self._turns.come_in(caller, head.caller if head else None)
        self.callers[caller] = OrderedDict({waiter: None})
        caller.levels[self] = None
        self.note(caller)

    def discard(self, waiter: W) -> None:
        caller = waiter.caller
        calls = self.callers[caller]
        del self._calls[waiter], calls[waiter]
        if not calls:
            del self.callers[caller]
            del caller.levels[self]

    def note(self, caller: Caller) -> None:
        """`caller` takes part, or starts earlier than it did. That it starts later is found out when its turn comes."""
        if len(self._heap) > 2 * len(self.callers) + 16:
            self._heap = [self._entry(one) for one in self.callers]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, self._entry(caller))

    def taken(self, caller: Caller, seconds: float, now: float) -> None:
        """`caller` has a turn, which will take so long."""
        self.turn_at = now
        self._turns.take(caller, seconds)

    def correct(self, caller: Caller, seconds: float) -> None:
        """Its turn took so much longer; less than 0 where it was shorter."""
        self._turns.correct(caller, seconds)
        if seconds < 0 and caller in self.callers:
            self.note(caller)

    def head(self) -> W | None:
        """The first call of the caller whose turn it is; None where all that wait are at their cap."""
        heap = self._heap
        while heap:
            tag, _, _, caller = heap[0]
            start = self._turns.start(caller)
            calls = self.callers.get(caller)
            if calls is None or caller.capped:
                heapq.heappop(heap)  # whoever comes back, or is no longer at its cap, is noted anew
            elif tag != start:
                heapq.heapreplace(heap, self._entry(caller))
            else:
                return next(iter(calls))
        return None

    def _entry(self, caller: Caller) -> Entry:
        """Of two that had the same, whoever came first."""
        return self._turns.start(caller), next(iter(self.callers[caller])).since, next(self._serial), caller


def _insert(waiter: W, calls: OrderedDict[W, None]) -> None:
    """Put it where it belongs by when it came: at the end, or before all, but for one that was in line already."""
    last = next(reversed(calls), waiter)
    early = waiter.since < next(iter(calls), waiter).since
    calls[waiter] = None
    if early:
        calls.move_to_end(waiter, last=False)
    elif waiter.since < last.since:
        for later in [one for one in calls if one.since > waiter.since]:
            calls.move_to_end(later)
