"""All instances and the line in front of them: `lease` is the one way to a call on an instance.

A caller is granted a lease, told that the line is full, that it waited too long, or that nobody could serve it now;
never kept guessing. A caller that leaves while it waits gives its turn to the next and wakes nobody else.

`match` decides; it is synchronous and runs after every change that could let a call go. A snapshot is advice: only
what `match` grants is granted. There is no lock and no await in it. Keep it so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from gateway.call import Candidate
from gateway.config import Config
from gateway.errors import CapacityError, LineFull, LineTimeout, NoInstance
from gateway.instances.breaker import BreakerState
from gateway.instances.instance import Clock, Instance, Lease, Timer
from gateway.instances.line import FirstCome, Line, Order, Waiter, eligible, free

_USUAL_SERVICE = 5.0  # seconds, until a call was seen from its grant to its release
_RETRY_AFTER = (1.0, 30.0)  # seconds, the shortest and the longest we tell anyone


class Observer(Protocol):
    """Told of changes, synchronously; must not raise. `why` is in words, without anything a client wrote."""

    def health_changed(self, instance: str, healthy: bool, why: str) -> None: ...

    def breaker_changed(self, instance: str, state: str, why: str) -> None: ...


class Pool:
    """The instances of one configuration and the calls that wait for them.

    `now` gives seconds, `later(delay, callback)` something with `cancel()`, `random` numbers in [0, 1): in production
    the event loop's `time` and `call_later`. `order` is the rule of the line, first come first served if None.
    """

    def __init__(
        self,
        config: Config,
        *,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], Timer],
        random: Callable[[], float],
        observer: Observer,
        order: Order | None = None,
    ) -> None:
        self._clock = Clock(now, later)
        self._random = random
        self._observer = observer
        self._order = order or FirstCome()
        self._line = Line()
        self._instances: dict[str, Instance] = {}
        self._fit: frozenset[str] = frozenset()  # as of the last look at who waits in vain
        self._told: dict[str, BreakerState] = {}  # the breakers that are not closed, as last told
        self._cooldowns: dict[str, Timer] = {}
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

    def estimate(self) -> float:
        """Seconds a new arrival may have to wait, from the usual time of service; between 1 and 30."""
        now = self._clock.now()
        fit = [instance for instance in self._instances.values() if instance.fit(now)]
        rate = sum(i.limit / max(_USUAL_SERVICE if i.service.value is None else i.service.value, 0.001) for i in fit)
        return _clamp((len(self._line) + 1) / rate) if rate else _RETRY_AFTER[1]

    def reconcile(self, config: Config) -> None:
        """Go over to `config`: same name and URL stay what they are, with new limits; others are new, or drained.

        Calls that run are not touched; calls in line keep their place.
        """
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
                self._forget_breaker(name)
        self.match()

    def observe(self, name: str, ok: bool, problem: str) -> None:
        """Take one probe's result. A probe of an instance that is gone says nothing to anyone."""
        instance = self._instances.get(name)
        if instance and instance.observe(ok, problem):
            self._observer.health_changed(name, ok, problem)
            self.match()

    async def lease(self, candidates: Sequence[Candidate], *, size: int, patience: float) -> Lease:
        """A lease on the best of `candidates` that has room, now or as soon as it is this call's turn.

        `size` is the body's bytes, held while waiting; `patience` the seconds it may wait. Does not suspend where it
        need not wait. Raises LineFull, LineTimeout, NoInstance. Use it as `with await pool.lease(...) as lease:`, with
        nothing in between, and a cancellation at any point leaks nothing.
        """
        waiter = Waiter(candidates, size=size, since=self._clock.now())
        self._line.join(waiter)
        self.match()
        if waiter.outcome is None and (problem := self._no_place(waiter)):
            self._refuse(waiter, problem)
        if waiter.outcome is None:
            await self._wait(waiter, patience)
        return waiter.result()

    async def _wait(self, waiter: Waiter, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await waiter.settled()
        except TimeoutError:
            if waiter.outcome is None:  # else it was granted in that very moment, and keeps what it has
                message = f"the call waited {patience:g} s in line and no instance came free (timeouts.line)"
                self._refuse(waiter, LineTimeout(message, retry_after=self.estimate()))
        except BaseException:
            self._line.leave(waiter)
            if isinstance(waiter.outcome, Lease):
                waiter.outcome.release()
            raise

    def match(self) -> None:
        """Grant all that can be granted, in the order's own order; end the wait of those nobody could ever serve."""
        now = self._clock.now()
        for instance in self._instances.values():
            self._follow_breaker(instance, now)
        if not self._line:
            return
        if self._has_room(now):
            self._grant_all(now)
        fit = frozenset(name for name, instance in self._instances.items() if instance.fit(now))
        if fit != self._fit:
            self._fit = fit
            for waiter in [w for w in self._line if not eligible(w.candidates, self._instances, now)]:
                self._refuse(waiter, self._nobody(waiter, now))

    def _grant_all(self, now: float) -> None:
        def options(waiter: Waiter) -> Sequence[Candidate]:
            return free(waiter.candidates, self._instances, now, self._random)

        granted = []
        for waiter, candidate in self._order.choose(self._line, options):
            instance = self._instances[candidate.instance]
            waited = now - waiter.since
            waiter.settle(Lease(instance, candidate, waited=waited, clock=self._clock, changed=self.match))
            granted.append(waiter)
            if not self._has_room(now):
                break
        for waiter in granted:
            self._line.leave(waiter)

    def _has_room(self, now: float) -> bool:
        return any(instance.available(now) for instance in self._instances.values())

    def _no_place(self, waiter: Waiter) -> CapacityError | None:
        """Why this arrival, which cannot go at once, cannot wait either."""
        now = self._clock.now()
        if not eligible(waiter.candidates, self._instances, now):
            return self._nobody(waiter, now)
        limits = sum(instance.limit for instance in self._instances.values())
        bounds = self._config.line
        max_calls = max(32, 8 * limits) if bounds.max_calls is None else bounds.max_calls
        problem = self._line.overfull(max_calls, bounds.max_bytes)
        return LineFull(problem, retry_after=self.estimate()) if problem else None

    def _refuse(self, waiter: Waiter, problem: CapacityError) -> None:
        self._line.leave(waiter)
        waiter.settle(problem)

    def _nobody(self, waiter: Waiter, now: float) -> NoInstance:
        names = dict.fromkeys(candidate.instance for candidate in waiter.candidates)
        known = [self._instances[name] for name in names if name in self._instances]
        states = ", ".join(f"{instance.name} is {instance.state(now)}" for instance in known[:8])
        ends = [i.breaker.until - now for i in known if i.breaker.until is not None and i.healthy]
        message = "no instance that could take this call is healthy" + (f" ({states})" if states else "")
        return NoInstance(message, retry_after=_clamp(min(ends, default=self._config.health.interval)))

    def _follow_breaker(self, instance: Instance, now: float) -> None:
        """Tell of a breaker that changed, and have its cool-down end on time."""
        name, state = instance.name, instance.breaker.state_at(now)
        if state is not self._told.get(name, BreakerState.CLOSED):
            if state is BreakerState.CLOSED:
                self._forget_breaker(name)
            else:
                self._told[name] = state
            self._observer.breaker_changed(name, str(state), _WHY.get(state, instance.breaker.why))
        if state is BreakerState.OPEN and name not in self._cooldowns and instance.breaker.until is not None:
            self._cooldowns[name] = self._clock.later(instance.breaker.until - now, lambda: self._cooled_down(name))

    def _cooled_down(self, name: str) -> None:
        del self._cooldowns[name]
        self.match()  # a timer that fired a moment early is set again for the rest

    def _forget_breaker(self, name: str) -> None:
        self._told.pop(name, None)
        if timer := self._cooldowns.pop(name, None):
            timer.cancel()


_WHY = {
    BreakerState.CLOSED: "its trial call was answered",
    BreakerState.HALF_OPEN: "its cool-down has passed: one call may try it",
}


def _clamp(seconds: float) -> float:
    shortest, longest = _RETRY_AFTER
    return min(max(seconds, shortest), longest)
