"""Plays one schedule on virtual time, with everything behind the API as it is, from dispatch down to the transport.

Not simulated: HTTP and ASGI towards clients (and so keep-alives and slow sockets), kernel buffers and TLS towards
instances, probes and lists as HTTP, work in threads, other dialects than OpenAI's chat, several gateways at once.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

from gateway.cache import Cache
from gateway.call import Call, Frame, Record
from gateway.catalog import Catalog
from gateway.config import Config
from gateway.dialects import openai
from gateway.dispatch import Dispatch
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.instances import Pool, Roster, watch
from gateway.journey import Means, RetryBudget, Setting
from gateway.metrics import Metrics
from gateway.upstream import Prober, Upstream
from tests.simulation.calls import Broken, Client, End
from tests.simulation.laws import Laws, Watched
from tests.simulation.network import START, SimulatedLoop
from tests.simulation.ollama import Ollama, Tells
from tests.simulation.schedule import Ask, Happening, Place, Schedule
from tests.virtual import Standstill

AFTER = 100.0  # seconds after the last call in which all that time ends must end
IDLE_FOR = 5.0  # seconds for which a connection is kept

_TOKEN = re.compile(rb'"content":"([^"]+)"')


@lru_cache(maxsize=1)
def _metrics() -> Metrics:
    """One for all schedules: it only counts, and costs more to make than a schedule to play."""
    return Metrics("simulated")


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a schedule."""

    trace: tuple[str, ...]
    ends: Counter[str]
    turns: int
    grants: int
    broken: Broken | None = None


def play(schedule: Schedule) -> Played:
    """Play it to its end, or until a law is broken."""
    loop = SimulatedLoop()
    stage, broken = Stage(schedule, loop), None
    try:
        loop.run_until_complete(stage.play())
    except Broken as error:
        broken = error
    except Standstill as error:
        broken = Broken("whoever waits is told", str(error), loop.time())
    finally:
        _clear(loop)
    laws = stage.laws
    return Played(tuple(stage.trace), stage.ends, laws.looks, laws.grants, broken)


def _clear(loop: SimulatedLoop) -> None:
    """End what is left on it, wherever it was stopped."""
    loop.between_turns(None)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    for _ in range(8):
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()


class Stage:
    """Everything behind the API, as `Engine` builds it, in front of instances that are played."""

    def __init__(self, schedule: Schedule, loop: SimulatedLoop) -> None:
        self._schedule = schedule
        self._loop = loop
        self.trace: list[str] = []
        self.ends: Counter[str] = Counter()
        counts: Counter[int] = Counter()
        self._hosts = {
            host: Ollama(host, machine, loop, schedule, partial(_count, counts))
            for host, machine in schedule.machines.items()
        }
        self.laws = Laws(loop, self._hosts.values(), self._moment)
        loop.hosts.update(self._hosts)
        loop.on_connecting, loop.on_sending, loop.on_failing = (
            self.laws.connecting,
            self.laws.sending,
            self.laws.failing,
        )
        for ollama in self._hosts.values():
            ollama.on_request, ollama.on_speaking = self.laws.requested, self.laws.speaking
        self._places: dict[str, Place] = {}
        self._watchers: dict[str, tuple[asyncio.Task[None], ...]] = {}
        self._ended: list[asyncio.Task[None]] = []
        self._upstreams: dict[str, Upstream] = {}
        chance = random.Random(f"gateway {schedule.seed}").random  # noqa: S311 - to be the same each time
        self._random = chance
        config = self._config = self._configuration(schedule.places)
        pool = self.laws.pool = Pool(
            config, now=loop.time, later=loop.call_later, random=chance, observer=self, order=self._order
        )
        self._catalog = Catalog(config, pool.told)
        self._means = Means(
            setting=self._setting(config),
            pool=pool,
            catalog=self._catalog,
            metrics=_metrics(),
            budget=RetryBudget(config.retry.budget, config.retry.reserve),
            now=loop.time,
            random=chance,
        )
        self._dispatch = Dispatch(self._means, Cache(config.cache, loop.time, lambda _: None))

    def _order(self, roster: Roster, config: Config) -> Watched:
        order = Watched(roster, config.line, self._random)
        order.laws = self.laws
        return order

    # the configuration, as `Engine.apply` has it

    def _configuration(self, places: tuple[Place, ...]) -> Config:
        instances = [
            {
                "name": place.name,
                "url": f"http://{place.host}:11434",
                "max_concurrent": place.limit,
                "max_per_model": place.per_model,
                "drain": place.drain,
            }
            for place in places
        ]
        settings = dict(self._schedule.settings)
        names = {place.name for place in places}
        if "routes" in settings:  # a route may only name instances that are there
            (route,) = settings["routes"]
            targets = [target for target in route["to"] if target.get("instance", places[0].name) in names]
            settings["routes"] = [{**route, "to": targets}]
        return Config.model_validate({**settings, "instances": instances})

    def _setting(self, config: Config) -> Setting:
        return Setting(
            config=config,
            digest="",
            routes={route.name: route for route in config.routes},
            upstreams=dict(self._upstreams),
            weights={"bob": 2.0},
        )

    def _attach(self, places: tuple[Place, ...]) -> None:
        wanted = {place.name: place for place in places}
        for name, place in list(self._places.items()):
            if name not in wanted or wanted[name].host != place.host:
                del self._places[name]
                self._upstreams.pop(name).close()
                self._unwatch(name)
        for name, place in wanted.items():
            if name not in self._places:
                upstream = Upstream(name, f"http://{place.host}:11434", max_idle=2, idle_for=IDLE_FOR)
                self._upstreams[name] = upstream
                self.laws.upstreams.append(upstream)
            self._places[name] = place
            if name not in self._watchers:
                self._watch(place)

    def _apply(self, places: tuple[Place, ...]) -> None:
        config = self._config = self._configuration(places)
        self._catalog.apply(config)
        self._attach(places)
        self._dispatch.apply(self._setting(config))
        self.laws.configured(config)
        self.laws.pool.reconcile(config)

    def _watch(self, place: Place) -> None:
        name, ollama, health = place.name, self._hosts[place.host], self._config.health
        prober = cast(Prober, Tells(ollama))  # of which only `listing` is asked
        if ollama.machine.known and not ollama.death:
            self._catalog.learned(name, ollama.listing())

        async def probe() -> tuple[bool, str]:
            await asyncio.sleep(0.05)
            return ollama.probe()

        probing = watch(probe, partial(self.laws.pool.observe, name), interval=health.interval, random=self._random)
        listing = self._catalog.watch(name, prober, health.timeout, health.catalog, random=self._random)
        self._watchers[name] = tuple(
            self._loop.create_task(work, name=f"{kind} {name}")
            for kind, work in (("probe", probing), ("list", listing))
        )

    def _unwatch(self, name: str) -> None:
        for task in self._watchers.pop(name):
            task.cancel()
            self._ended.append(task)

    # what the pool tells

    def health_changed(self, instance: str, healthy: bool, why: str) -> None:
        self._note(f"{instance} is {'up' if healthy else 'down'}")
        if healthy:
            self._catalog.ask_anew(instance)

    def breaker_changed(self, instance: str, *what: str) -> None:
        self._note(f"breaker of {instance}: {', '.join(what)}")
        if "closed" in what:
            self.laws.breaker_closed(instance)

    # the play

    async def play(self) -> None:
        schedule, loop, laws = self._schedule, self._loop, self.laws
        loop.set_exception_handler(lambda _, context: laws.problems.append(str(context)))
        self._attach(schedule.places)
        self._dispatch.apply(self._setting(self._config))
        laws.configured(self._config)
        loop.between_turns(laws.look)
        tasks = []
        for one in schedule.moves():
            if (wait := START + one.at - loop.time()) > 0:
                await asyncio.sleep(wait)
            self._note(str(one))
            if isinstance(one, Ask):
                tasks.append(self._begin(one))
            else:
                self._befall(one)
        if tasks:
            await asyncio.wait(tasks)
        laws.quiet()
        for name in list(self._watchers):
            self._unwatch(name)
        await asyncio.gather(*self._ended, return_exceptions=True)
        await asyncio.sleep(AFTER)
        laws.silent()
        laws.pool.close()

    def _befall(self, what: Happening) -> None:
        if what.kind == "reload":
            self._apply(what.value)
            return
        ollama = self._hosts[what.host]
        acts: dict[str, Any] = {
            "dies": lambda: ollama.dies(what.value),
            "lives": ollama.lives,
            "unload": ollama.unload,
            "stale": ollama.drop_idle,
            "mood": lambda: setattr(ollama, "mood", what.value),
            "connects": lambda: setattr(ollama, "slow", what.value),
            "probes": lambda: setattr(ollama, "seems", what.value),
        }
        acts[what.kind]()

    # the clients

    def _begin(self, ask: Ask) -> asyncio.Task[None]:
        now = self._loop.time()
        deadline = None if ask.deadline is None else now + ask.deadline
        record = Record(request_id=str(ask.number), arrived=now)
        client = Client(ask, record, self._config.timeouts, deadline)
        self.laws.came(client)
        client.task = self._loop.create_task(
            self._carry(client, self._call(ask, now, deadline)), name=f"call {ask.number}"
        )
        if ask.leaves is not None:
            self._loop.call_later(ask.leaves, self._leave, client)
        return client.task

    def _call(self, ask: Ask, now: float, deadline: float | None) -> Call:
        body, wish = _asked(ask.model, ask.stream, ask.size, ask.repeats)
        return Call(
            request_id=str(ask.number),
            operation=openai.CHAT,
            wish=wish,
            body=body,
            arrived=now,
            model=ask.model,
            caller=ask.caller,
            priority=ask.priority,
            deadline=deadline,
        )

    async def _carry(self, client: Client, call: Call) -> None:
        try:
            if client.ask.stream:
                await self._stream(client, call)
            else:
                await self._dispatch.answer(call, client.record)
            self._ends(client, End.ANSWERED)
        except GatewayError as error:
            client.error = error
            self._ends(client, End.FAILED)
        except asyncio.CancelledError:
            self._ends(client, End.LEFT)
            if client.left_at is None:
                raise

    async def _stream(self, client: Client, call: Call) -> None:
        """As `api.relay` does it."""
        async with self._dispatch.exchange(call, client.record) as exchange:
            while frames := await self._next(client, exchange):
                for frame in frames:
                    self.laws.relayed(client, frame)
                    client.heard += [token.decode() for token in _TOKEN.findall(frame.raw)]
                self._moment(client, "content")
                if frames[-1].last:
                    self._moment(client, "last")
                    await exchange.settle()
                    return
                if client.ask.pause:
                    client.dallied += client.ask.pause
                    await asyncio.sleep(client.ask.pause)

    async def _next(self, client: Client, exchange: Exchange) -> list[Frame]:
        asked = self._loop.time()
        try:
            return await exchange.frames()
        finally:
            client.silence = max(client.silence, self._loop.time() - asked)

    def _ends(self, client: Client, end: End) -> None:
        client.ends.append(end)
        word = type(client.error).__name__ if client.error else end.value
        self.ends[word] += 1
        self._note(f"call {client.ask.number}: {word}, {client.error or client.record.instance}")
        self.laws.ended(client)

    def _moment(self, client: Client, moment: str) -> None:
        if client.ask.moment == moment and client.left_at is None:
            self._hop(client, client.ask.hops)

    def _hop(self, client: Client, hops: int) -> None:
        self._loop.call_soon(partial(self._hop, client, hops - 1) if hops else partial(self._leave, client))

    def _leave(self, client: Client) -> None:
        if client.task is not None and not client.task.done() and client.left_at is None:
            client.left_at = self._loop.time()
            self._note(f"call {client.ask.number} leaves")
            client.task.cancel()

    def _note(self, words: str) -> None:
        self.trace.append(f"{self._loop.time() - START:9.4f} {words}")


def _count(counts: Counter[int], call: int) -> int:
    counts[call] += 1
    return counts[call]


@lru_cache(maxsize=256)
def _asked(model: str, stream: bool, size: int, repeats: bool) -> tuple[bytes, Any]:
    extra = b',"temperature":0' if repeats else b""
    body = b'{"model":"%b","stream":%b,"messages":[{"role":"user","content":"%b"}]%b}' % (
        model.encode(),
        b"true" if stream else b"false",
        b"x" * size,
        extra,
    )
    return body, openai.CHAT.read(body)
