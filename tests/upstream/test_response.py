"""An open answer in the hands of its reader: when it is whole, and what is left of it once its block was left."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import BadAnswer, ConnectionLost
from gateway.upstream import Request
from gateway.upstream.connection import MAX_UNTAKEN, Connection
from tests.upstream.scripted import (
    CHUNKED,
    HELLO,
    POST,
    STARTED,
    Peer,
    Script,
    answering,
    once,
    quiet,
    reaching,
    silent,
    speaking,
    until,
)

END = b"0\r\n\r\n"


def ending(end: asyncio.Event) -> Script:
    """Begins its answer, and ends it when told to."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STARTED)
        await end.wait()
        await peer.say(b"6\r\n world\r\n" + END)
        await peer.until_gone()

    return script


# Whole


async def test_who_asks_is_told_when_an_answer_is_whole_while_nobody_reads() -> None:
    end, told = asyncio.Event(), asyncio.Event()
    async with speaking(ending(end)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
            response.when_changed(told.set)
            assert not response.whole
            end.set()
            async with asyncio.timeout(5):
                await told.wait()
            assert response.whole
            assert response.unread() == b" world"
            assert response.unread() == b""
            assert await response.read() == b""
        assert upstream.idle == 1


async def test_a_reader_that_waits_is_given_the_end_and_nobody_is_told_of_it() -> None:
    end, told = asyncio.Event(), asyncio.Event()
    async with speaking(ending(end)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            response.when_changed(told.set)
            assert await response.read() == b"hello"
            reader = asyncio.ensure_future(response.read_all(100))
            await asyncio.sleep(0)
            end.set()
            assert await reader == b" world"
        assert not told.is_set()


async def test_an_answer_that_was_left_tells_nobody_of_the_next_one_on_its_connection() -> None:
    end, told = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO)
        await ending(end)(peer)

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as left:
            assert await left.read_all(100) == b"hello"
        left.when_changed(told.set)
        with await upstream.open(POST, connect=5, first=5) as response:
            assert response.reused
            end.set()
            await until(lambda: response.whole)
        assert not told.is_set()


async def test_who_asks_is_told_when_an_answer_breaks_off_while_nobody_reads_and_finds_out_why() -> None:
    end, told = asyncio.Event(), asyncio.Event()

    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.say(STARTED)
        await end.wait()

    async with speaking(cut) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            response.when_changed(told.set)
            response.check()
            assert not response.over
            end.set()
            async with asyncio.timeout(5):
                await told.wait()
            assert (response.over, response.whole) == (True, False)
            with pytest.raises(ConnectionLost, match="cut its answer short"):
                response.check()
            assert response.unread() == b"hello", "what came before is there"


async def test_a_whole_answer_is_sound_whatever_becomes_of_its_connection() -> None:
    async with speaking(once(HELLO)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            await until(lambda: response._connection.failure is not None)
            assert (response.over, response.whole) == (True, True)
            response.check()
            assert await response.read_all(100) == b"hello"


async def test_what_is_taken_without_waiting_lets_an_instance_go_on_that_was_made_to_wait() -> None:
    large = b"%x\r\n%b\r\n" % (MAX_UNTAKEN, b"z" * MAX_UNTAKEN)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(STARTED + large + large + END)

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            await until(lambda: response._connection.paused)
            taken = b""
            while not response.whole or not response.over:
                taken += response.unread()
                await asyncio.sleep(0)
            assert len(taken + response.unread()) == len(b"hello") + 2 * MAX_UNTAKEN


async def test_an_instance_is_waited_for_when_all_it_said_was_read_and_it_has_more_to_say() -> None:
    end = asyncio.Event()
    async with speaking(ending(end)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            await until(lambda: response._answer.untaken > 0)
            assert not response.waits, "something is unread"
            assert response.unread() == b"hello"
            assert response.waits
            end.set()
            await until(lambda: response.whole)
            assert not response.waits, "it is over"


def test_a_request_in_a_log_or_a_traceback_does_not_show_what_it_asks() -> None:
    assert "secret" not in repr(Request(b"POST", b"/v1/chat/completions", body=b"secret"))


# Left


async def test_what_is_read_too_late_of_an_answer_that_was_left_leaves_the_next_one_alone() -> None:
    async with speaking(answering(HELLO, STARTED + END)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as left:
            await until(lambda: left.whole)
        with await upstream.open(POST, connect=5, first=5) as response:
            assert response.reused
            with pytest.raises(BadAnswer, match="more than 4 bytes"):
                await left.read_all(4)
            assert await response.read_all(100) == b"hello"
        assert upstream.idle == 1
        assert len(instance.peers) == 1


async def test_a_reader_that_is_cancelled_as_its_block_is_left_is_cancelled() -> None:
    async with speaking(silent(STARTED)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
            reader = asyncio.ensure_future(response.read())
            await asyncio.sleep(0)
            reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert quiet(upstream)


async def test_of_two_readers_the_second_is_told_of_its_mistake_and_the_first_that_its_connection_is_lost() -> None:
    async with speaking(silent(STARTED)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
            first = asyncio.ensure_future(response.read())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="already waiting"):
                await response.read()
            with pytest.raises(ConnectionLost):
                await first
        assert quiet(upstream)
        async with asyncio.timeout(5):
            await instance.peers[0].gone.wait()


# Kept


async def test_of_two_kept_connections_each_has_its_own_time() -> None:
    loop = asyncio.get_running_loop()
    async with speaking(answering(HELLO)) as instance, reaching(instance.url, idle_for=30.0) as upstream:
        for response in [await upstream.open(POST, connect=5, first=5) for _ in range(2)]:
            await response.read_all(100)
            response.close()
        older, younger = upstream._idle
        older.idle_since -= 30.0
        assert upstream._expiry is not None
        upstream._expiry.cancel()
        upstream._expire(loop)
        assert list(upstream._idle) == [younger]
        assert upstream._expiry.when() == pytest.approx(younger.idle_since + 30.0, abs=1.0)
        await until(lambda: instance.open == 1)


# Given up before it was made


async def test_a_connection_that_is_given_up_before_it_is_made_is_closed_as_it_is_made() -> None:
    gone: list[Connection] = []
    async with speaking(silent(CHUNKED)) as instance:
        loop = asyncio.get_running_loop()
        connection = Connection("alpha", loop, gone.append)
        connection.abort()
        host, port = instance.url.removeprefix("http://").split(":")
        transport, _ = await loop.create_connection(lambda: connection, host, int(port))
        assert transport.is_closing()
        assert not connection.usable
        await until(lambda: len(instance.peers) == 1 and instance.open == 0)
    assert set(gone) == {connection}
    with pytest.raises(ConnectionLost, match="the connection was closed"):
        connection.check()
