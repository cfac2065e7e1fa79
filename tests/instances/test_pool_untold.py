"""Calls that come before any instance has told its models: where they may go is not known yet, so they wait to hear."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import DeadlineUnreachable, LineFull, LineTimeout, NotToldYet
from gateway.instances import Ticket
from tests.instances.pools import Desk, a_config, result, turns


async def test_a_call_waits_until_an_instance_tells_and_is_sent_to_ask_again() -> None:
    desk = Desk("alpha", "beta", line={"hold": 60.0})
    ticket = Ticket(candidates=())
    caller = asyncio.create_task(desk.pool.lease(ticket, patience=90.0), name="caller")
    await turns()
    outlook = desk.pool.outlook(ticket)
    assert outlook is not None
    assert str(outlook) == "position 1, about 60 s: waiting for an instance to tell its models"
    desk.tell("beta")
    with pytest.raises(NotToldYet):
        await result(caller)
    assert desk.pool.depth == 0


async def test_it_is_sent_to_ask_again_when_instances_come() -> None:
    desk = Desk("alpha", line={"hold": 60.0})
    caller = await desk.waiting(patience=90.0)
    desk.pool.reconcile(a_config("alpha", "beta", line={"hold": 60.0}))
    with pytest.raises(NotToldYet):
        await result(caller)


async def test_a_call_that_knows_where_it_may_go_stays_in_line_meanwhile() -> None:
    desk = Desk("alpha", "beta", line={"hold": 60.0})
    await desk.lease("alpha")
    knows, asks = await desk.waiting("alpha", patience=90.0), await desk.waiting(patience=90.0)
    desk.tell("beta")
    with pytest.raises(NotToldYet):
        await result(asks)
    assert not knows.done()


async def test_it_is_told_so_when_all_have_had_the_time_that_an_instance_may_be_away() -> None:
    desk = Desk("alpha", line={"hold": 0.01})
    with pytest.raises(NotToldYet, match="no instance has told its models yet"):
        await desk.lease(patience=60.0)
    desk.clock.advance(1.0)
    with pytest.raises(NotToldYet):
        await desk.lease(patience=60.0)
    assert desk.pool.depth == 0


async def test_it_waits_no_longer_than_its_own_patience() -> None:
    desk = Desk("alpha", line={"hold": 60.0})
    with pytest.raises(LineTimeout, match=r"timeouts\.line"):
        await desk.lease(patience=0.01)
    with pytest.raises(LineTimeout, match="X-Request-Timeout"):
        await desk.lease(patience=60.0, deadline=desk.clock.now() + 0.01)
    with pytest.raises(DeadlineUnreachable):
        await desk.lease(patience=60.0, deadline=desk.clock.now())


async def test_once_all_have_told_nobody_waits_to_hear_more() -> None:
    desk = Desk("alpha", line={"hold": 60.0})
    desk.tell("alpha")
    with pytest.raises(NotToldYet):
        await desk.lease(patience=60.0)


async def test_such_calls_fill_the_line_as_others_do() -> None:
    desk = Desk("alpha", line={"hold": 60.0, "max_calls": 1})
    await desk.waiting(patience=90.0)
    with pytest.raises(LineFull) as told:
        await desk.lease(patience=90.0)
    assert told.value.retry_after == 30.0
