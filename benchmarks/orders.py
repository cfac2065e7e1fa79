"""What others do, as orders of our own line: round robin, least connections, and the best of the peers, loaded first.

Each binds a call to an instance when it arrives and keeps a line for each instance, first come first served.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from gateway.call import Candidate, model_key
from gateway.config import LineConfig
from gateway.instances import DemandView, Instance, Outlook, Roster, Waiter

Candidates = tuple[Candidate, ...]  # beginning with another one each time
Choose = Callable[["Bound", Candidates], Candidate]


class Bound:
    """What they have in common. `choose` says where a call goes, whatever it finds there."""

    def __init__(self, roster: Roster, choose: Choose) -> None:
        self.lines: dict[str, deque[tuple[Waiter, Candidate]]] = defaultdict(deque)
        self._roster = roster
        self._choose = choose
        self._turn = 0

    def arrives(self, waiter: Waiter, now: float) -> Candidate | None:
        candidates = waiter.ticket.candidates
        if not candidates:
            return None
        self._turn = (self._turn + 1) % len(candidates)
        candidate = self._choose(self, (*candidates[self._turn :], *candidates[: self._turn]))
        line = self.lines[candidate.instance]
        if not line and self.instance(candidate).available(now):
            return candidate
        line.append((waiter, candidate))
        return None

    def serves(self, instance: Instance, now: float) -> tuple[Waiter, Candidate] | None:
        line = self.lines[instance.name]
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

    def instance(self, candidate: Candidate) -> Instance:
        place = self._roster.place(candidate.instance)
        assert place is not None
        return self._roster.at(place)

    def there(self, candidate: Candidate) -> int:
        """Calls it works on, and those bound to it that wait."""
        return self.instance(candidate).in_use + len(self.lines[candidate.instance])

    def has(self, candidate: Candidate) -> bool:
        """Whether its model is there, or waited for there."""
        key = model_key(candidate.model)
        waits = any(model_key(bound.model) == key for _, bound in self.lines[candidate.instance])
        return waits or key in self.instance(candidate).memory.residents


def round_robin(bound: Bound, turned: Candidates) -> Candidate:
    return turned[0]


def least_connections(bound: Bound, turned: Candidates) -> Candidate:
    return min(turned, key=bound.there)


def loaded_first(bound: Bound, turned: Candidates) -> Candidate:
    """An instance that has the model, or a call waiting for it, unless its line is longer than the shortest by more
    than two rounds; else least connections."""
    shortest = min(map(bound.there, turned))
    near = [one for one in turned if bound.has(one) and bound.there(one) - shortest <= 2 * bound.instance(one).limit]
    return min(near or turned, key=bound.there)
