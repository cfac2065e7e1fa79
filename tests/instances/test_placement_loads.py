"""What a load costs, what has to go for it, and that nobody starves: the second half of the order of the line."""

from __future__ import annotations

import asyncio

import pytest

from gateway.call import Priority
from gateway.instances import Contents
from tests.instances.pools import Desk, result, turns

BOTH = ("alpha", "beta")


async def busy(desk: Desk, name: str, model: str = "m", **ticket: object) -> None:
    """The instance works on a call for `model`, which it has loaded."""
    lease = await desk.lease(name, model=model, **ticket)  # type: ignore[arg-type]
    lease.sent()
    lease.answered()


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
    desk.pool.observe("alpha", ok=True, problem="")  # something else changed
    await turns()
    assert not other.done()
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


async def learned_that_two_fit(desk: Desk, name: str) -> None:
    """The instance holds n and, since later, o; a third model pushed one out."""
    desk.tell(name, "m", "n")
    desk.clock.advance(1.0)
    await desk.serve(name, model="o")
    desk.clock.advance(1.0)
    desk.tell(name, "n", "o")


async def owes_m(desk: Desk) -> None:
    """alpha, which has one slot, works on o; calls for o and n wait, and one for m has waited long enough."""
    await learned_that_two_fit(desk, "alpha")
    await busy(desk, "alpha", model="o")
    for model in "ono":
        await desk.waiting("alpha", model=model, patience=600.0)
    desk.clock.advance(30.0)
    await desk.waiting("alpha", model="m", patience=600.0)
    desk.clock.advance(5.0)
    assert desk.pool.instances["alpha"].owes == "m:latest"


QUICK = {"switch_after": 5.0, "keep_loaded": 0.0, "ageing": 1.0}


async def test_what_an_instance_owes_goes_before_the_calls_for_what_it_keeps() -> None:
    desk = Desk("alpha", line=QUICK)
    await owes_m(desk)
    running = next(iter(desk.pool._charges))
    running.release()
    assert [lease.model for lease in desk.pool._charges] == ["m:latest"]


async def test_it_gives_up_no_more_than_it_has_to_and_first_what_it_has_had_longest() -> None:
    desk = Desk("alpha", line=QUICK)
    await owes_m(desk)
    assert desk.pool.instances["alpha"].gives_up == {"n:latest"}


async def test_what_it_gives_up_it_takes_again_at_once_when_nobody_waits_for_what_it_owes() -> None:
    desk = Desk("alpha", limit=2, line=QUICK)
    await learned_that_one_fits(desk, "alpha")
    holders = [await desk.lease("alpha", model="n") for _ in range(2)]
    caller = await desk.waiting("alpha", model="n", patience=600.0)
    other = await desk.waiting("alpha", model="m", patience=600.0)
    desk.clock.advance(30.0)
    holders[0].release()
    await turns()
    assert not caller.done(), "it owes m"
    other.cancel()
    await turns()
    assert (await result(caller)).model == "n:latest"


async def test_an_instance_that_owes_a_model_loads_no_other_though_that_would_fit() -> None:
    desk = Desk("alpha", limit=2, line=QUICK)
    sizes = {"m:latest": 8, "n:latest": 4, "o:latest": 4}

    def tells(*loaded: str) -> None:
        desk.pool.told("alpha", Contents(sizes, {name: sizes[name] for name in loaded}), desk.clock.now())

    tells("n:latest")
    desk.clock.advance(1.0)
    await desk.serve("alpha", model="m")
    desk.clock.advance(1.0)
    tells("m:latest")
    desk.clock.advance(1.0)
    await desk.serve("alpha", model="n")
    desk.clock.advance(1.0)
    tells("n:latest")
    await busy(desk, "alpha", model="n")
    await busy(desk, "alpha", model="n")
    await desk.waiting("alpha", model="n", patience=600.0)
    await desk.waiting("alpha", model="m", patience=600.0)
    desk.clock.advance(30.0)
    alpha = desk.pool.instances["alpha"]
    assert (alpha.owes, alpha.memory.fits("o:latest")) == ("m:latest", True)
    next(iter(desk.pool._charges)).release()
    await desk.waiting("alpha", model="o", patience=600.0)
    assert desk.holds("alpha") == {"n"}


async def test_of_two_models_that_wait_for_a_load_the_one_whose_calls_are_due_first_is_loaded() -> None:
    desk = Desk("alpha", line={"ageing": 15.0})
    await learned_that_one_fits(desk, "alpha")
    holder = await desk.lease("alpha", model="n")
    normal = await desk.waiting("alpha", model="m", patience=600.0)
    interactive = await desk.waiting("alpha", model="o", priority=Priority.INTERACTIVE, patience=600.0)
    holder.release()
    assert (await result(interactive)).cold
    assert not normal.done()


async def test_how_long_a_model_is_kept_depends_on_what_its_successor_takes_to_load() -> None:
    desk = Desk("alpha", line=QUICK)
    desk.tell("alpha", "n")
    desk.clock.advance(1.0)
    await desk.serve("alpha", model="m", load=20.0)
    desk.clock.advance(1.0)
    desk.tell("alpha", "m")
    desk.clock.advance(1.0)
    await desk.serve("alpha", model="n", load=20.0)
    desk.clock.advance(1.0)
    desk.tell("alpha", "n")
    alpha = desk.pool.instances["alpha"]
    free = alpha.memory.changed + 3 * alpha.memory.load("m:latest")
    assert free > desk.clock.now() + 20.0
    await busy(desk, "alpha", model="n")
    await desk.waiting("alpha", model="n", patience=600.0)
    await desk.waiting("alpha", model="m", patience=600.0)
    desk.clock.advance(free - desk.clock.now() - 0.1)
    assert alpha.owes == ""
    desk.clock.advance(0.2)
    assert alpha.owes == "m:latest"


async def test_of_two_instances_the_less_busy_gives_way_though_its_last_load_is_later() -> None:
    desk = Desk(*BOTH, limit=2, line={"switch_after": 5.0, "keep_loaded": 0.0, "ageing": 1.0}, per_model=2)
    for name in BOTH:
        await learned_that_one_fits(desk, name)
    for _ in range(2):
        await busy(desk, "alpha", model="n")
    await busy(desk, "beta", model="n", caller="bob")
    await desk.waiting("alpha", model="n", patience=600.0)
    held_back = [await desk.waiting(*BOTH, model="m", patience=600.0)]
    assert desk.pool.instances["alpha"].memory.changed < desk.pool.instances["beta"].memory.changed
    desk.clock.advance(30.0)
    assert [one.owes for one in desk.pool.instances.values()] == ["", "m:latest"]
    assert not held_back[0].done()


async def test_a_model_that_was_lost_is_waited_for_as_long_as_any_other_from_then_on() -> None:
    line = {"switch_after": 45.0, "keep_loaded": 0.0}
    desk = Desk(*BOTH, line=line, health={"fall": 1, "rise": 1})
    desk.tell("alpha", "m")
    await learned_that_one_fits(desk, "beta")
    await busy(desk, "alpha", model="m")
    await busy(desk, "beta", model="n")
    await desk.waiting("beta", model="n", patience=600.0)
    await desk.waiting(*BOTH, model="m", patience=600.0)
    desk.clock.advance(40.0)
    desk.pool.observe("alpha", ok=False, problem="no answer")
    desk.clock.advance(44.0)
    assert desk.pool.instances["beta"].owes == ""
    desk.clock.advance(2.0)
    assert desk.pool.instances["beta"].owes == "m:latest"


# What gives way


@pytest.mark.parametrize("order", [BOTH, BOTH[::-1]])
async def test_where_a_model_has_to_give_way_it_is_on_the_instance_that_was_used_least_lately(
    order: tuple[str, str],
) -> None:
    desk = Desk(*BOTH)
    for name in order:
        await learned_that_one_fits(desk, name)
        desk.clock.advance(5.0)
    lease = await desk.lease(*BOTH, model="o")
    assert (lease.instance.name, lease.cold) == (order[0], True)


async def test_what_somebody_waits_for_does_not_give_way_to_one_call_though_nothing_of_it_runs() -> None:
    desk = Desk(*BOTH, line={"max_running_per_caller": 1})
    await learned_that_one_fits(desk, "alpha")
    running = await desk.lease("beta", model="n", caller="amy")
    at_cap = await desk.waiting("alpha", model="n", caller="amy")
    await desk.waiting("alpha", model="m", caller="bob")
    assert desk.holds("alpha") == {"n"}
    running.release()
    assert not (await result(at_cap)).cold


async def waits_all_the_time(desk: Desk) -> asyncio.Task[object]:
    """One call waits for m, which alpha holds and works on, and after 17 s another does."""
    desk.tell("alpha", "m")
    await busy(desk, "alpha")
    first = await desk.waiting(*BOTH, patience=600.0)
    desk.clock.advance(8.0)
    return first


async def test_a_copy_is_loaded_when_calls_have_waited_for_as_long_as_it_may_cost() -> None:
    desk = Desk(*BOTH, line={"copy_at": 2.0})
    desk.tell("beta")
    first = await waits_all_the_time(desk)
    desk.clock.advance(7.9)  # 8 s a load until one was seen, so 16 s
    await desk.waiting(*BOTH, patience=600.0)
    assert not first.done()
    desk.clock.advance(0.2)
    later = asyncio.create_task(desk.lease(*BOTH, patience=600.0), name="later")
    await turns()
    assert desk.holds("beta") == {"m"}
    assert first.done()
    later.cancel()


@pytest.mark.parametrize("used", [True, False])
async def test_such_a_copy_displaces_only_what_was_not_used_in_that_time(*, used: bool) -> None:
    desk = Desk(*BOTH, line={"copy_at": 2.0})
    await learned_that_one_fits(desk, "beta")
    first = await waits_all_the_time(desk)
    if used:
        await desk.serve("beta", model="n")
    desk.clock.advance(20.0)
    later = asyncio.create_task(desk.lease(*BOTH, patience=600.0), name="later")
    await turns()
    assert ("m" in desk.holds("beta")) is not used
    assert first.done() is not used
    later.cancel()
