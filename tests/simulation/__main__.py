"""`make simulate`: many schedules from a number on, or, with SEED, one of them move by move."""

from __future__ import annotations

import os
import sys
import time

import click

from tests.simulation.runs import Summary, account, run, story
from tests.simulation.schedule import draw


@click.command()
@click.option("--seed", type=int, help="Play this one and tell every move.")
@click.option("--schedules", type=int, default=10_000, show_default=True, help="How many.")
@click.option("--first", type=int, help="The seed of the first of them; anything if not given.")
def main(seed: int | None, schedules: int, first: int | None) -> None:
    """Simulate the gateway in virtual time."""
    if seed is not None:
        told = story(draw(seed))
        click.echo(told)
        sys.exit(not told.endswith("every law held"))
    first = int.from_bytes(os.urandom(4)) if first is None else first
    click.echo(f"seeds {first} to {first + schedules - 1}")
    began = time.monotonic()

    def progress(summary: Summary) -> None:
        if summary.schedules % 1000 == 0:
            click.echo(f"{time.monotonic() - began:8.1f} s  {summary.schedules}")

    summary = run(range(first, first + schedules), progress)
    click.echo(str(summary))
    if summary.failed is not None:
        click.echo(account(summary.failed))
        sys.exit(1)


if __name__ == "__main__":
    main()
