"""The instances as bits of whole numbers, so that a question about a thousand of them is one step, not a thousand.

An instance has one bit while it is in the pool. `fit`, `able`, `room`, `homes` and `ready` are sets of instances in
this form, brought up to date by `update`, the one place that writes them; they say nothing that an `Instance` would
not say.

Who may be asked for what changes rarely, and each time `version` goes up: what is derived from it can be kept until
then (`Want.tier`). Of those that may be asked, `homes` and `ready` tell who is right for a call now.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from gateway.instances.instance import OUT, Instance, Standing

T = TypeVar("T")

MAX_LOST = 1024  # models that nobody holds, of which it is known since when


def each(mask: int) -> Iterator[int]:
    """The places of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(slots=True)
class Noted:
    """What an instance was entered with. `plain`: nothing kept it from calls for any model it holds but its load."""

    load: float
    room: bool
    models: tuple[str, ...]
    tells: bool
    plain: bool


class Roster:
    """All instances of the pool. `fit` could take calls as usual, `able` at least one as a last resort; `room`, of
    these, can take one more now.
    """

    def __init__(self) -> None:
        self.version = 0
        self.losses = 0  # goes up whenever one of them no longer holds a model that it held
        self.fit = 0
        self.able = 0
        self.room = 0
        self._mute = 0  # able, and holding whatever is asked for, as they tell nothing
        self._cooling: dict[str, int] = {}  # model -> where it is only a last resort
        self._barred: dict[str, int] = {}  # model -> where it is not even that
        self._standings: dict[int, Standing] = {}  # place -> as last noted
        self._at: list[Instance | None] = []
        self._free: list[int] = []
        self._places: dict[str, int] = {}
        self._homes: defaultdict[str, int] = defaultdict(int)
        self._ready: defaultdict[str, int] = defaultdict(int)
        self._levels: defaultdict[float, int] = defaultdict(int)
        self._lost: OrderedDict[str, float] = OrderedDict()
        self._noted: dict[int, Noted] = {}  # by place

    def add(self, instance: Instance, now: float) -> None:
        if self._free:
            place = self._free.pop()
            self._at[place] = instance
        else:
            place = len(self._at)
            self._at.append(instance)
        self._places[instance.name] = place
        instance.place = place
        self.update(instance, now)

    def remove(self, instance: Instance) -> None:
        place = self._places.pop(instance.name)
        self._strike(place)
        self._stand(place, self._standings.pop(place, OUT), OUT)
        self._at[place] = None
        self._free.append(place)
        instance.place = -1

    def place(self, name: str) -> int | None:
        """Where the instance of this name stands."""
        return self._places.get(name)

    def at(self, place: int) -> Instance:
        """The instance whose bit is at `place`."""
        found = self._at[place]
        assert found is not None  # noqa: S101 - masks hold only bits of instances that are there
        return found

    def within(self, places: int | Iterable[int]) -> Iterator[Instance]:
        """The instances of a mask, or at these places."""
        return (self.at(place) for place in (each(places) if isinstance(places, int) else places))

    def sound(self, model: str) -> int:
        """Those that take calls for `model` as usual."""
        return self.fit & ~self._cooling.get(model, 0)

    def last_resort(self, model: str) -> int:
        """Those, and where there are none, of which one call for it may be asked all the same."""
        return self.able & ~self._barred.get(model, 0)

    def homes(self, model: str) -> int:
        """Those able that hold `model`, or are about to."""
        return self.able if model.endswith("@cloud") else self._homes.get(model, 0) | self._mute

    def lost(self, model: str) -> float:
        """Loop time when the last instance that held `model` lost it; 0.0 where none did."""
        return self._lost.get(model, 0.0)

    def ready(self, model: str) -> int:
        """Those of them that can take a call for it now."""
        if model.endswith("@cloud"):
            return self.room
        return self._ready.get(model, 0) | (self._mute & self.room)

    def levels(self, mask: int) -> Iterator[tuple[float, int]]:
        """Those of `mask` that have room, by how full they are, the emptiest first."""
        for load in sorted(self._levels):
            if found := self._levels[load] & mask:
                yield load, found

    def update(self, instance: Instance, now: float) -> None:
        """Note how `instance` stands now. Does nothing for one that left the pool."""
        place = instance.place
        if place < 0 or self._is_as_noted_but_for_its_load(instance, place):
            return
        mute, held = self._mute, self._strike(place)
        standing, noted = instance.standing(now), self._standings.get(place, OUT)
        if standing is not noted and standing != noted:
            self._stand(place, noted, standing)
            self._standings[place] = standing
        if standing.able:
            self._enter(instance, place, now)
        if mute & ~self._mute:
            self.losses += 1  # it held everything
        for model in held:
            left = self._homes.get(model, 0)
            if not left >> place & 1:
                self.losses += 1
            if not left:
                self._miss(model, now)

    def _is_as_noted_but_for_its_load(self, instance: Instance, place: int) -> bool:
        """So it is with most calls that begin or end; then that is all there is to note."""
        noted, memory = self._noted.get(place), instance.memory
        if noted is None or not noted.plain or not _plain(instance):
            return False
        in_use, limit = instance.in_use, instance.limit
        if noted.room != (in_use < limit) or noted.tells != memory.tells or noted.models != tuple(memory.residents):
            return False
        load = in_use / limit
        if noted.room and load != noted.load:
            bit = 1 << place
            _take_out(self._levels, noted.load, ~bit)
            self._levels[load] |= bit
            noted.load = load
        return True

    def _enter(self, instance: Instance, place: int, now: float) -> None:
        bit = 1 << place
        room = instance.in_use < instance.allowed(now)
        load, memory = instance.load, instance.memory
        if room:
            self.room |= bit
            self._levels[load] |= bit
        if not memory.tells:
            self._mute |= bit
        for model in memory.residents:
            self._homes[model] |= bit
            if room and instance.takes(model, now):
                self._ready[model] |= bit
        self._noted[place] = Noted(load, room, tuple(memory.residents), memory.tells, _plain(instance))

    def _stand(self, place: int, before: Standing, after: Standing) -> None:
        """Note what may be asked of it from now on."""
        self.version += 1
        bit, others = 1 << place, ~(1 << place)
        self.fit = self.fit | bit if after.fit else self.fit & others
        self.able = self.able | bit if after.able else self.able & others
        for masks, gone, come in (
            (self._cooling, before.cooling, after.cooling),
            (self._barred, before.barred, after.barred),
        ):
            for model in gone:
                _take_out(masks, model, others)
            for model in come:
                masks[model] = masks.get(model, 0) | bit

    def _strike(self, place: int) -> tuple[str, ...]:
        """Take it out of everything; the models it was noted to hold."""
        noted = self._noted.pop(place, None)
        if noted is None:
            return ()
        others = ~(1 << place)
        self.room &= others
        self._mute &= others
        _take_out(self._levels, noted.load, others)
        for model in noted.models:
            _take_out(self._homes, model, others)
            _take_out(self._ready, model, others)
        return noted.models

    def _miss(self, model: str, now: float) -> None:
        self._lost[model] = now
        self._lost.move_to_end(model)
        if len(self._lost) > MAX_LOST:
            self._lost.popitem(last=False)


def _plain(instance: Instance) -> bool:
    """Whether it takes calls for all it holds as long as it has room at all."""
    no_limits = instance.config.max_per_model is None and not instance.memory.one_at_a_time
    return no_limits and not instance.gives_up and instance.breakers.calm and instance.up


def _take_out(masks: dict[T, int], key: T, others: int) -> None:
    if rest := masks.get(key, 0) & others:
        masks[key] = rest
    else:
        masks.pop(key, None)
