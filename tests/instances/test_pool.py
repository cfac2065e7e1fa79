"""Leases on a pool: who gets one, who waits, who is told why not. `test_pool_state_machine` tries every order of it."""

from __future__ import annotations

import asyncio
import random

import pytest

from gateway.config import Config
from gateway.errors import (
    CallTimeout,
    ConnectFailed,
    ConnectionLost,
    DeadlineUnreachable,
    FirstTokenTimeout,
    LineFull,
    LineTimeout,
    NoInstance,
    Refused,
)
from gateway.instances import LeaseState, Pool, Ticket
from tests.instances.pools import Desk, Heard, a_config, chain, granted_without_suspending, result, turns

# The line


def test_a_caller_that_finds_room_gets_its_lease_without_suspending() -> None:
    desk = Desk("alpha")
    lease = granted_without_suspending(desk.pool, "alpha")
    assert (lease.instance.name, lease.candidate.instance, lease.waited) == ("alpha", "alpha", 0.0)
    assert desk.counts("alpha") == (1, 0)
    assert desk.pool.depth == 0


async def test_a_caller_that_finds_no_room_waits_until_a_lease_is_released() -> None:
    desk = Desk("alpha")
    first = await desk.lease("alpha")
    second = await desk.waiting("alpha", size=7)
    desk.clock.advance(3.0)
    assert (desk.pool.depth, desk.pool.held_bytes, desk.pool.oldest) == (1, 7, 3.0)
    first.release()
    assert (desk.pool.depth, desk.pool.held_bytes, desk.pool.oldest) == (0, 0, 0.0)
    assert (await result(second)).waited == 3.0


async def test_a_caller_waits_for_whichever_of_its_candidates_frees_first() -> None:
    desk = Desk("alpha", "beta")
    await desk.lease("alpha")
    beta = await desk.lease("beta")
    caller = await desk.waiting("alpha", "beta")
    beta.release()
    assert (await result(caller)).instance.name == "beta"


async def test_the_line_is_first_come_first_served() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    callers = [await desk.waiting("alpha") for _ in range(3)]
    for caller in callers:
        holder.release()
        holder = await result(caller)
    assert desk.counts("alpha") == (1, 0)


async def test_a_call_is_not_stuck_behind_another_that_wants_a_different_instance() -> None:
    desk = Desk("alpha", "beta")
    await desk.lease("alpha")
    await desk.waiting("alpha")
    assert granted_without_suspending(desk.pool, "beta").instance.name == "beta"


async def test_an_arrival_does_not_overtake_a_caller_that_has_not_run_since_its_grant() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    first = await desk.waiting("alpha")
    holder.release()
    second = asyncio.create_task(desk.lease("alpha"), name="second")
    await turns()
    assert first.done()
    assert not second.done()
    first.result().release()
    await result(second)


async def test_releasing_twice_frees_one_place_only() -> None:
    desk = Desk("alpha")
    with await desk.lease("alpha") as lease:
        lease.release()
        lease.release()
    await desk.lease("alpha")
    lease.release()
    assert desk.counts("alpha") == (1, 0)


async def test_a_lease_is_released_when_its_block_raises() -> None:
    desk = Desk("alpha")
    with pytest.raises(ZeroDivisionError), await desk.lease("alpha"):
        raise ZeroDivisionError
    assert desk.counts("alpha") == (0, 0)


# Leaving the line


async def test_a_caller_that_leaves_the_line_gives_its_place_to_the_next() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    leaver, stayer = await desk.waiting("alpha"), await desk.waiting("alpha")
    leaver.cancel()
    holder.release()
    assert (await result(stayer)).instance.name == "alpha"
    assert leaver.cancelled()
    assert (desk.pool.depth, desk.pool.held_bytes) == (0, 0)


async def test_a_caller_cancelled_at_the_very_moment_of_its_grant_gives_the_lease_on() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    leaver, stayer = await desk.waiting("alpha"), await desk.waiting("alpha")
    holder.release()
    leaver.cancel()
    lease = await result(stayer)
    assert leaver.cancelled()
    assert desk.counts("alpha") == (1, 0)
    lease.release()
    assert desk.counts("alpha") == (0, 0)


async def test_a_departure_wakes_nobody() -> None:
    desk = Desk("alpha")
    await desk.lease("alpha")
    leaver, stayer = await desk.waiting("alpha"), await desk.waiting("alpha")
    leaver.cancel()
    await turns()
    assert leaver.cancelled()
    assert not stayer.done()
    assert desk.pool.depth == 1


async def test_a_caller_whose_patience_ends_is_told_the_setting() -> None:
    desk = Desk("alpha")
    await desk.lease("alpha")
    with pytest.raises(LineTimeout, match=r"timeouts\.line") as told:
        await desk.lease("alpha", patience=0.001)
    assert told.value.retry_after is not None
    assert (desk.pool.depth, desk.pool.held_bytes) == (0, 0)


async def test_a_caller_whose_patience_ends_exactly_when_it_is_granted_keeps_the_grant() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    caller = await desk.waiting("alpha", patience=0.0)  # its time-out is due at the next turn
    holder.release()
    assert (await result(caller)).state is LeaseState.HELD
    assert desk.counts("alpha") == (1, 0)


async def test_a_caller_whose_patience_ended_just_before_gets_nothing_and_the_next_does() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    late = await desk.waiting("alpha", patience=0.0)
    stayer = await desk.waiting("alpha")
    holder.release()
    with pytest.raises(LineTimeout):
        await result(late)
    await result(stayer)
    assert desk.counts("alpha") == (1, 0)


async def test_a_wait_that_is_closed_by_hand_leaves_nothing_behind() -> None:
    desk = Desk("alpha")
    await desk.lease("alpha")
    waiting = desk.pool.lease(Ticket(candidates=chain("alpha"), size=9), patience=60.0)
    waiting.send(None)
    assert desk.pool.held_bytes == 9
    waiting.close()
    assert (desk.pool.depth, desk.pool.held_bytes) == (0, 0)


# Bounds


async def test_a_full_line_refuses_the_next_caller_and_names_the_setting() -> None:
    desk = Desk("alpha", line={"max_calls": 1})
    await desk.lease("alpha")
    await desk.waiting("alpha")
    with pytest.raises(LineFull, match=r"line\.max_calls") as told:
        await desk.lease("alpha")
    assert 1.0 <= (told.value.retry_after or 0.0) <= 30.0
    assert desk.pool.depth == 1


async def test_the_line_is_bounded_in_bytes() -> None:
    desk = Desk("alpha", line={"max_bytes": 100})
    await desk.lease("alpha", size=1000)
    await desk.waiting("alpha", size=60)
    with pytest.raises(LineFull, match=r"line\.max_bytes"):
        await desk.lease("alpha", size=41)
    await desk.waiting("alpha", size=40)
    assert desk.pool.held_bytes == 100


async def test_a_call_that_was_in_line_before_has_its_place_in_a_full_line() -> None:
    desk = Desk("alpha", line={"max_calls": 1})
    await desk.lease("alpha")
    await desk.waiting("alpha")
    await desk.waiting("alpha", since=desk.clock.now() - 1.0)
    with pytest.raises(LineFull):
        await desk.lease("alpha")


def test_a_line_without_places_still_lets_calls_through() -> None:
    desk = Desk("alpha", line={"max_calls": 0, "max_bytes": 0})
    assert granted_without_suspending(desk.pool, "alpha").state is LeaseState.HELD


@pytest.mark.parametrize(("limit", "places"), [(1, 32), (5, 40)])
async def test_without_a_bound_the_line_holds_eight_for_each_call_at_once(limit: int, places: int) -> None:
    desk = Desk("alpha", limit=limit)
    for _ in range(limit):
        await desk.lease("alpha")
    callers = [await desk.waiting("alpha", caller=str(number)) for number in range(places)]
    with pytest.raises(LineFull, match=r"line\.max_calls\)"):
        await desk.lease("alpha")
    assert desk.pool.depth == len(callers)


async def test_what_a_full_line_tells_to_wait_grows_with_the_line_and_with_what_a_call_usually_takes() -> None:
    desk = Desk("alpha", line={"max_calls": 0})
    for service, expected in ((4.0, 4.0), (0.1, 3.2), (60.0, 14.6)):  # a moving average: a fifth of the way each time
        with await desk.lease("alpha") as lease:
            lease.sent()
            lease.answered()
            desk.clock.advance(service)
        await_lease = await desk.lease("alpha")
        with pytest.raises(LineFull) as told:
            await desk.lease("alpha")
        assert told.value.retry_after == pytest.approx(expected, abs=0.05)
        await_lease.release()


# Which instance


async def test_the_least_loaded_instance_is_taken() -> None:
    desk = Desk("alpha", "beta", limit=2)
    names = [(await desk.lease("alpha", "beta")).instance.name for _ in range(4)]
    assert set(names[:2]) == set(names[2:]) == {"alpha", "beta"}


async def test_a_busy_instance_is_waited_for_rather_than_fallen_back_from() -> None:
    desk = Desk("alpha", "beta")
    holder = await desk.lease("alpha")
    caller = await desk.waiting("alpha>beta")
    holder.release()
    assert (await result(caller)).instance.name == "alpha"


async def test_a_waiting_call_falls_back_when_its_tier_is_no_longer_fit() -> None:
    desk = Desk("alpha", "beta")
    await desk.lease("alpha")
    caller = await desk.waiting("alpha>beta")
    desk.pool.observe("alpha", ok=False, problem="no answer")
    assert (await result(caller)).candidate.tier == 1


async def test_a_waiting_call_is_told_at_once_when_nothing_is_fit_any_more() -> None:
    desk = Desk("alpha", "beta")
    await desk.lease("alpha")
    caller = await desk.waiting("alpha")
    desk.pool.observe("alpha", ok=False, problem="no answer from 10.0.0.1")
    with pytest.raises(NoInstance, match=r"\(alpha is down\)$"):
        await result(caller)
    assert desk.pool.depth == 0


async def test_a_call_nobody_could_serve_is_told_without_waiting() -> None:
    desk = Desk("alpha", drain="alpha")
    for names in (["alpha"], ["gone"], []):
        with pytest.raises(NoInstance) as told:
            await desk.lease(*names)
        assert told.value.retry_after == 5.0


# Draining


async def test_a_call_whose_client_left_before_the_first_token_still_counts() -> None:
    desk = Desk("alpha")
    lease = await desk.lease("alpha")
    lease.sent()
    lease.release()
    assert desk.counts("alpha") == (0, 1)
    caller = await desk.waiting("alpha")
    desk.clock.advance(1.9)
    assert desk.counts("alpha") == (0, 1)
    desk.clock.advance(0.2)  # 2 s: what a first token takes until one was seen
    await result(caller)
    assert lease.state is LeaseState.FREE
    assert desk.counts("alpha") == (1, 0)
    assert desk.clock.pending() == []


async def test_it_counts_as_long_as_a_first_token_usually_takes_after_sending() -> None:
    desk = Desk("alpha")
    with await desk.lease("alpha") as lease:
        lease.sent()
        desk.clock.advance(8.0)
        lease.answered()
    left = await desk.lease("alpha")
    left.sent()
    desk.clock.advance(3.0)
    left.release()
    desk.clock.advance(4.9)
    assert desk.counts("alpha") == (0, 1)
    desk.clock.advance(0.1)
    assert desk.counts("alpha") == (0, 0)


async def test_it_counts_no_longer_than_the_grace() -> None:
    desk = Desk("alpha", line={"drain_grace": 0.5})
    lease = await desk.lease("alpha")
    lease.sent()
    lease.release()
    desk.clock.advance(0.5)
    assert desk.counts("alpha") == (0, 0)


async def test_an_answer_to_a_call_sent_after_the_drain_began_ends_it() -> None:
    desk = Desk("alpha", limit=3)
    left, earlier = await desk.lease("alpha"), await desk.lease("alpha")
    left.sent()
    earlier.sent()
    left.release()
    earlier.answered()
    assert desk.counts("alpha") == (1, 1)
    desk.clock.advance(0.1)
    later = await desk.lease("alpha")
    later.sent()
    later.answered()
    assert desk.counts("alpha") == (2, 0)
    assert desk.clock.pending() == []


async def test_a_call_that_was_never_sent_was_answered_or_lost_its_peer_leaves_nothing_to_drain() -> None:
    desk = Desk("alpha")
    (await desk.lease("alpha")).release()
    answered = await desk.lease("alpha")
    answered.sent()
    answered.answered()
    answered.release()
    for error in (ConnectFailed("alpha", "refused"), ConnectionLost("alpha", "reset"), Refused("alpha", 400, "no")):
        with await desk.lease("alpha") as lease:
            lease.sent()
            lease.failed(error)
        assert desk.counts("alpha") == (0, 0)


@pytest.mark.parametrize("error", [FirstTokenTimeout("alpha", "silent"), CallTimeout(9.0)])
async def test_a_call_we_gave_up_waiting_for_drains(error: FirstTokenTimeout | CallTimeout) -> None:
    desk = Desk("alpha")
    with await desk.lease("alpha") as lease:
        lease.sent()
        lease.failed(error)
    assert desk.counts("alpha") == (0, 1)


# A new configuration


async def test_a_higher_limit_serves_those_who_wait_at_once() -> None:
    desk = Desk("alpha")
    await desk.lease("alpha")
    caller = await desk.waiting("alpha")
    desk.pool.reconcile(a_config("alpha", limit=2))
    await result(caller)
    assert desk.counts("alpha") == (2, 0)


async def test_a_lower_limit_takes_nothing_back_and_is_reached_as_calls_end() -> None:
    desk = Desk("alpha", limit=3)
    held = [await desk.lease("alpha") for _ in range(3)]
    caller = await desk.waiting("alpha")
    desk.pool.reconcile(a_config("alpha", limit=1))
    assert desk.counts("alpha") == (3, 0)
    for lease in held[:2]:
        lease.release()
        await turns()
        assert not caller.done()
    held[2].release()
    await result(caller)
    assert desk.counts("alpha") == (1, 0)


async def test_an_instance_that_stays_keeps_its_leases_and_its_breaker() -> None:
    desk = Desk("alpha", limit=2)
    alpha = desk.pool.instances["alpha"]
    with await desk.lease("alpha"):
        await desk.fail("alpha")
        desk.pool.reconcile(a_config("beta", "alpha", limit=2))
        assert list(desk.pool.instances) == ["beta", "alpha"]
        assert desk.pool.instances["alpha"] is alpha
        assert alpha.state(desk.clock.now()) == "open"
        assert desk.counts("alpha") == (1, 0)


async def test_a_removed_instance_finishes_what_runs_and_takes_nothing_new() -> None:
    desk = Desk("alpha", "beta")
    running = await desk.lease("alpha")
    await desk.lease("beta")
    caller, doomed = await desk.waiting("alpha", "beta"), await desk.waiting("alpha")
    desk.pool.reconcile(a_config("beta"))
    with pytest.raises(NoInstance):
        await result(doomed)
    assert (running.instance.removed, running.instance.state(0.0)) == (True, "drained")
    running.sent()
    running.answered()
    running.release()
    await turns()
    assert running.instance.held == 0
    assert not caller.done()


async def test_another_url_is_another_instance_and_waiting_calls_go_there() -> None:
    desk = Desk("alpha")
    await desk.lease("alpha")
    caller = await desk.waiting("alpha")
    moved = Config.model_validate({"instances": [{"name": "alpha", "url": "http://elsewhere:11434"}]})
    desk.pool.reconcile(moved)
    assert (await result(caller)).instance is desk.pool.instances["alpha"]
    assert desk.counts("alpha") == (1, 0)


async def test_the_breaker_of_a_removed_instance_leaves_no_timer() -> None:
    desk = Desk("alpha")
    await desk.fail("alpha")
    assert len(desk.clock.pending()) == 1
    desk.pool.reconcile(a_config("beta"))
    assert desk.clock.pending() == []


async def test_a_call_that_ends_on_an_instance_that_left_leaves_the_breaker_of_its_namesake_alone() -> None:
    desk = Desk("alpha")
    running = await desk.lease("alpha")
    desk.pool.reconcile(Config.model_validate({**MOVED, "breaker": {"failures": 2, "cooldown": 10.0}}))
    await desk.fail("alpha")
    running.release()
    assert desk.pool.instances["alpha"].state(desk.clock.now()) == "open"
    assert [told[1] for told in desk.heard.of] == ["open"]
    assert len(desk.clock.pending()) >= 1


MOVED = {"instances": [{"name": "alpha", "url": "http://elsewhere:11434"}], "line": {"hold": 0}}


# Races


@pytest.mark.drawn
@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_ten_thousand_callers_cancelled_around_their_grants_leak_nothing(limit: int) -> None:
    chance = random.Random(limit)  # noqa: S311
    loop = asyncio.get_running_loop()
    line = {"max_calls": 20_000, "max_calls_per_caller": 20_000, "drain_grace": 0.001}
    pool = Pool(
        a_config("alpha", limit=limit, line=line),
        now=loop.time,
        later=loop.call_later,
        random=chance.random,
        observer=Heard(),
    )
    alpha = pool.instances["alpha"]
    served = 0

    async def call() -> None:
        nonlocal served
        ticket = Ticket(candidates=chain("alpha"), size=3, caller=chance.choice("abc"))
        with await pool.lease(ticket, patience=chance.choice([0.0, 0.05, 60.0])) as lease:
            assert alpha.held + alpha.draining <= limit
            served += 1
            if chance.random() < 0.1:
                lease.sent()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            if chance.random() < 0.9:
                lease.answered()

    tasks: list[asyncio.Task[None]] = []
    async with asyncio.timeout(120):
        for _ in range(10_000):
            tasks.append(asyncio.create_task(call(), name="call"))
            if chance.random() < 0.4:
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                chance.choice(tasks[-8:]).cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        while alpha.draining:  # nobody tells of the end of a drain
            await asyncio.sleep(0)
    told = {type(outcome) for outcome in outcomes if outcome is not None}
    assert asyncio.CancelledError in told
    assert told <= {asyncio.CancelledError, LineTimeout, DeadlineUnreachable}
    assert served > 1000
    assert (alpha.held, alpha.draining, pool.depth, pool.held_bytes) == (0, 0, 0, 0)
