"""What others do, as orders of our own line: round robin, least connections, and the best of the peers, loaded first.

Each binds a call to an instance when it arrives and keeps a line for each instance, first come first served.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from gateway.call import Candidate, model_key
from gateway.config import LineConfig
from gateway.instances import DemandView, Instance, Outlook, Roster, Waiter


class Bound:
    """What they have in common. `_choose` says where a call goes, whatever it finds there."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._lines: dict[str, deque[tuple[Waiter, Candidate]]] = defaultdict(deque)
        self._turn = 0

    def arrives(self, waiter: Waiter, now: float) -> Candidate | None:
        candidate = self._choose(waiter.ticket.candidates)
        line = self._lines[candidate.instance]
        if not line and self._instance(candidate).available(now):
            return candidate
        line.append((waiter, candidate))
        return None

    def serves(self, instance: Instance, now: float) -> tuple[Waiter, Candidate] | None:
        line = self._lines[instance.name]
        while line:
            waiter, candidate = line.popleft()
            if waiter.wants:
                return waiter, candidate
        return None

    def leaves(self, waiter: Waiter) -> None:
        """One that left is passed over when its turn comes."""

    def outlook(self, waiter: Waiter, now: float) -> Outlook:
        return Outlook(1, 0.0, str)

    def demands(self, now: float) -> Iterable[DemandView]:
        return ()

    def look(self, now: float) -> Iterable[Instance]:
        return ()

    def alarm(self) -> float | None:
        return None

    def granted(self, waiter: Waiter, instance: Instance, seconds: float, now: float) -> None:
        """First come first served needs no books."""

    def ended(self, waiter: Waiter, instance: Instance, seconds: float) -> None:
        """Nor here."""

    def reconfigure(self, config: LineConfig) -> None:
        """They have no settings."""

    def _choose(self, candidates: tuple[Candidate, ...]) -> Candidate:
        raise NotImplementedError

    def _instance(self, candidate: Candidate) -> Instance:
        place = self._roster.place(candidate.instance)
        assert place is not None
        return self._roster.at(place)

    def _there(self, candidate: Candidate) -> int:
        """Calls it works on, and those bound to it that wait."""
        return self._instance(candidate).in_use + len(self._lines[candidate.instance])


class RoundRobin(Bound):
    def _choose(self, candidates: tuple[Candidate, ...]) -> Candidate:
        self._turn += 1
        return candidates[self._turn % len(candidates)]


class LeastConnections(Bound):
    def _choose(self, candidates: tuple[Candidate, ...]) -> Candidate:
        self._turn += 1
        turned = candidates[self._turn % len(candidates) :] + candidates[: self._turn % len(candidates)]
        return min(turned, key=self._there)


class LoadedFirst(LeastConnections):
    """An instance that has the model, or a call waiting for it, unless its line is longer than the shortest by more
    than two rounds; else least connections."""

    def _choose(self, candidates: tuple[Candidate, ...]) -> Candidate:
        shortest = min(map(self._there, candidates))
        warm = [one for one in candidates if self._has(one)]
        near = [one for one in warm if self._there(one) - shortest <= 2 * self._instance(one).limit]
        return min(near, key=self._there) if near else super()._choose(candidates)

    def _has(self, candidate: Candidate) -> bool:
        key = model_key(candidate.model)
        waits = any(model_key(bound.model) == key for _, bound in self._lines[candidate.instance])
        return waits or key in self._instance(candidate).memory.residents
