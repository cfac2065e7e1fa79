"""What the calls themselves say of an instance: closed, open, half-open. Pure: the time comes in, nothing is scheduled.

After too many failures in a row the breaker opens and no call goes there. When its cool-down has passed it is
half-open: exactly one call, the trial, may go and see. Answered, it closes; failed, it opens again for longer; gone
without a verdict, the next call is the trial.

Only the trial moves a breaker that is not closed: calls sent before it opened come back late and prove nothing new.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from gateway.config import BreakerConfig


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The breaker of one instance. `call` is whatever stands for one call; it is only compared by identity.

    `random` gives numbers in [0, 1). `until` is the time at which the cool-down ends, None while closed; `why` says in
    words why it opened last, "" while closed.
    """

    def __init__(self, config: BreakerConfig, random: Callable[[], float]) -> None:
        self.config = config
        self.until: float | None = None
        self.why = ""
        self._random = random
        self._failures = 0
        self._connects = 0
        self._times_open = 0
        self._trial: object | None = None

    def state_at(self, now: float) -> BreakerState:
        """Where the breaker stands at `now`; it stays half-open while its trial is under way."""
        if self.until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.until else BreakerState.HALF_OPEN

    def allows(self, now: float) -> bool:
        """May one more call go there at `now`?"""
        return self.until is None or (now >= self.until and self._trial is None)

    def begin(self, call: object, now: float) -> None:
        """`call` goes there; it is the trial where the breaker is half-open."""
        if self.state_at(now) is BreakerState.HALF_OPEN:
            self._trial = call

    def heard(self, call: object) -> None:
        """The instance spoke to `call`: it can be reached, and if this was the trial it has passed."""
        self._connects = 0
        if call is self._trial and self.until is not None:
            self.until, self.why, self._failures = None, "", 0

    def succeeded(self) -> None:
        """A call ended well. Not said at its first token: an instance that dies in every stream must not look fine."""
        self._failures = self._connects = 0
        if self.until is None:
            self._times_open = 0

    def failed(self, call: object, now: float, why: str, *, connect: bool = False) -> None:
        """`call` failed in a way that counts; `connect` where not even a connection was made."""
        if call is self._trial and self._times_open:
            self._open(now, f"the trial call failed: {why}")
        elif self.until is None:
            self._count(now, why, connect=connect)

    def left(self, call: object) -> None:
        """`call` is over. A trial without a verdict gives its turn back."""
        if call is self._trial:
            self._trial = None

    def _count(self, now: float, why: str, *, connect: bool) -> None:
        if connect:
            self._connects += 1
        else:
            self._failures += 1
        if self._connects >= self.config.connects:
            self._open(now, f"{self._connects} failed connections in a row")
        elif self._failures >= self.config.failures:
            self._open(now, f"{self._failures} failed calls in a row, the last: {why}")

    def _open(self, now: float, why: str) -> None:
        self._times_open += 1
        self._failures = self._connects = 0
        self._trial = None
        cooldown = min(self.config.cooldown * self._times_open, self.config.max_cooldown)
        self.until = now + cooldown * (0.8 + 0.4 * self._random())
        self.why = why
