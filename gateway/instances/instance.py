"""One Ollama as we know it, and the right to one call on it.

A lease moves held -> (draining) -> free. Draining: its client left before the first token, and Ollama goes on until
it has one (ollama.md §4.6), so the instance is still busy with a call nobody holds.

held + draining never grows beyond `limit`. A limit lowered below what runs takes nothing back; it is reached as calls
end. All changes happen between two awaits, so there are no locks here. Keep it so.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from gateway.call import Candidate, model_key
from gateway.config import Config, InstanceConfig
from gateway.errors import BadAnswer, ConnectFailed, ConnectionLost, Refused, StreamBroken, UpstreamError
from gateway.instances.breaker import Breaker, Breakers, BreakerState
from gateway.instances.health import Health
from gateway.instances.memory import Memory
from gateway.routing import seed

INFINITY = float("inf")
_WORK_IS_OVER = (ConnectFailed, ConnectionLost, BadAnswer, Refused, StreamBroken)


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(NamedTuple):
    """Time as it comes in: `now()` in seconds; `later(delay, callback)` gives something to cancel."""

    now: Callable[[], float]
    later: Callable[[float, Callable[[], None]], Timer]


class Standing(NamedTuple):
    """What may be asked of an instance, full or not. `fit`: it takes calls as usual; `able`: at least one, as a last
    resort. Not for all models: those in `cooling` only as a last resort, those in `barred` not even so.
    """

    fit: bool = True
    able: bool = True
    cooling: tuple[str, ...] = ()
    barred: tuple[str, ...] = ()


SOUND = Standing()
OUT = Standing(fit=False, able=False)


class Instance:
    """What is known of one instance. `drains` are the leases that are draining, each with the timer of its end; `place`
    is its bit in the roster, -1 where it has none; `owes` is the model it is to load next, for which it takes no more
    calls for those in `gives_up`.
    """

    def __init__(self, config: InstanceConfig, pool: Config, random: Callable[[], float]) -> None:
        self.name = config.name
        self.held = 0
        self.drains: dict[Lease, Timer] = {}
        self.removed = False
        self.health = Health(pool.health.fall, pool.health.rise)
        self.breakers = Breakers(pool.breaker, random)
        self.memory = Memory()
        self.place = -1
        self.joined = 0.0  # loop time
        self.told = False  # its models, at least once
        self.owes = ""
        self.gives_up: frozenset[str] = frozenset()
        self.seed = seed(config.name)
        self.healthy = True  # as probes say; one that nobody has probed yet counts as healthy
        self.away_since: float | None = None  # loop time; None while nothing is wrong with it
        self._probe_problem = ""
        self.configure(config, pool)

    def configure(self, config: InstanceConfig, pool: Config) -> None:
        """New limits apply at once, to what is known already."""
        self.config = config
        self.limit = config.max_concurrent
        self.drain_grace = pool.line.drain_grace
        self.hold = pool.line.hold
        self.breakers.configure(pool.breaker)
        self.health.fall, self.health.rise = pool.health.fall, pool.health.rise

    @property
    def breaker(self) -> Breaker:
        """What calls say of the whole of it."""
        return self.breakers.whole

    def allowed(self, now: float) -> int:
        """Calls at once that it may have now: fewer than its limit while it is saturated or in its slow start."""
        return self.breakers.limit(self.limit, now)

    @property
    def draining(self) -> int:
        return len(self.drains)

    @property
    def in_use(self) -> int:
        """Calls it works on, or may still work on."""
        return self.held + len(self.drains)

    @property
    def load(self) -> float:
        """How full it is: 0.0 idle, 1.0 full, more where the limit was lowered."""
        return self.in_use / self.limit

    def slots(self, model: str) -> int:
        """Calls for one model at once: what Ollama gives each model, or 1 for those it serves one at a time (§6.6)."""
        if self.config.max_per_model is not None:
            return min(self.config.max_per_model, self.limit)
        return 1 if model in self.memory.one_at_a_time else self.limit

    def takes(self, model: str, now: float) -> bool:
        """Whether a model it holds has a slot free, and is not to be given up."""
        slots = self.slots(model)
        if not self.breakers.calm:
            slots = self.breakers.slots(model, slots, now)
        return self.memory.running(model) < slots and model not in self.gives_up

    def owe(self, model: str, gives_up: frozenset[str]) -> None:
        """It is to load `model`, and takes no more calls for `gives_up` until then. ("", none) ends that."""
        self.owes, self.gives_up = model, gives_up

    @property
    def problem(self) -> str:
        """Why it takes no calls, or only one to see, in words; "" where nothing is wrong."""
        if self.removed or self.config.drain:
            return "drained by configuration"
        return self.breaker.why if self.healthy else self._probe_problem

    @property
    def calm(self) -> bool:
        """Nothing is wrong with it, nor was when that was last looked at."""
        return self.breakers.calm and self.healthy and self.away_since is None

    @property
    def up(self) -> bool:
        """In use, and there as far as its probes say."""
        return not (self.removed or self.config.drain) and self.healthy

    def fit(self, now: float, model: str = "") -> bool:
        """Could it take calls, full or not? Half-open, it is fit for the trial only, until that is under way."""
        return self.up and self.breakers.allows(model, now)

    def standing(self, now: float) -> Standing:
        """What may be asked of it, full or not."""
        if not self.up:
            return OUT
        if self.breakers.calm:
            return SOUND
        return Standing(
            self.breaker.allows(now),
            self.breaker.allows(now, last_resort=True),
            self.breakers.closed_to(now),
            self.breakers.closed_to(now, last_resort=True),
        )

    def available(self, now: float) -> bool:
        """Can it take one more call now, be it as a last resort?"""
        return self.in_use < self.allowed(now) and self.up and self.breaker.allows(now, last_resort=True)

    @property
    def away(self) -> bool:
        """Whether it seems not to be there: by its probes, or as nobody listens; half-open it is not back yet."""
        breaker = self.breakers.whole
        return not self.healthy or (breaker.until is not None and breaker.hard)

    def awaited(self, now: float) -> bool:
        """Whether it may well be back soon: it has not been away for so long that it is given up."""
        if self.removed or self.config.drain:
            return False
        return self.away_since is None or now < self.away_since + self.hold

    def untold(self, now: float) -> bool:
        """Whether its models are not known, but it has come so lately that they may be at any moment."""
        return not (self.told or self.removed or self.config.drain) and now < self.joined + self.hold

    def state(self, now: float) -> str:
        """One word of a closed set: drained, down, open, half_open, saturated, slow_start, unknown, healthy; the first
        that holds.
        """
        if self.removed or self.config.drain:
            return "drained"
        if not self.healthy:
            return "down"
        breaker = self.breaker.state_at(now)
        if breaker is not BreakerState.CLOSED:
            return str(breaker)
        if self.allowed(now) < self.limit:
            return "saturated" if self.breakers.saturated(now) else "slow_start"
        return "unknown" if self.health.healthy is None else "healthy"

    def settle(self, now: float) -> float:
        """Note since when it is away, and forget what is over; when something next changes by itself, if ever."""
        if not self.away:
            self.away_since = None
        elif self.away_since is None:
            self.away_since = now
        due = self.breakers.settle(self.limit, self.slots, now)
        gone = INFINITY if self.away_since is None else self.away_since + self.hold
        return min(due, gone) if now < gone else due

    def observe(self, ok: bool, problem: str) -> bool:
        """Take one probe's result; True where its health changed."""
        if not ok:
            self._probe_problem = problem
        changed = self.health.observe(ok)
        self.healthy = self.health.healthy is not False
        return changed


class LeaseState(StrEnum):
    HELD = "held"
    DRAINING = "draining"
    FREE = "free"


HELD, DRAINING, FREE = LeaseState  # by the class they cost a hundred times as much (CPython 3.11)


class Lease:
    """The right to one call on one instance, given back by leaving its block. Everything here is synchronous.

    Say `sent`, then `answered` or `failed`, as the call goes on. `waited` is the time in line, in seconds, which began
    at `since`; `cold` tells that the model has to be loaded first. `changed` is called after each change that could let
    another call go.
    """

    def __init__(
        self,
        instance: Instance,
        candidate: Candidate,
        *,
        since: float,
        now: float,
        clock: Clock,
        changed: Callable[[Lease], None],
    ) -> None:
        self.instance = instance
        self.candidate = candidate
        self.waited = now - since
        self.state = HELD
        self.model = model_key(candidate.model)
        self.granted_at = now
        self.drained_at = 0.0
        self._clock = clock
        self._changed = changed
        self._sent_at: float | None = None
        self._answered = False
        self._failed = self._work_is_over = False  # the error itself is not kept: it knows the frames it came through
        instance.held += 1
        self.last_resort = instance.breakers.begin(self, self.model, now)  # nothing else was left
        self.position = 0  # its place in line when it came; 0 where it did not wait
        self.why = ""  # it waited, in words
        self.cold = instance.memory.begin(self.model, now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def sent(self) -> None:
        """The request is on its way: from now on the instance may be working."""
        if self.state is HELD and self._sent_at is None:
            self._sent_at = self._clock.now()

    def answered(self) -> None:
        """The first token arrived."""
        if self._sent_at is not None and not self._answered and not self._failed:
            self.instance.memory.spoke(self.model, self._clock.now() - self._sent_at, cold=self.cold)
        self.finished()

    def finished(self) -> None:
        """A whole answer arrived, which tells nothing of its first token."""
        if self.state is not HELD or self._answered or self._failed:
            return
        self._answered = True
        instance = self.instance
        as_before = instance.calm and not self.cold and not instance.drains
        instance.breakers.heard(self, self.model, self._clock.now())
        instance.memory.answered(self.model)
        if instance.drains and self._sent_at is not None:
            self._end_older_drains(self._sent_at)
        if not as_before:
            self._changed(self)

    def failed(self, error: UpstreamError) -> None:
        """The attempt failed. It counts against a breaker where `error.counts`; once for each lease."""
        if self.state is not HELD or self._failed:
            return
        self._failed, self._work_is_over = True, isinstance(error, _WORK_IS_OVER)
        instance = self.instance
        instance.breakers.failed(self, self.model, error, self._clock.now(), running=instance.in_use - 1)
        self._changed(self)

    def release(self) -> None:
        """Give it back, or let it drain. Idempotent."""
        if self.state is not HELD:
            return
        now = self._clock.now()
        self.instance.held -= 1
        if self._answered and not self._failed:
            self.instance.breakers.succeeded(self.model, now)
            self.instance.memory.served(self.model, now - self.granted_at, cold=self.cold)
        self.instance.breakers.left(self, self.model)
        self._drain(now, 0.0 if self._answered else self._still_worked_on(now))
        self._changed(self)

    def _still_worked_on(self, now: float) -> float:
        """Seconds the instance is expected to go on with this call although nobody wants it any more."""
        if self._sent_at is None or self._work_is_over:
            return 0.0
        first_token = self._sent_at + self.instance.memory.first_token(self.model)
        return min(first_token - now, self.instance.drain_grace)

    def _drain(self, now: float, seconds: float) -> None:
        if seconds <= 0:
            self.state = FREE
            self.instance.memory.end(self.model, now)
            return
        self.state = DRAINING
        self.drained_at = now
        self.instance.drains[self] = self._clock.later(seconds, self._end_of_grace)

    def _end_of_grace(self) -> None:
        self.end_drain()
        self._changed(self)

    def end_drain(self) -> None:
        """The instance no longer works on it."""
        self.instance.drains.pop(self).cancel()
        self.state = FREE
        self.instance.memory.end(self.model, self._clock.now())

    def _end_older_drains(self, sent_at: float) -> None:
        """An answer to a call sent after a drain began shows that the instance is done with the drained one."""
        for lease in [lease for lease in self.instance.drains if lease.drained_at < sent_at]:
            lease.end_drain()
