"""U1 to U5 of the fault matrix: an instance that cannot be reached, or is lost before it has answered."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.asking import (
    CHAT,
    Dialect,
    asked,
    each_dialect,
    each_family,
    failures,
    one,
    refused,
    streamed_or_whole,
    two,
)
from tests.faults.proxy import BlackHole, Cut, Ending, Flow, HalfClose, Reset
from tests.house import House

lost = pytest.mark.parametrize("kind", [Reset, Cut, HalfClose])
WORD = "say: here I am"


async def served_by_beta(house: House, stream: bool, dialect: Dialect = CHAT, *, attempts: int = 2) -> None:
    reply = await house.post(dialect.path, dialect.ask(WORD, stream=stream))
    assert (reply.status, reply.instance) == (200, "beta"), reply.body
    assert reply.headers["x-gateway-attempts"] == str(attempts)
    if stream:
        assert "".join(dialect.said(reply)).strip() == "here I am"
        assert dialect.end in reply.body


@streamed_or_whole
async def test_u1_a_call_moves_on_from_an_instance_that_refuses_until_three_of_them_take_it_out(stream: bool) -> None:
    async with two() as house:
        await house.proxies["alpha"].refuse()
        for _ in range(3):
            await served_by_beta(house, stream)
        assert house.engine.pool.instances["alpha"].state(house.engine._loop.time()) == "open"
        await served_by_beta(house, stream, attempts=1)
        assert await failures(house) == {"error alpha connect": 3, "retry connect tried": 3, "breaker alpha open": 1}
        assert asked(house) == 0


@each_family
@streamed_or_whole
async def test_u2_where_all_refuse_it_is_a_502_after_three_attempts(dialect: Dialect, stream: bool) -> None:
    """Not 503 as in the matrix: that is said where nobody could serve it (D8)."""
    async with two() as house:
        await house.proxies["alpha"].refuse()
        house.simulator("beta").faults.arm("refuse", times=None)
        reply = await house.post(dialect.path, dialect.ask(WORD, stream=stream))
        refused(dialect, reply, 502, "upstream_unavailable")
        assert reply.headers["x-gateway-attempts"] == "3"
        assert await failures(house) == {
            "error alpha connect": 2,
            "error beta connect": 1,
            "retry connect tried": 2,
            "retry connect exhausted": 1,
            "failed connect": 1,
        }
        house.simulator("beta").faults.clear()


@each_family
@streamed_or_whole
async def test_u2_once_nobody_is_left_it_is_a_503_that_says_when_to_come_back_and_nobody_is_asked(
    dialect: Dialect, stream: bool
) -> None:
    async with two(breaker={"connects": 1, "cooldown": 8}, line={"hold": 0}) as house:
        await house.proxies["alpha"].refuse()
        house.simulator("beta").faults.arm("refuse", times=None)
        for attempts in ("2", None):
            reply = await house.post(dialect.path, dialect.ask(WORD, stream=stream))
            refused(dialect, reply, 503, "no_instance")
            assert 1 <= int(reply.headers["retry-after"]) <= 10
            assert (reply.headers["x-should-retry"], reply.headers.get("x-gateway-attempts")) == ("true", attempts)
        moved = await failures(house)
        assert {name: count for name, count in moved.items() if name.startswith("error")} == {
            "error alpha connect": 1,
            "error beta connect": 1,
        }
        house.simulator("beta").faults.clear()


@streamed_or_whole
async def test_u3_a_connect_that_gets_no_answer_at_all_ends_at_its_limit_and_the_call_moves_on(stream: bool) -> None:
    async with two(timeouts={"connect": 0.3}) as house:
        await house.proxies["alpha"].ignore()
        await served_by_beta(house, stream)
        assert await failures(house) == {"error alpha connect": 1, "retry connect tried": 1}


async def test_u3_where_no_connect_is_answered_it_is_a_502() -> None:
    async with one({"timeouts": {"connect": 0.1}}) as house:
        await house.proxies["alpha"].ignore()
        refused(CHAT, await house.chat(stream=True), 502, "upstream_unavailable")


async def test_u3_an_instance_that_takes_the_call_and_says_nothing_is_left_and_counts_as_busy_for_a_while() -> None:
    async with two(timeouts={"first_token": 1.0}) as house:
        alpha = house.engine.pool.instances["alpha"]
        house.proxies["alpha"].downstream = BlackHole()
        async with asyncio.TaskGroup() as both:
            both.create_task(house.until(lambda: (alpha.held, alpha.draining) == (0, 1)))
            both.create_task(served_by_beta(house, stream=True))
        expected = {"error alpha upstream_timeout_first_token": 1, "retry upstream_timeout_first_token tried": 1}
        assert await failures(house) == expected


@each_family
async def test_u3_where_all_say_nothing_it_is_a_504_and_none_is_asked_twice(dialect: Dialect) -> None:
    async with two(timeouts={"first_token": 0.1}) as house:
        house.proxies["alpha"].downstream = BlackHole()
        house.simulator("beta").faults.arm("hang_before_headers", times=None, path=dialect.path)
        reply = await house.post(dialect.path, dialect.ask(WORD))
        refused(dialect, reply, 504, "first_token_timeout")
        assert reply.headers["x-gateway-attempts"] == "2"
        assert (asked(house, "alpha"), asked(house, "beta")) == (1, 1)
        house.simulator("beta").faults.clear()


@each_family
async def test_u3_a_whole_answer_that_never_comes_is_a_504_at_the_limit_of_the_call_and_its_place_is_kept_for_a_while(
    dialect: Dialect,
) -> None:
    async with two(timeouts={"total": 0.5}) as house:
        alpha = house.engine.pool.instances["alpha"]
        house.proxies["alpha"].downstream = BlackHole()
        async with asyncio.TaskGroup() as both:
            both.create_task(house.until(lambda: (alpha.held, alpha.draining) == (0, 1)))
            asking = both.create_task(house.post(dialect.path, dialect.ask(WORD, stream=False)))
        refused(dialect, asking.result(), 504, "timeout")
        assert asked(house, "beta") == 0
        assert await failures(house) == {"failed timeout": 1}


@lost
@each_dialect
async def test_u4_a_connection_lost_before_the_answer_is_one_attempt_elsewhere(
    kind: type[Ending], dialect: Dialect
) -> None:
    async with two() as house:
        house.proxies["alpha"].downstream = kind()
        await served_by_beta(house, stream=True, dialect=dialect)
        assert await failures(house) == {"error alpha upstream_reset": 1, "retry upstream_reset tried": 1}


@lost
async def test_u4_so_it_is_for_a_whole_answer_however_much_of_it_came(kind: type[Ending]) -> None:
    async with two() as house:
        for after in (0, 1, 20, 200):
            house.proxies["alpha"].downstream = kind(after=after)
            await served_by_beta(house, stream=False)
        assert await failures(house) == {"error alpha upstream_reset": 4, "retry upstream_reset tried": 4}


async def test_u4_where_it_happens_everywhere_there_is_no_point_in_trying_again() -> None:
    """A client that tries three times would otherwise make nine attempts of it (faults.md §1)."""
    async with two() as house:
        house.proxies["alpha"].downstream = Reset()
        house.simulator("beta").faults.arm("reset", times=None, path=CHAT.path)
        reply = await house.chat()
        refused(CHAT, reply, 502, "upstream_error")
        assert (reply.headers["x-gateway-attempts"], reply.headers["x-should-retry"]) == ("3", "false")
        house.simulator("beta").faults.clear()


async def test_u4_a_single_attempt_says_nothing_of_the_next() -> None:
    async with one() as house:
        house.proxies["alpha"].downstream = Reset()
        reply = await house.chat()
        refused(CHAT, reply, 502, "upstream_error")
        assert "x-should-retry" not in reply.headers


@lost
@streamed_or_whole
async def test_u5_a_kept_connection_that_closes_as_it_is_used_is_replaced_and_nobody_is_refused(
    kind: type[Ending], stream: bool
) -> None:
    async with one({"breaker": {"failures": 1, "connects": 1}}) as house:
        proxy = house.proxies["alpha"]
        for _ in range(3):
            before = proxy.accepted
            proxy.downstream = kind(times=1)
            reply = await house.chat(WORD, stream=stream)
            assert (reply.status, reply.text.strip()) == (200, "here I am")
            assert reply.headers["x-gateway-attempts"] == "1"
            assert (proxy.down.struck, proxy.accepted) == (1, before + 1)
        assert await failures(house) == {}
        assert house.engine.pool.instances["alpha"].state(house.engine._loop.time()) == "healthy"


async def test_u5_a_request_that_never_arrived_on_a_kept_connection_goes_out_once_more() -> None:
    async with one() as house:
        house.proxies["alpha"].upstream = Reset(times=1)
        assert (await house.chat(WORD)).status == 200
        assert asked(house) == 1
        assert await failures(house) == {}


async def test_u5_what_is_lost_twice_in_a_row_is_lost() -> None:
    async with one() as house:
        house.proxies["alpha"].upstream = Reset(times=2)
        refused(CHAT, await house.chat(WORD), 502, "upstream_error")
        assert asked(house) == 0
        assert await failures(house) == {"error alpha upstream_reset": 1, "failed upstream_reset": 1}
        house.proxies["alpha"].upstream = Flow()
