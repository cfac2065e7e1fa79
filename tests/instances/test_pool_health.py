"""Health in the pool: what takes an instance or a model out, who may still go there, and how it comes back."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import (
    ConnectFailed,
    ConnectionLost,
    FirstTokenTimeout,
    NoInstance,
    Refused,
    StreamBroken,
    UpstreamError,
)
from gateway.instances import Lease, LeaseState
from tests.instances.pools import Desk, Task, a_config, granted_without_suspending, result, turns

BOTH = ("alpha", "beta")
BUSY = Refused("alpha", 503, "server busy, please try again.  maximum pending requests exceeded")
NO_MEMORY = Refused("alpha", 500, "CUDA error: out of memory")
SILENT = FirstTokenTimeout("alpha", "silent")


def answer(lease: Lease) -> None:
    lease.sent()
    lease.answered()


# Taken out, and tried again


async def test_failed_connections_in_a_row_take_an_instance_out_and_one_trial_brings_it_back() -> None:
    desk = Desk("alpha", limit=2)
    await desk.refuse("alpha")
    with pytest.raises(NoInstance, match=r"\(alpha is open\)") as told:
        await desk.lease("alpha")
    assert told.value.retry_after == 10.0
    desk.clock.advance(10.0)
    trial = await desk.lease("alpha")
    with pytest.raises(NoInstance, match=r"\(alpha is half_open\)"):
        await desk.lease("alpha")
    answer(trial)
    await desk.lease("alpha")
    assert desk.heard.of == [
        ("alpha", "open", "2 failed connections in a row"),
        ("alpha", "half_open", "its cool-down has passed: one call may try it"),
        ("alpha", "closed", "its trial call was answered"),
    ]
    assert desk.clock.pending() == []


async def test_an_instance_that_fails_gets_no_more_calls_while_another_does_well() -> None:
    desk = Desk(*BOTH, limit=2)
    await desk.fail("alpha")
    leases = [await desk.lease(*BOTH) for _ in range(2)]
    assert [lease.instance.name for lease in leases] == ["beta", "beta"]
    caller = await desk.waiting(*BOTH)
    desk.clock.advance(9.9)
    assert not caller.done()


async def test_the_end_of_a_cooldown_serves_those_who_wait() -> None:
    desk = Desk(*BOTH)
    await desk.fail("alpha")
    await desk.lease("beta")
    caller = await desk.waiting(*BOTH)
    desk.clock.advance(10.0)
    assert (await result(caller)).instance.name == "alpha"


async def test_of_many_that_wait_one_alone_tries_it() -> None:
    desk = Desk(*BOTH, limit=8)
    await desk.fail("alpha")
    for _ in range(8):
        await desk.lease("beta")
    callers = [await desk.waiting(*BOTH) for _ in range(20)]
    desk.clock.advance(10.0)
    await turns()
    assert sum(caller.done() for caller in callers) == 1
    assert desk.counts("alpha") == (1, 0)


async def test_a_cooldown_timer_that_fires_early_is_set_again() -> None:
    desk = Desk("alpha")
    await desk.fail("alpha")
    [timer] = desk.clock.pending()
    desk.clock.timers.remove(timer)
    desk.clock.seconds += 9.999
    timer.callback()
    assert desk.state("alpha") == "open"
    desk.clock.advance(0.01)
    assert desk.heard.of[-1][1] == "half_open"


async def test_a_trial_whose_client_leaves_gives_its_turn_back() -> None:
    desk = Desk("alpha", limit=2)
    await desk.refuse("alpha")
    desk.clock.advance(10.0)
    trial = await desk.lease("alpha")
    trial.sent()
    trial.release()
    assert desk.counts("alpha") == (0, 1)
    (await desk.lease("alpha")).release()


async def test_the_clients_own_mistakes_and_its_leaving_do_not_count() -> None:
    desk = Desk("alpha")
    for _ in range(25):
        with await desk.lease("alpha") as lease:
            lease.failed(Refused("alpha", 400, "no such option"))
        with await desk.lease("alpha") as lease:
            answer(lease)
        with await desk.lease("alpha"):
            pass
    assert desk.heard.of == []


async def test_an_answer_that_breaks_off_is_a_failure_and_not_a_success() -> None:
    desk = Desk("alpha")
    for _ in range(2):
        with await desk.lease("alpha") as lease:
            answer(lease)
            lease.failed(StreamBroken("alpha", "it ended without its end marker"))
    assert [told[1] for told in desk.heard.of] == ["open"]


async def test_one_call_counts_once() -> None:
    desk = Desk("alpha")
    with await desk.lease("alpha") as lease:
        for _ in range(5):
            lease.failed(ConnectionLost("alpha", "reset"))
    lease.failed(ConnectionLost("alpha", "reset"))
    assert desk.heard.of == []


# Probes and calls


async def test_probes_take_an_instance_out_and_bring_it_back_without_touching_its_breaker() -> None:
    desk = Desk("alpha", health={"fall": 2, "rise": 1})
    await desk.fail("alpha")
    alpha = desk.pool.instances["alpha"]
    assert alpha.problem == "2 failed calls in a row, the last: upstream_reset"
    for ok in (True, False, False):
        desk.pool.observe("alpha", ok, "" if ok else "no answer")
    assert (alpha.state(desk.clock.now()), alpha.problem) == ("down", "no answer")
    desk.pool.observe("alpha", ok=True, problem="")
    assert alpha.state(desk.clock.now()) == "open"
    assert [told for told in desk.heard.of if told[1] in ("healthy", "down")] == [
        ("alpha", "healthy", ""),
        ("alpha", "down", "no answer"),
        ("alpha", "healthy", ""),
    ]


async def test_an_instance_that_hangs_is_out_after_two_calls_whatever_its_probes_say() -> None:
    desk = Desk(*BOTH, breaker={"failures": 5})
    for _ in range(2):
        desk.pool.observe("alpha", ok=True, problem="")
        await desk.fail("alpha", 1, SILENT)
        desk.clock.advance(2.0)  # it drains
    for _ in range(20):
        desk.pool.observe("alpha", ok=True, problem="")
        assert desk.state("alpha") == "open"
        with await desk.lease(*BOTH) as lease:
            assert lease.instance.name == "beta"
    assert desk.heard.of[1] == ("alpha", "open", "2 calls in a row had no first token in time")


def test_an_instance_nobody_has_probed_takes_calls() -> None:
    desk = Desk("alpha")
    alpha = desk.pool.instances["alpha"]
    assert (alpha.state(0.0), alpha.healthy, alpha.fit(0.0), alpha.available(0.0)) == ("unknown", True, True, True)
    desk.pool.observe("alpha", ok=True, problem="")
    desk.pool.observe("nobody", ok=False, problem="gone")
    assert alpha.state(0.0) == "healthy"


# The last instance of a model


async def test_the_last_instance_of_a_model_still_has_one_call_after_the_other_though_all_fail() -> None:
    desk = Desk("alpha", limit=4)
    await desk.fail("alpha")
    assert desk.state("alpha") == "open"
    for _ in range(20):
        with await desk.lease("alpha") as lease:
            assert lease.last_resort
            lease.sent()
            lease.failed(ConnectionLost("alpha", "reset"))
    assert [told[1] for told in desk.heard.of] == ["open"]


async def test_a_flood_does_not_hit_it() -> None:
    desk = Desk("alpha", limit=4)
    await desk.fail("alpha")
    first = await desk.lease("alpha")
    callers = [await desk.waiting("alpha") for _ in range(20)]
    first.failed(ConnectionLost("alpha", "reset"))
    first.release()
    await turns()
    assert sum(caller.done() for caller in callers) == 1
    assert desk.counts("alpha") == (1, 0)


async def test_who_waits_behind_its_one_call_is_not_told_that_nobody_is_there() -> None:
    desk = Desk("alpha", limit=4, line={"hold": 60.0})
    await desk.fail("alpha")
    await desk.lease("alpha")
    caller = await desk.waiting("alpha", patience=600.0)
    desk.clock.advance(500.0)
    await turns()
    assert not caller.done()


async def test_a_last_resort_that_is_answered_brings_it_back() -> None:
    desk = Desk("alpha", limit=4)
    await desk.fail("alpha")
    trial = await desk.lease("alpha")
    caller = await desk.waiting("alpha")
    answer(trial)
    assert not (await result(caller)).last_resort
    assert [told[1] for told in desk.heard.of] == ["open", "closed"]
    assert desk.clock.pending() == []


async def test_as_soon_as_another_is_back_it_is_left_alone() -> None:
    desk = Desk(*BOTH, limit=4, health={"fall": 1, "rise": 1})
    desk.pool.observe("beta", ok=False, problem="no answer")
    await desk.fail("alpha")
    with await desk.lease(*BOTH) as lease:
        assert (lease.instance.name, lease.last_resort) == ("alpha", True)
    desk.pool.observe("beta", ok=True, problem="")
    for _ in range(4):
        lease = await desk.lease(*BOTH)
        assert (lease.instance.name, lease.last_resort) == ("beta", False)


async def test_of_two_that_fail_each_has_one_call() -> None:
    desk = Desk(*BOTH, limit=4)
    for name in BOTH:
        await desk.fail(name)
    leases = [await desk.lease(*BOTH) for _ in range(2)]
    assert {lease.instance.name for lease in leases} == set(BOTH)
    await desk.waiting(*BOTH)


async def test_a_fallback_that_does_well_goes_before_a_last_resort() -> None:
    desk = Desk(*BOTH)
    await desk.fail("alpha")
    assert (await desk.lease("alpha>beta")).instance.name == "beta"


async def test_where_nobody_listens_the_last_instance_is_out_and_its_calls_are_held() -> None:
    desk = Desk("alpha", line={"hold": 60.0})
    await desk.refuse("alpha")
    caller = await desk.waiting("alpha", patience=600.0)
    desk.clock.advance(9.9)
    assert not caller.done()
    desk.clock.advance(0.1)
    answer(await result(caller))
    assert desk.state("alpha") == "unknown"


async def test_probes_may_take_the_last_one_out() -> None:
    desk = Desk("alpha", health={"fall": 1, "rise": 1})
    await desk.fail("alpha")
    desk.pool.observe("alpha", ok=False, problem="no answer")
    with pytest.raises(NoInstance, match=r"\(alpha is down\)"):
        await desk.lease("alpha")


async def test_a_promise_to_load_is_void_when_the_instance_that_made_it_goes_down() -> None:
    line = {"switch_after": 5.0, "keep_loaded": 0.0, "ageing": 1.0}
    desk = Desk("alpha", limit=2, line=line, health={"fall": 1, "rise": 1})
    alpha = desk.pool.instances["alpha"]
    desk.tell("alpha", "m")
    desk.clock.advance(1.0)
    await desk.serve("alpha", model="n")
    desk.clock.advance(1.0)
    desk.tell("alpha", "n")
    for _ in range(2):
        await desk.lease("alpha", model="n")
    await desk.waiting("alpha", model="n", patience=600.0)
    await desk.waiting("alpha", model="m", patience=600.0)
    desk.clock.advance(30.0)
    assert alpha.owes == "m:latest"
    desk.pool.observe("alpha", ok=False, problem="no answer")
    assert (alpha.owes, alpha.gives_up) == ("", frozenset())


# One model of an instance


async def test_a_model_that_finds_no_memory_on_one_instance_goes_to_another_and_its_other_models_go_on() -> None:
    desk = Desk(*BOTH, limit=4)
    await desk.fail("alpha", 1, NO_MEMORY)
    for _ in range(3):
        assert (await desk.lease(*BOTH)).instance.name == "beta"
    assert (await desk.lease("alpha", model="n")).instance.name == "alpha"
    assert desk.state("alpha") == "unknown"
    assert desk.heard.of == [("alpha m:latest", "open", "it could not load the model: no_memory")]


async def test_where_it_is_loaded_it_is_no_home_while_it_cools() -> None:
    desk = Desk(*BOTH, limit=2)
    desk.tell("alpha", "m")
    desk.tell("beta")
    await desk.fail("alpha", 1, NO_MEMORY)
    lease = await desk.lease(*BOTH)
    assert (lease.instance.name, lease.cold) == ("beta", True)


async def test_it_is_not_loaded_where_it_cools() -> None:
    desk = Desk(*BOTH)
    desk.tell("alpha")
    desk.tell("beta", "n")
    await desk.fail("alpha", 1, NO_MEMORY)
    holder = await desk.lease("beta", model="n")
    caller = await desk.waiting(*BOTH)
    holder.release()
    assert (await result(caller)).instance.name == "beta"


async def test_after_its_cooldown_one_call_tries_and_then_all_may() -> None:
    desk = Desk(*BOTH, limit=4)
    await desk.fail("alpha", 1, NO_MEMORY)
    for _ in range(4):
        await desk.lease("beta")
    callers = [await desk.waiting(*BOTH) for _ in range(4)]
    desk.clock.advance(10.0)
    await turns()
    [trial] = [caller.result() for caller in callers if caller.done()]
    assert (trial.instance.name, trial.last_resort) == ("alpha", False)
    answer(trial)
    for caller in callers:
        await result(caller)
    assert [told[:2] for told in desk.heard.of] == [
        ("alpha m:latest", "open"),
        ("alpha m:latest", "half_open"),
        ("alpha m:latest", "closed"),
    ]


async def test_the_last_instance_that_could_have_a_model_is_still_asked_for_it_one_call_after_the_other() -> None:
    desk = Desk("alpha", limit=4)
    await desk.fail("alpha", 1, NO_MEMORY)
    trial = await desk.lease("alpha")
    assert trial.last_resort
    caller = await desk.waiting("alpha")
    other = granted_without_suspending(desk.pool, "alpha", model="n")
    assert not other.last_resort
    trial.release()
    assert (await result(caller)).last_resort


async def test_a_model_of_the_cloud_and_one_of_an_instance_that_tells_nothing_cool_alike() -> None:
    desk = Desk(*BOTH, limit=4)
    desk.tell("alpha", "m")
    for model in ("big:cloud", "m"):
        await desk.fail("alpha", 2, Refused("alpha", 500, "model runner has unexpectedly stopped"), model=model)
        assert {(await desk.lease(*BOTH, model=model)).instance.name for _ in range(2)} == {"beta"}


async def test_a_model_that_runs_again_starts_slowly_too() -> None:
    desk = Desk(*BOTH, limit=4, breaker={"slow_start": 30.0})
    desk.tell("alpha", "m", "n")
    await desk.fail("alpha", 2, Refused("alpha", 500, "model runner has unexpectedly stopped"))
    desk.clock.advance(10.0)
    answer(await desk.lease("alpha"))
    callers = [await desk.waiting("alpha", patience=600.0) for _ in range(2)]
    granted_without_suspending(desk.pool, "alpha", model="n")
    desk.clock.advance(9.9)
    await turns()
    assert not any(caller.done() for caller in callers)
    desk.clock.advance(0.1)
    await result(callers[0])
    desk.clock.advance(10.0)
    await result(callers[1])


# Slow start


async def back_in_slow_start(desk: Desk, name: str = "alpha") -> Lease:
    """It failed, and its trial goes on, answered."""
    await desk.fail(name)
    desk.clock.advance(10.0)
    trial = await desk.lease(name)
    answer(trial)
    return trial


def done(callers: list[Task]) -> int:
    return sum(caller.done() for caller in callers)


async def test_an_instance_that_is_back_is_given_one_call_more_at_each_step_and_wakes_who_waits() -> None:
    desk = Desk("alpha", limit=4, breaker={"slow_start": 30.0})
    await back_in_slow_start(desk)
    assert desk.state("alpha") == "slow_start"
    callers = [await desk.waiting("alpha", patience=600.0) for _ in range(6)]
    for granted in range(1, 4):
        desk.clock.advance(9.99)
        await turns()
        assert done(callers) == granted - 1
        desk.clock.advance(0.01)
        await turns()
        assert done(callers) == granted
        assert len(desk.clock.pending()) == (granted < 3), "one timer, and none when it is over"
    assert desk.counts("alpha") == (4, 0)
    assert desk.state("alpha") == "unknown"


async def test_calls_that_end_on_the_way_make_room_for_no_more_than_the_step() -> None:
    desk = Desk("alpha", limit=4, breaker={"slow_start": 30.0})
    trial = await back_in_slow_start(desk)
    callers = [await desk.waiting("alpha", patience=600.0) for _ in range(4)]
    trial.release()
    await turns()
    assert done(callers) == 1
    assert desk.counts("alpha") == (1, 0)


async def test_others_take_what_it_may_not_have_yet() -> None:
    desk = Desk(*BOTH, limit=4, breaker={"slow_start": 30.0})
    await back_in_slow_start(desk)
    assert [(await desk.lease(*BOTH)).instance.name for _ in range(4)] == ["beta"] * 4


async def test_no_instance_starts_slowly_when_the_process_does_or_when_it_joins_or_its_probes_find_it_again() -> None:
    desk = Desk("alpha", limit=4, breaker={"slow_start": 30.0}, health={"fall": 1, "rise": 1})
    for ok in (True, False, True):
        desk.pool.observe("alpha", ok, "")
    desk.pool.reconcile(a_config("alpha", "beta", limit=4, breaker={"slow_start": 30.0}))
    for name in BOTH:
        for _ in range(4):
            granted_without_suspending(desk.pool, name)


async def test_a_slow_start_that_is_configured_away_is_over_at_once() -> None:
    desk = Desk("alpha", limit=2, breaker={"slow_start": 30.0})
    await back_in_slow_start(desk)
    caller = await desk.waiting("alpha", patience=600.0)
    desk.pool.reconcile(a_config("alpha", limit=2, breaker={"slow_start": 0.0}))
    await result(caller)
    assert desk.clock.pending() == []


async def test_an_instance_that_leaves_in_its_slow_start_leaves_no_timer() -> None:
    desk = Desk("alpha", limit=4, breaker={"slow_start": 30.0})
    await back_in_slow_start(desk)
    assert len(desk.clock.pending()) == 1
    desk.pool.reconcile(a_config("beta"))
    assert desk.clock.pending() == []


async def test_closing_the_pool_leaves_no_timer() -> None:
    desk = Desk(*BOTH, limit=4, breaker={"slow_start": 30.0}, line={"hold": 60.0})
    await back_in_slow_start(desk)
    await desk.refuse("beta")
    desk.pool.close()
    assert desk.clock.pending() == []


# Saturated


async def test_an_instance_that_says_it_is_busy_is_left_alone_for_a_while_and_not_taken_out() -> None:
    desk = Desk(*BOTH, limit=4)
    await desk.fail("alpha", 1, BUSY)
    assert desk.state("alpha") == "saturated"
    assert [(await desk.lease(*BOTH)).instance.name for _ in range(4)] == ["beta"] * 4
    callers = [await desk.waiting(*BOTH) for _ in range(5)]
    desk.clock.advance(4.9)
    await turns()
    assert done(callers) == 0
    desk.clock.advance(0.1)
    await turns()
    assert done(callers) == 4
    assert (desk.heard.of, desk.state("alpha"), desk.clock.pending()) == ([], "unknown", [])


async def test_it_keeps_as_many_calls_as_it_has() -> None:
    desk = Desk("alpha", limit=4)
    held = [await desk.lease("alpha") for _ in range(2)]
    await desk.fail("alpha", 1, BUSY)
    caller = await desk.waiting("alpha")
    held[0].release()
    await result(caller)
    await desk.waiting("alpha")
    assert desk.counts("alpha") == (2, 0)


async def test_being_busy_is_no_reason_for_a_fallback() -> None:
    desk = Desk(*BOTH)
    await desk.fail("alpha", 1, BUSY)
    caller = await desk.waiting("alpha>beta")
    desk.clock.advance(5.0)
    assert (await result(caller)).instance.name == "alpha"


async def test_the_only_instance_is_left_alone_for_as_long_as_it_says() -> None:
    desk = Desk("alpha")
    await desk.fail("alpha", 1, Refused("alpha", 429, "slow down", retry_after=2.0))
    caller = await desk.waiting("alpha")
    desk.clock.advance(1.9)
    await turns()
    assert not caller.done()
    desk.clock.advance(0.1)
    assert (await result(caller)).state is LeaseState.HELD


async def test_a_flood_of_busy_answers_opens_nothing_and_hits_it_no_more_than_its_limit_each_time() -> None:
    desk = Desk("alpha", limit=4)
    callers = [asyncio.create_task(refused(desk), name="caller") for _ in range(20)]
    for hit in (4, 8, 12, 16, 20):
        await turns(30)
        assert done(callers) == hit
        desk.clock.advance(5.0)
    assert desk.heard.of == []


async def refused(desk: Desk) -> Lease:
    lease = await desk.lease("alpha", patience=60.0)
    await turns(2)
    with lease:
        lease.sent()
        lease.failed(BUSY)
    return lease


# Errors of every kind, and what they do


@pytest.mark.parametrize(
    ("error", "state", "model"),
    [
        (ConnectFailed("alpha", "refused"), "open", False),
        (ConnectionLost("alpha", "reset"), "open", False),
        (SILENT, "open", False),
        (Refused("alpha", 500, "boom"), "open", False),
        (Refused("alpha", 500, "model runner has unexpectedly stopped"), "unknown", True),
        (NO_MEMORY, "unknown", True),
        (BUSY, "saturated", False),
        (Refused("alpha", 401, "who are you"), "unknown", False),
        (Refused("alpha", 404, "model 'm' not found"), "unknown", False),
    ],
)
async def test_each_failure_is_held_against_whoever_is_to_blame(
    error: UpstreamError, state: str, *, model: bool
) -> None:
    desk = Desk("alpha", limit=8)
    for lease in [await desk.lease("alpha") for _ in range(5)]:
        lease.sent()
        lease.failed(error)
        lease.release()
    alpha = desk.pool.instances["alpha"]
    assert desk.state("alpha") == state
    assert [name for name, _, _ in alpha.breakers.open() if name] == (["m:latest"] if model else [])
