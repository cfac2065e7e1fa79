"""The instances as bits of whole numbers, so that a question about a thousand of them is one step, not a thousand.

An instance has one bit while it is in the pool. `fit`, `room`, `homes` and `ready` are sets of instances in this form,
brought up to date by `update`, the one place that writes them; they say nothing that an `Instance` would not say.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

from gateway.instances.instance import Instance

T = TypeVar("T")

MAX_LOST = 1024  # models that nobody holds, of which it is known since when


def each(mask: int) -> Iterator[int]:
    """The places of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Roster:
    """All instances of the pool. `fit` could take calls at all, `room` can take one more now."""

    def __init__(self) -> None:
        self.fit = 0
        self.room = 0
        self._mute = 0  # fit, and holding whatever is asked for, as they tell nothing
        self._at: list[Instance | None] = []
        self._free: list[int] = []
        self._places: dict[str, int] = {}
        self._homes: defaultdict[str, int] = defaultdict(int)
        self._ready: defaultdict[str, int] = defaultdict(int)
        self._levels: defaultdict[float, int] = defaultdict(int)
        self._lost: OrderedDict[str, float] = OrderedDict()
        self._noted: dict[int, tuple[float, tuple[str, ...]]] = {}  # place -> (load, models) as last noted

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

    def homes(self, model: str) -> int:
        """The fit instances that hold `model`, or are about to."""
        return self.fit if model.endswith("@cloud") else self._homes.get(model, 0) | self._mute

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
        if place < 0:
            return
        held = self._strike(place)
        if instance.fit(now):
            self._enter(instance, place)
        for model in held:
            if model not in self._homes:
                self._miss(model, now)

    def _enter(self, instance: Instance, place: int) -> None:
        bit = 1 << place
        room = instance.in_use < instance.limit
        self.fit |= bit
        load, memory = instance.load, instance.memory
        if room:
            self.room |= bit
            self._levels[load] |= bit
        if not memory.tells:
            self._mute |= bit
        for model in memory.residents:
            self._homes[model] |= bit
            if room and instance.takes(model):
                self._ready[model] |= bit
        self._noted[place] = load, tuple(memory.residents)

    def _strike(self, place: int) -> tuple[str, ...]:
        """Take it out of everything; the models it was noted to hold."""
        noted = self._noted.pop(place, None)
        if noted is None:
            return ()
        others = ~(1 << place)
        self.fit &= others
        self.room &= others
        self._mute &= others
        load, models = noted
        _take_out(self._levels, load, others)
        for model in models:
            _take_out(self._homes, model, others)
            _take_out(self._ready, model, others)
        return models

    def _miss(self, model: str, now: float) -> None:
        self._lost[model] = now
        self._lost.move_to_end(model)
        if len(self._lost) > MAX_LOST:
            self._lost.popitem(last=False)


def _take_out(masks: dict[T, int], key: T, others: int) -> None:
    if rest := masks.get(key, 0) & others:
        masks[key] = rest
    else:
        masks.pop(key, None)
