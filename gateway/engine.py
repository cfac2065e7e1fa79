"""The composition root: builds every collaborator once, starts and stops them, and applies a new configuration.

Nobody else constructs a collaborator. A reload is load, reconcile, swap: calls in flight keep what they began with,
connections are not touched, and a configuration that does not load changes nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import structlog

from gateway import __version__
from gateway.cache import Cache
from gateway.call import Plan, model_key
from gateway.catalog import Catalog
from gateway.config import Config, InstanceConfig, Loaded, changes
from gateway.dispatch import Dispatch
from gateway.errors import ConfigError, ConnectFailed, Exhausted
from gateway.instances import Contents, Instance, MakeOrder, Pool, watch
from gateway.journey import Means, RetryBudget, Setting
from gateway.lists import Shows, Virtual
from gateway.meters import MAX_CHILDREN
from gateway.metrics import BreakerReading, InstanceReading, Metrics, Reading
from gateway.offload import beside
from gateway.outlet import catch_up, lines_lost
from gateway.upstream import Health, Prober, Upstream

FIRST_LOOK = 1.0  # seconds that start waits for the instances to answer
ADDRESSES = ("host", "port", "ops_host", "ops_port")  # of the server: they hold until a restart
LAG_INTERVAL = 0.5  # seconds between two looks at the event loop
APART = 0.002  # seconds between the first probes of two instances: one costs half a millisecond
POLL_INTERVAL = 2.0  # seconds between two looks at the configuration file

log = structlog.get_logger("gateway")


@dataclass(slots=True)
class Attached:
    """What belongs to one configured instance and leaves with it."""

    config: InstanceConfig
    upstream: Upstream
    prober: Prober
    tasks: tuple[asyncio.Task[None], ...] = ()
    last: Health | None = None


class Source(Protocol):
    """Where the configuration comes from."""

    def load(self) -> Loaded:
        """Read it. Raises ConfigError."""

    def fingerprint(self) -> str:
        """Something that changes when it does, cheap enough to ask for every few seconds."""


class Engine:
    """Everything behind the API. Without a `source` it keeps the configuration it was given; `order` is the line's."""

    def __init__(self, loaded: Loaded, source: Source | None = None, *, order: MakeOrder | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._loaded = loaded
        self._attached: dict[str, Attached] = {}
        self._reading = asyncio.Lock()  # one list of models at a time
        self._reloading = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Task[Any]] = set()
        self.reload_ok, self.reloaded_at = True, time.time()
        self.draining = False
        config = loaded.config
        self.metrics = Metrics(__version__)
        self.metrics.read = self.reading
        self._beat = time.monotonic()
        self.metrics.stall.set_function(lambda: self.stall)
        self.catalog = Catalog(config, self._told)
        self.pool = Pool(
            config,
            now=self._loop.time,
            later=self._loop.call_later,
            random=random.random,
            observer=self,
            order=order,
        )
        self.cache = Cache(config.cache, self._loop.time, lambda reason: self.metrics.evictions(reason).inc())
        means = Means(
            setting=self._setting(),
            pool=self.pool,
            catalog=self.catalog,
            metrics=self.metrics,
            budget=RetryBudget(config.retry.budget, config.retry.reserve),
            now=self._loop.time,
            random=random.random,
        )
        self.dispatch = Dispatch(means, self.cache)
        self.shows = Shows(self.catalog, self._show, self._showable)
        self.virtual = Virtual(lambda: self.config, self.dispatch, self.catalog, self.shows)

    @property
    def config(self) -> Config:
        return self._loaded.config

    @property
    def loaded(self) -> Loaded:
        return self._loaded

    @property
    def route_headers(self) -> frozenset[str]:
        """The request headers that some route looks at, in lower case."""
        return self._route_headers

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begin to probe, and give the instances a moment to answer. Never fails for an instance that does not."""
        self._attach()
        self.dispatch.apply(self._setting())
        self._tasks = [self._task(self._watch_lag(), "loop lag")]
        if self._source is not None:
            self._tasks.append(self._task(self._watch_source(self._source), "config source"))
        looks = [self._task(self._first_look(one), f"first look {name}") for name, one in self._attached.items()]
        self._leaving.update(looks)
        for look in looks:
            look.add_done_callback(self._leaving.discard)
        await asyncio.wait(looks, timeout=FIRST_LOOK)
        self._watch(self._attached.values(), apart=0.0)  # nobody is served yet

    async def stop(self) -> None:
        """End every asyncio task and connection of ours. Calls must have ended before."""
        self.pool.close()
        tasks = [*self._tasks, *self._leaving]
        for name in list(self._attached):
            tasks += self._detach(name)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reload(self) -> bool:
        """Read the configuration anew and use it; False, with everything as it was, where it does not load.

        It is read in a thread, so that no call waits for it; one at a time, so that the last one counts.
        """
        if self._source is None:
            return False
        async with self._reloading:
            try:
                loaded = await beside(self._source.load)
            except ConfigError as error:
                self._refuse(error)
                return False
            self.reload_ok = True
            if loaded.digest != self._loaded.digest:
                self.apply(loaded)
            return True

    def reload_soon(self) -> None:
        """The same, for a signal."""
        reloading = asyncio.create_task(self.reload(), name="reload")
        self._leaving.add(reloading)
        reloading.add_done_callback(self._leaving.discard)

    def _refuse(self, error: ConfigError) -> None:
        self.reload_ok = False
        log.error("config.refused", source=error.source, problems=len(error.problems), kept=self._loaded.digest)
        for problem in error.problems[:20]:
            log.error("config.problem", where=problem.where, line=problem.line, problem=problem.message)

    def apply(self, loaded: Loaded) -> None:
        """Use another configuration from now on."""
        before, self._loaded = self.config, loaded
        self.catalog.apply(loaded.config)
        self._attach()
        stale = [one for one in self._attached.values() if not one.tasks or before.health != loaded.config.health]
        for attached in stale:
            self._leaving.update(self._unwatch(attached))
        self._watch(stale)
        self.dispatch.apply(self._setting())
        self.pool.reconcile(loaded.config)
        self.reloaded_at = time.time()
        where, was = loaded.config.server, before.server
        moved = any(getattr(where, key) != getattr(was, key) for key in ADDRESSES)
        if moved or before.log != loaded.config.log:
            log.warning("config.needs_restart", keys=", ".join([*(f"server.{key}" for key in ADDRESSES), "log"]))
        told = ", ".join(changes(before, loaded.config)) or "settings only"
        log.info("config.applied", source=loaded.source, config=loaded.digest, changes=told)

    def health(self, name: str) -> Health | None:
        """What the last probe of an instance found."""
        attached = self._attached.get(name)
        return attached.last if attached else None

    def left_out(self, drawn: Plan) -> Iterator[tuple[str, str]]:
        """Of a plan's candidates those that get no such call now, as calls failed there: (instance, why in words)."""
        now, instances = self._loop.time(), self.pool.instances
        for one in drawn.candidates:
            if one.instance in instances:
                why = instances[one.instance].breakers.left_out(model_key(one.model), now)
                if why:
                    yield one.instance, why

    def prober(self, name: str) -> Prober:
        """Who asks the instance `name`. Raises ConnectFailed where it has left."""
        attached = self._attached.get(name)
        if attached is None:
            raise ConnectFailed(name, "no longer in use")
        return attached.prober

    async def _show(self, instance: str, model: str, timeout: float, verbose: bool) -> bytes:
        return await self.prober(instance).show(model, timeout, verbose=verbose)

    def _showable(self, name: str) -> bool:
        instance = self.pool.instances.get(name)
        return instance is not None and instance.healthy and self.catalog.known(name).native

    def _told(self, instance: str, contents: Contents, asked: float) -> None:
        self.pool.told(instance, contents, asked)

    def health_changed(self, instance: str, healthy: bool, why: str) -> None:
        if healthy:
            self.catalog.ask_anew(instance)  # what it held may be gone
            log.info("instance.up", instance=instance)
        else:
            log.warning("instance.down", instance=instance, why=why)

    def breaker_changed(self, instance: str, model: str, state: str, why: str) -> None:
        if model:
            self.metrics.model_breaker(instance, model, state).inc()
            log.warning("breaker.change", instance=instance, model=model, state=state, why=why)
        else:
            self.metrics.breaker(instance, state).inc()
            log.warning("breaker.change", instance=instance, state=state, why=why)

    @property
    def stall(self) -> float:
        """Seconds for which the event loop has not turned, beyond its beat. In any thread."""
        return max(0.0, time.monotonic() - self._beat - LAG_INTERVAL)

    async def look(self) -> Reading:
        """The gateway now, for other threads."""
        self.metrics.tasks.set(len(asyncio.all_tasks()))
        return self.reading()

    def reading(self) -> Reading:
        """The gateway now, for a scrape."""
        demands = self.pool.demands()
        return Reading(
            line_callers=self.pool.callers,
            line_work=sum(one.work for one in demands),
            line_wait=max((one.seconds for one in demands), default=0.0),
            line_models=tuple((one.model, one.waiting) for one in demands[:MAX_CHILDREN]),
            instances=tuple(self._instance_reading(instance) for instance in self.pool.instances.values()),
            line_depth=self.pool.depth,
            line_bytes=self.pool.held_bytes,
            line_oldest=self.pool.oldest,
            cache_entries=self.cache.entries,
            cache_bytes=self.cache.size,
            digest_conflicts=len(self.catalog.conflicts()),
            draining=self.draining,
            config=self._loaded.digest,
            reload_ok=self.reload_ok,
            reloaded_at=self.reloaded_at,
            log_lines_lost=lines_lost(),
        )

    def _instance_reading(self, instance: Instance) -> InstanceReading:
        now, known = self._loop.time(), self.catalog.known(instance.name)
        attached = self._attached.get(instance.name)
        return InstanceReading(
            name=instance.name,
            state=instance.state(now),
            up=instance.fit(now) or (instance.up and not instance.away),
            in_flight=instance.held,
            draining=instance.draining,
            limit=instance.limit,
            allowed=instance.allowed(now),
            breakers=tuple(
                BreakerReading(model, str(breaker.state_at(now)), breaker.why, max(0.0, until - now))
                for model, breaker, until in instance.breakers.open()
            ),
            connections=attached.upstream.idle + attached.upstream.busy if attached else 0,
            version=known.version,
            loaded=self.catalog.in_memory(instance.name),
        )

    def _setting(self) -> Setting:
        config = self._loaded.config
        self._route_headers = frozenset(
            name.lower() for route in config.routes if route.match.header for name in route.match.header
        )
        return Setting(
            config=config,
            digest=self._loaded.digest,
            routes={route.name: route for route in config.routes},
            upstreams={name: attached.upstream for name, attached in self._attached.items()},
            weights={key.name: key.weight for key in config.auth.keys},
        )

    def _attach(self) -> None:
        """Bring upstreams and probers in line with the configuration: same name and address stay as they are."""
        wanted = {instance.name: instance for instance in self.config.instances}
        for name, attached in list(self._attached.items()):
            if name not in wanted or wanted[name].url != attached.config.url:
                self._leaving.update(self._detach(name))
        for name, instance in wanted.items():
            if name in self._attached:
                self._attached[name].config = instance
                continue
            upstream = Upstream(name, instance.url, max_idle=instance.max_concurrent + 4)
            self._attached[name] = Attached(instance, upstream, Prober(upstream, self._reading))

    def _detach(self, name: str) -> list[asyncio.Task[None]]:
        attached = self._attached.pop(name)
        attached.upstream.close()
        return self._unwatch(attached)

    def _unwatch(self, attached: Attached) -> list[asyncio.Task[None]]:
        tasks, attached.tasks = attached.tasks, ()
        for task in tasks:
            task.cancel()
            task.add_done_callback(self._leaving.discard)
        return list(tasks)

    async def _first_look(self, attached: Attached) -> None:
        ok, problem = await self._probe(attached)
        self.pool.observe(attached.config.name, ok, problem)
        if ok:
            await self.catalog.ask(attached.config.name, attached.prober, self.config.health.timeout)

    def _watch(self, watched: Iterable[Attached], *, apart: float = APART) -> None:
        """From now on, or some milliseconds later where they are many: their probes are not to come all at once."""
        health = self.config.health
        for number, attached in enumerate(watched):
            name, after = attached.config.name, number * apart
            probe, report = partial(self._probe, attached), partial(self.pool.observe, name)
            probing = watch(probe, report, interval=health.interval, random=random.random, after=after)
            listing = self.catalog.watch(
                name, attached.prober, health.timeout, health.catalog, random=random.random, after=after
            )
            attached.tasks = (self._task(probing, f"probe {name}"), self._task(listing, f"catalog {name}"))

    async def _probe(self, attached: Attached) -> tuple[bool, str]:
        name = attached.config.name
        try:
            found = attached.last = await attached.prober.health(self.config.health.timeout)
        except Exhausted as error:  # it was not asked: what it said last holds
            return (attached.last.ok, attached.last.problem) if attached.last else (False, error.message)
        self.catalog.saw(name, found)
        self.metrics.probes(name, "ok" if found.ok else "failed").inc()
        self.metrics.probe_duration(name).observe(found.seconds)
        return found.ok, found.problem

    async def _watch_lag(self) -> None:
        """Observe how late the loop runs a timer: the one number that explains a slow gateway. And see to the log."""
        while True:
            due = self._loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self.metrics.loop_lag.observe(max(0.0, self._loop.time() - due))
            self._beat = time.monotonic()
            catch_up()

    async def _watch_source(self, source: Source) -> None:
        """Poll what the configuration is made from: a ConfigMap swaps a link, which a watch on the file misses."""
        seen = await beside(source.fingerprint)
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            now = await beside(source.fingerprint)
            if now != seen:
                seen = now
                await self.reload()

    @staticmethod
    def _task(work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        return asyncio.create_task(work, name=name)
