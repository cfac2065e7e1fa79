"""The line: the calls that wait for an instance, its bounds, and what a rule for it has to say.

One line for the whole pool, so that a call waits for whichever of its candidates frees first. It is bounded in calls
and in bytes here, in time by each caller's patience. A grant is handed over: it belongs to the waiter from that moment,
whether or not its asyncio task has run since. Whoever leaves with a grant in hand must give it on (`Pool` does).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gateway.call import Candidate, Priority
from gateway.config import LineConfig
from gateway.errors import CapacityError
from gateway.instances.instance import Instance, Lease
from gateway.instances.shares import Caller, Want


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ticket:
    """What a call brings to the line. `since` is its arrival where it was in line before: it keeps its place.

    `size` is the bytes of its body, `caller` and `weight` say whose share it takes and how large it is; `conversation`
    tells it from others, "" where nothing does. `deadline` is the loop time by which its client wants its answer.
    """

    candidates: tuple[Candidate, ...]
    size: int = 0
    caller: str = ""
    weight: float = 1.0
    priority: Priority = Priority.NORMAL
    conversation: str = ""
    since: float | None = None
    deadline: float | None = None


class Outlook(NamedTuple):
    """What a call in line may expect: `position` counts from 1, `seconds` is how long it may still take, `why` it waits
    in words. `sure` tells that the time rests on what was seen, not on what is usual elsewhere.
    """

    position: int
    seconds: float
    worded: Callable[[], str]  # every arrival has an outlook, and few are ever told theirs
    sure: bool = False

    @property
    def why(self) -> str:
        return self.worded()

    def __str__(self) -> str:
        return f"position {self.position}, about {self.seconds:.0f} s: {self.why}"


class Waiter:
    """One call in line. `since` is when it came, in loop time."""

    __slots__ = (
        "_wake", "caller", "outcome", "outlook", "priority", "queued", "since", "size", "ticket", "want",
    )  # fmt: skip

    def __init__(self, ticket: Ticket, want: Want, caller: Caller, now: float) -> None:
        self.want = want
        self.ticket = ticket
        self.caller = caller
        self.priority = ticket.priority
        self.size = ticket.size
        self.since = now if ticket.since is None else ticket.since
        self.queued = False  # the order keeps it
        self.outlook: Outlook | None = None  # when it came; None where it did not have to wait
        self.outcome: Lease | CapacityError | None = None
        self._wake: asyncio.Future[None] | None = None

    @property
    def wants(self) -> bool:
        """Still without an outcome, and not leaving: cancelled or out of time, though its asyncio task has not run."""
        return self.outcome is None and not (self._wake and self._wake.done())

    def own(self, candidate: Candidate) -> Candidate:
        """This call's own candidate for that of its want: the same place, worded for this call."""
        if self.ticket.candidates is self.want.candidates:
            return candidate
        return next(c for c in self.ticket.candidates if (c.instance, c.tier) == (candidate.instance, candidate.tier))

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


class DemandView(NamedTuple):
    """Who waits for one model, and where it is. `seconds` is what the first of them may still have to wait."""

    model: str
    waiting: int
    oldest: float  # seconds
    loaded_on: tuple[str, ...]
    promised_by: str  # the instance that is to load it next; "" if none
    work: float  # seconds of service that wait
    seconds: float
    why: str


class Order(Protocol):
    """The rule of the line: pure, and the only thing to replace for another one. It keeps who waits, in its own order.

    What it answers is granted before it is asked again. It may hold work back on purpose; then it says in `alarm` when
    to look again though nothing else happens.
    """

    def arrives(self, waiter: Waiter, now: float) -> Candidate | None:
        """Where a new call goes at once. None: it waits, and is kept from now on."""

    def serves(self, instance: Instance, now: float) -> tuple[Waiter, Candidate] | None:
        """Who of those that wait takes the room that `instance` has, if anyone."""

    def leaves(self, waiter: Waiter) -> None:
        """It waits no longer. Idempotent."""

    def granted(self, waiter: Waiter, instance: Instance, seconds: float, now: float) -> None:
        """It was given a lease there, and such a call usually takes `seconds`."""

    def ended(self, waiter: Waiter, instance: Instance, seconds: float) -> None:
        """Its call took so much longer; less than 0 where it was shorter."""

    def outlook(self, waiter: Waiter, now: float) -> Outlook:
        """What one that waits may expect."""

    def demands(self, now: float) -> Iterable[DemandView]:
        """What is waited for, by model."""

    def reconfigure(self, config: LineConfig) -> None:
        """Other settings hold from now on."""

    def look(self, now: float) -> Iterable[Instance]:
        """Time has passed, or instances came and went: think again. The instances that may take other calls now."""

    def alarm(self) -> float | None:
        """When to `look` at the latest, in loop time; None where nothing is held back."""


class Line:
    """Who waits, in order of arrival, and how much that is."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self._waiting: OrderedDict[Ticket, Waiter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiting.values())

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter.ticket in self._waiting

    def waiter(self, ticket: Ticket) -> Waiter | None:
        """The call that waits with this ticket."""
        return self._waiting.get(ticket)

    def join(self, waiter: Waiter) -> None:
        self._waiting[waiter.ticket] = waiter
        self.held_bytes += waiter.size

    def leave(self, waiter: Waiter) -> None:
        """Idempotent. Frees no instance, so nobody else need be asked."""
        if waiter.ticket in self._waiting:
            del self._waiting[waiter.ticket]
            self.held_bytes -= waiter.size

    def oldest(self, now: float) -> float:
        """Seconds the head has waited; 0.0 when nobody waits."""
        head = next(iter(self), None)
        return now - head.since if head else 0.0

    def overfull(self, newcomer: Waiter, bounds: LineConfig, slots: int) -> str:
        """Which bound there is no place within, in words that name the setting; "" where there is one.

        `slots` is how many calls all instances may have at once; `newcomer` has joined.
        """
        max_calls = max(32, 8 * slots) if bounds.max_calls is None else bounds.max_calls
        if len(self) > max_calls:
            return f"the line is full: at most {max_calls} calls may wait (line.max_calls)"
        if self.held_bytes > bounds.max_bytes:
            most = f"{bounds.max_bytes} bytes (line.max_bytes)"
            return f"the line is full: bodies of waiting calls may hold at most {most}"
        share = max(1, max_calls * 3 // 4) if bounds.max_calls_per_caller is None else bounds.max_calls_per_caller
        if newcomer.caller.waiting > share:
            return f"at most {share} calls of one caller may wait (line.max_calls_per_caller)"
        return ""
