"""Real callers and wants, with the parts of the pool and the placement played by the test and time in its hands."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from itertools import count

from gateway.call import Candidate, Priority
from gateway.instances.line import Ticket, Turn, Waiter, Want
from gateway.instances.memory import Average
from gateway.instances.shares import Callers, Turns

AGEING = 15.0
USUAL = 5.0  # seconds that a call is charged
INTERACTIVE, NORMAL, BATCH = Priority
NAMES = ("amy", "bob", "cat", "dan", "eve")
PLACES = {"alpha": 0, "beta": 1, "gamma": 2}


def candidate(instance: str = "alpha", model: str = "m", tier: int = 0, rank: int = 0) -> Candidate:
    return Candidate(instance=instance, model=model, tier=tier, rank=rank)


def a_want(*candidates: Candidate) -> Want:
    return Want(candidates or (candidate(),), PLACES.get, AGEING)


class Desk:
    """Those who share, what they want and the calls that run, told of everything in the order the pool tells it.

    There is a want for each of `places`, which says on which instance its calls are served.
    """

    def __init__(self, *places: int) -> None:
        self.callers = Callers()
        self.wants = [a_want(candidate(model=f"m{n}")) for n in range(len(places) or 1)]
        self.now = 0.0
        self.waiting: list[Waiter] = []
        self.running: list[Waiter] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.place = dict(zip(self.wants, places or (0,), strict=True))
        self._turns: dict[int, Turns] = defaultdict(Turns)
        self._usual = Average()
        self._charged: dict[Waiter, float] = {}
        self._ends: list[tuple[float, int, Waiter, float]] = []
        self._serial = count()

    def comes(
        self,
        name: str = "amy",
        priority: Priority = INTERACTIVE,
        *,
        want: int = 0,
        since: float | None = None,
        weight: float = 1.0,
        cap: int | None = None,
    ) -> Waiter:
        wanted = self.wants[want]
        ticket = Ticket(candidates=wanted.candidates, caller=name, weight=weight, priority=priority, since=since)
        caller = self.callers.joins(name)
        self.callers.waits(caller)
        caller.weight = weight
        self.callers.allow(caller, cap)
        waiter = Waiter(ticket, wanted, caller, self.now)
        wanted.join(waiter)
        self.waiting.append(waiter)
        return waiter

    def goes(self, waiter: Waiter) -> None:
        waiter.want.leave(waiter)
        self.callers.leaves(waiter.caller)
        self.waiting.remove(waiter)

    def turn(self, place: int = 0) -> Turn | None:
        """Whose turn it is on an instance."""
        heads = [head for one, at in self.place.items() if at == place and (head := one.head(self.now)) is not None]
        return min(heads, key=self._key, default=None)

    def head(self, place: int = 0) -> Waiter | None:
        turn = self.turn(place)
        return turn.waiter if turn else None

    def grants(self, place: int = 0) -> Waiter | None:
        """The call whose turn it is begins."""
        head = self.head(place)
        if head is not None:
            usual = self._usual.known(USUAL)
            self._charged[head] = usual
            self._turns[place].come_in(head.caller)
            self._turns[place].take(head.caller, usual)
            head.want.granted(head, usual, self.now)
            self.callers.begins(head.caller, usual)
            self.goes(head)
            self.running.append(head)
        return head

    def ends(self, waiter: Waiter, seconds: float = USUAL) -> None:
        self.running.remove(waiter)
        charged = self._charged.pop(waiter)
        self._usual.see(seconds)
        self.callers.ends(waiter.caller, charged)
        waiter.want.ended(waiter, seconds - charged)
        self._turns[self.place[waiter.want]].correct(waiter.caller, seconds - charged)
        self.seconds[waiter.caller.name] += seconds

    def turns(self, most: int = 10_000, place: int = 0) -> list[Waiter]:
        """The next calls, one after the other, each of the usual time."""
        served: list[Waiter] = []
        while len(served) < most and (waiter := self.grants(place)) is not None:
            self.ends(waiter)
            served.append(waiter)
        return served

    def had(self, name: str, seconds: float, want: int) -> None:
        """A call of this caller was served where no other waits, and took so long."""
        waiter = self.comes(name, want=want)
        assert self.grants(self.place[waiter.want]) is waiter
        self.ends(waiter, seconds)

    def works(self, slots: int, calls: int, takes: Callable[[Waiter], float]) -> None:
        """So many calls are served, `slots` at once; each takes what `takes` says when it begins."""
        for _ in range(calls):
            while len(self.running) >= slots or self.head() is None:
                self.now, _, ended, seconds = heapq.heappop(self._ends)
                self.ends(ended, seconds)
            waiter = self.grants()
            assert waiter is not None
            seconds = takes(waiter)
            heapq.heappush(self._ends, (self.now + seconds, next(self._serial), waiter, seconds))

    def _key(self, turn: Turn) -> tuple[int, float, float]:
        """As `Placement` compares the heads of wants."""
        return turn.level, self._turns[self.place[turn.waiter.want]].start(turn.waiter.caller), turn.waiter.since


def names(waiters: list[Waiter]) -> str:
    """Their callers by first letter."""
    return "".join(waiter.caller.name[0] for waiter in waiters)


def several(desk: Desk, calls: str, want: int = 0, priority: Priority = INTERACTIVE) -> None:
    """A call for each letter, in this order."""
    for letter in calls:
        desk.comes(next(name for name in NAMES if name[0] == letter), priority, want=want)
