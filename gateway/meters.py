"""Counts kept as plain numbers and handed to prometheus-client at a scrape.

Its own children take a lock and look through their buckets one by one, some thirty times for each call; these are
counted on the event loop alone, and read from any thread. A family has a cap on its label sets: what is beyond lands in
one child labelled `other`.

Their text is written here, too, just as prometheus-client would write it: it makes an object and a dict of each line,
which for two hundred models is ten times the work.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from gateway.offload import give_way

MAX_CHILDREN = 2000
_SAME = 1e6  # below it Python and Go write a number alike


class Count:
    """A number that goes up, or one that also comes down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount

    def dec(self) -> None:
        self.value -= 1


class Spread:
    """How many values fell under each of `bounds`, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


Child = TypeVar("Child")
Children = list[tuple[tuple[str, ...], Child]]


class Family(Collector, Generic[Child]):
    """One metric and its children, each made the first time it is asked for. `overflown` is told of those beyond."""

    def __init__(
        self, name: str, words: str, labels: tuple[str, ...], make: Callable[[], Child], overflown: Callable[[], None]
    ) -> None:
        self.name = name
        self.words = words
        self._labels = labels
        self._make = make
        self._overflown = overflown
        self._children: dict[tuple[str, ...], Child] = {}

    def __call__(self, *labels: str) -> Child:
        child = self._children.get(labels)
        return child if child is not None else self._another(labels)

    def _another(self, labels: tuple[str, ...]) -> Child:
        if len(labels) != len(self._labels):
            raise ValueError(f"{self.name} has the labels {self._labels}")
        if len(self._children) >= MAX_CHILDREN:
            self._overflown()
            labels = ("other",) * len(labels)
        return self._children.setdefault(labels, self._make())

    def describe(self) -> Iterable[Metric]:
        return [Metric(self.name.removesuffix("_total"), self.words, self.kind)]

    def collect(self) -> Iterator[Metric]:
        yield Unread(self)

    kind = ""

    @abstractmethod
    def told(self) -> Metric:
        """All of it in prometheus-client's words."""

    @abstractmethod
    def lines(self) -> Iterator[str]:
        """All of it in lines, those of a child at a time."""

    def _all(self) -> Children[Child]:
        return list(self._children.items())

    def _named(self, labels: tuple[str, ...], keep: Callable[[str], bool] = bool) -> str:
        """Of a child's labels those to `keep`, in the order that prometheus-client has."""
        pairs = sorted(zip(self._labels, labels, strict=True))
        return ",".join([f'{name}="{_escaped(value)}"' for name, value in pairs if keep(name)])


class Unread(Metric):
    """A family as prometheus-client asks for it. Its samples are made where somebody wants them; `text` does not."""

    def __init__(self, family: Family[Any]) -> None:
        self._family = family
        self.name, self.documentation, self.type = family.name.removesuffix("_total"), family.words, family.kind
        self.unit = ""

    @property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        return self._family.told().samples

    def lines(self) -> Iterator[str]:
        return self._family.lines()


class Counters(Family[Count]):
    kind = "counter"

    def told(self) -> Metric:
        metric = CounterMetricFamily(self.name, self.words, labels=self._labels)
        for labels, child in self._all():
            metric.add_metric(labels, child.value)
        return metric

    def lines(self) -> Iterator[str]:
        for labels, child in self._all():
            yield f"{self.name}{_braced(self._named(labels))} {_number(child.value)}\n"


class Gauges(Counters):
    kind = "gauge"

    def told(self) -> Metric:
        metric = GaugeMetricFamily(self.name, self.words, labels=self._labels)
        for labels, child in self._all():
            metric.add_metric(labels, child.value)
        return metric


class Histograms(Family[Spread]):
    kind = "histogram"

    def told(self) -> Metric:
        metric = HistogramMetricFamily(self.name, self.words, labels=self._labels)
        for labels, child in self._all():
            buckets = zip(_bounds(child.bounds), map(float, _sums(child)), strict=True)
            metric.add_metric(labels, list(buckets), child.sum)
        return metric

    def lines(self) -> Iterator[str]:
        for labels, child in self._all():
            before, after = self._named(labels, "le".__gt__), self._named(labels, "le".__lt__)
            begin = f"{self.name}_bucket{{{before}{',' if before else ''}le="
            end = f"{',' if after else ''}{after}}}"
            sums = _sums(child)
            buckets = zip(_bounds(child.bounds), sums, strict=True)
            yield "".join([f'{begin}"{bound}"{end} {_number(count)}\n' for bound, count in buckets])
            braced = _braced(self._named(labels))
            yield f"{self.name}_count{braced} {_number(sums[-1])}\n{self.name}_sum{braced} {_number(child.sum)}\n"


def text(metrics: Iterable[Metric]) -> bytes:
    """What a scraper reads of counters, gauges and histograms. Work for a thread: it gives way to others often."""
    pieces: list[str] = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        words = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
        pieces.append(f"# HELP {name} {words}\n# TYPE {name} {metric.type}\n")
        for lines in metric.lines() if isinstance(metric, Unread) else map(_line, metric.samples):
            give_way()
            pieces.append(lines)
    return "".join(pieces).encode()


def _line(sample: Sample) -> str:
    labels = ",".join([f'{name}="{_escaped(value)}"' for name, value in sorted(sample.labels.items())])
    return f"{sample.name}{_braced(labels)} {_number(sample.value)}\n"


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _sums(child: Spread) -> list[int]:
    """How many values were at most each of its bounds."""
    return list(accumulate(tuple(child.counts)))


@lru_cache(maxsize=64)
def _bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(floatToGoString(bound) for bound in (*bounds, float("inf")))  # type: ignore[no-untyped-call]


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


def _number(value: float) -> str:
    """As Go writes it; a small one is written so by Python, too."""
    return repr(float(value)) if 0 <= value < _SAME else str(floatToGoString(value))  # type: ignore[no-untyped-call]
