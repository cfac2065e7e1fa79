"""What a person at a terminal reads: the instances as a table, what is wrong with them, models, plans.

Plain text, no colour of its own; every line stands without the ones before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.engine import Engine

HEADINGS = ("instance", "state", "ollama", "models", "loaded", "limit", "round trip")


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of equal length in columns as wide as their widest cell; the first row is the heading."""
    cells = [list(map(str, row)) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def instances(engine: Engine) -> str:
    """One row for each instance."""
    rows = [HEADINGS]
    for reading in engine.reading().instances:
        known = engine.catalog.known(reading.name)
        answered = bool(known.version or known.listed)
        rows.append(
            (
                reading.name,
                reading.state,
                (known.version or ("-" if known.native else "no native API")) if answered else "-",
                str(len(known.installed)) if known.listed else "-",
                ", ".join(name for name, _ in reading.loaded) or "-",
                str(reading.limit),
                f"{known.seconds * 1000:.1f} ms" if answered else "-",
            )
        )
    return table(rows)


def problems(engine: Engine) -> list[str]:
    """For each instance that does not do what it should: what is wrong, and the likely fix."""
    found = []
    for config in engine.config.instances:
        health, known = engine.health(config.name), engine.catalog.known(config.name)
        if health is None:
            found.append(f"{config.name} ({config.url}) has not answered yet.")
        elif not health.ok:
            found.append(f"cannot reach {config.name} ({config.url}): {health.problem}")
        elif known.listed and not known.installed:
            found.append(f"{config.name} has no models. Run `ollama pull <model>` there.")
        elif config.model and known.listed and not engine.catalog.has(config.name, config.model):
            found.append(
                f"{config.name} does not have its model {config.model}. Run `ollama pull {config.model}` there."
            )
    for model, digests in engine.catalog.conflicts().items():
        found.append(
            f"{model} is not the same on {', '.join(digests)}: their digests differ. Run `ollama pull {model}` on each."
        )
    return found


def start(engine: Engine, url: str) -> str:
    """What `serve` prints once it listens."""
    lines = ["", instances(engine), ""]
    lines += [f"  ! {problem}" for problem in problems(engine)]
    lines += [""] if problems(engine) else []
    lines += [f"  API      {url}/v1", f"  metrics  {url}/metrics", f"  status   {url}/gateway/status", ""]
    return "\n".join(lines)


def models(engine: Engine) -> str:
    """One row for each model of each instance."""
    rows = [("model", "instance", "loaded", "capabilities")]
    for config in engine.config.instances:
        for model in engine.catalog.known(config.name).installed.values():
            loaded = "yes" if engine.catalog.is_loaded(config.name, model.name) else "-"
            rows.append((model.name, config.name, loaded, ", ".join(sorted(model.capabilities or ())) or "-"))
    return table(rows)


def plan(explained: dict[str, Any]) -> str:
    """A plan in words, from its JSON form."""
    lines = [f"route    {explained['route']}"]
    if explained["task"]:
        lines.append(f"task     {explained['task']}")
    lines += [f"because  {reason}" for reason in explained["reasons"]]
    for number, one in enumerate(explained["candidates"], 1):
        tier = f" (fallback {one['tier']})" if one["tier"] else ""
        lines.append(f"{number:>2}. {one['instance']} with {one['model']}{tier}: {one['reason']}")
        if "substitution" in one:
            lines.append(f"    note: {one['substitution']}")
    lines += [f" -  {one['instance']} is left out: {one['reason']}" for one in explained["left_out"]]
    return "\n".join(lines)
