"""What a pool tells of itself: of a call that waits, of its callers, of why an instance takes no calls."""

from __future__ import annotations

import asyncio

from gateway.instances import Contents, Ticket
from tests.instances.pools import Desk, a_config, chain, turns


async def test_a_call_can_ask_where_it_stands_for_as_long_as_it_waits() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    tickets = [Ticket(candidates=chain("alpha")) for _ in range(2)]
    callers = [asyncio.create_task(desk.pool.lease(ticket, patience=60.0), name="caller") for ticket in tickets]
    await turns()
    assert [one and one.position for one in map(desk.pool.outlook, tickets)] == [1, 2]
    holder.release()
    assert [one and one.position for one in map(desk.pool.outlook, tickets)] == [None, 1]
    await turns()
    assert callers[0].done()


async def test_those_with_most_calls_are_told_first_be_they_running_or_waiting() -> None:
    desk = Desk("alpha", limit=2)
    leases = [await desk.lease("alpha", caller=name) for name in ("amy", "bob")]
    for name in ("bob", "cat", "cat", "cat"):
        await desk.waiting("alpha", caller=name, patience=60.0)
    assert desk.pool.callers == 3
    assert [(one.name, one.running, one.waiting) for one in desk.pool.busiest_callers(2)] == [
        ("cat", 0, 3),
        ("bob", 1, 1),
    ]
    leases[0].release()
    assert desk.pool.callers == 2, "amy has nothing here any more"


def test_an_instance_says_why_it_takes_no_calls() -> None:
    desk = Desk("alpha", "beta", drain="beta", health={"fall": 1, "rise": 1})
    alpha, beta = desk.pool.instances.values()
    assert (alpha.problem, beta.problem) == ("", "drained by configuration")
    desk.pool.observe("alpha", ok=False, problem="no answer")
    assert alpha.problem == "no answer"
    desk.pool.reconcile(a_config("beta"))
    assert (alpha.problem, beta.problem) == ("drained by configuration", "")


def test_what_an_instance_tells_that_has_left_is_nobodys() -> None:
    desk = Desk("alpha", "beta")
    alpha = desk.pool.instances["alpha"]
    desk.pool.reconcile(a_config("beta"))
    desk.pool.told("alpha", Contents({}, {"m:latest": 1}), desk.clock.now())
    assert not alpha.memory.tells
    assert not desk.pool.instances["beta"].memory.tells
