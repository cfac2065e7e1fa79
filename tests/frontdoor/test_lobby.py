"""Connections that have been quiet for a while go on a few at a time, and are heard as soon as they say something."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from gateway.frontdoor import Door
from gateway.frontdoor.lobby import AT_A_TURN, MOST
from gateway.simulator import Behaviour
from tests.house import House, Wire, ask, request

CHAT = "/v1/chat/completions"
FIRST, SECOND = (request(CHAT, json.dumps(ask(f"say: {word}")).encode()) for word in ("first", "second"))
MANY = 8 * AT_A_TURN


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is quiet at once, and looked at often; no turn of the loop counts as long."""
    monkeypatch.setattr("gateway.frontdoor.protocol.QUIET", 0.0)
    monkeypatch.setattr("gateway.frontdoor.door.LONGEST_LOOK", 0.02)
    monkeypatch.setattr("gateway.frontdoor.lobby.TURN", math.inf)


def door_of(house: House) -> Door:
    door: Door = house.server._protocol.keywords["door"]
    return door


def inside(house: House) -> int:
    return len(door_of(house)._lobby._inside)


async def asked(house: House, wire: Wire, times: int) -> None:
    await wire.send(SECOND)
    async with asyncio.timeout(10):
        while bytes(wire.seen).count(b'"finish_reason"') < times:
            wire.seen += await wire.reader.read(65536)


async def test_who_has_been_quiet_is_heard_and_answered_each_time() -> None:
    async with House({"alpha": Behaviour()}) as house:
        async with house.wire() as wire:
            for times in (1, 2, 3):
                await house.until(lambda: inside(house) == 1)
                await asked(house, wire, times)
        await house.until(lambda: inside(house) == 0)
        assert door_of(house)._lobby._epoll is None, "it keeps a descriptor for nobody"


async def test_what_comes_ahead_of_an_answer_is_answered_after_it() -> None:
    async with House({"alpha": Behaviour(first_token=0.2)}) as house, house.wire() as wire:
        await wire.send(FIRST)
        await house.until(lambda: house.engine.pool.instances["alpha"].held == 1 and inside(house) == 1)
        await asked(house, wire, 2)
        told = bytes(wire.seen)
        assert 0 < told.find(b'"first"') < told.find(b'"second"')


async def test_without_an_epoll_all_is_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.frontdoor.lobby._SOMETHING", 0)
    async with House({"alpha": Behaviour()}) as house, house.wire() as wire:
        await asked(house, wire, 1)
        seen = asyncio.get_running_loop().time()
        await house.until(lambda: asyncio.get_running_loop().time() > seen + 0.05)  # it was looked at by now
        assert inside(house) == 0
        await asked(house, wire, 2)


async def steps(count: Callable[[], int]) -> list[int]:
    """By how much it goes down at each turn of the loop, until there is none."""
    seen = [count()]
    async with asyncio.timeout(10):
        while seen[-1]:
            await asyncio.sleep(0)
            seen.append(count())
    return [before - after for before, after in pairwise(seen)]


@pytest.mark.parametrize("way", ["from the lobby", "at once"])
async def test_of_many_that_leave_together_a_few_at_a_turn_leave_the_line(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "at once":
        monkeypatch.setattr("gateway.frontdoor.protocol.QUIET", 1e9)
    line = {"line": {"max_calls": MANY, "max_calls_per_caller": MANY}}
    one = {"alpha": {"max_concurrent": 1}}
    async with House({"alpha": Behaviour(first_token=60)}, line, one) as house, AsyncExitStack() as stack:
        first = await stack.enter_async_context(house.asking(ask("first")))
        await house.until(lambda: house.engine.pool.instances["alpha"].held == 1)
        wires = [await stack.enter_async_context(house.asking(ask(f"call {n}"))) for n in range(MANY)]
        await house.until(lambda: house.engine.pool.depth == MANY)
        if way == "from the lobby":
            await house.until(lambda: inside(house) == MANY + 1)
        for wire in wires:
            wire.leave()
        assert max(await steps(lambda: house.engine.pool.depth)) <= AT_A_TURN
        first.leave()


async def test_idle_connections_that_close_together_are_read_a_few_at_a_turn() -> None:
    async with House({"alpha": Behaviour()}) as house, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(house.wire()) for _ in range(MANY)]
        await house.until(lambda: inside(house) == MANY)
        for wire in wires:
            wire.leave()
        assert max(await steps(lambda: len(door_of(house)))) <= AT_A_TURN


async def test_where_turns_are_long_more_go_on_at_each_so_that_a_busy_gateway_takes_what_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.frontdoor.lobby.TURN", 1e-9)  # all are
    many = AT_A_TURN + 3 * MOST
    async with House({"alpha": Behaviour()}) as house, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(house.wire()) for _ in range(many)]
        await house.until(lambda: inside(house) == many)
        for wire in wires:
            wire.leave()
        gone = [count for count in await steps(lambda: inside(house)) if count]
        assert gone[0] == AT_A_TURN, "how long a gateway had nothing to do is no turn"
        assert max(gone) == MOST
