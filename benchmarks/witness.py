"""A simulated instance that writes down how each call ended. `python -m benchmarks.witness JOURNAL MODEL...`

One line for each call that is over: its request id, and when its client left by time.monotonic(), which is one clock
for all processes; 0 where it got its answer. What a model does is its name: `head:1b` never sends a head, `token:1b`
a head and never a token, all others talk slowly.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from benchmarks.traffic import Client, post
from gateway.simulator import Behaviour, Seen, SimulatedModel, Simulator

PER_SECOND = 20.0  # tokens
LOOK = 0.02  # seconds between two looks at what has ended
HANGS = {"head:1b": "hang_before_headers", "token:1b": "hang_before_first_token"}


def line(seen: Seen) -> str:
    return f"{seen.header('x-request-id')} {seen.left_at or 0}\n"


async def load(simulator: Simulator, models: list[str]) -> None:
    """Have all of them in memory: what has to be loaded first is asked for by one call at a time."""
    for model in models:
        asked = post("/api/generate", {"model": model}, "Connection: close")
        assert (await Client((simulator.host, simulator.port)).ask(asked)).status == 200


async def main(journal: Path, models: list[str]) -> None:
    behaviour = Behaviour(
        models=tuple(SimulatedModel(name=name) for name in models),
        parallel=4096,
        max_loaded=len(models),
        per_second=PER_SECOND,
    )
    with journal.open("w") as lines:
        async with Simulator(behaviour) as simulator:
            await load(simulator, models)
            for model in set(models) & set(HANGS):
                simulator.faults.arm(HANGS[model], times=None, model=model, path="/v1")
            print(f"answers at {simulator.url}", flush=True)
            while True:
                await asyncio.sleep(LOOK)
                seen = list(simulator.requests)
                simulator.forget()
                simulator.requests.extend(one for one in seen if not one.finished and one.left_at is None)
                lines.writelines(line(one) for one in seen if one.left_at or (one.finished and one.method == "POST"))
                lines.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
