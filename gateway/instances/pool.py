"""All instances and the line in front of them: `lease` is the one way to a call on an instance.

A caller is granted a lease, told that the line is full, that it waited too long, or that nobody could serve it now;
never kept guessing. A caller that leaves while it waits gives its turn to the next and wakes nobody else.

`match` decides; it is synchronous and runs after every change that could let a call go. A snapshot is advice: only
what `match` grants is granted. There is no lock and no await in it. Keep it so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from heapq import nlargest
from types import MappingProxyType
from typing import Protocol

from gateway.call import Candidate
from gateway.config import Config
from gateway.errors import CapacityError, DeadlineUnreachable, LineFull, LineTimeout, NoInstance, NotToldYet
from gateway.instances.instance import HELD, Clock, Instance, Lease, Timer
from gateway.instances.line import DemandView, Line, Order, Outlook, Ticket, Waiter, Want, Wants
from gateway.instances.memory import Contents
from gateway.instances.placement import Placement
from gateway.instances.roster import Roster
from gateway.instances.shares import Caller, Callers

INFINITY = float("inf")
HOLD = "line.hold"
_RETRY_AFTER = (1.0, 30.0)  # seconds, the shortest and the longest we tell anyone

MakeOrder = Callable[[Roster, Config], Order]


class Observer(Protocol):
    """Told of changes, synchronously; must not raise. `why` is in words, without anything a client wrote."""

    def health_changed(self, instance: str, healthy: bool, why: str) -> None: ...

    def breaker_changed(self, instance: str, model: str, state: str, why: str) -> None:
        """`model` is "" where it is the breaker of all the instance."""


class Pool:
    """The instances of one configuration and the calls that wait for them.

    `now` gives seconds, `later(delay, callback)` something with `cancel()`, `random` numbers in [0, 1): in production
    the event loop's `time` and `call_later`. `order` makes the rule of the line; `Placement` if None.
    """

    def __init__(
        self,
        config: Config,
        *,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], Timer],
        random: Callable[[], float],
        observer: Observer,
        order: MakeOrder | None = None,
    ) -> None:
        self._clock = Clock(now, later)
        self._random = random
        self._observer = observer
        self._roster = Roster()
        self._callers = Callers()
        self._line = Line()
        self._instances: dict[str, Instance] = {}
        self._wants = Wants(self._roster)
        self._charges: dict[Lease, tuple[Waiter, float]] = {}  # who was charged how many seconds for it
        self._due: dict[str, tuple[float, Timer]] = {}  # when an instance changes by itself
        self._alarm: Timer | None = None
        self._alarm_at = 0.0
        self._anew = False
        self.changes = 0  # goes up with whatever a plan could read here
        self._config = config
        self._order = order(self._roster, config) if order else Placement(self._roster, config.line, random)
        self.reconcile(config)

    @property
    def instances(self) -> Mapping[str, Instance]:
        """The current instances by name, in the order of the configuration."""
        return MappingProxyType(self._instances)

    @property
    def depth(self) -> int:
        """Calls in line."""
        return len(self._line)

    @property
    def held_bytes(self) -> int:
        """Bytes of the bodies of the calls in line."""
        return self._line.held_bytes

    @property
    def oldest(self) -> float:
        """Seconds the head of the line has waited; 0.0 when nobody waits."""
        return self._line.oldest(self._clock.now())

    def outlook(self, ticket: Ticket) -> Outlook | None:
        """What the call that waits with `ticket` may expect now; None where it does not wait."""
        waiter = self._line.waiter(ticket)
        return self._outlook(waiter, self._clock.now()) if waiter else None

    def demands(self) -> list[DemandView]:
        """What is waited for, by model."""
        return list(self._order.demands(self._clock.now()))

    @property
    def callers(self) -> int:
        """How many have calls running or waiting."""
        return len(self._callers)

    def busiest_callers(self, most: int) -> list[Caller]:
        """Those with most calls here, at most so many."""
        return nlargest(most, self._callers, key=lambda one: one.running + one.waiting)

    def close(self) -> None:
        """No timer is left. Calls must have ended before."""
        timers = [*(timer for _, timer in self._due.values()), *([self._alarm] if self._alarm else ())]
        for timer in timers:
            timer.cancel()

    def reconcile(self, config: Config) -> None:
        """Go over to `config`: same name and URL stay what they are, with new limits; others are new, or drained.

        Calls that run are not touched; calls in line keep their place.
        """
        now = self._clock.now()
        before, self._config = self._instances, config
        self._instances = {}
        for wanted in config.instances:
            known = before.get(wanted.name)
            if known and known.config.url == wanted.url:
                known.configure(wanted, config)
            else:
                known = Instance(wanted, config, self._random)
            self._instances[wanted.name] = known
        for name, instance in before.items():
            if self._instances.get(name) is not instance:
                instance.removed = True
                self._roster.remove(instance)
                self._look_again(name, INFINITY, now)
        for instance in self._instances.values():
            if instance.place < 0:
                instance.joined = now
                self._roster.add(instance, now)
        self._wants.replace(self._line.wants, config.line)
        self._order.reconfigure(config.line)
        for caller in self._callers:
            self._callers.allow(caller, config.line.max_running_per_caller)
        self._slots = sum(instance.limit for instance in self._instances.values())
        self.match()

    def observe(self, name: str, ok: bool, problem: str) -> None:
        """Take one probe's result. A probe of an instance that is gone says nothing to anyone."""
        instance = self._instances.get(name)
        if instance and instance.observe(ok, problem):
            if not ok:
                instance.memory.clear()
            self._observer.health_changed(name, ok, problem)
            self.match()

    def told(self, name: str, contents: Contents, asked: float) -> None:
        """Take what an instance told of its models, having been asked at loop time `asked`."""
        instance = self._instances.get(name)
        if instance:
            instance.told = True
            instance.memory.told(contents, asked=asked, now=self._clock.now())
            self._turn(instance)
            self._send_back(self._clock.now())

    async def lease(self, ticket: Ticket, *, patience: float) -> Lease:
        """A lease on the best of the ticket's candidates that has room, now or as soon as it is this call's turn.

        `patience` is the seconds it may wait. Does not suspend where it need not wait. Raises LineFull, LineTimeout,
        NoInstance; where the ticket has no candidates yet, NotToldYet as soon as there may be some. Use it as
        `with await pool.lease(...) as lease:`, with nothing in between: a cancellation at any point leaks nothing.
        """
        now = self._clock.now()
        caller = self._callers.joins(ticket.caller)
        caller.weight = ticket.weight
        if caller.allowed != self._config.line.max_running_per_caller:
            self._callers.allow(caller, self._config.line.max_running_per_caller)
        waiter = Waiter(ticket, self._wants.of(ticket.candidates), caller, now)
        candidate = self._order.arrives(waiter, now)
        if candidate is not None:
            self._grant(waiter, candidate, now)
            self._heed()
            return waiter.result()
        self._callers.waits(caller)
        self._line.join(waiter)
        if problem := self._no_place(waiter, patience, now):
            self._refuse(waiter, problem)
        else:
            waiter.want.news(self._roster)  # all that are right for it have just been asked
        self._heed()
        if waiter.outcome is None:
            await self._wait(waiter, patience)
        return waiter.result()

    async def _wait(self, waiter: Waiter, patience: float) -> None:
        limit, setting = self._limit(waiter, patience)
        try:
            async with asyncio.timeout(limit):
                await waiter.settled()
        except TimeoutError:
            if waiter.outcome is None and setting == HOLD:
                self._refuse(waiter, self._nobody(waiter, self._clock.now()))
            elif waiter.outcome is None:  # else it was granted in that very moment, and keeps what it has
                caller = waiter.caller
                why = f"{caller.running} calls of this caller ran, the most at once (line.max_running_per_caller)"
                why = why if caller.capped else "no instance came free"
                message = f"the call waited {limit:.3g} s in line and {why} ({setting})"
                self._refuse(waiter, LineTimeout(message, retry_after=self._retry_after(waiter)))
                self._heed()
        except BaseException:
            self._leave(waiter)
            self._heed()
            if isinstance(waiter.outcome, Lease):
                waiter.outcome.release()
            raise

    def _limit(self, waiter: Waiter, patience: float) -> tuple[float, str]:
        """How long it may wait from now on, in seconds, and what says so."""
        deadline, now = waiter.ticket.deadline, self._clock.now()
        left = patience if deadline is None else max(0.0, deadline - now)
        if not waiter.want.candidates:
            untold = [one.joined + one.hold - now for one in self._untold(now)]
            if untold and max(untold) < min(left, patience):
                return max(untold), HOLD
        return (left, "X-Request-Timeout, or the client's own") if left < patience else (patience, "timeouts.line")

    def match(self) -> None:
        """Look at everything anew: who is fit, who waits for what, who could never be served."""
        now = self._clock.now()
        self.changes += 1
        for instance in self._instances.values():
            self._note(instance, now)
        self._order.look(now)
        self._offer(self._roster.room, now)
        self._anew = True
        self._heed()
        self._send_back(now)

    def _turn(self, instance: Instance) -> None:
        """Something about `instance` changed: give its room to whoever waits for it."""
        if instance.place < 0:
            return  # it left the pool; another may have its name
        now = self._clock.now()
        self._note(instance, now)
        if len(self._line):
            self._fill(instance, now)
            if instance.away:
                self._dismiss(now)
        self._heed()

    def _note(self, instance: Instance, now: float) -> None:
        """Note how it stands now. Where it is fit for other calls than before, others have to go elsewhere."""
        version = self._roster.version
        if not instance.calm:
            self._follow(instance, now)
        self._roster.update(instance, now)
        self._anew |= self._roster.version != version

    def _reconsider(self, now: float) -> None:
        """Who is fit has changed: ask those who may now serve what waits, and find what nobody could."""
        self._anew = False
        self._look(now)
        places = 0
        for want in self._line.wants:
            places |= want.news(self._roster)
        self._offer(places & self._roster.room, now)
        self._dismiss(now)

    def _offer(self, places: int, now: float) -> None:
        """Have what waits take the room there."""
        for instance in list(self._roster.within(places)):
            self._fill(instance, now)

    def _fill(self, instance: Instance, now: float) -> None:
        while len(self._line) and instance.available(now):
            turn = self._order.serves(instance, now)
            if turn is None:
                return
            self._grant(*turn, now)
            self._leave(turn[0])

    def _grant(self, waiter: Waiter, candidate: Candidate, now: float) -> None:
        instance = self._instances[candidate.instance]
        lease = Lease(
            instance, waiter.own(candidate), since=waiter.since, now=now, clock=self._clock, changed=self._changed
        )
        if waiter.outlook is not None:
            lease.position, lease.why = waiter.outlook.position, waiter.outlook.why
        seconds = instance.memory.service(lease.model)
        self._charges[lease] = waiter, seconds
        self._order.granted(waiter, instance, seconds, now)
        self._callers.begins(waiter.caller, seconds)
        waiter.settle(lease)
        self._note(instance, now)

    def _changed(self, lease: Lease) -> None:
        charge = self._charges.pop(lease, None) if lease.state is not HELD else None
        if charge is None:
            self._turn(lease.instance)
            return
        waiter, seconds = charge
        caller, capped = waiter.caller, waiter.caller.capped
        self._callers.ends(caller, seconds)
        self._order.ended(waiter, lease.instance, self._clock.now() - lease.granted_at - seconds)
        self._turn(lease.instance)
        if capped and caller.waiting:  # its calls may go anywhere that has room
            self._offer(self._roster.room, self._clock.now())
            self._heed()

    def _leave(self, waiter: Waiter) -> None:
        if waiter in self._line:
            self._line.leave(waiter)
            self._order.leaves(waiter)
            self._callers.leaves(waiter.caller)

    def _heed(self) -> None:
        """Follow what changed until nothing does, and have the order look again when it wants to."""
        now = self._clock.now()
        while self._anew or ((when := self._order.alarm()) is not None and when <= now):
            if self._anew:
                self._reconsider(now)
            else:
                self._look(now)
        if when is None or (self._alarm is not None and self._alarm_at <= when):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._clock.later(when - now, self._rings)

    def _rings(self) -> None:
        self._alarm = None
        self._look(self._clock.now())
        self._heed()

    def _look(self, now: float) -> None:
        for instance in self._order.look(now):
            self._note(instance, now)
            self._fill(instance, now)

    def _no_place(self, waiter: Waiter, patience: float, now: float) -> CapacityError | None:
        """Why this arrival, which cannot go at once, cannot wait either."""
        if self._hopeless(waiter.want, now):
            return self._nobody(waiter, now)
        problem = self._line.overfull(waiter, self._config.line, self._slots)
        if problem and waiter.since >= now:  # one that was in line before keeps its place there
            return LineFull(problem, retry_after=self._retry_after(waiter))
        waiter.outlook = self._outlook(waiter, now)
        return self._too_late(waiter, waiter.outlook, patience, now)

    def _too_late(self, waiter: Waiter, outlook: Outlook, patience: float, now: float) -> CapacityError | None:
        """Whether its wait would be longer than it can wait, as far as that can be told."""
        left, setting = self._limit(waiter, patience)
        passed = waiter.ticket.deadline is not None and waiter.ticket.deadline <= now
        if not passed and (not outlook.sure or outlook.seconds <= left):
            return None
        message = f"the wait would be about {outlook.seconds:.0f} s, longer than the limit of {left:.0f} s ({setting})"
        return DeadlineUnreachable(message, retry_after=_clamp(outlook.seconds - left))

    def _retry_after(self, waiter: Waiter) -> float:
        return _clamp(self._outlook(waiter, self._clock.now()).seconds)

    def _outlook(self, waiter: Waiter, now: float) -> Outlook:
        if waiter.want.candidates:
            return self._order.outlook(waiter, now)
        return Outlook(len(self._line), self._config.line.hold, lambda: "waiting for an instance to tell its models")

    def _hopeless(self, want: Want, now: float) -> bool:
        """Whether nobody could serve it, and none of its instances may soon be back, or be found."""
        if not want.candidates:
            return not self._untold(now)
        if want.tier(self._roster) is not None:
            return False
        names = {candidate.instance for candidate in want.candidates}
        return not any(self._instances[name].awaited(now) for name in names if name in self._instances)

    def _dismiss(self, now: float) -> None:
        """End the wait of those that nobody fit, or about to be, could serve."""
        if hopeless := {want for want in self._line.wants if self._hopeless(want, now)}:
            for waiter in [one for one in self._line if one.want in hopeless]:
                self._refuse(waiter, self._nobody(waiter, now))

    def _untold(self, now: float) -> list[Instance]:
        return [instance for instance in self._instances.values() if instance.untold(now)]

    def _send_back(self, now: float) -> None:
        """Have those that wait to hear where they may go ask again: something was told, or has changed."""
        if any(not want.candidates for want in self._line.wants):
            for waiter in [one for one in self._line if not one.want.candidates]:
                self._refuse(waiter, self._nobody(waiter, now))

    def _refuse(self, waiter: Waiter, problem: CapacityError) -> None:
        self._leave(waiter)
        waiter.settle(problem)

    def _nobody(self, waiter: Waiter, now: float) -> NoInstance:
        if not waiter.want.candidates:
            return NotToldYet("no instance has told its models yet", retry_after=_clamp(self._config.health.interval))
        names = dict.fromkeys(candidate.instance for candidate in waiter.want.candidates)
        known = [self._instances[name] for name in names if name in self._instances]
        states = ", ".join(f"{instance.name} is {instance.state(now)}" for instance in known[:8])
        ends = [i.breaker.until - now for i in known if i.breaker.until is not None and i.healthy]
        message = "no instance that could take this call is healthy" + (f" ({states})" if states else "")
        if self._config.line.hold and any(one.away for one in known):
            message += f": away for more than {self._config.line.hold:g} s (line.hold)"
        return NoInstance(message, retry_after=_clamp(min(ends, default=self._config.health.interval)))

    def _follow(self, instance: Instance, now: float) -> None:
        """Tell what changed in what is known of it, and look again when that next changes by itself."""
        for model, state, why in instance.breakers.news(now):
            self.changes += 1
            self._observer.breaker_changed(instance.name, model, str(state), why)
        self._look_again(instance.name, instance.settle(now), now)

    def _look_again(self, name: str, when: float, now: float) -> None:
        """At loop time `when`, INFINITY for never: a cool-down or a pause has passed, a slow start goes on, or those
        who wait for it are to be told that it has been away for too long.
        """
        known = self._due.get(name)
        if known and known[0] == when:
            return
        if known:
            known[1].cancel()
            del self._due[name]
        if when < INFINITY:
            self._due[name] = when, self._clock.later(when - now, lambda: self._is_due(name))

    def _is_due(self, name: str) -> None:
        del self._due[name]
        now = self._clock.now()
        late = [other for other, (when, _) in self._due.items() if when <= now]
        for one in (name, *late):  # all of them first: so that nobody is sent elsewhere for want of a timer
            self._note(self._instances[one], now)
        for one in (name, *late):
            self._turn(self._instances[one])  # a timer that was a moment early was set again for the rest


def _clamp(seconds: float) -> float:
    shortest, longest = _RETRY_AFTER
    return min(max(seconds, shortest), longest)
