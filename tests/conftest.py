"""For all tests: how much time hypothesis takes. `--hypothesis-profile=long` is what `make fuzz` runs."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("long", max_examples=2_000, deadline=None)
