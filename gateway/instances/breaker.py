"""What the calls themselves say of an instance: of all of it, and of each of its models. Pure: the time comes in.

    closed ── too many failures ──▶ open ── cool-down passed ──▶ half-open ── trial answered ──▶ closed (slow start)
                                     ▲                               │
                                     └── trial failed: for longer ───┘

Open: no call goes there. Half-open: exactly one, the trial, may go and see; gone without a verdict, the next call is
the trial. Closed again, it is given one call at a time at first and its whole limit only later (slow start).

A breaker that opened because nobody listens is `hard`: nothing gets through it. Any other lets one call after the other
go as a last resort, where nothing else is left; so that the last instance of a model is never taken out by its calls.

Only its trial moves a breaker that is not closed: calls sent before it opened come back late and prove nothing new.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import StrEnum

from gateway.config import BreakerConfig
from gateway.errors import MAX_ASKED_FOR, ConnectFailed, FirstTokenTimeout, UpstreamError

MAX_MODELS = 256  # of one instance that have a breaker of their own: those that failed last
SLICES = 10
MIN_STEP = 0.01  # seconds between two steps of a slow start; an instance with many slots takes several at once

NEVER = float("inf")


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Tally:
    """How many calls ended within the last `span` seconds and how many of them failed: a ring of counts, of fixed size.

    It forgets a tenth of the span at a time.
    """

    __slots__ = ("_ended", "_failed", "_slice", "_width")

    def __init__(self, span: float) -> None:
        self._width = span / SLICES
        self._slice = 0
        self._ended = [0] * SLICES
        self._failed = [0] * SLICES

    def note(self, now: float, *, failed: bool) -> None:
        """A call ended at `now`."""
        self._pass(now)
        at = self._slice % SLICES
        self._ended[at] += 1
        self._failed[at] += failed

    def counts(self, now: float) -> tuple[int, int]:
        """(failed, ended)."""
        self._pass(now)
        return sum(self._failed), sum(self._ended)

    def _pass(self, now: float) -> None:
        at = int(now / self._width)
        if at == self._slice:
            return
        for one in range(max(self._slice, at - SLICES) + 1, at + 1):
            self._ended[one % SLICES] = self._failed[one % SLICES] = 0
        self._slice = at


class Breaker:
    """One breaker. `call` is whatever stands for one call; it is only compared by identity.

    `random` gives numbers in [0, 1). `until` is the time at which the cool-down ends, None while closed; `since` is
    when it closed again, None once its slow start is over; `why` says in words why it opened last, "" while closed.
    """

    def __init__(self, config: BreakerConfig, random: Callable[[], float]) -> None:
        self.config = config
        self.until: float | None = None
        self.since: float | None = None
        self.hard = False
        self.why = ""
        self.told = BreakerState.CLOSED  # the state that was last told
        self._random = random
        self._connects = self._silences = self._failures = 0  # each in a row
        self._tally = Tally(config.window)
        self._times_open = 0
        self._trial: object | None = None
        self._early = False  # the trial began before the cool-down had passed

    def configure(self, config: BreakerConfig) -> None:
        """Other settings hold from now on."""
        if config.window != self.config.window:
            self._tally = Tally(config.window)
        self.config = config

    def state_at(self, now: float) -> BreakerState:
        """Where the breaker stands at `now`; it stays half-open while its trial is under way."""
        if self.until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.until else BreakerState.HALF_OPEN

    def allows(self, now: float, *, last_resort: bool = False) -> bool:
        """May one more call go there at `now`, as usual or because nothing else is left?"""
        if self.until is None:
            return True
        return self._trial is None and (now >= self.until or (last_resort and not self.hard))

    def begin(self, call: object, now: float) -> bool:
        """`call` goes there; it is the trial where the breaker is not closed. True where it is a last resort."""
        if self.until is None:
            return False
        self._trial, self._early = call, now < self.until
        return self._early

    def heard(self, call: object, now: float) -> None:
        """The instance spoke to `call`: it can be reached, and if this was the trial it has passed."""
        self._connects = self._silences = 0
        if call is self._trial and self.until is not None:
            self.until, self.why, self._failures = None, "", 0
            self.since = now

    def succeeded(self, now: float) -> None:
        """A call ended well. Not said at its first token: an instance that dies in every stream must not look fine.
        Nor does it end the other rows: streams may run out well while nothing new begins.
        """
        self._failures = 0
        if self.until is None:
            self._times_open = 0
            self._tally.note(now, failed=False)

    def failed(self, call: object, error: UpstreamError, now: float) -> None:
        """`call` failed in a way that counts."""
        if call is self._trial and self._times_open:
            if self._early and self.until is not None:  # a last resort: it shows no more than was known
                self._trial, self.hard = None, isinstance(error, ConnectFailed)
            else:
                self._open(error, now, f"the trial call failed: {error.cause or error.reason}")
        elif self.until is None:
            self._count(error, now)

    def left(self, call: object) -> None:
        """`call` is over. A trial without a verdict gives its turn back."""
        if call is self._trial:
            self._trial = None

    def ramp(self, limit: int, now: float) -> int:
        """How many of `limit` calls at once it may have: in its slow start one, then more, evenly over the time."""
        if self.since is None or now >= self.since + self.config.slow_start:
            return limit
        return 1 + int((limit - 1) * (now - self.since) / self.config.slow_start + 1e-6)  # a timer may be early by that

    def settle(self, limit: int, now: float) -> float:
        """End a slow start that is over; when it next allows more by itself, NEVER if it does not."""
        if self.until is not None:
            return self.until if now < self.until else NEVER
        if self.since is None:
            return NEVER
        step = self.ramp(limit, now)
        if step >= limit:
            self.since = None
            return NEVER
        return max(self.since + self.config.slow_start * step / (limit - 1), now + MIN_STEP)

    def blank(self, now: float) -> bool:
        """Whether it says no more than a new one would."""
        rows = self._connects or self._silences or self._failures or self._times_open
        return self.until is None and self.since is None and not rows and not self._tally.counts(now)[0]

    def _count(self, error: UpstreamError, now: float) -> None:
        if isinstance(error, ConnectFailed):
            self._connects += 1
        else:
            self._failures += 1
        self._silences += isinstance(error, FirstTokenTimeout)
        self._tally.note(now, failed=True)
        if why := self._enough(error, now):
            self._open(error, now, why)

    def _enough(self, error: UpstreamError, now: float) -> str:
        """Why it is to open after this failure, in words; "" where it is not."""
        config = self.config
        if error.unloadable:  # one is enough: memory does not come back by asking for it
            return f"it could not load the model: {error.cause}"
        if self._connects >= config.connects:
            return f"{self._connects} failed connections in a row"
        if self._silences >= config.first_tokens:
            return f"{self._silences} calls in a row had no first token in time"
        if self._failures >= config.failures:
            return f"{self._failures} failed calls in a row, the last: {error.cause or error.reason}"
        failed, ended = self._tally.counts(now)
        if ended >= config.calls and failed >= config.ratio * ended:
            return f"{failed} of the last {ended} calls failed, the last: {error.cause or error.reason}"
        return ""

    def _open(self, error: UpstreamError, now: float, why: str) -> None:
        self._times_open += 1
        self._connects = self._silences = self._failures = 0
        self._tally = Tally(self.config.window)
        self._trial = self.since = None
        cooldown = min(self.config.cooldown * self._times_open, self.config.max_cooldown)
        self.until = now + cooldown * (0.8 + 0.4 * self._random())
        self.hard = isinstance(error, ConnectFailed)
        self.why = why


class Breakers:
    """All that calls say of one instance: a breaker for the whole, one for each model that failed, and whether it is
    saturated, which is no failure.

    A failure counts for the model alone where it is the model's: no memory for it, its runner died, anything that went
    wrong in the cloud. Any other counts for the whole, and, as it may still be the model's alone, for the model too
    while the whole stays closed. `calm` tells that nothing is open, to be told, or about to change by itself.
    """

    def __init__(self, config: BreakerConfig, random: Callable[[], float]) -> None:
        self.whole = Breaker(config, random)
        self.models: OrderedDict[str, Breaker] = OrderedDict()
        self.calm = True
        self._random = random
        self._busy_until = 0.0
        self._most = 0  # calls at once until then

    def configure(self, config: BreakerConfig) -> None:
        """Other settings hold from now on."""
        for breaker in (self.whole, *self.models.values()):
            breaker.configure(config)

    def allows(self, model: str, now: float) -> bool:
        """May one more call for `model` go there at `now`?"""
        own = self.models.get(model)
        return self.whole.allows(now) and (own is None or own.allows(now))

    def closed_to(self, now: float, *, last_resort: bool = False) -> tuple[str, ...]:
        """The models for which no call may go there, as usual or as a last resort."""
        return tuple(name for name, own in self.models.items() if not own.allows(now, last_resort=last_resort))

    def begin(self, call: object, model: str, now: float) -> bool:
        """`call` for `model` goes there. True where it is a last resort."""
        if self.calm:
            return False
        last_resort = self.whole.begin(call, now)
        own = self.models.get(model)
        return bool(own and own.begin(call, now)) or last_resort

    def heard(self, call: object, model: str, now: float) -> None:
        """The instance spoke to `call`."""
        self.whole.heard(call, now)
        if own := self.models.get(model):
            own.heard(call, now)

    def succeeded(self, model: str, now: float) -> None:
        """A call ended well."""
        self.whole.succeeded(now)
        if own := self.models.get(model):
            own.succeeded(now)

    def left(self, call: object, model: str) -> None:
        """`call` is over."""
        self.whole.left(call)
        if own := self.models.get(model):
            own.left(call)

    def failed(self, call: object, model: str, error: UpstreamError, now: float, *, running: int) -> None:
        """`call` failed, while the instance works on `running` others."""
        cloud = model.endswith("@cloud")
        if error.busy and not cloud:
            self._saturate(error, now, running)
        if not error.counts:
            return
        self.calm = False
        connect = isinstance(error, ConnectFailed)
        if connect or not (error.cause or cloud):
            self.whole.failed(call, error, now)
            if connect or self.whole.until is not None:
                return
        self._of(model).failed(call, error, now)

    def saturated(self, now: float) -> bool:
        """Whether it said of late that it is busy."""
        return now < self._busy_until

    def limit(self, limit: int, now: float) -> int:
        """How many of `limit` calls it may have now, slow start and saturation considered."""
        if self.calm:
            return limit
        allowed = self.whole.ramp(limit, now)
        return min(allowed, self._most) if self.saturated(now) else allowed

    def slots(self, model: str, slots: int, now: float) -> int:
        """How many of a model's `slots` it may use now."""
        own = self.models.get(model)
        return slots if own is None else own.ramp(slots, now)

    def news(self, now: float) -> Iterator[tuple[str, BreakerState, str]]:
        """What changed since the last time: (the model, or "" for the whole; its state; why, in words)."""
        for model, breaker in (("", self.whole), *self.models.items()):
            state = breaker.state_at(now)
            if state is not breaker.told:
                breaker.told = state
                yield model, state, _WHY.get(state, breaker.why)

    def open(self) -> Iterator[tuple[str, Breaker, float]]:
        """Those that are not closed: (the model, or "" for the whole; the breaker; when its cool-down ends)."""
        for model, breaker in (("", self.whole), *self.models.items()):
            if breaker.until is not None:
                yield model, breaker, breaker.until

    def left_out(self, model: str, now: float) -> str:
        """For how long no call for `model` goes there as usual, and why, in words; "" where they do."""
        whole = self.whole.until is not None
        breaker = self.whole if whole else self.models.get(model)
        if breaker is None or breaker.until is None:
            return ""
        left = breaker.until - now
        until = f"for {left:.0f} s more" if left > 0 else "until one call has tried it"
        return f"{'all models' if whole else f'model {model}'} {until}: {breaker.why}"

    def settle(self, limit: int, slots: Callable[[str], int], now: float) -> float:
        """Forget what is over and was told; when something next changes by itself, NEVER if nothing does."""
        due = min((own.settle(slots(model), now) for model, own in self.models.items()), default=NEVER)
        due = min(due, self.whole.settle(limit, now), self._busy_until if self.saturated(now) else NEVER)
        for model in [model for model, own in self.models.items() if own.blank(now)]:
            del self.models[model]
        closed = self.whole.until is None and self.whole.since is None
        self.calm = closed and not self.models and not self.saturated(now)
        return due

    def _of(self, model: str) -> Breaker:
        own = self.models.get(model)
        if own is None:
            own = self.models[model] = Breaker(self.whole.config, self._random)
        self.models.move_to_end(model)
        if len(self.models) > MAX_MODELS:
            self.models.popitem(last=False)
        return own

    def _saturate(self, error: UpstreamError, now: float, running: int) -> None:
        asked = error.retry_after
        pause = self.whole.config.busy if asked is None else min(asked, MAX_ASKED_FOR)
        self._most = min(self._most, running) if self.saturated(now) else running
        self._busy_until = max(self._busy_until, now + pause)
        self.calm = False


_WHY = {
    BreakerState.CLOSED: "its trial call was answered",
    BreakerState.HALF_OPEN: "its cool-down has passed: one call may try it",
}
