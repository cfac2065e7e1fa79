"""A gateway before two simulators that can do everything, as a process: it tells its address, ends with its input.

Its last act is the check of the house: nothing left over, one line for each request, no defect; else it fails.
"""

from __future__ import annotations

import asyncio
import sys

from gateway.simulator import Behaviour, SimulatedModel
from tests.house import MODEL, House

VECTORS = "all-minilm:latest"
EVERYTHING = ("completion", "tools", "insert", "vision", "thinking", "audio")
WORDS = ["general", "coding", "reasoning", "planning"]


class Visited(House):
    """A house whose visitors choose their own ids, so that one may stand in many lines."""

    def _check_lines(self) -> None:
        for number, line in enumerate(self.lines):
            line["id"] = number
        super()._check_lines()


def house() -> House:
    models = (
        SimulatedModel(name=MODEL, capabilities=EVERYTHING),
        SimulatedModel(name=VECTORS, capabilities=("embedding",)),
    )
    behaviour = Behaviour(models=models, tokens=3, parallel=16)
    instance = {"capabilities": WORDS, "max_concurrent": 16}
    return Visited({"alpha": behaviour, "beta": behaviour}, instances={"alpha": instance, "beta": instance})


async def serve() -> None:
    async with house() as one:
        print(one.url, flush=True)  # noqa: T201 - for whoever started us
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve())
