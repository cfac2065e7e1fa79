"""Medians over the rounds, ratios within each round, and what was asked of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.hotpath.load import Told
from benchmarks.hotpath.work import FIGURES, Work

OURS, CONTROL, NOTHING = "gateway", "nginx", "direct"
LEAST = 10.0  # microseconds that nginx has to add for a ratio to be worth something

Figure = Callable[[Told], float | None]


@dataclass
class Outcome:
    """Per work, round by round, what each contender did."""

    rows: dict[Work, list[dict[str, Told]]] = field(default_factory=dict)

    def add(self, work: Work, told: dict[str, Told]) -> None:
        self.rows.setdefault(work, []).append(told)

    def median(self, work: Work, name: str, figure: str) -> float | None:
        return _median(FIGURES[figure](told[name]) for told in self.rows[work] if name in told)

    def spread(self, work: Work, name: str, figure: str) -> tuple[float, float]:
        found = [value for told in self.rows[work] if (value := FIGURES[figure](told[name])) is not None]
        return (min(found), max(found)) if found else (0.0, 0.0)

    def ratio(self, work: Work, name: str, figure: str, *, added: bool = False) -> float | None:
        """To nginx, the median of the rounds; `added`: of what each adds to the usual time (p50) of asking directly."""
        return _median(self._ratios(work, name, FIGURES[figure], _usual(figure) if added else None))

    def times(self, work: Work, name: str, figure: str) -> float | None:
        """How many times ours, the median of the rounds."""
        read = FIGURES[figure]
        pairs = [(read(told[name]), read(told[OURS])) for told in self.rows[work]]
        return _median(theirs / ours for theirs, ours in pairs if theirs and ours)

    def errors(self, work: Work, name: str) -> Counter[str]:
        return sum((told[name].errors for told in self.rows[work] if name in told), Counter())

    def names(self, work: Work) -> list[str]:
        order = [NOTHING, CONTROL, OURS]
        found = {name for told in self.rows[work] for name in told}
        return sorted(found, key=lambda name: order.index(name) if name in order else len(order))

    def summary(self) -> dict[str, Any]:
        return {
            work.name: [{name: one.summary() for name, one in told.items()} for told in rows]
            for work, rows in self.rows.items()
        }

    def _ratios(self, work: Work, name: str, figure: Figure, usual: Figure | None) -> Iterator[float | None]:
        for told in self.rows[work]:
            if name not in told or CONTROL not in told:
                continue
            ours, theirs = figure(told[name]), figure(told[CONTROL])
            if ours is None or not theirs:
                continue
            base = (usual(told[NOTHING]) or 0.0) if usual else 0.0
            if not usual:
                yield ours / theirs
            elif theirs - base >= LEAST:
                yield (ours - base) / (theirs - base)


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def _usual(figure: str) -> Figure:
    return FIGURES[figure.replace("p99", "p50")]


def is_added(figure: str) -> bool:
    """Times to compare by what they are more than without any gateway."""
    return figure.endswith(" us")


def cell(outcome: Outcome, work: Work, name: str, figure: str) -> str:
    value = outcome.median(work, name, figure)
    if value is None:
        return "-"
    text = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    if figure.startswith("CPU"):
        low, high = outcome.spread(work, name, figure)
        text += f" [{low:.0f}-{high:.0f}]"
    ratio = None if name in (NOTHING, CONTROL) else outcome.ratio(work, name, figure, added=is_added(figure))
    return text if ratio is None or figure == "errors" else f"{text} ({ratio:.2f})"


def table(outcome: Outcome, work: Work) -> str:
    lines = ["| | " + " | ".join(work.figures) + " |", "|---" * (len(work.figures) + 1) + "|"]
    for name in outcome.names(work):
        cells = (cell(outcome, work, name, figure) for figure in work.figures)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    wrong = {name: dict(errors) for name in outcome.names(work) if (errors := outcome.errors(work, name))}
    return "\n".join([*lines, *(f"\nWrong answers of {name}: {errors}" for name, errors in wrong.items())])


def report(outcome: Outcome) -> str:
    return "\n\n".join(f"**{work.title}**\n\n{table(outcome, work)}" for work in outcome.rows)
