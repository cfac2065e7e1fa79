"""Counts of our own say what prometheus-client's would say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, generate_latest

from gateway.meters import Count, Counters, Gauges, Histograms, Spread, text

BOUNDS = (0.01, 0.5, 1.0, 20.0)


def told(*families: Counters | Gauges | Histograms) -> bytes:
    registry = CollectorRegistry()
    for family in families:
        registry.register(family)
    written = text(registry.collect())
    assert written == generate_latest(registry)
    return written


@given(values=st.lists(st.sampled_from(BOUNDS) | st.floats(0, 100)))
def test_a_histogram_reads_as_theirs_does(values: list[float]) -> None:
    theirs = CollectorRegistry()
    histogram = Histogram("seconds", "Words.", ["instance", "model"], buckets=BOUNDS, registry=theirs)
    ours = Histograms("seconds", "Words.", ("instance", "model"), lambda: Spread(BOUNDS), lambda: None)
    histogram.labels("i", "m")
    ours("i", "m")
    for value in values:
        histogram.labels("i", "m").observe(value)
        ours("i", "m").observe(value)
    without = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert told(ours).splitlines() == without


@given(amounts=st.lists(st.integers(0, 2**40)))
def test_a_counter_reads_as_theirs_does(amounts: list[int]) -> None:
    theirs = CollectorRegistry()
    counter = Counter("calls_total", "Words.", ["model"], registry=theirs)
    ours = Counters("calls_total", "Words.", ("model",), Count, lambda: None)
    for amount in amounts:
        counter.labels('m"\\').inc(amount)
        ours('m"\\').inc(amount)
    without = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert told(ours).splitlines() == without


def test_a_gauge_comes_down_again() -> None:
    gauges = Gauges("in_flight", "Words.", (), Count, lambda: None)
    gauges().inc()
    gauges().inc()
    gauges().dec()
    assert b"in_flight 1.0" in told(gauges)


def test_numbers_and_metrics_of_all_kinds_are_written_as_theirs_are() -> None:
    registry = CollectorRegistry()
    PlatformCollector(registry=registry)
    Histogram("seconds", "Words\nin two lines, with a \\.", buckets=BOUNDS, registry=registry).observe(0.3)
    gauge = Gauge("sizes", "Words.", ["of", "in"], registry=registry)
    for number in (0, -1.5, 1e-7, 999_999, 1_000_000, 1234567.5, 2**53, float("inf"), float("-inf"), float("nan")):
        gauge.labels(f'{number}"\n\\', "x").set(number)
    with_created = text(registry.collect()).splitlines()
    assert [line for line in with_created if b"_created" not in line] == [
        line for line in generate_latest(registry).splitlines() if b"_created" not in line
    ]


def test_labels_that_a_family_does_not_have_are_a_mistake_of_ours() -> None:
    counters = Counters("calls_total", "Words.", ("model",), Count, lambda: None)
    with pytest.raises(ValueError, match="has the labels"):
        counters("m", "n")
