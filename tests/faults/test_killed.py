"""Row L4 of the fault matrix: a gateway is killed, without a word to anybody.

Gateways share nothing yet, so what can be true of it is this: its clients see that their answers broke off, what it had
on the instances is free again at once, since its connections are closed, and the others serve on.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

from gateway.simulator import Behaviour, Simulator
from tests.faults.test_rolling_restart import Client, Replica, connected, free_ports
from tests.house import ask, request

CHAT = "/v1/chat/completions"
ENDLESS = "say: " + "word " * 5000  # at the pace below it lasts longer than any test


async def test_l4_a_killed_gateway_breaks_its_own_answers_off_and_leaves_nothing_taken(tmp_path: Path) -> None:
    async with Simulator(Behaviour(parallel=2, per_second=20)) as simulator, AsyncExitStack() as stack:
        config = {
            "instances": [{"name": "alpha", "url": simulator.url, "max_concurrent": 2}],
            "log": {"level": "warning"},
        }
        (tmp_path / "routes.yaml").write_text(json.dumps(config))
        replicas = [Replica(tmp_path, port) for port in free_ports(2)]
        for replica in replicas:
            stack.callback(replica.kill)
        await asyncio.gather(*(asyncio.to_thread(replica.start) for replica in replicas))
        doomed, other = replicas
        streams = [await stack.enter_async_context(connected(doomed.port)) for _ in range(2)]
        for wire in streams:
            await wire.send(request(CHAT, json.dumps(ask(ENDLESS, stream=True)).encode()))
            await wire.until(b"data: ")
        assert simulator.busy == 2
        waits = asyncio.create_task(Client(other.port).ask(stream=True), name="who asks the other")
        await simulator.until(lambda: simulator.waiting == 1)  # every place of the instance is the first one's

        await asyncio.to_thread(doomed.kill)

        for wire in streams:
            try:
                seen = await wire.rest()
            except ConnectionError:
                seen = bytes(wire.seen)
            assert b"[DONE]" not in seen
            assert not seen.endswith(b"0\r\n\r\n"), "half an answer looks like a whole one"
        assert await waits == "whole"
        await simulator.until(lambda: simulator.busy == simulator.waiting == 0)
        assert await Client(other.port).ask(stream=False) == "whole"
        await asyncio.to_thread(doomed.start)  # nothing of it is in its way
        assert await Client(doomed.port).ask(stream=True) == "whole"
        assert not any("Traceback" in replica.log() for replica in replicas)
