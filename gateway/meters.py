"""Counts kept as plain numbers and handed to prometheus-client at a scrape.

Its own children take a lock and look through their buckets one by one, some thirty times for each call; these are
counted on the event loop alone, and read from any thread. A family has a cap on its label sets: what is beyond lands in
one child labelled `other`.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

MAX_CHILDREN = 2000


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


class Family(Collector, Generic[Child]):
    """One metric and its children, each made the first time it is asked for. `overflown` is told of those beyond."""

    def __init__(
        self, name: str, words: str, labels: tuple[str, ...], make: Callable[[], Child], overflown: Callable[[], None]
    ) -> None:
        self.name = name
        self._words = words
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
        return [Metric(self.name.removesuffix("_total"), self._words, self._kind)]

    def collect(self) -> Iterator[Metric]:
        yield self._told(list(self._children.items()))

    _kind = ""

    @abstractmethod
    def _told(self, children: list[tuple[tuple[str, ...], Child]]) -> Metric:
        """All of it in prometheus-client's words."""


class Counters(Family[Count]):
    _kind = "counter"

    def _told(self, children: list[tuple[tuple[str, ...], Count]]) -> Metric:
        metric = CounterMetricFamily(self.name, self._words, labels=self._labels)
        for labels, child in children:
            metric.add_metric(labels, child.value)
        return metric


class Gauges(Family[Count]):
    _kind = "gauge"

    def _told(self, children: list[tuple[tuple[str, ...], Count]]) -> Metric:
        metric = GaugeMetricFamily(self.name, self._words, labels=self._labels)
        for labels, child in children:
            metric.add_metric(labels, child.value)
        return metric


class Histograms(Family[Spread]):
    _kind = "histogram"

    def _told(self, children: list[tuple[tuple[str, ...], Spread]]) -> Metric:
        metric = HistogramMetricFamily(self.name, self._words, labels=self._labels)
        for labels, child in children:
            buckets, seen = [], 0
            for bound, count in zip((*child.bounds, float("inf")), tuple(child.counts), strict=True):
                seen += count
                buckets.append((floatToGoString(bound), float(seen)))  # type: ignore[no-untyped-call]
            metric.add_metric(labels, buckets, child.sum)
        return metric
