"""How many examples a property is tried with: few in a plain run, twenty times as many in `make fuzz`."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

USUAL = 100  # examples of hypothesis' own default profile


def tried(examples: int = USUAL, **more: Any) -> settings:
    """Settings for a property that is tried with so many examples, as many times more as the profile says.

    Hypothesis reads the profile before it imports a test, so this is known when a module asks.
    """
    most = max(1, examples * settings().max_examples // USUAL)
    return settings(**{"max_examples": most, "deadline": None, **more})
