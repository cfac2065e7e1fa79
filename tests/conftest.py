"""For all tests: how much time hypothesis takes. `--hypothesis-profile=long` is what `make fuzz` runs.

No example has a limit of time: machines that run tests are busy, and times mean nothing there.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.register_profile("long", max_examples=2_000, deadline=None)
settings.load_profile("untimed")
