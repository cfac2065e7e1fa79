"""The order of the line: who is served where, what a load costs, who is held back for how long, what is told of it."""

from __future__ import annotations

import asyncio

import pytest

from gateway.call import Priority
from gateway.errors import DeadlineUnreachable, NoInstance
from gateway.routing import home, seed
from tests.instances.pools import Desk, granted_without_suspending, result, turns

BOTH = ("alpha", "beta")


async def busy(desk: Desk, name: str, model: str = "m", **ticket: object) -> None:
    """The instance works on a call for `model`, which it has loaded."""
    lease = await desk.lease(name, model=model, **ticket)  # type: ignore[arg-type]
    lease.sent()
    lease.answered()


# Loaded first


async def test_a_call_goes_where_its_model_is_loaded() -> None:
    desk = Desk(*BOTH)
    desk.tell("alpha", "n")
    desk.tell("beta", "m")
    assert (await desk.lease(*BOTH)).instance.name == "beta"


async def test_a_model_that_is_loaded_nowhere_is_loaded_at_once_where_there_is_room() -> None:
    desk = Desk(*BOTH)
    desk.tell("alpha")
    desk.tell("beta")
    lease = await desk.lease(*BOTH)
    assert (lease.cold, lease.instance.name) == (True, home("m:latest", {name: seed(name) for name in BOTH}))


async def test_room_goes_to_a_call_whose_model_is_there_before_one_that_came_earlier() -> None:
    desk = Desk("alpha")
    desk.tell("alpha", "m")
    holder = await desk.lease("alpha")
    earlier, later = await desk.waiting("alpha", model="n"), await desk.waiting("alpha", model="m")
    holder.release()
    assert (await result(later)).candidate.model == "m"
    assert not earlier.done()


async def test_a_call_waits_for_a_short_while_rather_than_load_a_copy() -> None:
    desk = Desk(*BOTH)
    desk.tell("alpha", "m")
    desk.tell("beta")
    await desk.lease("alpha")
    await desk.waiting(*BOTH)
    assert desk.holds("beta") == set()


async def test_a_copy_is_loaded_when_the_work_that_waits_exceeds_its_price() -> None:
    desk = Desk(*BOTH, line={"copy_at": 2.0})
    desk.tell("alpha", "m")
    desk.tell("beta")
    await desk.lease("alpha")  # 5 s each until a call was seen, 8 s a load: 4 waiting calls are more than two loads
    callers = [await desk.waiting(*BOTH) for _ in range(3)]
    assert desk.holds("beta") == set()
    fourth = asyncio.create_task(desk.lease(*BOTH), name="fourth")
    await turns()
    assert desk.holds("beta") == {"m"}
    assert (await result(callers[0])).instance.name == "beta", "the copy is for who has waited longest"
    assert not fourth.done()


async def test_the_price_of_a_load_is_what_was_seen_and_not_a_constant() -> None:
    desk = Desk(*BOTH)
    desk.tell("alpha")
    desk.tell("beta")
    await desk.serve("alpha", load=0.1, seconds=20.0)
    await desk.serve("alpha", seconds=20.0)
    assert desk.pool.instances["alpha"].memory.load("m:latest") == pytest.approx(0.1)
    await busy(desk, "alpha")
    assert (await desk.lease(*BOTH)).instance.name == "beta"


async def test_an_instance_that_tells_nothing_takes_whatever_comes() -> None:
    desk = Desk("alpha", limit=3)
    for model in "mno":
        assert not (await desk.lease("alpha", model=model)).cold


async def test_a_model_of_the_cloud_is_nobodys_to_load() -> None:
    desk = Desk("alpha")
    desk.tell("alpha", "m")
    holder = await desk.lease("alpha")
    caller = await desk.waiting("alpha", model="big:cloud")
    holder.release()
    assert not (await result(caller)).cold


# What has to go


async def learned_that_one_fits(desk: Desk, name: str) -> None:
    """The instance has shown that it holds one model at a time."""
    desk.tell(name, "m")
    desk.clock.advance(1.0)
    await desk.serve(name, model="n")
    desk.clock.advance(1.0)
    desk.tell(name, "n")


async def test_a_model_that_nobody_waits_for_gives_way_at_once() -> None:
    desk = Desk("alpha")
    await learned_that_one_fits(desk, "alpha")
    assert (await desk.lease("alpha", model="m")).cold


async def test_a_model_that_others_wait_for_is_not_given_up_for_one_call() -> None:
    desk = Desk("alpha", limit=2)
    await learned_that_one_fits(desk, "alpha")
    await busy(desk, "alpha", model="n")
    other = await desk.waiting("alpha", model="m", patience=600.0)
    assert (await desk.lease("alpha", model="n")).candidate.model == "n"
    assert not other.done()


async def test_while_it_loads_one_model_an_instance_is_not_asked_for_another() -> None:
    desk = Desk("alpha", limit=2)
    desk.tell("alpha")
    first = await desk.lease("alpha", model="m")
    first.sent()
    other = await desk.waiting("alpha", model="n")
    first.answered()
    assert (await result(other)).cold


async def test_a_load_whose_client_left_is_given_up_and_the_next_call_loads_anew() -> None:
    desk = Desk("alpha")
    desk.tell("alpha")
    with await desk.lease("alpha") as lease:
        lease.sent()
    desk.clock.advance(60.0)
    assert desk.holds("alpha") == set()
    assert (await desk.lease("alpha")).cold


# Nobody starves


async def starving(desk: Desk) -> tuple[asyncio.Task[object], list[asyncio.Task[object]]]:
    """alpha holds n and always has calls for it; one call waits for m."""
    await learned_that_one_fits(desk, "alpha")
    crowd = [asyncio.create_task(stay(desk), name="crowd") for _ in range(6)]
    await turns()
    other = asyncio.create_task(desk.lease("alpha", model="m", patience=600.0), name="other")
    await turns()
    return other, crowd  # type: ignore[return-value]


async def stay(desk: Desk) -> None:
    with await desk.lease("alpha", model="n", patience=600.0) as lease:
        lease.sent()
        lease.answered()
        ended = asyncio.get_running_loop().create_future()
        desk.clock.later(10.0, lambda: ended.set_result(None))
        await ended


async def pass_time(desk: Desk, seconds: float) -> None:
    for _ in range(int(seconds)):
        desk.clock.advance(1.0)
        await turns(6)


async def test_an_instance_gives_a_wanted_model_up_when_another_was_waited_for_long_enough() -> None:
    desk = Desk("alpha", line={"switch_after": 23.0, "keep_loaded": 5.0, "ageing": 5.0})
    other, crowd = await starving(desk)
    await pass_time(desk, 22.0)
    assert not other.done()
    assert desk.pool.instances["alpha"].owes == ""
    await pass_time(desk, 2.0)
    assert desk.pool.instances["alpha"].owes == "m:latest"
    assert not other.done(), "what runs is not cut off"
    await pass_time(desk, 10.0)
    assert (await result(other)).cold  # type: ignore[arg-type]
    assert sum(not one.done() for one in crowd) >= 2, "the rest of the crowd still waits"
    assert desk.pool.instances["alpha"].owes == ""
    for one in crowd:
        one.cancel()


async def test_a_promise_is_taken_back_when_nobody_waits_for_it_any_more() -> None:
    desk = Desk("alpha", line={"switch_after": 5.0, "keep_loaded": 1.0, "ageing": 1.0})
    other, crowd = await starving(desk)
    await pass_time(desk, 8.0)
    alpha = desk.pool.instances["alpha"]
    assert alpha.owes == "m:latest"
    other.cancel()
    await turns()
    assert (alpha.owes, alpha.gives_up) == ("", frozenset())
    await pass_time(desk, 60.0)
    assert all(one.done() for one in crowd), "the crowd goes on"


async def test_what_was_just_loaded_is_kept_for_a_while_though_another_is_overdue() -> None:
    desk = Desk("alpha", line={"switch_after": 1.0, "keep_loaded": 40.0, "ageing": 1.0})
    _, crowd = await starving(desk)
    loaded_at = desk.pool.instances["alpha"].memory.changed
    await pass_time(desk, loaded_at + 39.0 - desk.clock.now())
    assert desk.pool.instances["alpha"].owes == ""
    await pass_time(desk, 2.0)
    assert desk.pool.instances["alpha"].owes == "m:latest"
    for one in crowd:
        one.cancel()


async def test_of_two_instances_the_one_that_has_gone_longest_without_a_load_gives_way() -> None:
    desk = Desk(*BOTH, line={"switch_after": 5.0, "keep_loaded": 0.0, "ageing": 1.0})
    for name in BOTH:
        await learned_that_one_fits(desk, name)
    for name in BOTH:
        await busy(desk, name, model="n")
        await desk.waiting(name, model="n", patience=600.0)
    await desk.waiting(*BOTH, model="m", patience=600.0)
    desk.clock.advance(30.0)  # three loads are kept, too
    assert [one.owes for one in desk.pool.instances.values()] == ["m:latest", ""]


# Among equals


async def test_a_conversation_goes_where_it_was() -> None:
    names = ("alpha", "beta", "gamma")
    desk = Desk(*names, limit=2)
    for conversation in map(str, range(20)):
        expected = home(conversation, {name: seed(name) for name in names})
        lease = await desk.lease(*names, conversation=conversation)
        assert lease.instance.name == expected
        lease.release()


async def test_its_home_may_be_busier_by_one_call_and_no_more() -> None:
    desk = Desk(*BOTH, limit=4)
    conversation = next(str(n) for n in range(99) if home(str(n), {name: seed(name) for name in BOTH}) == "alpha")
    names = [(await desk.lease(*BOTH, conversation=conversation)).instance.name for _ in range(4)]
    assert names == ["alpha", "alpha", "beta", "alpha"]


async def test_without_a_conversation_the_least_busy_takes_it() -> None:
    desk = Desk(*BOTH, limit=2)
    names = [(await desk.lease(*BOTH)).instance.name for _ in range(4)]
    assert set(names[:2]) == set(names[2:]) == set(BOTH)


# Slots


async def test_a_model_has_no_more_calls_than_its_own_slots() -> None:
    desk = Desk("alpha", limit=3, per_model=2)
    desk.tell("alpha", "m", "n")
    for _ in range(2):
        await busy(desk, "alpha", model="m")
    caller = await desk.waiting("alpha", model="m")
    assert granted_without_suspending(desk.pool, "alpha", model="n").candidate.model == "n"
    assert not caller.done()


# Classes


async def test_interactive_goes_before_normal_and_normal_before_batch() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    callers = {p: await desk.waiting("alpha", priority=p) for p in reversed(Priority)}
    for priority in Priority:
        holder.release()
        holder = await result(callers[priority])


async def test_a_batch_call_that_waited_two_periods_goes_before_a_new_interactive_one() -> None:
    desk = Desk("alpha", line={"ageing": 15.0})
    holder = await desk.lease("alpha")
    batch = await desk.waiting("alpha", priority=Priority.BATCH, caller="amy", patience=600.0)
    desk.clock.advance(31.0)
    await desk.waiting("alpha", priority=Priority.INTERACTIVE, caller="bob", patience=600.0)
    holder.release()
    await result(batch)


# Callers


async def test_a_flood_of_one_caller_delays_another_by_what_runs_and_no_more() -> None:
    desk = Desk("alpha", limit=2)
    running = [await desk.lease("alpha", caller="greedy") for _ in range(2)]
    for _ in range(20):
        await desk.waiting("alpha", caller="greedy")
    other = await desk.waiting("alpha", caller="modest")
    running[0].release()
    await result(other)


async def test_a_caller_at_its_cap_waits_though_there_is_room_and_goes_on_when_one_of_its_calls_ends() -> None:
    desk = Desk(*BOTH, line={"max_running_per_caller": 1})
    first = await desk.lease("alpha", caller="amy")
    second = await desk.waiting(*BOTH, caller="amy")
    assert granted_without_suspending(desk.pool, "beta", caller="bob").state == "held"
    outlook = [waiter.outlook for waiter in desk.pool._line]
    assert [one and "line.max_running_per_caller" in one.why for one in outlook] == [True]
    first.release()
    await result(second)


async def test_a_call_that_was_in_line_before_keeps_its_place() -> None:
    desk = Desk("alpha")
    holder = await desk.lease("alpha")
    arrived = desk.clock.now()
    desk.clock.advance(1.0)
    later = await desk.waiting("alpha")
    again = await desk.waiting("alpha", since=arrived)
    holder.release()
    await result(again)
    assert not later.done()


# Held, not failed


async def test_a_call_waits_for_its_only_instance_to_come_back() -> None:
    desk = Desk("alpha", line={"hold": 60.0}, health={"fall": 1, "rise": 1})
    desk.pool.observe("alpha", ok=False, problem="no answer")
    caller = await desk.waiting("alpha")
    desk.clock.advance(59.0)
    desk.pool.observe("alpha", ok=True, problem="")
    await result(caller)


async def test_it_is_told_when_the_instance_has_been_away_for_too_long() -> None:
    desk = Desk("alpha", line={"hold": 60.0}, health={"fall": 1, "rise": 1})
    desk.pool.observe("alpha", ok=False, problem="no answer")
    desk.clock.advance(30.0)
    caller = await desk.waiting("alpha", patience=600.0)
    desk.clock.advance(29.0)
    await turns()
    assert not caller.done()
    desk.clock.advance(1.0)
    with pytest.raises(NoInstance, match=r"\(alpha is down\)"):
        await result(caller)
    with pytest.raises(NoInstance):
        await desk.lease("alpha")


async def test_it_waits_for_a_breaker_to_close_and_is_the_trial_itself_where_it_can() -> None:
    desk = Desk("alpha", line={"hold": 60.0})
    await desk.refuse("alpha")
    caller = await desk.waiting("alpha")
    desk.clock.advance(10.0)
    trial = await result(caller)
    other = await desk.waiting("alpha")
    trial.sent()
    trial.answered()
    trial.release()
    await result(other)


async def test_what_is_drained_by_configuration_is_not_waited_for() -> None:
    desk = Desk("alpha", drain="alpha", line={"hold": 60.0})
    with pytest.raises(NoInstance):
        await desk.lease("alpha")


# What is told


async def test_a_waiting_call_is_told_its_position_its_wait_and_why() -> None:
    desk = Desk("alpha")
    desk.tell("alpha", "m")
    await desk.serve("alpha", seconds=4.0)
    holder = await desk.lease("alpha")
    await desk.waiting("alpha", caller="amy", patience=60.0)
    caller = await desk.waiting("alpha", caller="bob", patience=60.0)
    outlook = list(desk.pool._line)[-1].outlook
    assert outlook is not None
    assert (outlook.position, outlook.sure) == (2, True)
    assert outlook.seconds == pytest.approx(8.0)
    assert outlook.why == "waiting for m:latest on alpha: your wait is about 8 s"
    holder.release()
    await turns()
    caller.cancel()
    lease = next(iter(desk.pool._charges))
    assert (lease.position, lease.waited) == (1, 0.0)


async def test_where_a_copy_could_be_loaded_its_price_is_told() -> None:
    desk = Desk(*BOTH)
    desk.tell("alpha", "m")
    desk.tell("beta")
    await busy(desk, "alpha")
    await desk.waiting(*BOTH)
    [told] = desk.pool.demands()
    assert told.why == "waiting for m:latest on alpha: a second copy would cost 8 s, your wait is about 5 s"


async def test_a_call_that_cannot_be_served_in_its_time_is_told_at_once() -> None:
    desk = Desk("alpha")
    await desk.serve("alpha", seconds=10.0)
    await desk.lease("alpha")
    with pytest.raises(DeadlineUnreachable, match=r"about 10 s, longer than the limit of 4 s \(X-Request-Timeout, "):
        await desk.lease("alpha", deadline=desk.clock.now() + 4.0, patience=60.0)
    with pytest.raises(DeadlineUnreachable, match=r"\(timeouts\.line\)"):
        await desk.lease("alpha", patience=9.0)
    await desk.waiting("alpha", deadline=desk.clock.now() + 11.0, patience=60.0)


async def test_nobody_is_turned_away_on_a_guess() -> None:
    desk = Desk("alpha")
    await desk.lease("alpha")  # no call was seen through yet
    await desk.waiting("alpha", deadline=desk.clock.now() + 1.0)


async def test_the_demand_for_each_model_is_told_with_where_it_is() -> None:
    desk = Desk(*BOTH)
    desk.tell("alpha", "m")
    desk.tell("beta", "n")
    await busy(desk, "alpha", model="m")
    await busy(desk, "beta", model="n")
    await desk.waiting(*BOTH, model="m", patience=60.0)
    await desk.waiting(*BOTH, model="o", patience=60.0)
    desk.clock.advance(3.0)
    told = {one.model: one for one in desk.pool.demands()}
    assert (told["m:latest"].waiting, told["m:latest"].oldest, told["m:latest"].loaded_on) == (1, 3.0, ("alpha",))
    assert told["o:latest"].loaded_on == ()
    assert "no instance has o:latest in memory" in told["o:latest"].why
