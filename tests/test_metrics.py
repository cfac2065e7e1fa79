"""What is published: names, the cap on label sets, what one record counts, and a scrape that holds no call up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway import meters
from gateway.call import Record, Usage
from gateway.metrics import STATES, InstanceReading, Metrics, Reading

LIMIT = 10.0  # seconds; guards against a hang


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def changes(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Every counter of the gateway's own that is not 0, by name and label values, and how often each histogram saw."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if family.name.startswith("gateway_") and sample.name.endswith(("_total", "_count")) and sample.value:
                found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def samples(metrics: Metrics) -> list[Any]:
    """All that is counted of requests, series that are still 0 included."""
    families = [one for one in vars(metrics).values() if isinstance(one, meters.Family)]
    return [list(family.lines()) for family in families]


def instance(name: str, **facts: Any) -> InstanceReading:
    usual: dict[str, Any] = {
        "state": "healthy",
        "up": True,
        "in_flight": 0,
        "draining": 0,
        "limit": 4,
        "connections": 0,
    }
    return InstanceReading(name=name, **(usual | facts))


def record(**facts: Any) -> Record:
    usual: dict[str, Any] = {"request_id": "r", "arrived": 0.0, "operation": "chat", "route": "by-model", "status": 200}
    return Record(**(usual | facts))


def parsed(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


async def scraped(metrics: Metrics, now: float = 0.0) -> dict[str, Metric]:
    return parsed(await metrics.exposition(now))


# Label sets


def test_a_child_is_bound_once(metrics: Metrics) -> None:
    child = metrics.attempts("alpha", "m", "200")
    assert metrics.attempts("alpha", "m", "200") is child
    assert metrics.attempts("alpha", "m", "error") is not child


def test_label_sets_beyond_the_cap_are_counted_as_other(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "MAX_CHILDREN", 3)
    for count in range(10):
        metrics.requests("chat", "r", f"model-{count}", "200", "false").inc()
    counted = changes(metrics)
    models = {labels[2]: count for labels, count in counted["gateway_requests_total"].items()}
    assert models == {"model-0": 1, "model-1": 1, "model-2": 1, "other": 7}
    assert counted["gateway_metric_overflow_total"] == {(): 7}


def test_beyond_the_cap_those_that_were_there_are_still_counted_apart(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "MAX_CHILDREN", 1)
    for name in ("first", "second", "first"):
        metrics.evictions(name).inc()
    assert value(metrics, "gateway_cache_evictions_total", reason="first") == 2
    assert value(metrics, "gateway_cache_evictions_total", reason="other") == 1


def test_no_client_grows_a_family_beyond_its_cap(metrics: Metrics) -> None:
    for count in range(meters.MAX_CHILDREN + 500):
        metrics.tokens("r", f"model-{count}", "input").inc()
    assert len(changes(metrics)["gateway_tokens_total"]) == meters.MAX_CHILDREN + 1


def test_each_family_has_a_cap_of_its_own(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "MAX_CHILDREN", 1)
    metrics.evictions("ttl").inc()
    metrics.probes("alpha", "ok").inc()
    assert value(metrics, "gateway_metric_overflow_total") == 0


def test_what_goes_up_beyond_the_cap_comes_down_again(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "MAX_CHILDREN", 0)
    metrics.in_flight("chat").inc()
    metrics.in_flight("chat").dec()
    assert value(metrics, "gateway_requests_in_flight", operation="other") == 0


# Names


async def test_every_series_of_ours_has_the_prefix_and_words_of_help(metrics: Metrics) -> None:
    metrics.read = lambda: Reading(instances=(instance("alpha", loaded=(("m", 1),)),))
    theirs = ("process_", "python_")
    families = await scraped(metrics)
    assert len(families) > 40
    for family in families.values():
        assert family.name.startswith(("gateway_", *theirs))
        assert family.documentation.strip(), family.name


def test_every_family_declared_is_published(metrics: Metrics) -> None:
    families = [family for family in vars(metrics).values() if isinstance(family, meters.Family)]
    declared = {family.name.removesuffix("_total") for family in families}
    assert declared <= {family.name for family in metrics.registry.collect()}
    assert all(name.startswith("gateway_") for name in declared)


async def test_no_series_tells_when_it_was_created(metrics: Metrics) -> None:
    metrics.finished(record(attempts=1, first_token=0.1), 0.2)
    assert b"_created" not in await metrics.exposition(0.0)


async def test_the_version_is_told(metrics: Metrics) -> None:
    await metrics.exposition(0.0)
    assert value(metrics, "gateway_build_info", version="1.2.3") == 1


# What one request counts


def test_a_success_is_counted_once_in_each_family(metrics: Metrics) -> None:
    done = record(
        model="m", instance="alpha", stream=True, attempts=1, waited=0.25, upstream=0.5, first_token=0.5,
        tokens_span=2.0, usage=Usage(7, 5), cache="bypass",
    )  # fmt: skip
    metrics.finished(done, 1.0)
    assert changes(metrics) == {
        "gateway_requests_total": {("chat", "by-model", "m", "200", "true"): 1},
        "gateway_request_duration_seconds_count": {("chat", "by-model", "m"): 1},
        "gateway_line_wait_seconds_count": {("by-model", "granted"): 1},
        "gateway_time_to_first_token_seconds_count": {("by-model", "m"): 1},
        "gateway_overhead_seconds_count": {("chat",): 1},
        "gateway_cache_requests_total": {("by-model", "bypass"): 1},
        "gateway_tokens_total": {("by-model", "m", "input"): 7, ("by-model", "m", "output"): 5},
        "gateway_upstream_time_per_output_token_seconds_count": {("alpha", "m"): 1},
    }
    assert value(metrics, "gateway_overhead_seconds_sum", operation="chat") == 0.25
    assert value(metrics, "gateway_line_wait_seconds_sum", route="by-model", result="granted") == 0.25
    # 5 tokens have 4 gaps between them.
    assert value(metrics, "gateway_upstream_time_per_output_token_seconds_sum", instance="alpha", model="m") == 0.5


def test_a_call_that_was_turned_away_had_no_attempt_and_is_a_rejection(metrics: Metrics) -> None:
    metrics.finished(record(status=429, reason="line_full"), 0.001)
    assert changes(metrics) == {
        "gateway_requests_total": {("chat", "by-model", "none", "429", "false"): 1},
        "gateway_request_duration_seconds_count": {("chat", "by-model", "none"): 1},
        "gateway_request_errors_total": {("by-model", "line_full"): 1},
        "gateway_rejections_total": {("by-model", "line_full"): 1},
    }


def test_a_call_that_waited_in_vain_tells_how_long(metrics: Metrics) -> None:
    metrics.finished(record(status=429, reason="line_timeout", waited=120.0), 120.0)
    assert value(metrics, "gateway_line_wait_seconds_sum", route="by-model", result="refused") == 120.0
    assert value(metrics, "gateway_rejections_total", route="by-model", reason="line_timeout") == 1


def test_an_attempt_that_failed_is_an_error_and_no_rejection(metrics: Metrics) -> None:
    metrics.finished(record(status=502, reason="connect", attempts=3), 0.1)
    assert "gateway_rejections_total" not in changes(metrics)
    assert value(metrics, "gateway_request_errors_total", route="by-model", reason="connect") == 1


def test_a_client_that_left_the_line_was_not_turned_away(metrics: Metrics) -> None:
    metrics.finished(record(status=499, reason="client_cancelled", waited=3.0), 3.0)
    assert "gateway_rejections_total" not in changes(metrics)
    assert value(metrics, "gateway_request_errors_total", route="by-model", reason="client_cancelled") == 1


def test_a_stream_broken_after_its_first_byte_is_an_interruption_with_status_200(metrics: Metrics) -> None:
    broken = record(model="m", stream=True, attempts=1, first_token=0.1, reason="stream_broken", interrupted=True)
    metrics.finished(broken, 0.2)
    counted = changes(metrics)
    assert counted["gateway_stream_interruptions_total"] == {("by-model", "stream_broken"): 1}
    assert counted["gateway_requests_total"] == {("chat", "by-model", "m", "200", "true"): 1}
    assert "gateway_rejections_total" not in counted


def test_an_answer_from_the_cache_has_no_wait_no_first_token_and_no_tokens(metrics: Metrics) -> None:
    metrics.finished(record(cache="hit"), 0.0005)
    assert changes(metrics) == {
        "gateway_requests_total": {("chat", "by-model", "none", "200", "false"): 1},
        "gateway_request_duration_seconds_count": {("chat", "by-model", "none"): 1},
        "gateway_cache_requests_total": {("by-model", "hit"): 1},
    }


@pytest.mark.parametrize(
    "facts",
    [
        {"stream": False, "usage": Usage(1, 5), "tokens_span": 1.0},
        {"stream": True, "usage": Usage(1, 1), "tokens_span": 1.0},
        {"stream": True, "usage": Usage(1, 0), "tokens_span": 1.0},
        {"stream": True, "usage": Usage(1, 5), "tokens_span": 0.0},
        {"stream": True, "usage": None, "tokens_span": 1.0},
    ],
)
def test_time_per_token_is_told_only_where_there_is_a_gap_to_measure(metrics: Metrics, facts: dict[str, Any]) -> None:
    metrics.finished(record(attempts=1, instance="alpha", model="m", first_token=0.1, **facts), 1.0)
    assert "gateway_upstream_time_per_output_token_seconds_count" not in changes(metrics)


def test_our_own_time_is_never_negative(metrics: Metrics) -> None:
    metrics.finished(record(attempts=1, first_token=0.1, waited=1.0, upstream=1.0), 1.5)
    assert value(metrics, "gateway_overhead_seconds_sum", operation="chat") == 0.0


def test_requests_of_one_kind_are_counted_on_what_was_bound_for_the_first_of_them(metrics: Metrics) -> None:
    for reason, usage in (("", Usage(7, 5)), ("stream_broken", None), ("", Usage(2, 2)), ("", None)):
        done = record(model="m", stream=True, attempts=1, first_token=0.5, tokens_span=2.0, usage=usage, reason=reason)
        metrics.finished(done, 1.0)
    counted = changes(metrics)
    assert counted["gateway_requests_total"] == {("chat", "by-model", "m", "200", "true"): 4}
    assert counted["gateway_request_errors_total"] == {("by-model", "stream_broken"): 1}
    assert counted["gateway_tokens_total"] == {("by-model", "m", "input"): 9, ("by-model", "m", "output"): 7}
    assert counted["gateway_upstream_time_per_output_token_seconds_count"] == {("", "m"): 2}


FACTS: dict[str, list[Any]] = {
    "operation": ["chat", "embed"],
    "route": ["by-model", ""],
    "model": ["", "m"],
    "instance": ["alpha", "beta"],
    "status": [200, 429],
    "stream": [False, True],
    "reason": ["", "line_full", "client_cancelled"],
    "cache": ["", "hit"],
    "interrupted": [False, True],
    "attempts": [0, 1, 2],
    "waited": [0.0, 0.5],
    "first_token": [None, 0.0, 0.25],
    "tokens_span": [0.0, 2.0],
    "usage": [None, Usage(0, 0), Usage(3, 1), Usage(3, 5)],
}
ONE_FACT = st.sampled_from([{name: value} for name, values in FACTS.items() for value in values])


@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in FACTS.items()}), st.lists(ONE_FACT))
def test_what_was_bound_for_one_request_counts_the_next_as_if_it_were_bound_for_that(
    usual: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    requests = [usual, *(usual | other for other in others)]
    remembers, forgets = Metrics("1"), Metrics("1")
    for facts in requests:
        forgets._counted.clear()
        for one in (remembers, forgets):
            one.finished(record(**facts), 1.0)
    assert samples(remembers) == samples(forgets)


def test_each_request_beyond_a_cap_is_told_of(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "MAX_CHILDREN", 1)
    for model in ("first", "second", "second", "first"):
        metrics.finished(record(model=model), 1.0)
    counted = changes(metrics)
    assert {labels[2]: count for labels, count in counted["gateway_requests_total"].items()} == {"first": 2, "other": 2}
    assert counted["gateway_metric_overflow_total"] == {(): 4}  # two families, two requests


def test_what_is_remembered_of_kinds_of_requests_has_a_bound(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.metrics.KINDS", 2)
    for model in ("a", "b", "c", "a", "b", "c"):
        metrics.finished(record(model=model), 1.0)
        assert len(metrics._counted) <= 2
    assert set(changes(metrics)["gateway_requests_total"].values()) == {2}


# The scrape


async def test_gauges_are_read_at_the_scrape_and_leave_with_their_instance(metrics: Metrics) -> None:
    readings = [
        Reading(instances=(instance("alpha", in_flight=3, loaded=(("m", 5),)), instance("beta")), line_depth=7),
        Reading(instances=(instance("beta"),)),
    ]
    metrics.read = lambda: readings.pop(0)
    first = await scraped(metrics, 0.0)
    assert {s.labels["instance"]: s.value for s in first["gateway_upstream_in_flight"].samples} == {
        "alpha": 3,
        "beta": 0,
    }
    assert [s.value for s in first["gateway_line_depth"].samples] == [7]
    assert [(s.labels["model"], s.value) for s in first["gateway_upstream_model_vram_bytes"].samples] == [("m", 5)]
    text = await metrics.exposition(5.0)
    assert b'instance="alpha"' not in text
    assert b'instance="beta"' in text


async def test_an_instance_is_in_exactly_one_state(metrics: Metrics) -> None:
    for at, state in enumerate(STATES):
        metrics.read = lambda state=state: Reading(instances=(instance("alpha", state=state),))  # type: ignore[misc]
        samples = (await scraped(metrics, at * 10.0))["gateway_upstream_state"].samples
        assert {s.labels["state"] for s in samples if s.value} == {state}
        assert len(samples) == len(STATES)


async def test_a_scrape_is_rendered_at_most_once_a_second(metrics: Metrics) -> None:
    reads: list[float] = []

    def read() -> Reading:
        reads.append(1.0)
        return Reading(line_depth=len(reads))

    metrics.read = read
    texts = [await metrics.exposition(at) for at in (100.0, 100.5, 100.999, 101.0)]
    assert texts[0] is texts[1] is texts[2]
    assert len(reads) == 2
    assert b"gateway_line_depth 2.0" in texts[3]


async def test_the_first_scrape_is_rendered_however_early_it_comes(metrics: Metrics) -> None:
    assert b"gateway_build_info" in await metrics.exposition(0.0)


async def test_scrapes_at_the_same_time_share_one_rendering(metrics: Metrics) -> None:
    reads: list[int] = []
    metrics.read = lambda: (reads.append(1), Reading())[1]  # type: ignore[func-returns-value]
    texts = await asyncio.gather(*(metrics.exposition(0.0) for _ in range(20)))
    assert len(reads) == 1
    assert len(set(texts)) == 1


class Held(Collector):
    """A collector that keeps the rendering going until it is let go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def collect(self) -> Iterator[Metric]:
        self.thread = threading.current_thread()
        self.entered.set()
        assert self.go.wait(LIMIT)
        yield from ()


@contextmanager
def held(metrics: Metrics) -> Iterator[Held]:
    collector = Held()
    metrics.registry.register(collector)
    try:
        yield collector
    finally:
        collector.go.set()


@asynccontextmanager
async def rendering(metrics: Metrics) -> AsyncIterator[tuple[Held, asyncio.Task[bytes]]]:
    with held(metrics) as collector:
        scrape = asyncio.create_task(metrics.exposition(0.0), name="scrape")
        async with asyncio.timeout(LIMIT):
            while not collector.entered.is_set():
                await asyncio.sleep(0)
        yield collector, scrape


async def test_while_a_scrape_is_rendered_the_loop_goes_on_and_calls_are_counted(metrics: Metrics) -> None:
    async with rendering(metrics) as (collector, scrape):
        assert collector.thread is not threading.main_thread()
        metrics.finished(record(), 0.1)
        await asyncio.sleep(0)
        assert not scrape.done()
        collector.go.set()
        async with asyncio.timeout(LIMIT):
            assert b"gateway_" in await scrape


async def test_a_scraper_that_leaves_does_not_stop_the_next(metrics: Metrics) -> None:
    async with rendering(metrics) as (collector, scrape):
        scrape.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scrape
        collector.go.set()
        async with asyncio.timeout(LIMIT):
            assert b"gateway_build_info" in await metrics.exposition(0.0)
