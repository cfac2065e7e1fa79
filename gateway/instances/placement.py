"""The order of the line: fair among callers, and it knows what a load costs.

Ollama loads a model whenever it is asked for one, and a fleet that has more models than memory can spend its time
loading. So an instance takes, fairly (`shares`), the calls whose model it holds, and loads another only if that pays:

1. *Loaded first.* Room goes to the calls whose model is there.
2. *A copy must pay for itself.* A model that is loaded somewhere is loaded once more only if the work that waits for
   it would keep each copy busy for longer than `copy_at` loads.
3. *What is loaded nowhere is loaded at once* where it fits, or where it displaces only models that nobody waits for.
4. *Nobody starves.* When a call has waited `switch_after` for a model that is loaded nowhere, an instance owes it: it
   takes no more calls for what it gives up, drains, and loads. It is one that has kept what it loaded `keep_loaded`
   long, or three loads if that is more; of several the least busy, then the one longest without a load.

The bound rotates whole models, not single calls: to serve the oldest call anywhere, at once, is a load for every call
under pressure. Among instances that are equally good a conversation goes where it was (`affinity`), unless that is
busier by more than one call; without one the least busy, by chance among equals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

from gateway.call import Candidate
from gateway.config import LineConfig
from gateway.instances.instance import Instance
from gateway.instances.line import DemandView, Outlook, Tier, Turn, Waiter, Want, position
from gateway.instances.memory import USUAL_LOAD, USUAL_SERVICE
from gateway.instances.roster import Roster, each
from gateway.instances.shares import Turns
from gateway.routing import home

INFINITY = float("inf")
MAX_SAMPLE = 4  # instances whose times stand for those of all that hold a model
MAX_COMPARED = 64  # instances, equally free, that are looked at for a load
OVERRUN = 1.0  # seconds until a load that takes longer than was to be expected is looked at again


class Demand:
    """Who waits for one model. `promised` is the instance that owes it."""

    __slots__ = ("model", "promised", "since", "waiting", "wants")

    def __init__(self, model: str, now: float) -> None:
        self.model = model
        self.since = now
        self.wants: dict[Want, None] = {}
        self.waiting = 0
        self.promised: Instance | None = None


class Placement:
    """The rules above, over the instances of `roster`."""

    def __init__(self, roster: Roster, config: LineConfig, random: Callable[[], float]) -> None:
        self.config = config
        self._roster = roster
        self._random = random
        self._demands: dict[str, Demand] = {}
        self._remote: set[str] = set()  # those of them that run in the cloud, for which nothing is ever loaded
        # By place: callers take turns on an instance, whatever they want there.
        self._turns: defaultdict[int, Turns] = defaultdict(Turns)
        self._alarm: float | None = None
        self._losses = 0  # of the roster, as last looked at
        self._freed: list[Instance] = []  # to be told of at the next look

    # what the pool asks

    def arrives(self, waiter: Waiter, now: float) -> Candidate | None:
        tier = waiter.want.tier(self._roster)
        if tier and not waiter.caller.capped:
            if ready := self._ready(tier):
                return tier.options[self._pick(ready, tier, waiter.ticket.conversation)]
            if tier.mask & self._roster.room and (place := self._worth_a_load(tier, now)) is not None:
                if not any(model in self._demands for model in tier.models):
                    return tier.options[place]
                self._freed.append(self._roster.at(place))  # for whoever has waited longer
                self._wake_at(now)
        self._keep(waiter, now)
        return None

    def serves(self, instance: Instance, now: float) -> tuple[Waiter, Candidate] | None:
        if instance.owes and (turn := self._served_by_a_load(instance, now)):
            return turn  # else what it still holds would take every slot that comes free
        return self._served_as_it_is(instance, now) or self._served_by_a_load(instance, now)

    def leaves(self, waiter: Waiter) -> None:
        if not waiter.queued:
            return
        waiter.queued = False
        want = waiter.want
        want.leave(waiter)
        for model in want.models:
            demand = self._demands[model]
            demand.waiting -= 1
            if not want.count:
                del demand.wants[want]
            if demand.waiting:
                continue
            if demand.promised is None:
                self._drop(model)
            else:
                self._wake_at(0.0)  # at once: what was promised is not wanted any more

    def reconfigure(self, config: LineConfig) -> None:
        self.config = config
        self._turns.clear()

    def ended(self, waiter: Waiter, instance: Instance, seconds: float) -> None:
        waiter.want.ended(waiter, seconds)
        if turns := self._turns.get(instance.place):
            turns.correct(waiter.caller, seconds)

    def granted(self, waiter: Waiter, instance: Instance, seconds: float, now: float) -> None:
        turns = self._turns[instance.place]
        turns.come_in(waiter.caller)
        turns.take(waiter.caller, seconds)
        waiter.want.granted(waiter, seconds, now)

    def look(self, now: float) -> Iterable[Instance]:
        """Promise what is overdue, and take back promises that nobody waits for any more."""
        self._take_back(now)
        self._losses = self._roster.losses
        freed, self._freed, self._alarm = self._freed, [], None
        for demand, want, places in sorted(self._homeless(), key=lambda one: self._overdue(one[0], one[1])):
            due = self._overdue(demand, want)
            if due > now:
                self._wake_at(due)
                continue
            instance, when = self._gives_way(demand.model, places, now)
            if instance is not None and demand.promised is None:
                self._promise(instance, demand, now)
                freed.append(instance)
            elif when < INFINITY:
                self._wake_at(when)
        return freed

    def alarm(self) -> float | None:
        if self._demands and self._losses != self._roster.losses:
            return 0.0  # at once: calls may wait for what was lost
        return self._alarm

    # who goes where

    def _ready(self, tier: Tier) -> int:
        """Where a call of this tier could begin at once, its model being there."""
        ready = 0
        for model, places in tier.models.items():
            ready |= places & self._roster.ready(model)
        return ready

    def _worth_a_load(self, tier: Tier, now: float) -> int | None:
        """The place where a model for one more call of this tier is to be loaded now; None if there is none."""
        for model, places in tier.models.items():
            demand = self._demands.get(model)
            room = places & self._roster.room & ~self._roster.homes(model)
            unused_since = self._pays(model, places, demand.waiting + 1 if demand else 1, now) if room else None
            if unused_since is None:
                continue
            for _, level in self._roster.levels(room):
                able = [
                    one
                    for one in islice(self._roster.within(self._by_chance(level)), MAX_COMPARED)
                    if not one.memory.loading and self._may_load(one, model, unused_since)
                ]
                if roomy := [one for one in able if one.memory.fits(model)]:
                    return home(model, {one.place: one.seed for one in roomy})
                if able:
                    return min(able, key=lambda one: one.memory.last_use).place
        return None

    def _served_as_it_is(self, instance: Instance, now: float) -> tuple[Waiter, Candidate] | None:
        """The call whose turn it is of those for the models it holds."""
        best: Turn | None = None
        memory = instance.memory
        held = [m for m in memory.residents if instance.takes(m, now)] if memory.tells else list(self._demands)
        for model in (*held, *self._remote):
            if demand := self._demands.get(model):
                best = self._head(demand, instance, now, demand.wants, best)
        return (best.waiter, self._candidate(best.waiter, instance)) if best else None

    def _served_by_a_load(self, instance: Instance, now: float) -> tuple[Waiter, Candidate] | None:
        """A call for a model it does not hold, where loading that is worth its price."""
        if not instance.memory.tells or instance.memory.loading:
            return None
        bit = 1 << instance.place
        if instance.owes:
            demands: Iterable[Demand] = filter(None, [self._demands.get(instance.owes)])
        else:
            demands = sorted(self._demands.values(), key=_due)
        for demand in demands:
            if instance.memory.holds(demand.model):
                continue
            wants = []
            for want, places in self._places(demand):
                unused_since = self._pays(demand.model, places, demand.waiting, now) if places & bit else None
                if unused_since is not None and self._may_load(instance, demand.model, unused_since):
                    wants.append(want)
            head = self._head(demand, instance, now, wants)
            if head is not None:
                self._settle(demand, instance, now)
                return head.waiter, self._candidate(head.waiter, instance)
        return None

    def _places(self, demand: Demand) -> Iterator[tuple[Want, int]]:
        """The wants for a model that somebody fit could serve, each with the places that would use it."""
        for want in demand.wants:
            tier = want.tier(self._roster)
            if tier and (places := tier.models.get(demand.model, 0)):
                yield want, places

    def _everywhere(self, demand: Demand) -> int:
        """All these places."""
        places = 0
        for _, some in self._places(demand):
            places |= some
        return places

    def _head(
        self, demand: Demand, instance: Instance, now: float, wants: Iterable[Want], best: Turn | None = None
    ) -> Turn | None:
        """Whose turn it is on `instance` of those of `wants` that would use the model there, and of `best`."""
        bit = 1 << instance.place
        for want in list(wants):
            tier = want.tier(self._roster)
            if tier is None or not tier.models.get(demand.model, 0) & bit:
                continue
            head = want.head(now)
            while head is not None and not head.waiter.wants:
                self.leaves(head.waiter)
                head = want.head(now)
            if head is not None and (best is None or self._key(head, instance) < self._key(best, instance)):
                best = head
        return best

    def _key(self, turn: Turn, instance: Instance) -> tuple[int, float, float]:
        turns = self._turns[instance.place]
        turns.come_in(turn.waiter.caller)
        return turn.level, turns.start(turn.waiter.caller), turn.waiter.since

    def _candidate(self, waiter: Waiter, instance: Instance) -> Candidate:
        tier = waiter.want.tier(self._roster)
        assert tier is not None  # noqa: S101 - it was chosen from this tier in the same step
        return tier.options[instance.place]

    def _pick(self, ready: int, tier: Tier, conversation: str) -> int:
        """The place of `ready` that a call goes to."""
        if not ready & (ready - 1):
            return ready.bit_length() - 1  # there is no other
        levels = iter(self._roster.levels(ready))
        least, emptiest = next(levels)
        if conversation:
            near = emptiest
            for load, level in levels:
                near |= sum(1 << p for p in each(level) if load - 1 / self._roster.at(p).limit <= least)
            ranked = self._best_rank(near, tier)
            return home(conversation, {place: self._roster.at(place).seed for place in each(ranked)})
        return next(self._by_chance(self._best_rank(emptiest, tier)))

    def _best_rank(self, places: int, tier: Tier) -> int:
        if len(tier.ranks) == 1:
            return places
        return next(found for rank in tier.ranks if (found := rank & places))

    def _by_chance(self, mask: int) -> Iterator[int]:
        """The places of `mask`, beginning somewhere."""
        start = int(self._random() * mask.bit_length())
        later = mask >> start << start
        yield from each(later)
        yield from each(mask ^ later)

    # what a load costs

    def _pays(self, model: str, places: int, waiting: int, now: float) -> float | None:
        """Whether one more load is worth its price to `waiting` calls that could have `model` at `places`; None if not,
        else the loop time since when what gives way for it must not have been used.
        """
        homes = self._roster.homes(model) & places
        if not homes:
            return now
        some = self._sample(homes)
        slots = homes.bit_count() * sum(one.slots(model) for one in some) / len(some)
        price = self.config.copy_at * sum(one.memory.load(model) for one in some) / len(some)
        if waiting * _service(model, some) / slots > price:
            return now
        demand = self._demands.get(model)
        if demand is not None and now - demand.since > price:  # it waits all the time, and would have been there by now
            return demand.since
        return None

    def _may_load(self, instance: Instance, model: str, unused_since: float) -> bool:
        """Whether `instance`, which loads nothing now, can load `model` without harm: beside what it holds, or in place
        of what nobody wants.
        """
        memory = instance.memory
        if instance.owes and instance.owes != model:
            return False
        if memory.fits(model):
            return True
        spare = frozenset(
            name
            for name in memory.idle()
            if instance.owes == model or (not self._wanted(name) and memory.residents[name].used <= unused_since)
        )
        return bool(spare) and memory.fits(model, without=spare)

    def _wanted(self, model: str) -> bool:
        demand = self._demands.get(model)
        return demand is not None and demand.waiting > 0

    def _homeless(self) -> Iterator[tuple[Demand, Want, int]]:
        """Who waits for what is loaded nowhere they could have it, promised by nobody; with the places that could."""
        for demand in self._demands.values():
            if demand.promised is None:
                homes = self._roster.homes(demand.model)
                yield from ((demand, want, places) for want, places in self._places(demand) if not homes & places)

    def _overdue(self, demand: Demand, want: Want) -> float:
        """When it has been waited for long enough: since the first call came, or the model was lost."""
        return max(want.due(), self._roster.lost(demand.model)) + self.config.switch_after

    def _gives_way(self, model: str, places: int, now: float) -> tuple[Instance | None, float]:
        """The instance that is to load it now, or None and when there may be one."""
        soonest, best = INFINITY, None
        for instance in self._roster.within(places):
            memory = instance.memory
            if instance.owes:
                continue  # `_settle` has it looked at again
            free = memory.changed + max(self.config.keep_loaded, 3 * memory.load(model))
            if memory.loading:
                free = max(free, now + OVERRUN)
            if free > now:
                soonest = min(soonest, free)
            elif best is None or (instance.in_use, memory.changed) < (best.in_use, best.memory.changed):
                best = instance
        return best, soonest

    def _promise(self, instance: Instance, demand: Demand, now: float) -> None:
        memory = instance.memory
        names: list[str] = []
        for name in sorted(memory.residents, key=lambda one: memory.residents[one].since):
            names.append(name)
            if memory.fits(demand.model, without=frozenset(names)):
                break
        instance.owe(demand.model, frozenset(names))
        demand.promised = instance
        self._roster.update(instance, now)

    def _settle(self, demand: Demand, by: Instance | None, now: float) -> None:
        """The promise is kept, by whoever was to or by another; or it is void."""
        promised, demand.promised = demand.promised, None
        if promised is None:
            return
        promised.owe("", frozenset())
        self._roster.update(promised, now)
        self._wake_at(now)  # others may have waited for it to owe nothing
        if promised is not by:
            self._freed.append(promised)

    def _take_back(self, now: float) -> None:
        """Promises that nobody waits for any more, and those of instances that cannot keep them."""
        for demand in list(self._demands.values()):
            instance = demand.promised
            if instance is None:
                continue
            if not demand.waiting or instance.place < 0 or not self._everywhere(demand) >> instance.place & 1:
                self._settle(demand, None, now)
            if not demand.waiting:
                self._drop(demand.model)

    # what can be said of it

    def outlook(self, waiter: Waiter, now: float) -> Outlook:
        tier = waiter.want.tier(self._roster)
        if tier is None:
            return Outlook(1, self.config.hold, lambda: "waiting for an instance to come back")
        model, places = self._likeliest(tier)
        demand = self._demands.get(model)
        wants = set(demand.wants) if demand else set()
        place = position(waiter, wants | {waiter.want})
        seconds, why, sure = self._forecast(model, places, place, now - waiter.since)
        return Outlook(place, seconds, partial(_capped, waiter.caller.running) if waiter.caller.capped else why, sure)

    def demands(self, now: float) -> Iterator[DemandView]:
        for demand in self._demands.values():
            places = self._everywhere(demand)
            homes = self._roster.homes(demand.model) & places
            oldest = max(0.0, now - min((want.oldest() for want in demand.wants), default=now))
            seconds, why, _ = self._forecast(demand.model, places, 1, oldest)
            yield DemandView(
                model=demand.model,
                waiting=demand.waiting,
                oldest=oldest,
                loaded_on=tuple(one.name for one in self._roster.within(homes)),
                promised_by=demand.promised.name if demand.promised else "",
                work=demand.waiting * _service(demand.model, self._sample(homes or places)),
                seconds=seconds,
                why=why(),
            )

    def _likeliest(self, tier: Tier) -> tuple[str, int]:
        """The model a call of this tier will most likely have, and where: the one with most homes."""
        models = tier.models.items()
        return max(models, key=lambda one: (one[1] & self._roster.homes(one[0])).bit_count())

    def _forecast(self, model: str, places: int, position: int, waited: float) -> tuple[float, Callable[[], str], bool]:
        """(seconds that the call at `position` may still wait, why in words, whether that rests on what was seen)."""
        homes = self._roster.homes(model) & places
        some = self._sample(homes or places)
        load = min((one.memory.load(model) for one in some), default=USUAL_LOAD)
        if homes:
            copies = homes.bit_count()
            slots = copies * sum(one.slots(model) for one in some) / len(some)
            seconds = position * _service(model, some) / slots
            sure = any(one.memory.knows(model) for one in some)
            copy = load if places & ~homes else 0.0
            return seconds, partial(_at_home, model, some, copies, copy, seconds), sure
        demand = self._demands.get(model)
        if demand and demand.promised:
            return load + _service(model, some), partial(_promised, model, demand.promised.name, load), False
        left = max(0.0, self.config.switch_after - waited)
        return left + load, partial(_homeless, model, left), False

    def _sample(self, places: int) -> list[Instance]:
        """A few that stand for all."""
        return list(islice(self._roster.within(places), MAX_SAMPLE))

    # the books

    def _keep(self, waiter: Waiter, now: float) -> None:
        want = waiter.want
        waiter.queued = True
        want.join(waiter)
        for model in want.models:
            demand = self._demands.get(model)
            if demand is None:
                demand = self._demands[model] = Demand(model, now)
                if model.endswith("@cloud"):
                    self._remote.add(model)
            demand.wants[want] = None
            demand.waiting += 1
            if demand.promised is None and (tier := want.tier(self._roster)):
                if self._roster.homes(model) & tier.models.get(model, 0):
                    continue
                self._wake_at(self._overdue(demand, want))

    def _drop(self, model: str) -> None:
        del self._demands[model]
        self._remote.discard(model)

    def _wake_at(self, when: float) -> None:
        self._alarm = when if self._alarm is None else min(self._alarm, when)


def _service(model: str, some: Sequence[Instance]) -> float:
    """Seconds of service of a call, as far as `some` tell."""
    return sum(one.memory.service(model) for one in some) / len(some) if some else USUAL_SERVICE


def _capped(running: int) -> str:
    return f"{running} calls of yours run, the most at once (line.max_running_per_caller)"


def _at_home(model: str, some: Sequence[Instance], copies: int, copy: float, seconds: float) -> str:
    price = f"a second copy would cost {copy:.0f} s, " if copy else ""
    return f"waiting for {model} on {_names(some, copies)}: {price}your wait is about {seconds:.0f} s"


def _promised(model: str, by: str, load: float) -> str:
    return f"{by} finishes what it does and then loads {model}, which takes about {load:.0f} s"


def _homeless(model: str, left: float) -> str:
    return f"no instance has {model} in memory and none can spare what it has: one gives way in {left:.0f} s"


def _names(instances: Sequence[Instance], count: int) -> str:
    shown = [one.name for one in instances[:3]]
    return ", ".join(shown) + (f" and {count - 3} more" if count > 3 else "")


def _due(demand: Demand) -> float:
    return min((want.due() for want in demand.wants), default=INFINITY)
