"""What is said of a call on its lease: what counts, what is said too late, and what nobody said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.errors import ConnectionLost
from gateway.instances import Lease, LeaseState
from tests.instances.pools import Desk


async def test_the_time_to_a_first_token_counts_from_when_the_call_was_first_sent() -> None:
    """It is sent twice where a kept connection turns out to be lost."""
    desk = Desk("alpha")
    with await desk.lease("alpha") as lease:
        lease.sent()
        desk.clock.advance(3.0)
        lease.sent()
        desk.clock.advance(1.0)
        lease.answered()
    assert desk.pool.instances["alpha"].memory.first_token("m:latest") == 4.0


async def test_only_the_first_of_its_tokens_is_the_first() -> None:
    desk = Desk("alpha")
    with await desk.lease("alpha") as lease:
        lease.sent()
        desk.clock.advance(1.0)
        lease.answered()
        desk.clock.advance(50.0)
        lease.answered()
    assert desk.pool.instances["alpha"].memory.first_token("m:latest") == 1.0


async def test_an_answer_to_a_call_that_nobody_said_was_sent_tells_no_times_and_ends_no_drain() -> None:
    desk = Desk("alpha", limit=2)
    left = await desk.lease("alpha")
    left.sent()
    left.release()
    desk.clock.advance(1.0)
    first_token = desk.pool.instances["alpha"].memory.first_token("m:latest")
    (await desk.lease("alpha")).answered()
    assert desk.counts("alpha") == (1, 1)
    assert desk.pool.instances["alpha"].memory.first_token("m:latest") == first_token


@pytest.mark.parametrize("over", [Lease.release, lambda lease: lease.failed(ConnectionLost("alpha", "reset"))])
async def test_an_answer_that_is_told_when_its_call_is_over_ends_no_drain(over: Callable[[Lease], None]) -> None:
    desk = Desk("alpha", limit=2)
    left, late = await desk.lease("alpha"), await desk.lease("alpha")
    left.sent()
    left.release()
    desk.clock.advance(1.0)
    late.sent()
    over(late)
    late.answered()
    assert left.state is LeaseState.DRAINING


async def test_a_call_that_failed_teaches_no_time_to_a_first_token_though_a_token_comes_after_all() -> None:
    desk = Desk("alpha")
    with await desk.lease("alpha") as lease:
        lease.sent()
        desk.clock.advance(100.0)
        lease.failed(ConnectionLost("alpha", "reset"))
        lease.answered()
    assert desk.pool.instances["alpha"].memory.first_token("m:latest") == 2.0
