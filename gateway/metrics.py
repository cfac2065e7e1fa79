"""Every series the gateway publishes, declared in one place; names and buckets follow ecosystem conventions.

What happens is counted where it happens, on children bound once. What *is* (in flight, limits, the line) is read at
the scrape, so it costs a call nothing and leaves with its instance. Label values come from closed sets; each family
has a cap on its label sets (`gateway.meters`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gateway.call import Record
from gateway.meters import Count, Counters, Gauges, Histograms, Spread, text
from gateway.offload import beside, give_way

TURNED_AWAY = frozenset({"line_full", "line_timeout", "deadline", "no_instance", "draining", "body_too_large", "auth"})
FRESH = 1.0  # seconds for which a rendered text is told again
KINDS = 4096  # of requests, whose counts are bound once
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

DURATIONS = tuple(0.01 * 2**n for n in range(17))
FIRST_TOKEN = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 300)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
WAITS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OVERHEADS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)

Plain = TypeVar("Plain", bound=MetricWrapperBase)
Registered = TypeVar("Registered", bound=Collector)


class BreakerReading(NamedTuple):
    """A breaker that is not closed, of one model there or, where that is "", of the whole instance."""

    model: str
    state: str
    why: str
    seconds: float  # until a call may try it


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceReading:
    """One instance at the moment of a scrape."""

    name: str
    state: str
    up: bool
    in_flight: int
    draining: int
    limit: int
    connections: int
    allowed: int = 0  # calls it may have now
    breakers: tuple[BreakerReading, ...] = ()
    version: str = ""
    loaded: tuple[tuple[str, int], ...] = ()  # (model, bytes in VRAM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The gateway at the moment of a scrape."""

    instances: tuple[InstanceReading, ...] = ()
    line_depth: int = 0
    line_bytes: int = 0
    line_oldest: float = 0.0
    line_callers: int = 0
    line_work: float = 0.0  # seconds of service that wait
    line_wait: float = 0.0  # seconds, the longest that the first call for any model may still wait
    line_models: tuple[tuple[str, int], ...] = ()  # (model, calls that wait for it)
    cache_entries: int = 0
    cache_bytes: int = 0
    digest_conflicts: int = 0  # names that are another model on another instance
    draining: bool = False
    config: str = ""
    reload_ok: bool = True
    reloaded_at: float = 0.0  # unix time, seconds
    log_lines_lost: int = 0

    @property
    def unready(self) -> str:
        """Why no calls should be sent here, in words; "" where they may."""
        if self.draining:
            return "shutting down"
        return "" if any(one.up for one in self.instances) else "no instance takes calls"


STATES = ("healthy", "unknown", "down", "open", "half_open", "saturated", "slow_start", "drained")


class _AtScrape(Collector):
    """Gauges that are read, not kept."""

    def __init__(self) -> None:
        self.reading = Reading()

    def describe(self) -> Iterable[Metric]:
        return []  # asked before there is anything to read

    def collect(self) -> Iterator[Metric]:
        reading = self.reading
        yield _gauge("gateway_line_depth", "Calls waiting in line now.", reading.line_depth)
        yield _gauge("gateway_line_bytes", "Bodies held by waiting calls.", reading.line_bytes)
        yield _gauge("gateway_line_oldest_seconds", "How long the head of the line has waited.", reading.line_oldest)
        yield _gauge("gateway_line_callers", "Callers that have calls running or waiting.", reading.line_callers)
        yield _gauge(
            "gateway_line_work_seconds", "Time one slot would take to serve all that wait: what scaling has to meet.",
            reading.line_work,
        )  # fmt: skip
        yield _gauge(
            "gateway_line_expected_wait_seconds", "The longest that the next call for any model may still wait.",
            reading.line_wait,
        )  # fmt: skip
        waiting = GaugeMetricFamily("gateway_line_waiting", "Calls that wait, by model.", labels=["model"])
        for model, calls in reading.line_models:
            waiting.add_metric([model], calls)
        yield waiting
        yield _gauge("gateway_cache_entries", "Answers kept.", reading.cache_entries)
        yield _gauge("gateway_cache_bytes", "Size of the answers kept.", reading.cache_bytes)
        yield _gauge(
            "gateway_model_digest_conflicts",
            "Model names that have another digest on another instance.",
            reading.digest_conflicts,
        )
        yield _gauge("gateway_draining", "1 while the gateway is shutting down.", float(reading.draining))
        yield _gauge(
            "gateway_config_last_reload_successful", "1 if the last reload was taken.", float(reading.reload_ok)
        )
        yield _gauge(
            "gateway_config_last_reload_success_timestamp_seconds", "When it was last taken.", reading.reloaded_at
        )
        lost = CounterMetricFamily("gateway_log_lines_lost", "Lines of the log that could not be written.")
        lost.add_metric([], reading.log_lines_lost)
        yield lost
        config = GaugeMetricFamily("gateway_config_info", "The configuration in force.", labels=["hash"])
        config.add_metric([reading.config], 1)
        yield config
        yield from self._instances(reading.instances)

    def _instances(self, instances: Iterable[InstanceReading]) -> Iterator[Metric]:
        def family(name: str, words: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"gateway_upstream_{name}", words, labels=["instance", *labels])

        up = family("up", "1 if the instance may be given calls.")
        state = family("state", "1 for the state the instance is in.", "state")
        in_flight = family("in_flight", "Calls it is working on.")
        draining = family("draining", "Calls it may still be working on though their client left.")
        limit = family("limit", "Calls it may have at once.")
        allowed = family("allowed", "Calls it may have now: fewer while it is saturated or in its slow start.")
        cooling = family("model_cooling", "1 for each model that is not asked of it, as it failed there.", "model")
        connections = family("connections", "Open connections to it, idle ones included.")
        loaded = family("model_loaded", "1 for each model it has in memory.", "model")
        vram = family("model_vram_bytes", "Memory the model takes on its GPU.", "model")
        info = family("info", "Its Ollama version.", "version")
        for one in instances:
            give_way()
            for metric, value in (
                (up, float(one.up)),
                (in_flight, one.in_flight),
                (draining, one.draining),
                (limit, one.limit),
                (allowed, one.allowed),
                (connections, one.connections),
            ):
                metric.add_metric([one.name], value)
            for name in STATES:
                state.add_metric([one.name, name], float(name == one.state))
            info.add_metric([one.name, one.version], 1)
            for breaker in one.breakers:
                if breaker.model:
                    cooling.add_metric([one.name, breaker.model], 1)
            for model, size in one.loaded:
                loaded.add_metric([one.name, model], 1)
                vram.add_metric([one.name, model], size)
        yield from (up, state, in_flight, draining, limit, allowed, cooling, connections, loaded, vram, info)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    metric = GaugeMetricFamily(name, words)
    metric.add_metric([], value)
    return metric


class Scrapes:
    """The text for those who scrape at one door. At most once a second anew, one at a time, and in a thread: even so it
    takes the interpreter's lock from the event loop.
    """

    def __init__(self, render: Callable[[Reading], bytes]) -> None:
        self._render = render
        self._turn = asyncio.Lock()
        self._text, self._text_at = b"", -10.0

    async def text(self, now: float, look: Callable[[], Awaitable[Reading]]) -> bytes:
        """`now` in seconds; `look` is asked where it is rendered anew."""
        async with self._turn:
            if now - self._text_at >= FRESH:
                self._text = await beside(self._render, await look())
                self._text_at = now
        return self._text


class _Counted(NamedTuple):
    """What one kind of request is counted on: `ones` goes up by one, and what is None has nothing to count."""

    ones: list[Count]
    duration: Spread
    wait: Spread | None
    first: tuple[Spread, Spread] | None  # time to first token, and our own
    tokens: tuple[Count, Count] | None  # read, written
    per_token: Spread | None


class Metrics:
    """The registry and every family in it."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._at_scrape = _AtScrape()
        self._scrapes = Scrapes(self.render)
        self._rendering = threading.Lock()  # the side door renders in a thread, too
        self.read: Callable[[], Reading] = Reading
        self.registry.register(self._at_scrape)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.overflow = self._plain(
            Counter, "gateway_metric_overflow_total", "Label sets beyond the cap, counted as other."
        )
        self._beyond = 0  # as `overflow`
        self._counted: dict[tuple[object, ...], _Counted] = {}  # by kind of request
        self._client_side()
        self._upstream_side()
        self.loop_lag = self._plain(
            Histogram, "gateway_event_loop_lag_seconds", "How late the event loop runs a timer.", OVERHEADS
        )
        self.stall = self._plain(
            Gauge, "gateway_event_loop_stall_seconds", "For how long the event loop has not turned, beyond its beat."
        )
        self.connections = self._plain(
            Gauge, "gateway_client_connections", "Clients' open connections, idle ones included."
        )
        self.tasks = self._plain(Gauge, "gateway_asyncio_tasks", "asyncio tasks that are not done.")
        build = Gauge("gateway_build_info", "The gateway's version.", ["version"], registry=self.registry)
        build.labels(version).set(1)

    def _client_side(self) -> None:
        counter, histogram = self._counter, self._histogram
        self.requests = counter(
            "gateway_requests_total",
            "Finished client requests; code is what the client saw, 499 if it left.",
            "operation", "route", "model", "code", "stream",
        )  # fmt: skip
        self.duration = histogram(
            "gateway_request_duration_seconds", "Arrival to last byte.", DURATIONS, "operation", "route", "model"
        )
        self.in_flight = self._gauge_family(
            "gateway_requests_in_flight", "Accepted and not finished, those in line included.", "operation"
        )
        self.errors = counter("gateway_request_errors_total", "Requests that failed, by cause.", "route", "reason")
        self.refusals = counter(
            "gateway_http_refusals_total", "Connections and requests turned away before they were a request.", "reason"
        )
        self.rejections = counter(
            "gateway_rejections_total", "Requests turned away without an attempt.", "route", "reason"
        )
        self.overhead = histogram(
            "gateway_overhead_seconds", "Our own time: duration less line and upstream.", OVERHEADS, "operation"
        )
        self.first_token = histogram(
            "gateway_time_to_first_token_seconds", "Arrival to first content, the line included.", FIRST_TOKEN,
            "route", "model",
        )  # fmt: skip
        self.line_wait = histogram("gateway_line_wait_seconds", "Time in line.", WAITS, "route", "result")
        self.interruptions = counter(
            "gateway_stream_interruptions_total", "Streams broken after their first byte.", "route", "reason"
        )
        self.tokens = counter("gateway_tokens_total", "Tokens as the instances count them.", "route", "model", "type")
        self.cache = counter("gateway_cache_requests_total", "Calls by what the cache did.", "route", "result")
        self.evictions = counter("gateway_cache_evictions_total", "Answers dropped from the cache.", "reason")

    def _upstream_side(self) -> None:
        counter, histogram = self._counter, self._histogram
        self.attempts = counter(
            "gateway_upstream_requests_total", "Attempts, tried-again ones included.", "instance", "model", "code"
        )
        self.upstream_duration = histogram(
            "gateway_upstream_request_duration_seconds", "Sending to end.", DURATIONS, "instance", "model"
        )
        self.upstream_first_token = histogram(
            "gateway_upstream_first_token_seconds", "Sending to first content.", FIRST_TOKEN, "instance", "model"
        )
        self.loads = counter(
            "gateway_upstream_model_loads_total", "Calls whose model had to be loaded first.", "instance", "model"
        )
        self.per_token = histogram(
            "gateway_upstream_time_per_output_token_seconds", "Per token after the first, where counts are reported.",
            PER_TOKEN, "instance", "model",
        )  # fmt: skip
        self.upstream_errors = counter(
            "gateway_upstream_errors_total", "Attempts that failed, by cause.", "instance", "reason"
        )
        self.retries = counter(
            "gateway_upstream_retries_total", "Attempts after the first.", "route", "reason", "result"
        )
        self.breaker = counter("gateway_upstream_breaker_transitions_total", "Breaker changes.", "instance", "to")
        self.model_breaker = counter(
            "gateway_upstream_model_breaker_transitions_total", "Changes of the breaker of one model on one instance.",
            "instance", "model", "to",
        )  # fmt: skip
        self.panics = counter(
            "gateway_upstream_panics_total", "Calls given to an open breaker, as nothing else was left.", "instance"
        )
        self.probes = counter("gateway_upstream_health_checks_total", "Probes.", "instance", "result")
        self.probe_duration = histogram(
            "gateway_upstream_health_check_duration_seconds", "Round trip of a probe.", WAITS, "instance"
        )

    def finished(self, record: Record, duration: float) -> None:
        """Count one request, once, at its end; `duration` in seconds."""
        usage = record.usage
        gaps = usage.output - 1 if usage and record.stream and record.tokens_span > 0 else 0
        kind = (
            record.operation, record.route, record.model, record.instance, record.status, record.stream, record.reason,
            record.cache, record.interrupted, record.attempts > 0, record.waited > 0, record.first_token is not None,
            usage is not None, gaps > 0,
        )  # fmt: skip
        counted = self._counted.get(kind) or self._bound(kind, record, gaps)
        ones, spread, wait, first, tokens, per_token = counted
        for one in ones:
            one.value += 1
        spread.observe(duration)
        if wait is not None:
            wait.observe(record.waited)
        if first is not None and record.first_token is not None:
            first_token, overhead = first
            first_token.observe(record.first_token)
            overhead.observe(max(0.0, duration - record.waited - record.upstream))
        if tokens is not None and usage is not None:
            read, written = tokens
            read.value += usage.input
            written.value += usage.output
        if per_token is not None:
            per_token.observe(record.tokens_span / gaps)

    def _bound(self, kind: tuple[object, ...], record: Record, gaps: int) -> _Counted:
        """What a request of this kind is counted on. Remembered, but where a family was full: that is counted anew."""
        beyond = self._beyond
        operation, route, model = record.operation, record.route or "none", record.model or "none"
        ones = [self.requests(operation, route, model, str(record.status), "true" if record.stream else "false")]
        if record.reason:
            ones += self._failed(record, route)
        if record.cache:
            ones.append(self.cache(route, record.cache))
        result = "granted" if record.attempts else "left" if record.reason == "client_cancelled" else "refused"
        spoke = record.first_token is not None
        counted = _Counted(
            ones,
            self.duration(operation, route, model),
            self.line_wait(route, result) if record.attempts or record.waited else None,
            (self.first_token(route, model), self.overhead(operation)) if spoke else None,
            (self.tokens(route, model, "input"), self.tokens(route, model, "output")) if record.usage else None,
            self.per_token(record.instance, model) if gaps > 0 else None,
        )
        if self._beyond == beyond:
            if len(self._counted) >= KINDS:
                self._counted.clear()
            self._counted[kind] = counted
        return counted

    def _failed(self, record: Record, route: str) -> list[Count]:
        ones = [self.errors(route, record.reason)]
        if record.interrupted:
            ones.append(self.interruptions(route, record.reason))
        if not record.attempts and record.reason in TURNED_AWAY:
            ones.append(self.rejections(route, record.reason))
        return ones

    async def exposition(self, now: float) -> bytes:
        """The text a scraper reads. `now` in seconds."""
        return await self._scrapes.text(now, self._look)

    async def _look(self) -> Reading:
        self.tasks.set(len(asyncio.all_tasks()))
        return self.read()

    def render(self, reading: Reading) -> bytes:
        """The text for one reading. In any thread."""
        with self._rendering:
            self._at_scrape.reading = reading
            return text(self.registry.collect())

    def _overflows(self) -> None:
        self._beyond += 1
        self.overflow.inc()

    def _counter(self, name: str, words: str, *labels: str) -> Counters:
        return self._registered(Counters(name, words, labels, Count, self._overflows))

    def _gauge_family(self, name: str, words: str, *labels: str) -> Gauges:
        return self._registered(Gauges(name, words, labels, Count, self._overflows))

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histograms:
        return self._registered(Histograms(name, words, labels, partial(Spread, buckets), self._overflows))

    def _registered(self, family: Registered) -> Registered:
        self.registry.register(family)
        return family

    def _plain(self, kind: type[Plain], name: str, words: str, buckets: tuple[float, ...] | None = None) -> Plain:
        extra: dict[str, Any] = {"buckets": buckets} if buckets else {}
        return kind(name, words, registry=self.registry, **extra)
