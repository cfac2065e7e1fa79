"""An answer as it comes: bytes in order, cuts told as cuts, a bound on memory, and a limit for every silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.errors import ConnectionLost, FirstTokenTimeout, IdleTimeout
from gateway.upstream.connection import MAX_UNTAKEN
from tests.upstream.scripted import (
    BIG,
    CHUNKED,
    HELLO,
    POST,
    STARTED,
    Peer,
    answering,
    ask,
    once,
    quiet,
    reaching,
    silent,
    speaking,
    until,
)


async def test_bytes_are_handed_on_as_they_come() -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        for word in (b"one", b"two", b"three"):
            await go.wait()
            go.clear()
            await peer.say((CHUNKED if word == b"one" else b"") + b"%x\r\n%b\r\n" % (len(word), word))
        await peer.say(b"0\r\n\r\n")
        await peer.until_gone()

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        go.set()
        with await upstream.open(POST, connect=5, first=5) as response:
            assert response.headers == ((b"transfer-encoding", b"chunked"),)
            assert await response.read() == b"one"
            go.set()
            assert await response.read() == b"two"
            go.set()
            assert await response.read() == b"three"
            assert await response.read() == b""
            assert await response.read() == b""
        assert upstream.idle == 1


async def test_chunks_that_come_together_are_read_together() -> None:
    words = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in b"hello world") + b"0\r\n\r\n"
    async with speaking(answering(words)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello world"


async def test_a_stream_of_single_bytes_gives_the_same_body() -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        for byte in STARTED + b"3\r\n\xe2\x82\xac\r\n0\r\n\r\n":
            await peer.say(bytes([byte]))
            await asyncio.sleep(0)
        await peer.until_gone()

    async with speaking(drip) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (200, "hello\u20ac".encode())
        assert upstream.idle == 1


@pytest.mark.parametrize("start", [STARTED, b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"])
@pytest.mark.parametrize("how", [Peer.close, Peer.reset])
async def test_a_body_cut_short_is_lost_after_what_came_before(start: bytes, how: Callable[[Peer], None]) -> None:
    taken = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(start)
        await taken.wait()
        how(peer)

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
            taken.set()
            with pytest.raises(ConnectionLost, match="short"):
                await response.read()
        assert (upstream.idle, upstream.busy) == (0, 0)


async def test_what_arrived_before_the_cut_is_read_even_if_the_reader_comes_late() -> None:
    async with speaking(once(STARTED)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            await until(lambda: quiet(upstream))
            assert await response.read() == b"hello"
            with pytest.raises(ConnectionLost):
                await response.read()


async def test_a_body_without_a_length_ends_with_its_connection_and_says_so() -> None:
    async with speaking(once(b"HTTP/1.1 200 OK\r\n\r\nhello")) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert not response.delimited
            assert await response.read_all(100) == b"hello"
        assert (upstream.idle, upstream.busy) == (0, 0)


async def test_a_body_without_a_length_that_is_reset_is_lost() -> None:
    taken = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await taken.wait()
        peer.reset()

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
            taken.set()
            with pytest.raises(ConnectionLost):
                await response.read()


async def test_an_instance_that_talks_faster_than_we_read_is_made_to_wait() -> None:
    total, piece, said = 50 * 2**20, b"z" * 2**16, 0

    async def push(peer: Peer) -> None:
        nonlocal said
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while said < total:
            await peer.say(piece)
            said += len(piece)
        await peer.until_gone()

    async with speaking(push) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=30) as response:
            response.spoke(30)
            await until(lambda: response._connection.paused)
            stalled_at = -1
            while stalled_at != said:  # what the kernel takes meanwhile
                stalled_at = said
                for _ in range(200):
                    await asyncio.sleep(0)
            most = response._answer.untaken
            assert said < total // 2

            read = 0
            while data := await response.read():
                read += len(data)
                most = max(most, response._answer.untaken, len(data))
            assert read == total
            assert most < MAX_UNTAKEN + 2**19
        assert upstream.idle == 1


# Time


async def test_silence_before_the_answer_ends_at_the_limit_for_the_first_token() -> None:
    async with speaking(silent()) as instance, reaching(instance.url) as upstream:
        with pytest.raises(FirstTokenTimeout):
            await upstream.open(POST, connect=5, first=0.05)
        assert quiet(upstream)
        async with asyncio.timeout(5):
            await instance.peers[0].gone.wait()


async def test_an_instance_that_does_not_take_the_body_meets_the_same_limit() -> None:
    async def deaf(peer: Peer) -> None:
        await peer.head()
        await stop.wait()

    stop = asyncio.Event()
    async with speaking(deaf) as instance, reaching(instance.url) as upstream:
        with pytest.raises(FirstTokenTimeout):
            await upstream.open(BIG, connect=5, first=0.1)
        assert quiet(upstream)
        stop.set()


async def test_bytes_that_are_no_content_do_not_put_off_the_limit_for_the_first_token() -> None:
    async def blank(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        while True:
            await peer.say(b"1\r\n\n\r\n")
            await asyncio.sleep(0.005)

    async with speaking(blank) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=0.1) as response, pytest.raises(FirstTokenTimeout):
            await response.read_all(2**20)
        assert quiet(upstream)


async def test_after_the_first_content_each_silence_has_its_own_limit() -> None:
    async def slow(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        for _ in range(20):
            await peer.say(b"1\r\nx\r\n")
            await asyncio.sleep(0.02)
        await peer.until_gone()

    async with speaking(slow) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=0.2) as response:
            response.spoke(0.3)
            seen = b""
            while len(seen) < 20:
                seen += await response.read()
            with pytest.raises(IdleTimeout):
                await response.read()
        async with asyncio.timeout(5):
            await instance.peers[0].gone.wait()


async def test_a_limit_for_silence_shorter_than_that_for_the_first_token_counts_at_once() -> None:
    async with speaking(silent(STARTED)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=3600) as response:
            assert await response.read() == b"hello"
            response.spoke(0.05)
            with pytest.raises(IdleTimeout):
                await response.read()


async def test_a_slow_reader_does_not_make_the_instance_silent() -> None:
    body = b"z" * (8 * 2**20)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with speaking(answering(answer)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            response.spoke(0.05)
            await until(lambda: response._connection.paused)
            timer = response._timer
            await until(lambda: response._timer is not timer)  # it fired, looked, and let the instance be
            assert await response.read_all(len(body)) == body


async def test_silence_counts_from_the_moment_the_instance_may_go_on() -> None:
    data = b"%x\r\n%b\r\n" % (MAX_UNTAKEN, b"z" * MAX_UNTAKEN)
    async with speaking(silent(CHUNKED + data)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            response.spoke(0.2)
            await until(lambda: response._connection.paused)
            paused_at = response._connection.last_data
            loop = asyncio.get_running_loop()
            await until(lambda: loop.time() > paused_at + 0.2)
            assert await response.read()

            assert response._timer is not None
            response._timer.cancel()
            response._check_time()
            assert upstream.busy == 1
            with pytest.raises(IdleTimeout):
                await response.read_all(2**20)


async def test_a_complete_answer_has_all_the_time_it_likes_to_be_read() -> None:
    async with speaking(answering(HELLO)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=0.05) as response:
            await until(lambda: response._timer is None)
            assert await response.read_all(100) == b"hello"
        assert upstream.idle == 1


async def test_a_long_stream_costs_no_timer_for_each_of_its_pieces() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        for _ in range(300):
            await peer.say(b"1\r\nx\r\n")
            await asyncio.sleep(0)
        await peer.say(b"0\r\n\r\n")
        await peer.until_gone()

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        timers: list[asyncio.TimerHandle | None] = []
        with await upstream.open(POST, connect=5, first=60) as response:
            while await response.read():
                response.spoke(30)
                if not timers or timers[-1] is not response._timer:
                    timers.append(response._timer)
        assert len(timers) == 1
        assert response._timer is None
