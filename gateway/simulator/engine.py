"""The models in memory and the answers under way: loading, eviction, slots, the silent wait, the pace of tokens.

As Ollama does it (ollama.md §6): loads are serial; a request for a model that is not loaded evicts an idle one when
memory is full, and waits while none is idle; each loaded model answers `parallel` requests at once and lets the rest
wait in order, unbounded and without a word. Callbacks and timers only: there is no asyncio task to leave behind.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from gateway.simulator.behaviour import Behaviour, SimulatedModel, model_key, version_of
from gateway.simulator.connection import Exchange
from gateway.simulator.faults import Kind
from gateway.simulator.prompt import Ask, Part, compose
from gateway.simulator.shapes import Numbers, Voice

KEEP_ALIVE = 300.0  # seconds, Ollama's default
_AT_ONCE = (Kind.HANG_BEFORE_HEADERS, Kind.HANG_BEFORE_FIRST_TOKEN)


class Runner:
    """One model in memory, or on its way there."""

    __slots__ = ("busy", "granting", "keep_alive", "line", "model", "ready", "starter", "timer", "until")

    def __init__(self, model: SimulatedModel) -> None:
        self.model = model
        self.busy = 0
        self.line: deque[Generation] = deque()
        self.ready = False
        self.granting = False
        self.starter: Generation | None = None  # its client's leaving aborts the load
        self.keep_alive = KEEP_ALIVE
        self.until = 0.0  # loop time when it is to be unloaded, while idle
        self.timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        return self.ready and not self.busy and not self.line


class Engine:
    """Who may generate now. `peak` may be set back to 0 at any time."""

    def __init__(self, behaviour: Behaviour, changed: Callable[[], None]) -> None:
        self.behaviour = behaviour
        self.busy = 0
        self.waiting = 0
        self.peak = 0
        self.loads = 0
        self.late: set[Generation] = set()  # their clients left, and they have not noticed yet
        self._changed = changed
        self._runners: dict[str, Runner] = {}
        self._to_load: deque[Runner] = deque()
        self._loading: Runner | None = None
        self._load_timer: asyncio.TimerHandle | None = None

    def admit(self, generation: Generation) -> None:
        """Let it begin now, or wait for its model and its turn."""
        key = model_key(generation.model.name)
        runner = self._runners.get(key)
        if runner is None:
            runner = self._runners[key] = Runner(generation.model)
            self._to_load.append(runner)
        if generation.ask.keep_alive is not None:
            runner.keep_alive = generation.ask.keep_alive
        generation.runner = runner
        runner.line.append(generation)
        self.waiting += 1
        self._changed()
        if runner.ready:
            self._grant(runner)
        else:
            self._load_next()

    def leave(self, generation: Generation) -> None:
        """Give up a slot or a place in line. Doing it again does nothing."""
        runner, generation.runner = generation.runner, None
        if runner is None:
            return
        if generation.started:
            runner.busy -= 1
            self.busy -= 1
        else:
            runner.line.remove(generation)
            self.waiting -= 1
            self._abandon_load(runner, generation)
        self._changed()
        if runner.ready:
            self._settle(runner)

    def settle(self) -> None:
        """The behaviour changed: there may be more room."""
        for runner in list(self._runners.values()):
            if runner.ready:
                self._grant(runner)
        self._load_next()

    def loaded(self) -> list[tuple[SimulatedModel, float]]:
        """What `/api/ps` lists, with Unix times of expiry. Before 0.30 a model on its way in is listed too (§6.5)."""
        listed = [runner for runner in self._runners.values() if runner.ready]
        if self._loading is not None and version_of(self.behaviour.version) < (0, 30):
            listed.append(self._loading)
        return [(runner.model, time.time() + runner.keep_alive) for runner in listed]

    def keep(self, model: SimulatedModel, seconds: float | None) -> bool:
        """Whether the model is loaded; if so its idle time is set, and 0 unloads it as soon as it is idle."""
        runner = self._runners.get(model_key(model.name))
        if runner is None or not runner.ready:
            return False
        if seconds is not None:
            runner.keep_alive = seconds
            self._settle(runner)
        return True

    def stop(self) -> None:
        """No timer is left."""
        for generation in list(self.late):  # first: a slot that comes free sets the idle timer
            generation.forget()
        timers = [runner.timer for runner in self._runners.values()] + [self._load_timer]
        for timer in timers:
            if timer is not None:
                timer.cancel()
        self._runners.clear()
        self._to_load.clear()
        self._loading = None

    def _grant(self, runner: Runner) -> None:
        if runner.granting:  # a generation that ends at once comes back here: the loop below goes on
            return
        runner.granting = True
        limit = 1 if "embedding" in runner.model.capabilities else self.behaviour.parallel
        while runner.line and runner.busy < limit:
            generation = runner.line.popleft()
            self.waiting -= 1
            runner.busy += 1
            self.busy += 1
            self.peak = max(self.peak, self.busy)
            generation.begin()
            self._changed()
        runner.granting = False

    def _settle(self, runner: Runner) -> None:
        """After a slot came free: the next in line, or the idle time, or the load that waits for room."""
        self._grant(runner)
        if not runner.idle:
            return
        if runner.keep_alive <= 0:
            self._unload(runner)
            return
        runner.until = asyncio.get_running_loop().time() + runner.keep_alive
        if runner.timer is None and runner.keep_alive < 1e9:
            self._watch(runner)
        self._load_next()

    def _watch(self, runner: Runner) -> None:
        loop = asyncio.get_running_loop()
        runner.timer = None
        if not runner.idle:
            return  # whoever uses it will settle it
        if loop.time() >= runner.until:
            self._unload(runner)
        else:
            runner.timer = loop.call_at(runner.until, self._watch, runner)

    def _unload(self, runner: Runner) -> None:
        if runner.timer is not None:
            runner.timer.cancel()
        self._runners.pop(model_key(runner.model.name), None)
        self._changed()
        self._load_next()

    def _load_next(self) -> None:
        if self._loading is not None or not self._to_load:
            return
        loaded = [runner for runner in self._runners.values() if runner.ready]
        if len(loaded) >= self.behaviour.max_loaded:
            idle = [runner for runner in loaded if runner.idle]
            if idle:  # the shortest keep-alive first, then by name: not the least recently used (§6.4)
                self._unload(min(idle, key=lambda runner: (runner.keep_alive, runner.model.name)))
            return  # unloading comes back here; with none idle the next one that is does
        runner = self._loading = self._to_load.popleft()
        runner.starter = runner.line[0]
        self.loads += 1
        if self.behaviour.load_time:
            loop = asyncio.get_running_loop()
            self._load_timer = loop.call_later(self.behaviour.load_time, self._load_done)
        else:
            self._load_done()

    def _load_done(self) -> None:
        runner, self._loading, self._load_timer = self._loading, None, None
        if runner is None:
            return
        runner.ready, runner.starter = True, None
        now = time.monotonic()
        for generation in runner.line:
            generation.loaded = now
        self._settle(runner)
        self._load_next()

    def _abandon_load(self, runner: Runner, generation: Generation) -> None:
        """A client that leaves while its model loads aborts the load for everybody; the next starts anew (§4.6)."""
        if runner is self._loading and runner.starter is generation:
            if self._load_timer is not None:
                self._load_timer.cancel()
            self._loading = self._load_timer = None
            self._to_load.appendleft(runner)
        if runner in self._to_load and not runner.line:
            self._to_load.remove(runner)
            self._runners.pop(model_key(runner.model.name), None)
        self._load_next()


class Generation:
    """One answer: waits, thinks, speaks token by token; ends when done, when told to, or when its client left."""

    def __init__(self, engine: Engine, exchange: Exchange, model: SimulatedModel, ask: Ask, voice: Voice) -> None:
        self.model = model
        self.ask = ask
        self.runner: Runner | None = None
        self.arrived = self.loaded = exchange.seen.arrived
        self.started = 0.0
        self._engine = engine
        self._exchange = exchange
        self._voice = voice
        self._first = 0.0
        self._parts: list[Part] = []
        self._reason = ""
        self._sent = 0
        self._trip = -1  # frames sent when the fault happens
        self._interval = 0.0
        self._timer: asyncio.Handle | None = None
        self._loop = asyncio.get_running_loop()
        exchange.voice = voice
        exchange.on_over = self._over

    def begin(self) -> None:
        """It has its slot."""
        self.started = time.monotonic()
        if self._engine.behaviour.first_token:
            self._timer = self._loop.call_later(self._engine.behaviour.first_token, self._think)
        else:
            self._think()

    def _think(self) -> None:
        """The first token is there."""
        if self in self._engine.late:
            self.forget()
            return
        behaviour = self._engine.behaviour
        self._first = time.monotonic()
        if self.ask.empty or self.ask.style:
            self._reason = "load" if self.ask.empty else "stop"
        else:
            self._parts, self._reason = compose(self.ask, behaviour.tokens)
        if behaviour.steer and self.ask.seed > 0:
            self._interval = min(self.ask.seed, 60_000) / 1_000
        elif behaviour.per_second:
            self._interval = 1 / behaviour.per_second
        if not self.ask.stream:
            self._then(max(len(self._parts) - 1, 0) * self._interval, self._reply)
            return
        if (fault := self._exchange.fault) is not None:
            self._trip = 0 if fault.kind in _AT_ONCE else min(fault.after, len(self._parts))
        self._exchange.open(self._voice.stream_type)
        self._tick()

    def _then(self, seconds: float, do: Callable[[], None]) -> None:
        if seconds:
            self._timer = self._loop.call_later(seconds, do)
        else:
            do()

    def _tick(self) -> None:
        """One token, or the end."""
        exchange, sent = self._exchange, self._sent
        if exchange.blocked:
            exchange.on_writable = self._tick
            return
        if sent == self._trip:
            self._trip = -1
            if not exchange.misbehave(None):
                return
        if sent >= len(self._parts):
            exchange.end(self._voice.closing(self._numbers(self._parts)))
            return
        part = self._parts[sent]
        if self._engine.behaviour.steer and part.text:
            part = Part(f"{time.monotonic_ns()} ")
        exchange.frame(self._voice.part(part))
        self._sent = sent = sent + 1
        if self._interval and sent < len(self._parts):
            due = self._first + sent * self._interval - time.monotonic()
            self._timer = self._loop.call_later(max(due, 0.0), self._tick)
        else:
            self._timer = self._loop.call_soon(self._tick)

    def _reply(self) -> None:
        fault = self._exchange.fault
        quiet = fault is not None and fault.kind is Kind.SWALLOWED_ERROR
        numbers = self._numbers(self._parts)
        self._exchange.reply(200, self._voice.whole(self._parts, numbers._replace(reason="") if quiet else numbers))

    def _numbers(self, parts: Sequence[Part]) -> Numbers:
        if self.ask.empty:
            return Numbers(0, 0, self._reason)
        now = time.monotonic()
        load = max(1, int((self.loaded - self.arrived) * 1e9))
        prefill = max(1, int((self._first - self.started) * 1e9))
        decode = max(1, int((now - self._first) * 1e9))
        total = max(int((now - self.arrived) * 1e9), load + prefill + decode)
        return Numbers(self.ask.words, len(parts), self._reason, total, load, prefill, decode)

    def _over(self, left: bool) -> None:
        """The exchange ended. Its slot is free at once, unless a departure is to be noticed only at the first token."""
        if left and self.started and not self._first and self._engine.behaviour.notices_late:
            self._engine.late.add(self)
        else:
            self.forget()

    def forget(self) -> None:
        """No timer, no slot, no place in line."""
        self._engine.late.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._engine.leave(self)
