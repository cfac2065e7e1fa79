"""Promises to load: what one costs, what is told of it, and that none is forgotten to be made."""

from __future__ import annotations

import pytest

from gateway.instances import Contents, Lease
from tests.instances.pools import Desk, result

BOTH = ("alpha", "beta")
QUICK = {"switch_after": 5.0, "keep_loaded": 0.0, "ageing": 1.0}
SIZES = {"m:latest": 8, "n:latest": 4, "o:latest": 4}


def tell(desk: Desk, name: str, *loaded: str) -> None:
    """It says what it holds; a moment before and after it nothing happens."""
    desk.clock.advance(0.1)
    holds = {f"{model}:latest": SIZES[f"{model}:latest"] for model in loaded}
    desk.pool.told(name, Contents(SIZES, holds), desk.clock.now())
    desk.clock.advance(0.1)


async def learns(desk: Desk, name: str) -> None:
    """It holds n, and has shown that m fits beside nothing. Its loads took no time."""
    tell(desk, name, "n")
    for model in ("m", "n"):
        await desk.serve(name, model=model)
        tell(desk, name, model)


async def works(desk: Desk, name: str, model: str = "n") -> Lease:
    lease = await desk.lease(name, model=model)
    lease.sent()
    lease.answered()
    return lease


def owed(desk: Desk) -> list[str]:
    return [one.owes.removesuffix(":latest") for one in desk.pool.instances.values()]


# What it costs


async def test_an_instance_gives_up_as_many_models_as_it_takes() -> None:
    desk = Desk("alpha", limit=2, line=QUICK)
    await learns(desk, "alpha")
    await desk.serve("alpha", model="o")
    tell(desk, "alpha", "n", "o")
    for model in "no":
        await works(desk, "alpha", model)
    await desk.waiting("alpha", model="m", patience=600.0)
    desk.clock.advance(30.0)
    assert owed(desk) == ["m"]
    assert desk.pool.instances["alpha"].gives_up == {"n:latest", "o:latest"}


async def test_calls_for_the_cloud_starve_no_model_though_it_displaces_nothing() -> None:
    desk = Desk("alpha", line=QUICK)
    tell(desk, "alpha")
    holder = await desk.lease("alpha", model="big:cloud")
    await desk.waiting("alpha", model="big:cloud", patience=600.0)
    waits = {model: await desk.waiting("alpha", model=model, patience=600.0) for model in "mo"}
    desk.clock.advance(30.0)
    assert owed(desk) == ["m"]
    assert desk.pool.instances["alpha"].gives_up == frozenset()
    holder.release()
    first = await result(waits["m"])
    assert first.cold
    first.answered()
    desk.clock.advance(30.0)
    assert owed(desk) == ["o"], "nor is the next forgotten, though nothing was pushed out"
    first.release()
    assert (await result(waits["o"])).cold


async def test_what_one_instance_has_promised_no_other_promises_though_it_would_be_done_sooner() -> None:
    desk = Desk(*BOTH, limit=2, line=QUICK | {"keep_loaded": 30.0})
    for name in BOTH:
        desk.clock.advance(25.0)
        await learns(desk, name)
        await works(desk, name)
    await desk.waiting(*BOTH, model="m", patience=600.0)
    desk.clock.advance(6.0)
    assert owed(desk) == ["m", ""], "beta has not had n for long enough"
    await desk.lease("alpha", model="big:cloud")
    await desk.waiting("alpha", model="o", patience=600.0)
    desk.clock.advance(6.0)
    assert desk.clock.pending() == [], "nor is anything to be looked at when it has"
    desk.clock.advance(30.0)
    await desk.waiting("alpha", model="o", patience=600.0)
    assert owed(desk) == ["m", ""], "beta is less busy now, and a promise is a promise"


# What is told of it


async def test_who_waits_for_what_is_promised_is_told_by_whom() -> None:
    desk = Desk("alpha", line=QUICK)
    await learns(desk, "alpha")
    await works(desk, "alpha")
    await desk.waiting("alpha", model="m", patience=600.0)
    [told] = desk.pool.demands()
    assert told.promised_by == ""
    assert told.seconds == pytest.approx(5.0), "until one gives way; a load takes no time"
    assert told.why == "no instance has m:latest in memory and none can spare what it has: one gives way in 5 s"
    desk.clock.advance(30.0)
    [told] = desk.pool.demands()
    assert told.promised_by == "alpha"
    assert told.seconds == pytest.approx(5.0), "what a call takes until one was seen"
    assert told.why == "alpha finishes what it does and then loads m:latest, which takes about 0 s"


# None is forgotten


async def test_two_models_that_wait_for_one_instance_are_loaded_one_after_the_other() -> None:
    """When the second is due it cannot be promised yet; keeping the first promise is what puts that right."""
    desk = Desk("alpha", line=QUICK)
    await learns(desk, "alpha")
    busy = await works(desk, "alpha")
    first = await desk.waiting("alpha", model="m", patience=600.0)
    crowd = await desk.waiting("alpha", model="m", patience=600.0)
    second = await desk.waiting("alpha", model="o", patience=600.0)
    desk.clock.advance(30.0)
    assert owed(desk) == ["m"]
    assert desk.clock.pending() == [], "nothing is looked for again and again meanwhile"
    busy.release()
    loading = await result(first)
    loading.sent()
    loading.answered()
    tell(desk, "alpha", "m")
    desk.clock.advance(1.0)
    assert owed(desk) == ["o"]
    loading.release()
    assert (await result(second)).cold
    assert not crowd.done()


@pytest.mark.parametrize("also", [(), ("beta",)], ids=["nowhere", "where the call may not go"])
async def test_a_call_whose_model_was_pushed_out_while_it_waited_has_it_loaded_again(also: tuple[str, ...]) -> None:
    desk = Desk(*BOTH, line=QUICK)
    await learns(desk, "alpha")
    tell(desk, "beta", *("n" for _ in also))
    busy = await works(desk, "alpha")
    waits = await desk.waiting("alpha", model="n", patience=600.0)
    first = await desk.waiting("alpha", model="m", patience=600.0)
    crowd = await desk.waiting("alpha", model="m", patience=600.0)
    desk.clock.advance(30.0)
    assert owed(desk) == ["m", ""]
    busy.release()
    loading = await result(first)
    loading.sent()
    loading.answered()
    tell(desk, "alpha", "m")
    desk.clock.advance(6.0)
    assert owed(desk) == ["n", ""]
    loading.release()
    assert (await result(waits)).cold
    assert not crowd.done()


async def test_a_call_whose_load_was_given_up_by_another_has_its_model_loaded_after_all() -> None:
    desk = Desk("alpha", limit=2, line=QUICK)
    tell(desk, "alpha", "n")
    busy = await works(desk, "alpha")
    loading = await desk.lease("alpha", model="m")
    loading.sent()
    waits = await desk.waiting("alpha", model="m", patience=600.0)
    crowd = [await desk.waiting("alpha", model="n", patience=600.0) for _ in range(3)]
    loading.release()
    desk.clock.advance(3.0)
    assert (desk.holds("alpha"), waits.done()) == ({"n"}, False), "its place went to the crowd"
    desk.clock.advance(30.0)
    assert owed(desk) == ["m"]
    busy.release()
    assert (await result(waits)).cold
    assert not crowd[-1].done()


async def test_when_an_instance_first_tells_what_it_holds_those_who_wait_for_another_model_are_thought_of() -> None:
    desk = Desk("alpha", line=QUICK)
    busy = await works(desk, "alpha")
    crowd = await desk.waiting("alpha", model="n", patience=600.0)
    waits = await desk.waiting("alpha", model="m", patience=600.0)
    tell(desk, "alpha", "n")
    desk.clock.advance(30.0)
    assert owed(desk) == ["m"]
    busy.release()
    assert (await result(waits)).cold
    assert not crowd.done()


async def test_a_load_that_takes_longer_than_was_to_be_expected_is_waited_for_and_then_another_is_promised() -> None:
    desk = Desk("alpha", line=QUICK)
    await learns(desk, "alpha")
    loading = await desk.lease("alpha", model="m")
    loading.sent()
    await desk.waiting("alpha", model="m", patience=600.0)
    second = await desk.waiting("alpha", model="o", patience=600.0)
    desk.clock.advance(30.0)
    assert owed(desk) == [""], "what is on its way in cannot give way"
    assert len(desk.clock.pending()) == 1
    loading.answered()
    desk.clock.advance(1.0)
    assert owed(desk) == ["o"]
    loading.release()
    assert (await result(second)).cold
