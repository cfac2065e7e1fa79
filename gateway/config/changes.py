"""What differs between two configurations, for people."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.config.models import Config


def changes(before: Config, after: Config) -> Iterator[str]:
    """What differs, in the words of a diff: `+ instance gpu3`, `~ route chat`."""
    for kind, old, new in (
        ("instance", before.instances, after.instances),
        ("route", before.routes, after.routes),
    ):
        was = {one.name: one for one in old}
        now = {one.name: one for one in new}
        yield from (f"+ {kind} {name}" for name in now.keys() - was.keys())
        yield from (f"- {kind} {name}" for name in was.keys() - now.keys())
        yield from (f"~ {kind} {name}" for name in was.keys() & now.keys() if was[name] != now[name])
