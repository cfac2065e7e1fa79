"""One flight per key: shared by all who ask meanwhile, owned by the work, ended by the last caller to leave."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from gateway.cache import Flights


class Work:
    """Work that goes on until it is told how to end."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.hold = asyncio.Event()  # while clear, a cancelled run is slow to end
        self.hold.set()

    async def __call__(self) -> str:
        self.runs += 1
        end = self.end
        try:
            return await end
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.hold.wait()
            raise


async def turns(count: int = 5) -> None:
    """Let everything that can go on go on."""
    for _ in range(count):
        await asyncio.sleep(0)


def joining(flights: Flights[str], work: Work, count: int = 1) -> list[asyncio.Task[tuple[str, bool]]]:
    return [asyncio.create_task(flights.join("key", work), name=f"caller {number}") for number in range(count)]


async def left(*callers: asyncio.Task[tuple[str, bool]]) -> None:
    for caller in callers:
        caller.cancel()
    for caller in callers:
        with pytest.raises(asyncio.CancelledError):
            await caller


@pytest.fixture
async def complaints() -> list[dict[str, Any]]:
    """What asyncio would log: exceptions that nobody looked at."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def test_many_callers_share_one_flight() -> None:
    flights, work = Flights[str](), Work()
    callers = joining(flights, work, 100)
    await turns()
    assert len(flights) == 1
    work.end.set_result("answer")
    assert await asyncio.gather(*callers) == [("answer", False), *[("answer", True)] * 99]
    assert (work.runs, len(flights)) == (1, 0)


async def test_different_keys_are_different_flights() -> None:
    flights, work = Flights[str](), Work()
    work.end.set_result("answer")
    await asyncio.gather(flights.join("a", work), flights.join("b", work))
    assert work.runs == 2


async def test_a_failure_is_told_to_all_who_wait_and_to_nobody_after_them() -> None:
    flights, work = Flights[str](), Work()
    callers = joining(flights, work, 5)
    await turns()
    work.end.set_exception(LookupError("no"))
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(result, LookupError) for result in results)
    work.end = asyncio.get_running_loop().create_future()
    work.end.set_result("answer")
    assert await flights.join("key", work) == ("answer", False)
    assert work.runs == 2


async def test_the_flight_goes_on_when_the_caller_that_began_it_leaves() -> None:
    flights, work = Flights[str](), Work()
    leader, follower = joining(flights, work, 2)
    await turns()
    await left(leader)
    assert work.cancelled == 0
    work.end.set_result("answer")
    assert await follower == ("answer", True)
    assert work.runs == 1


async def test_a_follower_that_leaves_is_missed_by_nobody() -> None:
    flights, work = Flights[str](), Work()
    leader, follower = joining(flights, work, 2)
    await turns()
    await left(follower)
    work.end.set_result("answer")
    assert await leader == ("answer", False)


async def test_the_last_to_leave_ends_the_flight_and_nothing_is_left_over() -> None:
    before = asyncio.all_tasks()
    flights, work = Flights[str](), Work()
    callers = joining(flights, work, 3)
    await turns()
    await left(*callers)
    await turns()
    assert (work.runs, work.cancelled, len(flights)) == (1, 1, 0)
    assert asyncio.all_tasks() == before


async def test_a_caller_that_leaves_at_once_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    flights, work = Flights[str](), Work()
    (caller,) = joining(flights, work)
    await asyncio.sleep(0)  # it has joined; the work has hardly begun
    await left(caller)
    await turns()
    assert (work.cancelled, len(flights)) == (work.runs, 0)
    assert asyncio.all_tasks() == before


async def test_a_new_flight_may_begin_while_the_old_one_is_still_ending() -> None:
    flights, work = Flights[str](), Work()
    work.hold.clear()
    (first,) = joining(flights, work)
    await turns()
    await left(first)
    await turns()
    assert len(flights) == 1  # it is counted until it has ended

    work.end = asyncio.get_running_loop().create_future()
    (second,) = joining(flights, work)
    await turns()
    assert (work.runs, len(flights)) == (2, 2)
    work.hold.set()
    await turns()
    assert len(flights) == 1  # the end of the old one has not taken the new one's place
    third = joining(flights, work)[0]
    await turns()
    work.end.set_result("answer")
    assert [await second, await third] == [("answer", False), ("answer", True)]
    assert (work.runs, len(flights)) == (2, 0)


async def test_a_failure_that_nobody_waits_for_any_more_is_no_complaint(complaints: list[dict[str, Any]]) -> None:
    flights, work = Flights[str](), Work()
    (caller,) = joining(flights, work)
    await turns()
    work.end.set_exception(LookupError("no"))
    await asyncio.sleep(0)  # the flight has failed, its caller has not been told
    await left(caller)
    await turns()
    gc.collect()
    assert complaints == []
    assert len(flights) == 0


async def test_a_flight_that_fails_while_it_is_ended_is_no_complaint(complaints: list[dict[str, Any]]) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise LookupError("no") from None
        raise AssertionError

    flights = Flights[str]()
    caller = asyncio.create_task(flights.join("key", stubborn), name="caller")
    await turns()
    await left(caller)
    await turns()
    gc.collect()
    assert (complaints, len(flights)) == ([], 0)
