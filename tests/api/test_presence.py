"""Who is still there: a block ends when its client leaves, for that reason and no other, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gateway.api.presence import Crowd, Presence
from gateway.errors import ClientLeft, ShuttingDown

LIMIT = 10.0  # seconds; guards against a hang


class Client:
    """It is there until it leaves, and tells whoever watches, as the front door does."""

    def __init__(self) -> None:
        self._left: Callable[[], None] | None = None
        self._gone = False
        self.watched = 0

    def watch(self, left: Callable[[], None] | None) -> None:
        self._left = left
        self.watched += left is not None
        if self._gone:
            self.leave()

    def leave(self) -> None:
        self._gone = True
        asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            left()


class Block:
    """An asyncio task whose work is done inside a Presence."""

    def __init__(self, work: Callable[[Presence], Awaitable[Any]] | None = None) -> None:
        self.client, self.crowd = Client(), Crowd()
        self.entered = asyncio.Event()
        self.inner_cancelled = 0
        self.presence = Presence(self.client, self.crowd)
        self._work = work or self.forever
        self.task = asyncio.create_task(self._run(), name="block")

    async def _run(self) -> Any:
        with self.presence as presence:
            self.entered.set()
            return await self._work(presence)

    async def forever(self, _: Presence) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.inner_cancelled += 1
            raise

    async def inside(self) -> Block:
        """Wait until the work waits, and the client is watched."""
        async with asyncio.timeout(LIMIT):
            await self.entered.wait()
            while not self.client.watched:
                await asyncio.sleep(0)
        return self

    async def end(self) -> Any:
        async with asyncio.timeout(LIMIT):
            return await self.task


async def turns() -> None:
    """Let everything that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
async def _nothing_left_over() -> AsyncIterator[None]:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    before = asyncio.all_tasks()
    yield
    await turns()
    assert {task.get_name() for task in asyncio.all_tasks() - before - {asyncio.current_task()}} == set()
    assert complaints == []


async def test_a_client_that_leaves_ends_the_block_and_cancels_what_it_waits_for() -> None:
    block = await Block().inside()
    block.client.leave()
    with pytest.raises(ClientLeft):
        await block.end()
    assert block.inner_cancelled == 1
    assert len(block.crowd) == 0


async def test_after_a_client_left_the_asyncio_task_is_not_cancelled_any_more() -> None:
    after = []

    async def run() -> None:
        client = Client()
        client.leave()
        with pytest.raises(ClientLeft), Presence(client, Crowd()):
            await asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        assert task is not None
        after.append(task.cancelling())
        await turns()
        async with asyncio.timeout(LIMIT):
            await asyncio.sleep(0)
        after.append(task.cancelling())

    await asyncio.create_task(run(), name="caller")
    assert after == [0, 0]


async def test_a_block_that_ends_by_itself_gives_its_result_and_stops_watching() -> None:
    async def work(_: Presence) -> str:
        await turns()
        return "done"

    block = Block(work)
    assert await block.end() == "done"
    assert len(block.crowd) == 0


async def test_an_error_of_the_work_comes_out_as_it_is() -> None:
    async def work(_: Presence) -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        await Block(work).end()


async def test_all_who_are_present_can_be_ended_with_a_cause() -> None:
    cause = ShuttingDown()
    client, crowd = Client(), Crowd()

    async def present() -> None:
        with Presence(client, crowd):
            await asyncio.get_running_loop().create_future()

    tasks = [asyncio.create_task(present(), name=f"call {number}") for number in range(3)]
    await turns()
    assert len(crowd) == 3
    assert crowd.interrupt(cause) == 3
    assert await asyncio.gather(*tasks, return_exceptions=True) == [cause] * 3
    assert (len(crowd), crowd.interrupt(cause)) == (0, 0)


async def test_the_first_cause_stands() -> None:
    cause = ShuttingDown()
    block = await Block().inside()
    block.presence.interrupt(cause)
    block.presence.interrupt(ClientLeft())
    block.client.leave()
    with pytest.raises(ShuttingDown) as caught:
        await block.end()
    assert caught.value is cause
    assert block.inner_cancelled == 1


async def test_a_cancellation_from_outside_stays_one() -> None:
    block = await Block().inside()
    block.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await block.end()
    assert block.task.cancelled()
    assert len(block.crowd) == 0


@pytest.mark.parametrize("first", ["ours", "theirs"])
async def test_where_both_happen_at_once_the_cancellation_from_outside_wins(first: str) -> None:
    block = await Block().inside()
    if first == "ours":
        block.presence.interrupt(ClientLeft())
        block.task.cancel()
    else:
        block.task.cancel()
        block.presence.interrupt(ClientLeft())
    with pytest.raises(asyncio.CancelledError):
        await block.end()
    assert block.task.cancelled()


async def test_a_cancellation_that_was_refused_before_the_block_does_not_hide_a_departure() -> None:
    async def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        client = Client()
        client.leave()
        with pytest.raises(ClientLeft), Presence(client, Crowd()):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(run(), name="caller")
    await turns()
    task.cancel()
    await task


async def test_a_time_limit_around_the_block_is_still_a_time_limit() -> None:
    async def run() -> None:
        async with asyncio.timeout(0):
            with Presence(Client(), Crowd()):
                await asyncio.get_running_loop().create_future()

    with pytest.raises(TimeoutError):
        await run()


async def test_a_time_limit_inside_the_block_is_not_mistaken_for_a_departure() -> None:
    async def work(_: Presence) -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            await turns()
            return "in time"
        raise AssertionError

    assert await Block(work).end() == "in time"


async def test_a_departure_is_not_mistaken_for_the_time_limit_inside_the_block() -> None:
    async def work(presence: Presence) -> None:
        async with asyncio.timeout(LIMIT):
            await asyncio.get_running_loop().create_future()

    block = await Block(work).inside()
    block.client.leave()
    with pytest.raises(ClientLeft):
        await block.end()


async def test_a_departure_and_a_time_limit_in_the_same_moment_are_a_departure() -> None:
    async def work(presence: Presence) -> None:
        async with asyncio.timeout(LIMIT) as limit:
            asyncio.get_running_loop().call_soon(limit.reschedule, 0)
            asyncio.get_running_loop().call_soon(presence.interrupt, ClientLeft())
            await asyncio.get_running_loop().create_future()

    with pytest.raises(ClientLeft):
        await Block(work).end()


async def test_work_that_fails_while_it_is_ended_tells_its_own_error() -> None:
    async def work(_: Presence) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise LookupError("while ending") from None

    block = await Block(work).inside()
    block.client.leave()
    with pytest.raises(LookupError):
        await block.end()
    assert block.task.cancelling() == 0


async def test_a_departure_after_the_answer_was_complete_is_none() -> None:
    go = asyncio.Event()

    async def work(presence: Presence) -> str:
        await turns()
        presence.over()
        await go.wait()
        return "done"

    block = await Block(work).inside()
    await turns()
    await turns()
    block.client.leave()
    assert block.crowd.interrupt(ShuttingDown()) == 0
    await turns()
    go.set()
    assert await block.end() == "done"


async def test_a_departure_in_the_very_moment_of_completion_is_none() -> None:
    async def work(presence: Presence) -> str:
        await turns()
        block.client.leave()  # the watcher has not been told yet
        presence.over()
        await turns()
        return "done"

    block = Block(work)
    assert await block.end() == "done"


async def test_who_was_gone_before_the_block_began_is_noticed_at_its_first_wait() -> None:
    block = Block()
    block.client.leave()
    with pytest.raises(ClientLeft):
        await block.end()


async def test_an_interruption_after_the_block_harms_nobody() -> None:
    async def run() -> str:
        client = Client()
        with Presence(client, Crowd()) as presence:
            await turns()
        client.leave()
        await turns()
        assert presence not in presence._crowd._present
        return "done"

    assert await asyncio.create_task(run(), name="caller") == "done"


async def test_a_block_inside_another_knows_whose_client_left() -> None:
    outer, inner = Client(), Client()
    heard: list[str] = []

    async def run() -> None:
        with Presence(outer, Crowd()):
            with contextlib.suppress(ClientLeft), Presence(inner, Crowd()):
                inner.leave()
                await asyncio.get_running_loop().create_future()
            heard.append("inner")
            outer.leave()
            await asyncio.get_running_loop().create_future()

    with pytest.raises(ClientLeft):
        await asyncio.create_task(run(), name="caller")
    assert heard == ["inner"]
