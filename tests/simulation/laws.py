"""What holds whatever happens: looked at after each turn of the loop, at each grant, and when all is over.

These are promises to whoever uses the gateway, told apart from how the code keeps them: what is counted here is counted
anew, from who came, what was granted and what the instances saw. A law that is broken raises `Broken`, with its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from gateway.call import Candidate, Frame, model_key
from gateway.config import Config, RetryConfig
from gateway.instances import Instance, Lease, LeaseState, Placement, Pool, Waiter
from gateway.upstream import Upstream
from gateway.upstream.upstream import GLANCE
from tests.simulation.calls import NEAR, Broken, Carried, Client, wrongs
from tests.simulation.network import SimulatedLoop
from tests.simulation.ollama import Ollama, Work

MAX_TURNS = 3000  # of the loop in one moment


class Watched(Placement):
    """The order of the line, with a look over its shoulder."""

    laws: Laws

    def arrives(self, waiter: Waiter, now: float) -> Candidate | None:
        candidate = super().arrives(waiter, now)
        self.laws.arrived(waiter, waits=candidate is None)
        return candidate

    def granted(self, waiter: Waiter, instance: Instance, seconds: float, now: float) -> None:
        super().granted(waiter, instance, seconds, now)
        self.laws.granted(waiter, instance)


class Laws:
    """`pool` is set by whoever builds it; `moment(client, name)` is told when something happens to a call."""

    pool: Pool
    _retry: RetryConfig

    def __init__(self, loop: SimulatedLoop, ollamas: Iterable[Ollama], moment: Callable[[Client, str], None]) -> None:
        self.looks = self.grants = 0
        self.problems: list[str] = []  # what asyncio complained of
        self.upstreams: list[Upstream] = []  # all there ever were
        self._loop = loop
        self._ollamas = tuple(ollamas)
        self._moment = moment
        self._first: Broken | None = None
        self._turns = 0  # of the loop since time went on
        self._looked_at = 0.0
        self._clients: dict[int, Client] = {}
        self._present: dict[int, Client] = {}  # those whose call is under way
        self._carried: dict[asyncio.Task[object], Carried] = {}
        self._line: dict[Waiter, asyncio.Task[object]] = {}
        self._granted: list[Waiter] = []  # and not looked at since
        self._leases: dict[Lease, Waiter] = {}
        self._tasks: dict[Waiter, asyncio.Task[object]] = {}  # of those that were granted
        self._instances: dict[Instance, None] = {}  # all there ever were
        self._trials: dict[Instance, Waiter] = {}
        self._works: dict[int, Work] = {}  # the last request of each call
        self._affordable = 0.0  # attempts after the first
        self._spent = 0

    # what is told

    def configured(self, config: Config) -> None:
        """Another configuration holds, and with it another budget of attempts."""
        self._affordable += config.retry.reserve
        self._retry = config.retry
        self._grace = config.line.drain_grace

    def breaker_closed(self, name: str) -> None:
        """What was its trial is a call like any other from now on."""
        self._trials.pop(self.pool.instances[name], None)

    def came(self, client: Client) -> None:
        self._clients[client.ask.number] = self._present[client.ask.number] = client
        self._affordable += self._retry.budget

    def arrived(self, waiter: Waiter, *, waits: bool) -> None:
        """A call came to the line, and may go at once or waits."""
        task = asyncio.current_task()
        assert task is not None
        self._line[waiter] = task
        if waits:
            self._happened("queued")

    def granted(self, waiter: Waiter, instance: Instance) -> None:
        """Called in the middle of a grant: its lease is counted already."""
        self.grants += 1
        task = self._tasks[waiter] = self._line.pop(waiter)
        carried, state = self._carrying(task), instance.state(self._loop.time())
        if instance.in_use > instance.limit:
            self._broken("no grant beyond a limit", f"{instance.in_use} at {instance.name}")
        if state in ("drained", "down"):
            self._broken("no grant where nobody may go", f"{instance.name} is {state}")
        if state in ("open", "half_open"):
            self._one_trial(waiter, instance, state)
        self._as_far_down_as_needed(waiter, instance)
        self._is_its_turn(waiter, instance)
        self._may_be_tried(carried, task.get_name())
        carried.grants, carried.sent, carried.waiter = carried.grants + 1, False, waiter
        self._granted.append(waiter)
        self._moment_of(carried, "granted")

    def _may_be_tried(self, carried: Carried, name: str) -> None:
        if carried.waiter is not None and _held(carried.waiter):
            self._broken("one attempt at a time", name)
        if carried.client is not None and carried.client.heard:
            self._broken("no attempt after the first content", f"{name} heard {carried.client.heard}")
        if carried.grants >= self._retry.attempts:
            self._broken("no more attempts than configured", name)
        if carried.grants and carried.sent:
            self._spent += 1
            if self._spent > self._affordable + NEAR:
                self._broken("attempts keep to their budget", f"{self._spent} of {self._affordable:.1f}")

    def _is_its_turn(self, waiter: Waiter, instance: Instance) -> None:
        model = model_key(next(one.model for one in waiter.ticket.candidates if one.instance == instance.name))
        if instance.memory.running(model) > instance.slots(model):
            self._broken("no grant beyond a model's slots", f"{model} at {instance.name}")
        caller = waiter.caller
        running = sum(one.caller is caller for one in (*self._leases.values(), *self._granted) if _held(one))
        if caller.allowed is not None and running >= caller.allowed:
            self._broken("no grant beyond a caller's cap", f"{caller.name} has {running}")
        for other in self._line:
            same = (other.caller, other.want, other.priority) == (caller, waiter.want, waiter.priority)
            if same and other.wants and other.since < waiter.since:
                self._broken("a caller's calls go in order", self._line[other].get_name())

    def _as_far_down_as_needed(self, waiter: Waiter, instance: Instance) -> None:
        """A later tier is for what is unhealthy, not for what is busy."""
        tier = next(one.tier for one in waiter.ticket.candidates if one.instance == instance.name)
        if tier > min((one.tier for one, _ in self._fit(waiter, self._loop.time())), default=tier):
            self._broken("no fallback where a better one is fit", f"{instance.name} of tier {tier}")

    def _one_trial(self, waiter: Waiter, instance: Instance, state: str) -> None:
        before = self._trials.get(instance)
        if before is not None and _held(before) and not _failed(before):
            self._broken("one trial at a time", instance.name)
        fit = [one.instance for one, _ in self._fit(waiter, self._loop.time())]
        if state == "open" and fit:  # only ever as a last resort
            self._broken("no grant where the breaker is open", f"{instance.name}, though {fit} is fit")
        self._trials[instance] = waiter

    def connecting(self) -> None:
        self._happened("connecting")

    def sending(self) -> None:
        """To an instance; of probes we are not told."""
        self._carrying(_task()).sent = True
        self._happened("sent")

    def failing(self) -> None:
        """There is no connection."""
        self._happened("failing")

    def relayed(self, client: Client, frame: Frame) -> None:
        """A client was handed a frame."""
        if frame.error:
            self._broken("an error is no frame", f"{client}: {frame.error}")

    def requested(self, work: Work) -> None:
        """An instance got a request."""
        before = self._works.get(work.call)
        if before is not None and before.wanted and before in self._working():
            self._broken("one attempt at a time", f"call {work.call} is asked for twice at once")
        self._works[work.call] = work

    def speaking(self, call: int) -> None:
        self._moment(self._clients[call], "spoke")

    def _happened(self, moment: str) -> None:
        self._moment_of(self._carrying(_task()), moment)

    def _moment_of(self, carried: Carried, moment: str) -> None:
        if carried.client is not None:
            self._moment(carried.client, moment)

    def _carrying(self, task: asyncio.Task[object]) -> Carried:
        found = self._carried.get(task)
        if found is None:
            owner = next((one for one in self._clients.values() if one.task is task), None)
            found = self._carried[task] = Carried(owner)
        return found

    # after each turn

    def look(self, pauses: bool) -> None:
        """The loop has turned, and `pauses` until something happens."""
        now = self._loop.time()
        self.looks += 1
        self._turns = self._turns + 1 if now == self._looked_at else 0
        self._looked_at = now
        if self._turns > MAX_TURNS:
            self._broken("time goes on", f"{self._loop.timers()[:2]}")
        if self.problems:
            self._broken("no error is lost", self.problems[0])
        for waiter in self._granted:
            if isinstance(waiter.outcome, Lease):
                self._leases[waiter.outcome] = waiter
        self._granted.clear()
        self._instances.update(dict.fromkeys(self.pool.instances.values()))
        running = self._leases_are_conserved(now)
        self._the_line_is_counted(running)
        for waiter, task in self._line.items():
            if waiter.wants and not waiter.caller.capped and (free := self._free(waiter, now)):
                self._broken("nobody waits for what is free", f"{task.get_name()} waits for {free}")
        self._what_is_open_is_leased(pauses=pauses)
        self._who_may_be_tried_is_fit(now)
        self.judge()

    def judge(self) -> None:
        """Raise the first law that was broken."""
        if self._first is not None:
            raise self._first

    def _leases_are_conserved(self, now: float) -> dict[str, int]:
        """How many calls each caller has running."""
        held: dict[Instance, int] = {}
        draining: dict[Instance, int] = {}
        running: dict[str, int] = {}
        for lease, waiter in list(self._leases.items()):
            if lease.state is LeaseState.HELD:
                held[lease.instance] = held.get(lease.instance, 0) + 1
                running[waiter.caller.name] = running.get(waiter.caller.name, 0) + 1
                self._is_in_good_hands(lease, self._tasks[waiter], now)
            elif lease.state is LeaseState.DRAINING:
                draining[lease.instance] = draining.get(lease.instance, 0) + 1
                if now > lease.drained_at + self._grace + NEAR:
                    self._broken("a drain ends within its grace", lease.instance.name)
            else:
                del self._leases[lease], self._tasks[waiter]
        for instance in self._instances:
            counted, ours = (instance.held, instance.draining), (held.get(instance, 0), draining.get(instance, 0))
            if counted != ours:
                self._broken("leases are conserved", f"{instance.name} counts {counted}, not {ours}")
            models = instance.memory.residents.values()
            if sum(one.running for one in models) > sum(ours):
                self._broken("memory counts what runs", f"{instance.name}: {models}")
            if sum(one.loading for one in models) > 1:
                self._broken("one load at a time", f"{instance.name}: {models}")
        return running

    def _is_in_good_hands(self, lease: Lease, task: asyncio.Task[object], now: float) -> None:
        if task.done():
            self._broken("a lease has an owner", f"{task.get_name()} at {lease.instance.name} is over")
        client = self._carrying(task).client
        if client is None or not client.ask.stream or client.heard:
            return
        limits = client.limits
        if now > lease.granted_at + limits.connect + max(limits.first_token, limits.loading) + GLANCE + NEAR:
            self._broken("no attempt outlasts its limit", f"{task.get_name()} at {lease.instance.name}")

    def _the_line_is_counted(self, running: dict[str, int]) -> None:
        size, callers = 0, {name: (count, 0) for name, count in running.items()}
        for waiter, task in list(self._line.items()):
            if waiter.outcome is not None or task.done():
                del self._line[waiter]
                continue
            size += waiter.size
            runs, waits = callers.get(waiter.caller.name, (0, 0))
            callers[waiter.caller.name] = runs, waits + 1
        pool = self.pool
        if (pool.depth, pool.held_bytes) != (len(self._line), size):
            counted = f"{pool.depth} calls of {pool.held_bytes} bytes, not {len(self._line)} of {size}"
            self._broken("the line is counted", counted)
        counts = {one.name: (one.running, one.waiting) for one in pool.busiest_callers(len(callers) + 1)}
        if counts != callers:
            self._broken("callers are counted", f"{counts}, not {callers}")

    def _free(self, waiter: Waiter, now: float) -> list[str]:
        """Those that could serve it at once: of the lowest tier of which any is fit, with room and the model."""
        fit = self._fit(waiter, now)
        lowest = min((one.tier for one, _ in fit), default=0)
        return [one.instance for one, instance in fit if one.tier == lowest and _could_take(instance, one.model, now)]

    def _fit(self, waiter: Waiter, now: float) -> list[tuple[Candidate, Instance]]:
        """Those of its candidates that could take calls at all."""
        found = ((one, self.pool.instances.get(one.instance)) for one in waiter.ticket.candidates)
        return [
            (one, instance)
            for one, instance in found
            if instance is not None and instance.fit(now, model_key(one.model))
        ]

    def _what_is_open_is_leased(self, *, pauses: bool) -> None:
        asked = sum(work.open for work in self._working())
        held = [waiter for lease, waiter in self._leases.items() if lease.state is LeaseState.HELD]
        if asked > len(held):
            self._broken("what is open is leased", f"{asked} requests, {len(held)} leases")
        flights = sum(self._carrying(self._tasks[waiter]).client is None for waiter in held)
        if pauses and flights:  # one that the last has left ends a turn later
            served = [one for one in self._present.values() if not one.ask.stream and one.task not in self._carried]
            if flights > len(served):
                self._broken("a flight has passengers", f"{flights} flights, {len(served)} calls")

    def _who_may_be_tried_is_fit(self, now: float) -> None:
        for instance in self.pool.instances.values():
            if instance.state(now) == "half_open" and not instance.held and not instance.fit(now):
                self._broken("a trial that is gone gives its turn back", instance.name)

    def _working(self) -> list[Work]:
        return [work for ollama in self._ollamas for work in ollama.works]

    def ended(self, client: Client) -> None:
        """A call is over."""
        self._present.pop(client.ask.number, None)
        if client.record.attempts > self._retry.attempts:
            self._broken("no more attempts than configured", f"{client}: {client.record.attempts}")
        work = self._works.get(client.ask.number)
        for law, words in wrongs(client, work, self._loop.time()):
            self._broken(law, f"{client} {words}")

    # when all is over

    def quiet(self) -> None:
        """No call is under way any more."""
        pool = self.pool
        left = {
            "line": pool.depth,
            "bytes": pool.held_bytes,
            "callers": pool.callers,
            "held": sum(one.held for one in self._instances),
            "requests": sum(work.open for work in self._working()),
            "busy connections": sum(one.busy for one in self.upstreams),
        }
        if any(left.values()):
            self._broken("nothing is left of calls that ended", str(left))
        self.judge()

    def silent(self) -> None:
        """Nor is there anything that time would end."""
        self.quiet()
        left = {
            "draining": sum(one.draining for one in self._instances),
            "demands": len(self.pool.demands()),
            "promises": sum(bool(one.owes) for one in self._instances),
            "connections": sum(len(one.wires) for one in self._ollamas) + sum(one.idle for one in self.upstreams),
            "timers": len(self._loop.timers()),
            "asyncio tasks": len(asyncio.all_tasks()) - 1,
        }
        if any(left.values()):
            words = f"{left}: {self._loop.timers()[:3]}"
            self._broken("nothing is left when time has passed", words)
        self.judge()

    def _broken(self, law: str, words: str) -> None:
        """The first is kept until `look` can raise it, where it is lost in nobody's `except`."""
        self._first = self._first or Broken(law, words, self._loop.time())


def _task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _held(waiter: Waiter) -> bool:
    """Whether it has its lease in hand."""
    lease = waiter.outcome
    return isinstance(lease, Lease) and lease.state is LeaseState.HELD


def _failed(waiter: Waiter) -> bool:
    """Whether its attempt has its verdict; its lease ends in the same breath."""
    lease = waiter.outcome
    return isinstance(lease, Lease) and lease._failed


def _could_take(instance: Instance, model: str, now: float) -> bool:
    """Whether it has room, and holds the model."""
    model = model_key(model)
    if not (instance.available(now) and instance.memory.holds(model)):
        return False
    return not instance.memory.tells or instance.takes(model, now)
