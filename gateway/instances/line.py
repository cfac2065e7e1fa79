"""The line: the calls that wait for an instance, its bounds, and what a rule for it has to say.

One line for the whole pool, so that a call waits for whichever of its candidates frees first. It is bounded in calls
and in bytes here, in time by each caller's patience. A grant is handed over: it belongs to the waiter from that moment,
whether or not its asyncio task has run since. Whoever leaves with a grant in hand must give it on (`Pool` does).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from gateway.call import Candidate, Priority, model_key
from gateway.config import LineConfig
from gateway.errors import CapacityError
from gateway.instances.instance import Instance, Lease
from gateway.instances.roster import Roster
from gateway.instances.shares import Caller, Level

MAX_WANTS = 512


class Ticket(Struct, frozen=True, kw_only=True, eq=False):
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


class Tier(NamedTuple):
    """Candidates that are as good as each other, by the place of their instance in the roster."""

    mask: int
    options: Mapping[int, Candidate]
    models: Mapping[str, int]  # model -> the places that would use it
    ranks: Sequence[int]  # the places of each rank, the best rank first

    def among(self, allowed: Callable[[str], int]) -> Tier | None:
        """What is left of it where each model may be had at some places only; None if nothing is."""
        models = {model: left for model, places in self.models.items() if (left := places & allowed(model))}
        if len(models) == len(self.models) and models == self.models:
            return self
        return Tier(sum(models.values()), self.options, models, self.ranks) if models else None


class Turn(NamedTuple):
    """Whose turn it is, and of which class it counts: the lower goes first."""

    level: int
    waiter: Waiter


class Want:
    """All waiting calls with the same candidates."""

    __slots__ = ("_levels", "_offered", "_open", "_open_at", "ageing", "candidates", "count", "models", "tiers")

    def __init__(self, candidates: tuple[Candidate, ...], place: Callable[[str], int | None], ageing: float) -> None:
        self.candidates = candidates
        self.count = 0
        self.models = tuple(dict.fromkeys(model_key(one.model) for one in candidates))
        self.replace(place, ageing)
        self._levels: tuple[Level[Waiter], ...] = tuple(Level() for _ in Priority)

    def replace(self, place: Callable[[str], int | None], ageing: float) -> None:
        """The instances stand elsewhere, or other settings hold."""
        self.ageing = ageing
        self.tiers = _tiers(self.candidates, place)
        self._open: Tier | None = None
        self._open_at = -1
        self._offered = 0

    def tier(self, roster: Roster) -> Tier | None:
        """The first tier with a fit instance, less what is not fit of it: a later one is for what is unhealthy, never
        for what is busy. Where there is none, the first of which something is left as a last resort.
        """
        if self._open_at != roster.version:
            self._open_at = roster.version
            tiers = (tier.among(allowed) for allowed in (roster.sound, roster.last_resort) for tier in self.tiers)
            self._open = next(filter(None, tiers), None)
        return self._open

    def news(self, roster: Roster) -> int:
        """The places that may be right for it though they were not when this was last asked: who is fit has changed
        since. All of its tier where a model of it is loaded nowhere there, as any may load it now.
        """
        tier = self.tier(roster)
        before, self._offered = self._offered, tier.mask if tier else 0
        if tier is None or tier.mask == before:
            return 0
        homeless = any(not places & roster.homes(model) for model, places in tier.models.items())
        return tier.mask if homeless else tier.mask & ~before

    def join(self, waiter: Waiter) -> None:
        self.count += 1
        self._levels[waiter.priority].add(waiter)

    def leave(self, waiter: Waiter) -> None:
        """It was granted, refused, or went away."""
        self.count -= 1
        self._levels[waiter.priority].discard(waiter)

    def granted(self, waiter: Waiter, seconds: float, now: float) -> None:
        """It has its turn, which will usually take `seconds`."""
        self._levels[waiter.priority].taken(waiter.caller, seconds, now)

    def ended(self, waiter: Waiter, seconds: float) -> None:
        """Its turn took so much longer than it was to; less than 0 where it was shorter."""
        self._levels[waiter.priority].correct(waiter.caller, seconds)

    def head(self, now: float) -> Turn | None:
        """Whose turn it is of those that wait here."""
        best: Turn | None = None
        for priority, level in enumerate(self._levels):
            if not level:
                continue
            counts_as = self._class(priority, level, now)
            if best is not None and counts_as > best.level:
                continue
            if (head := level.head()) is not None:  # of two that count alike the lower: it has waited for it
                best = Turn(counts_as, head)
        return best

    def due(self) -> float:
        """When the most pressing of them came; an interactive one counts as `ageing` earlier, a batch one as later."""
        return min(level.oldest + (p - Priority.NORMAL) * self.ageing for p, level in enumerate(self._levels))

    def oldest(self) -> float:
        """When the first of them came."""
        return min(level.oldest for level in self._levels)

    def callers(self, priority: int) -> Iterable[tuple[Caller, int]]:
        """The callers of one class, and how many calls each has."""
        callers = self._levels[priority].callers
        return zip(callers, map(len, callers.values()), strict=True)

    def above(self, priority: int) -> int:
        """How many calls of higher classes wait."""
        return sum(map(len, self._levels[:priority]))

    def before(self, waiter: Waiter) -> int:
        """How many calls of its caller and class are to go before `waiter`."""
        calls = self._levels[waiter.priority].callers.get(waiter.caller)
        if not calls:
            return 0
        last = next(reversed(calls))
        if last is waiter or last.since < waiter.since:  # it has just come: no need to count
            return len(calls) - (last is waiter)
        return next((n for n, one in enumerate(calls) if one is waiter or one.since > waiter.since), len(calls))

    def _class(self, priority: int, level: Level[Waiter], now: float) -> int:
        """What a class counts as: one better for each `ageing` it has waited for a turn."""
        return priority and max(0, priority - int((now - max(level.oldest, level.turn_at)) / self.ageing))


class Wants:
    """The wants there are: one for each set of candidates, whoever asks with it. Keeps the `MAX_WANTS` last used."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._ageing = 0.0
        self._by_content: OrderedDict[tuple[object, ...], Want] = OrderedDict()
        self._by_identity: OrderedDict[int, tuple[tuple[Candidate, ...], Want]] = OrderedDict()

    def of(self, candidates: tuple[Candidate, ...]) -> Want:
        """The want of these candidates; at once where this very tuple was seen before."""
        seen = self._by_identity.get(id(candidates))
        if seen is not None:  # the tuple is kept, so its id is nobody else's
            self._by_identity.move_to_end(id(candidates))
            return seen[1]
        content = tuple((one.instance, model_key(one.model), one.tier, one.rank) for one in candidates)
        want = self._by_content.get(content)
        if want is None:
            want = self._by_content[content] = Want(candidates, self._roster.place, self._ageing)
        self._by_content.move_to_end(content)
        self._by_identity[id(candidates)] = candidates, want
        for kept in (self._by_content, self._by_identity):
            if len(kept) > MAX_WANTS:
                kept.popitem(last=False)
        return want

    def replace(self, waited_for: Iterable[Want], config: LineConfig) -> None:
        """Instances came or went, or other settings hold."""
        self._ageing = config.ageing
        self._by_content.clear()
        self._by_identity.clear()
        for want in waited_for:
            want.replace(self._roster.place, config.ageing)


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
        """Wait for an outcome; only where there is none yet."""
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
        """Where a new call goes at once. None: it waits, and is kept from now on. One without candidates has to."""

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
        self._wants: dict[Want, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiting.values())

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter.ticket in self._waiting

    def waiter(self, ticket: Ticket) -> Waiter | None:
        """The call that waits with this ticket."""
        return self._waiting.get(ticket)

    @property
    def wants(self) -> Iterable[Want]:
        """All that is waited for."""
        return self._wants.keys()

    def join(self, waiter: Waiter) -> None:
        self._waiting[waiter.ticket] = waiter
        self._wants[waiter.want] = self._wants.get(waiter.want, 0) + 1
        self.held_bytes += waiter.size

    def leave(self, waiter: Waiter) -> None:
        """Idempotent. Frees no instance, so nobody else need be asked."""
        if waiter.ticket in self._waiting:
            del self._waiting[waiter.ticket]
            self.held_bytes -= waiter.size
            self._wants[waiter.want] -= 1
            if not self._wants[waiter.want]:
                del self._wants[waiter.want]

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


def position(waiter: Waiter, wants: Collection[Want]) -> int:
    """How many calls are to go before `waiter`, it included, if all go on as it looks and take equally long: those of
    higher classes, of its own caller those that came before, of every other as many as its weight gives it until then.
    """
    own, weight = waiter.caller, waiter.caller.weight
    before = sum(want.before(waiter) for want in wants)
    ahead = sum(want.above(waiter.priority) for want in wants) + before + 1
    for caller, waiting in _waiting(wants, waiter.priority):
        if caller is not own:
            turns = 1 + (before if caller.weight == weight else int(before * caller.weight / weight))
            ahead += min(waiting, turns)
    return ahead


def _waiting(wants: Collection[Want], priority: int) -> Iterable[tuple[Caller, int]]:
    """How many calls of one class each caller has in all of them."""
    if len(wants) == 1:
        return next(iter(wants)).callers(priority)
    found: Counter[Caller] = Counter()
    for want in wants:
        for caller, calls in want.callers(priority):
            found[caller] += calls
    return found.items()


def _tiers(candidates: Sequence[Candidate], place: Callable[[str], int | None]) -> tuple[Tier, ...]:
    """The tiers, best first, of those candidates whose instance is in the pool."""
    found: dict[int, tuple[dict[int, Candidate], dict[str, int], dict[int, int]]] = {}
    for one in candidates:
        at = place(one.instance)
        options, models, ranks = found.setdefault(one.tier, ({}, {}, {}))
        if at is None or at in options:
            continue
        model = model_key(one.model)
        options[at] = one
        models[model] = models.get(model, 0) | 1 << at
        ranks[one.rank] = ranks.get(one.rank, 0) | 1 << at
    return tuple(
        Tier(sum(models.values()), options, models, [ranks[rank] for rank in sorted(ranks)])
        for _, (options, models, ranks) in sorted(found.items())
        if options
    )
