"""Which models an instance holds in memory, as far as we know: told by `/api/ps`, kept by our own books in between.

Ollama tells late and not everything: a model on its way in is not listed, and nothing says what would still fit
(ollama.md §6.4-6.5). So what fits is learned: most that was seen together fits; what pushed another model out does not.
An instance without Ollama's own API tells nothing, and counts as holding whatever it is asked for (design: D4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

USUAL_LOAD = 8.0  # seconds, until one was seen
USUAL_SERVICE = 5.0
USUAL_FIRST_TOKEN = 2.0
MAX_TIMES = 256  # models whose times are kept, for each instance


class Average:
    """A moving average: each new value weighs a fifth. None until the first."""

    def __init__(self) -> None:
        self.value: float | None = None

    def see(self, value: float) -> None:
        self.value = value if self.value is None else self.value + 0.2 * (value - self.value)

    def known(self, otherwise: float) -> float:
        return otherwise if self.value is None else self.value


class Times:
    """Moving averages in seconds: `service` from grant to release of answered calls that found the model loaded,
    `first_token` from sending to the first token of those, `load` what it took longer where it was not."""

    def __init__(self) -> None:
        self.service = Average()
        self.first_token = Average()
        self.load = Average()


class Contents(NamedTuple):
    """What an instance tells of its models, by `model_key`. `loaded` is None where it does not tell."""

    installed: Mapping[str, int]  # bytes on disk
    loaded: Mapping[str, int] | None  # bytes in memory
    one_at_a_time: frozenset[str] = frozenset()  # served so by Ollama whatever its OLLAMA_NUM_PARALLEL


@dataclass(slots=True)
class Resident:
    """A model in memory, or on its way there."""

    size: int
    since: float  # loop time when it came
    used: float
    running: int = 0  # calls of ours, those that drain included
    loading: bool = False


@dataclass(slots=True)
class Memory:
    """The models of one instance. `tells` is False until it has told what is loaded, and for ever where it does not."""

    residents: dict[str, Resident] = field(default_factory=dict)
    tells: bool = False
    one_at_a_time: frozenset[str] = frozenset()
    most: int = 0  # bytes that were seen together
    too_much: int | None = None  # bytes that did not fit; None until something was pushed out
    changed: float = 0.0  # loop time of the last load
    _installed: Mapping[str, int] = field(default_factory=dict)
    _came: set[str] = field(default_factory=set)  # since the last listing
    _times: dict[str, Times] = field(default_factory=dict)
    overall: Times = field(default_factory=Times)

    def holds(self, model: str) -> bool:
        """Whether a call for it would not have to load it. Models of the cloud are nobody's to load (ollama.md §5)."""
        return not self.tells or model in self.residents or model.endswith("@cloud")

    @property
    def loading(self) -> bool:
        return any(one.loading for one in self.residents.values())

    @property
    def last_use(self) -> float:
        """Loop time when what it holds was last used; 0.0 where it holds nothing."""
        return max((one.used for one in self.residents.values()), default=0.0)

    def running(self, model: str) -> int:
        found = self.residents.get(model)
        return found.running if found else 0

    def size(self, model: str) -> int:
        """Bytes it takes, as told; 1 where nothing is known, so that models are counted instead."""
        found = self.residents.get(model)
        return (found.size if found else 0) or self._installed.get(model, 0) or 1

    def fits(self, model: str, without: frozenset[str] = frozenset()) -> bool:
        """Whether it would fit beside what is there, less `without`. What was never tried is taken to fit."""
        there = sum(self.size(name) for name in self.residents if name not in without)
        total = there + self.size(model)
        return not there or total <= self.most or self.too_much is None or total < self.too_much

    def idle(self) -> Iterator[str]:
        return (name for name, one in self.residents.items() if not one.running)

    def begin(self, model: str, now: float) -> bool:
        """A call for `model` was granted; True where that loads it, or is part of its loading."""
        if not self.tells or model.endswith("@cloud"):
            return False
        found = self.residents.get(model)
        if found is None:
            found = self.residents[model] = Resident(self.size(model), since=now, used=now, loading=True)
            self.changed = now
            self._came.add(model)
        found.running += 1
        found.used = now
        return found.loading

    def answered(self, model: str) -> None:
        """A call for it was answered: it is there."""
        if found := self.residents.get(model):
            found.loading = False

    def spoke(self, model: str, seconds: float, *, cold: bool) -> None:
        """Its first token came `seconds` after a call was sent."""
        if cold:
            own = self._times.get(model)
            seconds -= _known(own.first_token if own else None, self.overall.first_token, 0.0)
            for times in (self.times(model), self.overall):
                times.load.see(max(0.0, seconds))
        else:
            for times in (self.times(model), self.overall):
                times.first_token.see(seconds)

    def served(self, model: str, seconds: float, *, cold: bool) -> None:
        """A call for it ended well, `seconds` after its grant. What a whole answer took longer than usual was the load;
        all of it counts while nothing is known of what is usual.
        """
        for times in (self.times(model), self.overall):
            if not cold:
                times.service.see(seconds)
            elif times.load.value is None:
                times.load.see(max(0.0, seconds - times.service.known(0.0)))

    def end(self, model: str, now: float) -> None:
        """A call for it is over. A load whose calls all ended without a word was given up (ollama.md §4.6)."""
        found = self.residents.get(model)
        if found is None:
            return
        found.running = max(0, found.running - 1)
        found.used = now
        if found.loading and not found.running:
            self.forget(model)

    def forget(self, model: str) -> None:
        """It is there no longer."""
        self.residents.pop(model, None)
        self._came.discard(model)

    def clear(self) -> None:
        """The instance was away: whatever comes back holds nothing until it tells."""
        for name in list(self.idle()):
            self.forget(name)

    def told(self, contents: Contents, *, asked: float, now: float) -> None:
        """Take what it tells; `asked` is when it was asked, so that an answer older than a load does not undo it."""
        self._installed, self.one_at_a_time = contents.installed, contents.one_at_a_time
        if contents.loaded is None:
            return
        self.tells = True
        wanted = {name: self.size(name) for name, one in self.residents.items() if one.since < asked}
        gone = [name for name, one in self.residents.items() if name not in contents.loaded and _stale(one, asked)]
        for name in gone:
            del self.residents[name]
        for name, size in contents.loaded.items():
            found = self.residents.get(name)
            if found is None:
                self.residents[name] = Resident(size, since=now, used=now)
            elif not found.loading:
                found.size = size or found.size
        came = {name: self.residents[name] for name in self._came if name in self.residents}
        if gone and any(one.since < asked for one in came.values()):  # what pushed another out is still there
            wanted.update((name, self.size(name)) for name in contents.loaded)
            self.too_much = min(self.too_much or sum(wanted.values()), sum(wanted.values()))
        self._came = {name for name, one in came.items() if one.loading or one.since >= asked}
        self._saw(contents.loaded)

    def _saw(self, together: Iterable[str]) -> None:
        """These were listed at once, so they fit, but for one that is still on its way in."""
        seen = sum(self.size(name) for name in together if not self.residents[name].loading)
        self.most = max(self.most, seen)
        if self.too_much is not None and self.too_much <= self.most:
            self.too_much = self.most + 1

    def times(self, model: str) -> Times:
        """Those of one model. The least recently asked for go when there are too many."""
        found = self._times.pop(model, None) or Times()
        self._times[model] = found
        if len(self._times) > MAX_TIMES:
            del self._times[next(iter(self._times))]
        return found

    def knows(self, model: str) -> bool:
        """Whether a call for it was ever seen through."""
        found = self._times.get(model)
        return found is not None and found.service.value is not None

    def service(self, model: str) -> float:
        """Seconds a call for it usually takes here."""
        own = self._times.get(model)
        return _known(own.service if own else None, self.overall.service, USUAL_SERVICE)

    def first_token(self, model: str) -> float:
        """Seconds from sending to the first token, where it is loaded."""
        own = self._times.get(model)
        return _known(own.first_token if own else None, self.overall.first_token, USUAL_FIRST_TOKEN)

    def load(self, model: str) -> float:
        """Seconds it takes to load."""
        own = self._times.get(model)
        return _known(own.load if own else None, self.overall.load, USUAL_LOAD)


def _known(own: Average | None, overall: Average, otherwise: float) -> float:
    """What is usual for one model, else for any there, else what was never measured is taken to be."""
    if own is not None and own.value is not None:
        return own.value
    return overall.known(otherwise)


def _stale(one: Resident, asked: float) -> bool:
    """Whether a listing that lacks it is to be believed: nothing of ours used it after the instance was asked."""
    return not one.running and one.used < asked
