"""Anything may happen to a pool, in any order, on a loop whose time is ours; what it promises holds after every step.

Rules that do not turn the loop leave asyncio tasks between their wake-up and their next step: that is where a grant
meets a cancellation, a limit or a time-out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.call import Candidate, Priority
from gateway.config import Config
from gateway.errors import (
    CallTimeout,
    CapacityError,
    ConnectFailed,
    ConnectionLost,
    DeadlineUnreachable,
    FirstTokenTimeout,
    LineFull,
    LineTimeout,
    NoInstance,
    Refused,
    UpstreamError,
)
from gateway.instances import Contents, Instance, Lease, LeaseState, Placement, Pool, Roster, Ticket, Waiter
from gateway.instances.breaker import Breaker

Settings = dict[str, int]
NAMES = ("alpha", "beta", "gamma")
MODELS = ("m:latest", "n:latest")
CALLERS = ("amy", "bob")
CAP = 3  # calls of one caller at once
SLOW_START = 6.0
ERRORS: tuple[Callable[[str], UpstreamError], ...] = (
    lambda name: ConnectFailed(name, "refused"),
    lambda name: ConnectionLost(name, "reset"),
    lambda name: FirstTokenTimeout(name, "silent"),
    lambda name: Refused(name, 503, "server busy"),
    lambda name: Refused(name, 429, "slow down", retry_after=2.0),
    lambda name: Refused(name, 500, "it broke"),
    lambda name: Refused(name, 500, "CUDA error: out of memory"),
    lambda name: Refused(name, 500, "model runner has unexpectedly stopped"),
    lambda _: CallTimeout(1.0),
)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that turns once when told to, and whose time passes when told to."""

    seconds = 1000.0

    def time(self) -> float:
        return self.seconds

    def turn(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        for _ in range(8):
            self.turn()

    def timers(self) -> list[asyncio.TimerHandle]:
        return [handle for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


@dataclass(eq=False)
class Caller:
    size: int
    task: asyncio.Task[Lease]
    waiter: Waiter | None = None
    cancelled: bool = False


class Watched(Placement):
    """The order, with a look over its shoulder at every grant."""

    grants: list[Waiter]
    now: Callable[[], float]
    jumped: Callable[[], bool]

    def instances(self) -> dict[str, Instance]:
        return {one.name: one for one in self._roster._at if one is not None}

    def wanted(self, waiter: Waiter) -> dict[str, str]:
        """The model it would use on each instance that could serve it now, full or not; told apart from what the
        order itself computes.
        """
        for last_resort in (False, True):
            tiers: dict[int, dict[str, str]] = {}
            for c in waiter.ticket.candidates:
                instance, model = self.instances().get(c.instance), f"{c.model}:latest"
                if instance and self.fit(instance, model, last_resort=last_resort):
                    tiers.setdefault(c.tier, {})[c.instance] = model
            if tiers:
                return tiers[min(tiers)]
        return {}

    def fit(self, instance: Instance, model: str, *, last_resort: bool) -> bool:
        if instance.state(self.now()) in ("down", "drained"):
            return False
        breakers = [one for one in (instance.breaker, instance.breakers.models.get(model)) if one and one.until]
        if any(one._trial is not None for one in breakers):
            return False
        return all(self.now() >= (one.until or 0.0) or (last_resort and not one.hard) for one in breakers)

    def room(self, name: str, model: str) -> bool:
        """Whether it could take a call for a model that it holds."""
        instance = self.instances()[name]
        free = instance.held + instance.draining < instance.allowed(self.now())
        return free and (not instance.memory.tells or instance.takes(model, self.now()))

    def arrives(self, waiter: Waiter, now: float) -> Candidate | None:
        candidate = super().arrives(waiter, now)
        if candidate is not None:
            self.check(waiter, candidate)
        return candidate

    def serves(self, instance: Instance, now: float) -> tuple[Waiter, Candidate] | None:
        turn = super().serves(instance, now)
        if turn is not None:
            assert turn[1].instance == instance.name
            self.check(*turn)
        return turn

    def check(self, waiter: Waiter, candidate: Candidate) -> None:
        model = f"{candidate.model}:latest"
        if not self.jumped():  # else a cool-down may have ended, and its timer not run
            assert self.wanted(waiter)[candidate.instance] == model
        instance = self.instances()[candidate.instance]
        running = instance.held + instance.draining
        assert running < instance.limit, "granted beyond the limit"
        assert running < ramp(instance.breaker, instance.limit, self.now()), "granted beyond its slow start"
        assert not instance.breakers.saturated(self.now()) or running < instance.breakers._most, "granted though busy"
        assert instance.memory.running(model) < instance.slots(model), "granted beyond the model's slots"
        assert model not in instance.gives_up, "granted what is being given up"
        assert waiter.wants
        assert waiter.caller.running < CAP, "granted beyond the caller's cap"
        for other in self.waiting():
            same = (other.caller, other.want, other.priority) == (waiter.caller, waiter.want, waiter.priority)
            assert not (same and other.wants and other.since < waiter.since), "its own caller's earlier call waits"
        self.grants.append(waiter)

    def waiting(self) -> list[Waiter]:
        wants = dict.fromkeys(want for demand in self._demands.values() for want in demand.wants)
        return [waiter for want in wants for level in want._levels for waiter in level._calls]


def ramp(breaker: Breaker, limit: int, now: float) -> float:
    """What a slow start allows, in its own words: one call, and the rest evenly over its time."""
    return limit if breaker.since is None else 1 + 1e-5 + (limit - 1) * (now - breaker.since) / SLOW_START


class Told:
    """What it was told last of each breaker, by the instance that had the name then."""

    def __init__(self, instances: Callable[[], dict[str, Instance]]) -> None:
        self.of: dict[tuple[int, str], str] = {}
        self.instances = instances

    def health_changed(self, instance: str, healthy: bool, why: str) -> None:
        pass

    def breaker_changed(self, instance: str, model: str, state: str, why: str) -> None:
        key = id(self.instances()[instance]), model
        assert self.of.get(key, "closed") != state, "told twice"
        assert why
        self.of[key] = state


def instance_settings(drain: st.SearchStrategy[bool], moved: st.SearchStrategy[bool]) -> st.SearchStrategy[Settings]:
    return st.fixed_dictionaries({"limit": st.integers(1, 3), "drain": drain, "moved": moved})


rarely = st.integers(0, 7).map(lambda number: number == 7)
# Few instances and many callers: what is to be seen happens where there is a line.
first_pools = st.fixed_dictionaries({name: instance_settings(st.just(False), st.just(False)) for name in NAMES[:2]})
later_pools = st.fixed_dictionaries(
    {"alpha": instance_settings(rarely, rarely)},
    optional={name: instance_settings(rarely, rarely) for name in NAMES[1:]},
)
candidates = st.lists(
    st.builds(
        Candidate,
        instance=st.sampled_from(("alpha", "alpha", *NAMES)),
        model=st.sampled_from("mmn"),
        tier=st.sampled_from((0, 0, 1)),
        rank=st.integers(0, 1),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda c: c.instance,
).map(tuple)


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.callers: list[Caller] = []
        self.seen: dict[int, Instance] = {}
        self.jumped = False

    @initialize(pool=first_pools, chance=st.floats(0.0, 0.99))
    def begin(self, pool: dict[str, Settings], chance: float) -> None:
        config = self.config(pool, max_calls=8)

        def order(roster: Roster, config: Config) -> Watched:
            self.order = Watched(roster, config.line, lambda: chance)
            self.order.grants, self.order.now, self.order.jumped = [], self.loop.time, self.late
            return self.order

        self.told = Told(lambda: dict(self.pool.instances))
        self.pool = Pool(
            config,
            now=self.loop.time,
            later=self.loop.call_later,
            random=lambda: chance,
            observer=self.told,
            order=order,
        )
        self.look()

    def config(self, pool: dict[str, Settings], *, max_calls: int) -> Config:
        instances = [
            {
                "name": name,
                "url": f"http://{name}{'-moved' * each['moved']}:11434",
                "max_concurrent": each["limit"],
                "drain": each["drain"],
            }
            for name, each in pool.items()
        ]
        return Config.model_validate(
            {
                "instances": instances,
                "line": {
                    "max_calls": max_calls,
                    "max_calls_per_caller": 6,
                    "max_running_per_caller": CAP,
                    "max_bytes": 500,
                    "drain_grace": 5.0,
                    "hold": 7.0,
                    "ageing": 3.0,
                    "switch_after": 4.0,
                    "keep_loaded": 4.0,
                },
                "breaker": {
                    "failures": 3,
                    "connects": 2,
                    "calls": 6,
                    "window": 20.0,
                    "cooldown": 4.0,
                    "max_cooldown": 10.0,
                    "slow_start": SLOW_START,
                    "busy": 3.0,
                },
                "health": {"fall": 2, "rise": 2},
            }
        )

    def look(self) -> None:
        for instance in self.pool.instances.values():
            self.seen.setdefault(id(instance), instance)

    # What can happen

    @rule(
        wishes=st.lists(candidates, min_size=2, max_size=6),
        patience=st.sampled_from([1.0, 10.0, 100.0, 100.0]),
        owner=st.sampled_from(CALLERS),
        priority=st.sampled_from(Priority),
        late=st.booleans(),
    )
    def arrive(
        self, wishes: list[tuple[Candidate, ...]], patience: float, owner: str, priority: Priority, late: bool
    ) -> None:
        for candidates in wishes:
            size, deadline = 10 * len(self.callers) % 130, self.loop.time() + 5.0 if late else None
            ticket = Ticket(candidates=candidates, size=size, caller=owner, priority=priority, deadline=deadline)
            self.one_arrives(ticket, patience)

    @rule(count=st.integers(2, 6), owner=st.sampled_from(CALLERS), model=st.sampled_from("mn"))
    def a_crowd_arrives_that_all_want_the_same(self, count: int, owner: str, model: str) -> None:
        for _ in range(count):
            self.one_arrives(
                Ticket(candidates=(Candidate(instance="alpha", model=model),), size=1, caller=owner), 100.0
            )

    @rule(owner=st.sampled_from(CALLERS))
    def one_comes_back_that_was_in_line_before(self, owner: str) -> None:
        since = self.loop.time() - 2.0
        self.one_arrives(Ticket(candidates=(Candidate(instance="alpha", model="m"),), caller=owner, since=since), 100.0)

    def one_arrives(self, ticket: Ticket, patience: float) -> None:
        if self.jumped:
            self.turn()  # overdue timers first: what follows looks at one arrival alone
        caller = Caller(ticket.size, self.loop.create_task(self.pool.lease(ticket, patience=patience)))
        before = set(self.pool._line)
        self.callers.append(caller)
        self.turn()
        joined = set(self.pool._line) - before
        assert len(joined) <= 1
        caller.waiter = joined.pop() if joined else None
        assert caller.waiter or caller.task.done(), "a call that does not wait is answered without suspending"

    def pending(self) -> list[Caller]:
        return [caller for caller in self.callers if not caller.task.done()]

    @precondition(lambda self: self.pending())
    @rule(data=st.data())
    def cancel_a_caller(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.pending()))
        caller.cancelled = True
        caller.task.cancel()

    def handed_over(self) -> list[Caller]:
        return [c for c in self.pending() if c.waiter and isinstance(c.waiter.outcome, Lease)]

    @precondition(lambda self: self.handed_over())
    @rule()
    def cancel_all_that_were_granted_and_do_not_know_it(self) -> None:
        for caller in self.handed_over():
            caller.cancelled = True
            caller.task.cancel()

    @rule()
    def turn(self) -> None:
        self.loop.turn()
        self.jumped = False

    def owned(self) -> list[Lease]:
        """Leases their callers have in hand."""
        results = [c.task.result() for c in self.callers if c.task.done() and _granted(c.task)]
        return [lease for lease in results if lease.state is LeaseState.HELD]

    @precondition(lambda self: self.owned())
    @rule(data=st.data(), twice=st.booleans())
    def release(self, data: st.DataObject, twice: bool) -> None:
        with data.draw(st.sampled_from(self.owned())) as lease:
            pass
        if twice:
            lease.release()

    @precondition(lambda self: self.owned())
    @rule(ends=st.sampled_from(("unsent", "left", "answered", *ERRORS)), then=st.sampled_from((0.0, 3.0, 6.0)))
    def all_calls_end_at_once(self, ends: str | Callable[[str], UpstreamError], then: float) -> None:
        for lease in self.owned():
            if ends != "unsent":
                lease.sent()
            if ends == "answered":
                lease.answered()
            if not isinstance(ends, str):
                lease.failed(ends(lease.instance.name))
            lease.release()
        if then:
            self.time_passes(then)

    @precondition(lambda self: self.owned())
    @rule(data=st.data(), answered=st.booleans())
    def a_call_goes_on(self, data: st.DataObject, answered: bool) -> None:
        lease = data.draw(st.sampled_from(self.owned()))
        lease.sent()
        if answered:
            lease.answered()

    @precondition(lambda self: self.owned())
    @rule(data=st.data(), kind=st.sampled_from(ERRORS), leaves=st.booleans())
    def a_call_fails(self, data: st.DataObject, kind: Callable[[str], UpstreamError], leaves: bool) -> None:
        lease = data.draw(st.sampled_from(self.owned()))
        lease.failed(kind(lease.instance.name))
        if leaves:
            lease.release()

    @rule(pool=later_pools, max_calls=st.integers(0, 8))
    def reconcile(self, pool: dict[str, Settings], max_calls: int) -> None:
        before = dict(self.pool.instances)
        self.pool.reconcile(self.config(pool, max_calls=max_calls))
        self.look()
        for name, instance in before.items():
            assert instance.removed is (self.pool.instances.get(name) is not instance)

    @rule(data=st.data(), limit=st.integers(1, 4))
    def only_a_limit_changes(self, data: st.DataObject, limit: int) -> None:
        name = data.draw(st.sampled_from(list(self.pool.instances)))
        config = self.pool._config
        changed = tuple(
            each.model_copy(update={"max_concurrent": limit}) if each.name == name else each
            for each in config.instances
        )
        before = dict(self.pool.instances)
        self.pool.reconcile(config.model_copy(update={"instances": changed}))
        assert dict(self.pool.instances) == before, "a new limit keeps the instance"

    @rule(name=st.sampled_from(NAMES), loaded=st.sets(st.sampled_from(MODELS)), late=st.booleans())
    def an_instance_tells_what_it_holds(self, name: str, loaded: set[str], late: bool) -> None:
        contents = Contents(dict.fromkeys(MODELS, 5), dict.fromkeys(loaded, 7), frozenset(MODELS[1:]))
        self.pool.told(name, contents, self.loop.time() - (2.0 if late else 0.0))

    @rule(name=st.sampled_from(NAMES), ok=st.booleans(), times=st.integers(1, 2))
    def probe(self, name: str, ok: bool, times: int) -> None:
        for _ in range(times):
            self.pool.observe(name, ok, "" if ok else "no answer")

    @rule(seconds=st.sampled_from([1.0, 3.0, 3.0, 6.0, 6.0, 101.0]))
    def some_time_passes(self, seconds: float) -> None:
        self.time_passes(seconds)

    def time_passes(self, seconds: float) -> None:
        """Each timer runs when it is due."""
        end = self.loop.seconds + seconds
        while due := [timer.when() for timer in self.loop.timers() if timer.when() <= end]:
            self.loop.seconds = max(self.loop.seconds, min(due))
            self.loop.settle()
        self.loop.seconds = end
        self.loop.settle()
        self.jumped = False

    def late(self) -> bool:
        """Whether something is due whose timer has not run."""
        return self.jumped or any(when <= self.loop.time() for when, _ in self.pool._due.values())

    @rule(seconds=st.sampled_from([1.0, 1.0, 5.0, 101.0]))
    def time_is_up_but_no_timer_has_run_yet(self, seconds: float) -> None:
        self.loop.seconds += seconds
        self.jumped = True

    # What holds whatever happened

    def leases(self) -> list[Lease]:
        """Every lease ever granted."""
        return [w.outcome for w in self.order.grants if isinstance(w.outcome, Lease)]

    @invariant()
    def every_lease_is_counted_once(self) -> None:
        leases = self.leases()
        assert len(leases) == len(self.order.grants), "granted and then lost"
        for instance in self.seen.values():
            mine = [lease.state for lease in leases if lease.instance is instance]
            assert instance.held == mine.count(LeaseState.HELD)
            assert instance.draining == mine.count(LeaseState.DRAINING)

    @invariant()
    def every_held_lease_has_exactly_one_owner(self) -> None:
        in_hand = self.owned()
        under_way = [c.waiter.outcome for c in self.handed_over() if c.waiter]
        held = [lease for lease in self.leases() if lease.state is LeaseState.HELD]
        assert sorted(map(id, [*in_hand, *under_way])) == sorted(map(id, held))

    @invariant()
    def the_line_holds_exactly_those_who_wait(self) -> None:
        waiting = [c for c in self.pending() if c.waiter and c.waiter.outcome is None]
        assert list(self.pool._line) == [c.waiter for c in waiting]
        assert self.pool.depth == len(waiting)
        assert self.pool.held_bytes == sum(c.size for c in waiting)
        heads = [c.waiter.since for c in waiting if c.waiter]
        assert self.pool.oldest == (self.loop.time() - heads[0] if heads else 0.0)

    @invariant()
    def the_order_keeps_exactly_those_who_wait(self) -> None:
        kept = self.order.waiting()
        assert set(kept) <= set(self.pool._line)
        assert {waiter for waiter in self.pool._line if waiter.wants} <= set(kept)
        for model, demand in self.order._demands.items():
            assert demand.waiting == sum(model in waiter.want.models for waiter in kept)

    @invariant()
    def every_caller_is_counted_exactly(self) -> None:
        running = Counter(w.caller.name for w in self.order.grants if _held(w))
        waiting = Counter(w.caller.name for w in self.pool._line)
        assert {c.name: (c.running, c.waiting) for c in self.pool.busiest_callers(9) if c.running or c.waiting} == {
            name: (running[name], waiting[name]) for name in running.keys() | waiting.keys()
        }

    @invariant()
    def memory_counts_what_runs(self) -> None:
        for instance in self.seen.values():
            mine = [one for one in self.leases() if one.instance is instance and one.state is not LeaseState.FREE]
            running = Counter(lease.model for lease in mine)
            for model, resident in instance.memory.residents.items():
                assert resident.running <= running[model]
                assert not resident.loading or resident.running

    @invariant()
    def nobody_waits_for_what_is_free_or_for_what_cannot_come(self) -> None:
        for waiter in [] if self.jumped else [one for one in self.pool._line if one.wants]:
            wanted, names = self.order.wanted(waiter), {c.instance for c in waiter.ticket.candidates}
            awaited = [
                one for one in self.pool.instances.values() if one.name in names and one.awaited(self.loop.time())
            ]
            assert wanted or awaited, "waits in vain"
            if waiter.caller.running < CAP:
                free = [name for name, model in wanted.items() if self.ready(name, model)]
                assert not free, "waits although there is room where its model is"

    def ready(self, name: str, model: str) -> bool:
        return self.pool.instances[name].memory.holds(model) and self.order.room(name, model)

    @invariant()
    def a_promise_is_kept_or_taken_back(self) -> None:
        promised = {demand.promised.name for demand in self.order._demands.values() if demand.promised}
        owing = {one.name for one in self.pool.instances.values() if one.owes}
        assert owing <= promised
        for demand in self.order._demands.values():
            assert demand.promised is None or demand.promised.owes == demand.model

    @invariant()
    def a_load_that_is_waited_for_is_looked_for_again(self) -> None:
        for _, _, places in self.order._homeless():
            assert self.order.alarm() is not None or any(one.owes for one in self.pool._roster.within(places))

    @invariant()
    def a_trial_is_a_call_under_way(self) -> None:
        for instance in self.seen.values():
            for model, breaker in (("", instance.breaker), *instance.breakers.models.items()):
                trial = breaker._trial
                assert trial is None or (isinstance(trial, Lease) and trial.state is LeaseState.HELD)
                assert trial is None or trial.model == (model or trial.model)

    @invariant()
    def who_may_be_asked_is_known_to_the_roster(self) -> None:
        if self.jumped:
            return
        roster, now = self.pool._roster, self.loop.time()
        for instance in self.pool.instances.values():
            for model in MODELS:
                for places, last_resort in ((roster.sound(model), False), (roster.last_resort(model), True)):
                    fit = self.order.fit(instance, model, last_resort=last_resort)
                    assert bool(places >> instance.place & 1) is fit, (instance.name, instance.state(now))

    @invariant()
    def what_is_told_of_breakers_is_how_they_are(self) -> None:
        for instance in [] if self.jumped else self.pool.instances.values():
            for model, breaker in (("", instance.breaker), *instance.breakers.models.items()):
                told = self.told.of.get((id(instance), model), "closed")
                assert told == breaker.state_at(self.loop.time())

    @invariant()
    def each_instance_has_at_most_one_timer_of_its_own(self) -> None:
        due = [timer for timer in self.loop.timers() if "_look_again" in repr(timer._callback)]  # type: ignore[attr-defined]
        assert len(due) == len(self.pool._due) <= len(self.pool.instances)

    @invariant()
    def every_drain_has_exactly_one_timer(self) -> None:
        callbacks = [getattr(timer._callback, "__name__", "") for timer in self.loop.timers()]  # type: ignore[attr-defined]
        assert callbacks.count("_end_of_grace") == sum(instance.draining for instance in self.seen.values())

    @invariant()
    def a_caller_gets_a_lease_or_a_word_why_not(self) -> None:
        for caller in self.callers:
            if caller.task.done() and not caller.task.cancelled() and (error := caller.task.exception()):
                assert isinstance(error, LineFull | LineTimeout | NoInstance | DeadlineUnreachable)
                assert isinstance(error, CapacityError)
                assert 1.0 <= (error.retry_after or 0.0) <= 30.0
            assert not caller.task.done() or caller.task.cancelled() is caller.cancelled

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.wind_down()
        finally:
            self.loop.close()

    def wind_down(self) -> None:
        """When everybody has gone and time has passed, nothing is left: no lease, no place in line, no timer."""
        while self.pending() or self.owned():
            for caller in self.pending():
                caller.cancelled = True
                caller.task.cancel()
            for lease in self.owned():
                lease.release()
            self.loop.turn()
        for _ in range(8):
            self.loop.seconds += 20.0
            self.loop.settle()
        self.jumped = False
        self.every_lease_is_counted_once()
        self.the_line_holds_exactly_those_who_wait()
        assert not self.order.waiting()
        assert not any(one.owes for one in self.pool.instances.values())
        assert all(lease.state is LeaseState.FREE for lease in self.leases())
        assert (self.pool.depth, self.pool.held_bytes, self.pool.oldest) == (0, 0, 0.0)
        assert self.loop.timers() == []


def _held(waiter: Waiter) -> bool:
    return isinstance(waiter.outcome, Lease) and waiter.outcome.state is LeaseState.HELD


def _granted(task: asyncio.Task[Lease]) -> bool:
    return not task.cancelled() and task.exception() is None


@pytest.mark.drawn
def test_anything_in_any_order() -> None:
    run_state_machine_as_test(PoolMachine, settings=settings(max_examples=150, stateful_step_count=80, deadline=None))
