"""What probes say of an instance: thresholds, and the loop that asks.

Probes take an instance out and bring it back; they never touch its breaker, which listens to real calls only.
`watch` is given the probe and knows no HTTP. A probe that fails, however it fails, is a result and ends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Health:
    """The verdict over a row of probes. `healthy` is None until the first result, which decides at once."""

    def __init__(self, fall: int, rise: int) -> None:
        self.fall = fall
        self.rise = rise
        self.healthy: bool | None = None
        self._contrary = 0

    def observe(self, ok: bool) -> bool:
        """Take one result; True where the verdict changed."""
        if self.healthy is None:
            self.healthy = ok
            return True
        if ok is self.healthy:
            self._contrary = 0
            return False
        self._contrary += 1
        if self._contrary < (self.rise if ok else self.fall):
            return False
        self.healthy, self._contrary = ok, 0
        return True


async def watch(
    probe: Callable[[], Awaitable[tuple[bool, str]]],
    report: Callable[[bool, str], None],
    *,
    interval: float,
    random: Callable[[], float],
    after: float = 0.0,
) -> None:
    """Probe now and then at `interval` seconds, 20 % more or less, for ever: the body of one named asyncio task.
    The first comes so long `after`, so that of many not all are under way at once.

    `probe` answers (ok, the problem in words) and keeps its own time limit; `report` must not raise.
    """
    if after:
        await asyncio.sleep(after)
    while True:
        try:
            ok, problem = await probe()
        except Exception as error:  # noqa: BLE001  # a defect of one probe must not end all later ones
            ok, problem = False, f"the probe failed: {type(error).__name__}"
        report(ok, problem)
        await asyncio.sleep(interval * (0.8 + 0.4 * random()))
