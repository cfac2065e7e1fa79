"""The masks of the roster say what a plain loop over the instances says, whatever happened and in what order."""

from __future__ import annotations

from collections.abc import Callable

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

from gateway.call import Candidate
from gateway.config import Config
from gateway.errors import ConnectionLost
from gateway.instances.instance import Clock, Instance, Lease
from gateway.instances.memory import Contents
from gateway.instances.roster import MAX_LOST, Roster, each

MODELS = ("m:latest", "n:latest", "o:latest", "c:latest@cloud")
NAMES = ("alpha", "beta", "gamma", "delta")
NONE: frozenset[str] = frozenset()


def a_config(name: str = "alpha", limit: int = 2, per_model: int | None = None, *, drain: bool = False) -> Config:
    one = {
        "name": name,
        "url": f"http://{name}:11434",
        "max_concurrent": limit,
        "max_per_model": per_model,
        "drain": drain,
    }
    return Config.model_validate(
        {"instances": [one], "health": {"fall": 1, "rise": 1}, "breaker": {"failures": 1, "cooldown": 10}}
    )


def an_instance(name: str = "alpha", limit: int = 2, per_model: int | None = None) -> Instance:
    config = a_config(name, limit, per_model)
    return Instance(config.instances[0], config, lambda: 0.5)


def contents(*loaded: str, one_at_a_time: frozenset[str] = NONE) -> Contents:
    return Contents({}, dict.fromkeys(loaded, 10), one_at_a_time)


class NoTimer:
    def cancel(self) -> None: ...


class World:
    """A roster and its instances, at a time of ours. Every change is followed by an update, as the pool does it."""

    def __init__(self) -> None:
        self.roster = Roster()
        self.instances: list[Instance] = []
        self.leases: list[Lease] = []
        self.graces: list[tuple[Lease, Callable[[], None]]] = []
        self.now = 0.0

    def add(self, instance: Instance) -> Instance:
        self.instances.append(instance)
        self.roster.add(instance, self.now)
        return instance

    def remove(self, instance: Instance) -> None:
        self.instances.remove(instance)
        instance.removed = True
        self.roster.remove(instance)

    def update(self, instance: Instance) -> None:
        self.roster.update(instance, self.now)

    def lease(self, instance: Instance, model: str = MODELS[0]) -> Lease:
        candidate = Candidate(instance=instance.name, model=model.removesuffix(":latest"))
        lease = Lease(
            instance,
            candidate,
            since=self.now,
            now=self.now,
            clock=Clock(lambda: self.now, lambda _, __: NoTimer()),
            changed=lambda lease: self.update(lease.instance),
        )
        self.leases.append(lease)
        self.update(instance)
        return lease

    def names(self, mask: int) -> set[str]:
        return {instance.name for instance in self.roster.within(mask)}

    def look(self) -> None:
        """What the masks say is what every instance says of itself."""
        roster, now = self.roster, self.now
        fit = [one for one in self.instances if one.fit(now)]
        able = [one for one in self.instances if one.up and one.breaker.allows(now, last_resort=True)]
        room = [one for one in able if one.in_use < one.allowed(now)]
        assert self.names(roster.fit) == {one.name for one in fit}
        assert self.names(roster.able) == {one.name for one in able}
        assert self.names(roster.room) == {one.name for one in room}
        assert self.names(roster.room) == {one.name for one in self.instances if one.available(now)}
        for model in MODELS:
            homes = {one.name for one in able if one.memory.holds(model)}
            ready = {one.name for one in room if one.memory.holds(model) and one.takes(model, now)}
            sound = {one.name for one in fit if one.fit(now, model)}
            last = {one.name for one in able if model not in one.breakers.closed_to(now, last_resort=True)}
            assert self.names(roster.sound(model)) == sound
            assert self.names(roster.last_resort(model)) == last
            assert self.names(roster.homes(model)) == homes
            assert self.names(roster.ready(model)) == ready
        for some in (roster.room, roster.able, roster.ready(MODELS[0])):
            levels = list(roster.levels(some))
            assert [load for load, _ in levels] == sorted({one.load for one in room if some >> one.place & 1})
            for load, places in levels:
                assert self.names(places) == {one.name for one in room if some >> one.place & 1 and one.load == load}
        self.look_for_leftovers()

    def look_for_leftovers(self) -> None:
        roster = self.roster
        everywhere = sum(1 << one.place for one in self.instances)
        masks = [roster.fit, roster.able, roster.room, roster._mute]
        for kept in (roster._homes, roster._ready, roster._levels, roster._cooling, roster._barred):
            assert 0 not in kept.values()
            masks += kept.values()
        assert not any(mask & ~everywhere for mask in masks)
        assert set(roster._noted) == set(each(roster.able))
        assert set(roster._standings) <= set(each(everywhere))
        assert roster._places == {one.name: one.place for one in self.instances}
        assert sorted([*roster._free, *roster._places.values()]) == list(range(len(roster._at)))


def test_the_places_of_a_mask_are_its_bits() -> None:
    assert list(each(0)) == []
    assert list(each(0b1011 | 1 << 900)) == [0, 1, 3, 900]


def test_an_instance_has_a_place_while_it_is_in() -> None:
    world = World()
    alpha, beta = world.add(an_instance("alpha")), world.add(an_instance("beta"))
    assert [world.roster.place(name) for name in ("alpha", "beta", "gamma")] == [0, 1, None]
    assert world.roster.at(1) is beta
    assert list(world.roster.within(0b11)) == list(world.roster.within([0, 1])) == [alpha, beta]


def test_a_place_is_used_again() -> None:
    world = World()
    first = world.add(an_instance("alpha"))
    world.add(an_instance("beta"))
    for name in ("gamma", "delta", "alpha"):
        world.remove(first)
        assert first.place == -1
        first = world.add(an_instance(name))
        assert first.place == 0
    assert len(world.roster._at) == 2


@pytest.mark.parametrize("tells", [True, False])
def test_one_that_left_leaves_nothing_behind(*, tells: bool) -> None:
    world = World()
    alpha = world.add(an_instance())
    if tells:
        alpha.memory.told(contents(*MODELS[:2]), asked=0.0, now=0.0)
    world.lease(alpha)
    world.roster.remove(alpha)
    world.update(alpha)  # a late word of it changes nothing
    roster = world.roster
    assert (roster.fit, roster.room, roster._mute) == (0, 0, 0)
    assert not any((roster._homes, roster._ready, roster._levels, roster._noted, roster._places))


def test_one_that_took_the_place_of_another_has_nothing_of_it() -> None:
    world = World()
    alpha = world.add(an_instance())
    alpha.memory.told(contents("m:latest"), asked=0.0, now=0.0)
    world.update(alpha)
    world.remove(alpha)
    beta = an_instance("beta")
    beta.memory.told(contents("n:latest"), asked=0.0, now=0.0)
    world.add(beta)
    assert (world.roster.homes("m:latest"), world.roster.homes("n:latest")) == (0, 0b1)


def test_how_full_they_are_is_told_of_those_asked_for_alone() -> None:
    world = World()
    busy, idle = (world.add(an_instance(name)) for name in ("busy", "idle"))
    world.lease(busy)
    told = [(load, world.names(mask)) for load, mask in world.roster.levels(1 << busy.place)]
    assert told == [(busy.load, {"busy"})]
    assert idle.load < busy.load


def test_asking_for_what_nobody_has_keeps_nothing() -> None:
    world = World()
    alpha = world.add(an_instance())
    alpha.memory.told(contents("m:latest"), asked=0.0, now=0.0)
    world.update(alpha)
    for n in range(100):
        assert world.roster.homes(f"x{n}:latest") == world.roster.ready(f"x{n}:latest") == 0
    assert list(world.roster._homes) == list(world.roster._ready) == ["m:latest"]


def test_of_models_that_nobody_holds_any_more_it_knows_only_the_last_thousand() -> None:
    world = World()
    alpha = world.add(an_instance())
    for number in range(MAX_LOST + 2):
        alpha.memory.told(contents(f"m{number}:latest"), asked=world.now, now=world.now)
        world.now += 1.0
        world.update(alpha)
    assert [world.roster.lost(f"m{number}:latest") for number in (0, 1, 2)] == [0.0, 3.0, 4.0]
    assert len(world.roster._lost) == MAX_LOST


def test_one_that_tells_nothing_is_a_home_of_every_model_and_ready_while_it_has_room() -> None:
    world = World()
    alpha = world.add(an_instance(limit=1))
    assert world.roster.homes("any:latest") == world.roster.ready("any:latest") == 0b1
    world.lease(alpha)
    assert (world.roster.homes("any:latest"), world.roster.ready("any:latest")) == (0b1, 0)


def test_a_model_of_the_cloud_is_at_home_wherever_a_call_may_go() -> None:
    world = World()
    alpha, beta = world.add(an_instance("alpha", 1)), world.add(an_instance("beta", 1))
    for one in (alpha, beta):
        one.memory.told(contents("m:latest"), asked=0.0, now=0.0)
        world.update(one)
    world.lease(alpha)
    assert (world.roster.homes(MODELS[-1]), world.roster.ready(MODELS[-1])) == (0b11, 0b10)


def test_an_instance_is_not_ready_for_a_model_whose_slots_are_taken_or_that_it_gives_up() -> None:
    world = World()
    alpha = world.add(an_instance(limit=4, per_model=1))
    alpha.memory.told(contents("m:latest", "n:latest"), asked=0.0, now=0.0)
    world.lease(alpha, "m:latest")
    assert (world.roster.ready("m:latest"), world.roster.ready("n:latest")) == (0, 0b1)
    alpha.owe("o:latest", frozenset({"n:latest"}))
    world.update(alpha)
    assert (world.roster.homes("n:latest"), world.roster.ready("n:latest")) == (0b1, 0)


class RosterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def some(self, data: st.DataObject) -> Instance:
        return data.draw(st.sampled_from(self.world.instances))

    @initialize(limit=st.integers(1, 3))
    def first(self, limit: int) -> None:
        self.world.add(an_instance("alpha", limit))

    @precondition(lambda self: len(self.world.instances) < len(NAMES))
    @rule(data=st.data(), limit=st.integers(1, 3), per_model=st.sampled_from([None, 1]))
    def add(self, data: st.DataObject, limit: int, per_model: int | None) -> None:
        taken = {one.name for one in self.world.instances}
        self.world.add(an_instance(data.draw(st.sampled_from([n for n in NAMES if n not in taken])), limit, per_model))

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.world.remove(self.some(data))

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data(), limit=st.integers(1, 3), drain=st.booleans())
    def configure(self, data: st.DataObject, limit: int, *, drain: bool) -> None:
        one = self.some(data)
        config = a_config(one.name, limit, drain=drain)
        one.configure(config.instances[0], config)
        self.world.update(one)

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data(), ok=st.booleans())
    def is_probed(self, data: st.DataObject, *, ok: bool) -> None:
        one = self.some(data)
        if one.observe(ok, "") and not ok:
            one.memory.clear()
        self.world.update(one)

    @precondition(lambda self: self.world.instances)
    @rule(
        data=st.data(),
        loaded=st.sets(st.sampled_from(MODELS[:3])),
        slow=st.sets(st.sampled_from(MODELS[:3])),
        ago=st.sampled_from([0.0, 1.0]),
    )
    def tells(self, data: st.DataObject, loaded: set[str], slow: set[str], ago: float) -> None:
        one = self.some(data)
        told = contents(*sorted(loaded), one_at_a_time=frozenset(slow))
        one.memory.told(told, asked=self.world.now - ago, now=self.world.now)
        self.world.update(one)

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data(), model=st.sampled_from(MODELS), gives_up=st.sets(st.sampled_from(MODELS[:3])))
    def owes(self, data: st.DataObject, model: str, gives_up: set[str]) -> None:
        one = self.some(data)
        if one.memory.tells:
            one.owe(model, frozenset(gives_up))
            self.world.update(one)

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data(), model=st.sampled_from(MODELS))
    def takes_a_call(self, data: st.DataObject, model: str) -> None:
        one = self.some(data)
        if one.available(self.world.now):
            self.world.lease(one, model)

    @precondition(lambda self: self.world.leases)
    @rule(data=st.data(), how=st.sampled_from(["sent", "answered", "failed", "released"]))
    def a_call_goes_on(self, data: st.DataObject, how: str) -> None:
        lease = data.draw(st.sampled_from(self.world.leases))
        if how == "sent":
            lease.sent()
        elif how == "answered":
            lease.sent()
            lease.answered()
        elif how == "failed":
            lease.failed(ConnectionLost(lease.instance.name, "reset"))
        else:
            lease.release()
            self.world.leases.remove(lease)

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        for one in self.world.instances:
            for lease in list(one.drains):
                lease.end_drain()
            self.world.update(one)

    @invariant()
    def the_masks_say_what_the_instances_say(self) -> None:
        self.world.look()


@pytest.mark.drawn
def test_the_masks_are_right_after_anything_in_any_order() -> None:
    run_state_machine_as_test(RosterMachine, settings=settings(max_examples=120, stateful_step_count=40, deadline=None))
