"""What the gateway counted meanwhile: every counter that tells of calls and failures, as far as it moved.

counted = Counted(house)
...
assert counted.moved == {left(): 1}
"""

from __future__ import annotations

from gateway.simulator import Behaviour
from tests.house import House

Series = tuple[str, ...]  # the metric's name without `gateway_` and `_total`, then its labels as name=value, sorted

# Counters alone: a histogram counts every call too, and adds nothing about failures.
LOOKED_AT = (
    "requests",
    "request_errors",
    "rejections",
    "stream_interruptions",
    "upstream_requests",
    "upstream_errors",
    "upstream_retries",
    "upstream_breaker_transitions",
)


class Counted:
    """The counters from now on."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._before = self._now()

    @property
    def moved(self) -> dict[Series, int]:
        """How much each has moved; those that have not are absent."""
        now = self._now()
        return {key: int(now[key] - self._before.get(key, 0)) for key in now if now[key] != self._before.get(key, 0)}

    def _now(self) -> dict[Series, float]:
        return {
            series(sample.name.removeprefix("gateway_").removesuffix("_total"), **sample.labels): sample.value
            for family in self._house.engine.metrics.registry.collect()
            for sample in family.samples
            if sample.name.removeprefix("gateway_").removesuffix("_total") in LOOKED_AT
        }


def series(name: str, **labels: str) -> Series:
    return (name, *sorted(f"{label}={value}" for label, value in labels.items()))


def called(status: int, *, model: str = "llama3.1:8b", stream: bool = False, operation: str = "chat") -> Series:
    """Requests that ended with this status."""
    labels = {"operation": operation, "route": "by-model", "model": model, "code": str(status)}
    return series("requests", **labels, stream=str(stream).lower())


def failed(reason: str) -> Series:
    return series("request_errors", route="by-model", reason=reason)


def turned_away(reason: str) -> Series:
    return series("rejections", route="by-model", reason=reason)


def attempted(status: int | str, instance: str = "alpha") -> Series:
    return series("upstream_requests", instance=instance, model="llama3.1:8b", code=str(status))


def one(behaviour: Behaviour | None = None, limit: int = 1, **config: object) -> House:
    """A house with one instance, alpha, which has its model in memory."""
    return House({"alpha": behaviour or Behaviour(parallel=8)}, config, {"alpha": {"max_concurrent": limit}}, warm=True)
