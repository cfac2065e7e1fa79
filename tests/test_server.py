"""How the server takes its clients in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import uvloop

from gateway.simulator import Behaviour
from tests.house import House

NEWCOMERS = 64


async def turns_until_all_are_in(host: str) -> int:
    """How often the loop goes around until clients that came at once have been taken in."""
    async with House({"alpha": Behaviour()}, {"server": {"host": host}}) as house:
        present = house.server.server_state.connections
        before = len(present)
        turns = 0
        with ExitStack() as clients:
            for _ in range(NEWCOMERS):
                clients.enter_context(socket.create_connection(house.address))
            while len(present) < before + NEWCOMERS:
                await asyncio.sleep(0)
                turns += 1
        await house.until(lambda: len(present) <= before)
        return turns


LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("loop", LOOPS)
def test_clients_that_come_at_once_do_not_each_wait_for_a_turn_of_the_loop(
    loop: Callable[[], asyncio.AbstractEventLoop], host: str
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(turns_until_all_are_in(host)) <= NEWCOMERS / 4


def test_a_drain_shuts_every_door() -> None:
    async def refused_after_a_drain() -> bool:
        async with House({"alpha": Behaviour()}, {"server": {"drain_delay": 0}}) as house:
            house.server.handle_exit(2, None)
            await house._serving
            with socket.socket() as client:
                refused = client.connect_ex(house.address) != 0
            for server in house.server.servers:  # else the loop could not be closed where it was not refused
                server.close()
            return refused

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(refused_after_a_drain())
