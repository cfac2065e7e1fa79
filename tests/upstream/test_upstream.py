"""One instance over HTTP, on real sockets: what is sent, what is kept, and what is raised."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

import pytest

from gateway.errors import BadAnswer, ConnectFailed, ConnectionLost
from gateway.upstream import Request, Upstream
from gateway.upstream.connection import MAX_UNTAKEN
from tests.upstream.scripted import (
    BIG,
    GET,
    HELLO,
    POST,
    STARTED,
    Peer,
    Script,
    answering,
    ask,
    black_hole,
    once,
    quiet,
    reaching,
    refuses,
    silent,
    speaking,
    until,
)

# What is sent


async def test_a_request_is_written_as_it_was_given_with_the_instances_own_host() -> None:
    async with speaking(answering(HELLO)) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (200, b"hello")
        assert await ask(upstream, GET) == (200, b"hello")

        authority = instance.url.removeprefix("http://").encode()
        ours = b"host: " + authority + b"\r\naccept-encoding: identity\r\n"
        assert instance.peers[0].heads == [
            b"POST /api/chat HTTP/1.1\r\n" + ours + b"content-type: application/json\r\ncontent-length: 13\r\n\r\n",
            b"GET /api/tags HTTP/1.1\r\n" + ours + b"\r\n",
        ]
        assert instance.peers[0].bodies == [b'{"model":"m"}', b""]


@pytest.mark.parametrize(
    "request_",
    [
        Request(b"GET", b"/", ((b"x", b"a\r\nevil: yes"),)),
        Request(b"GET", b"/", ((b"x", b"a\nb"),)),
        Request(b"GET", b"/", ((b"x", b"a\0"),)),
        Request(b"GET", b"/", ((b"x\r\ny", b"a"),)),
        Request(b"GET", b"/ HTTP/1.1\r\nx: y\r\n\r\n"),
        Request(b"GET", b"/a b"),
        Request(b"GET\r\n", b"/"),
        Request(b"GET", b"/", ((b"Host", b"evil"),)),
        Request(b"POST", b"/", ((b"content-length", b"0"),), b"x"),
        Request(b"POST", b"/", ((b"Transfer-Encoding", b"chunked"),), b"x"),
    ],
)
async def test_a_request_that_would_say_more_than_one_thing_is_never_sent(request_: Request) -> None:
    async with speaking(answering(HELLO)) as instance, reaching(instance.url) as upstream:
        with pytest.raises(ValueError, match=r"\w"):
            await ask(upstream, request_)
        assert not instance.peers
        assert quiet(upstream)


async def test_a_large_body_arrives_whole_however_slowly_it_is_taken() -> None:
    async with speaking(answering(HELLO)) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream, BIG) == (200, b"hello")
        assert await ask(upstream, BIG) == (200, b"hello")

        assert instance.peers[0].bodies == [BIG.body, BIG.body]


async def test_the_caller_is_told_just_before_something_is_sent() -> None:
    told: list[int] = []
    async with speaking(answering(HELLO)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5, sending=lambda: told.append(upstream.busy)):
            assert told == [1]

    async with reaching(instance.url) as upstream:
        with pytest.raises(ConnectFailed):
            await upstream.open(POST, connect=5, first=5, sending=lambda: told.append(0))
    assert told == [1]


async def test_an_answer_that_comes_before_the_whole_body_was_sent_is_read_and_the_connection_closed() -> None:
    async def too_large(peer: Peer) -> None:
        await peer.head()
        await peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
        await peer.until_gone()

    async with speaking(too_large) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream, BIG) == (413, b"too large")
        assert (upstream.idle, upstream.busy) == (0, 0)
        async with asyncio.timeout(5):
            await instance.peers[0].gone.wait()


# What is kept


async def test_a_connection_is_used_again_and_the_latest_first() -> None:
    async with speaking(answering(HELLO)) as instance, reaching(instance.url) as upstream:
        first = await upstream.open(POST, connect=5, first=5)
        second = await upstream.open(POST, connect=5, first=5)
        assert (first.reused, second.reused) == (False, False)
        assert first.connected > 0
        assert (upstream.idle, upstream.busy) == (0, 2)
        for response in (first, second):
            await response.read_all(100)
            response.close()
            response.close()
        assert (upstream.idle, upstream.busy) == (2, 0)

        with await upstream.open(POST, connect=5, first=5) as third:
            assert third.reused
            assert third.connected == 0.0
            await third.read_all(100)
        assert [len(peer.heads) for peer in instance.peers] == [1, 2]


async def test_a_complete_answer_nobody_read_leaves_a_connection_that_can_be_kept() -> None:
    body = b"z" * MAX_UNTAKEN  # so much that its last bytes make the instance wait
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with speaking(answering(answer, HELLO)) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            await until(lambda: response._answer.done)
            assert response._connection.paused
        assert upstream.idle == 1

        assert await ask(upstream) == (200, b"hello")
        assert await response.read() == body
        assert len(instance.peers) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        HELLO + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON",
        HELLO + b"junk",
    ],
    ids=["close", "HTTP/1.0", "another answer", "junk"],
)
async def test_a_connection_is_not_kept_after_an_answer_that_ends_it_or_says_too_much(answer: bytes) -> None:
    async with speaking(once(answer, then_close=False)) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (200, b"hello")
        assert (upstream.idle, upstream.busy) == (0, 0)
        assert await ask(upstream) == (200, b"hello")
        assert len(instance.peers) == 2
        async with asyncio.timeout(5):
            await instance.peers[0].gone.wait()


async def test_surplus_bytes_that_come_later_close_the_idle_connection() -> None:
    more = asyncio.Event()

    async def talkative(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO)
        await more.wait()
        if peer.number == 1:
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")
            await peer.until_gone()
        else:
            await answering(HELLO)(peer)

    async with speaking(talkative) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (200, b"hello")
        assert upstream.idle == 1
        more.set()
        await until(lambda: upstream.idle == 0)
        assert await ask(upstream) == (200, b"hello")
        assert instance.peers[0].gone.is_set()


async def test_a_connection_is_not_used_again_while_it_has_something_unread() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO)
        await peer.until_gone()

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read_all(100) == b"hello"
            sock = response._connection._transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert upstream.idle == 1
        instance.peers[0]._writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON")
        assert select.select([sock], [], [], 5)[0]  # it is here, and the loop has had no turn to bring it

        assert await ask(upstream) == (200, b"hello")
        assert len(instance.peers) == 2


async def test_an_idle_connection_the_instance_closes_is_forgotten_at_once() -> None:
    async with speaking(once(HELLO)) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (200, b"hello")
        await until(lambda: upstream.idle == 0)
        assert len(instance.peers) == 1


async def test_idle_connections_are_closed_when_their_time_is_over() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO)
        await peer.until_gone()

    async with speaking(script) as instance, reaching(instance.url, idle_for=0.05) as upstream:
        for response in [await upstream.open(POST, connect=5, first=5) for _ in range(3)]:
            response.close()
        await until(lambda: upstream.idle == 0)
        async with asyncio.timeout(5):
            await asyncio.gather(*(peer.gone.wait() for peer in instance.peers))
        assert upstream._expiry is None


async def test_no_more_connections_are_kept_than_allowed() -> None:
    async with speaking(answering(HELLO)) as instance, reaching(instance.url, max_idle=2) as upstream:
        for response in [await upstream.open(POST, connect=5, first=5) for _ in range(5)]:
            response.close()
        assert (upstream.idle, upstream.busy) == (2, 0)
        await until(lambda: instance.open == 2)


async def test_closing_ends_idle_connections_now_and_the_others_with_their_exchange() -> None:
    async with speaking(answering(HELLO)) as instance:
        upstream = Upstream("alpha", instance.url)
        in_use = await upstream.open(POST, connect=5, first=5)
        with await upstream.open(POST, connect=5, first=5):
            pass
        assert (upstream.idle, upstream.busy) == (1, 1)

        upstream.close()
        assert (upstream.idle, upstream.busy) == (0, 1)
        assert await in_use.read_all(100) == b"hello"
        in_use.close()
        assert (upstream.idle, upstream.busy) == (0, 0)
        with pytest.raises(ConnectFailed):
            await ask(upstream)
        await until(lambda: instance.open == 0)


# A connection that had gone stale: U5


def dying_when_reused(how: Callable[[Peer], None], before: bytes = b"") -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(HELLO)
        await peer.request()
        if peer.number == 1:
            await peer.say(before)
            how(peer)
        else:
            await peer.say(HELLO)

    return script


@pytest.mark.parametrize("how", [Peer.close, Peer.reset])
async def test_a_kept_connection_lost_before_a_byte_came_back_costs_nobody_anything(
    how: Callable[[Peer], None],
) -> None:
    async with speaking(dying_when_reused(how)) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (200, b"hello")
        with await upstream.open(POST, connect=5, first=5) as response:
            assert not response.reused
            assert await response.read_all(100) == b"hello"
        assert [len(peer.heads) for peer in instance.peers] == [2, 1]


async def test_a_kept_connection_lost_after_a_byte_came_back_is_lost() -> None:
    async with (
        speaking(dying_when_reused(Peer.close, b"H")) as instance,
        reaching(instance.url) as upstream,
    ):
        assert await ask(upstream) == (200, b"hello")
        await refuses(upstream, ConnectionLost)
        assert len(instance.peers) == 1


async def test_the_second_try_of_a_stale_connection_is_the_last_and_on_a_fresh_one() -> None:
    fine = 2

    async def script(peer: Peer) -> None:
        if peer.number > fine:
            await peer.request()
            return
        await peer.request()
        await peer.say(HELLO)
        await peer.request()

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        for response in [await upstream.open(POST, connect=5, first=5) for _ in range(fine)]:
            response.close()
        assert upstream.idle == fine

        await refuses(upstream, ConnectionLost)

        assert len(instance.peers) == 3
        assert upstream.idle == 1


@pytest.mark.parametrize("how", [Peer.close, Peer.reset])
async def test_a_fresh_connection_lost_before_an_answer_is_not_tried_again(how: Callable[[Peer], None]) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        how(peer)

    async with speaking(script) as instance, reaching(instance.url) as upstream:
        await refuses(upstream, ConnectionLost)
        assert len(instance.peers) == 1


# No connection: U1 and U3


async def test_a_refused_connection_is_told_in_words_and_without_the_address() -> None:
    async with speaking(answering(HELLO)) as instance:
        pass
    async with reaching(instance.url) as upstream:
        assert await refuses(upstream, ConnectFailed) == "instance alpha: connection refused"
    async with reaching(instance.url.replace("127.0.0.1", "localhost")) as upstream:
        assert await refuses(upstream, ConnectFailed) == "instance alpha: connection refused"


async def test_a_name_that_cannot_resolve_is_a_failed_connection() -> None:
    async with reaching(f"http://{'a' * 64}.invalid:1") as upstream:
        assert await refuses(upstream, ConnectFailed) == "instance alpha: its name does not resolve"


async def test_a_name_is_reached_as_an_address_is() -> None:
    async with speaking(answering(HELLO), host="localhost") as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (200, b"hello")
        assert b"\r\nhost: localhost:" in instance.peers[0].heads[0]


async def test_a_connection_nobody_accepts_fails_at_its_limit() -> None:
    async with black_hole() as url, reaching(url) as upstream:
        with pytest.raises(ConnectFailed, match=r"no connection within 0\.1 s"):
            await upstream.open(POST, connect=0.1, first=5)
        assert quiet(upstream)


# Answers no Ollama gives: U12 and U14


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000,
    ],
    ids=["garbage", "101", "two lengths", "gzip", "204 with a body", "10,000 headers", "300 KB header"],
)
async def test_a_bad_answer_is_refused_and_its_connection_closed(answer: bytes) -> None:
    async with speaking(once(answer, then_close=False)) as instance, reaching(instance.url) as upstream:
        await refuses(upstream, BadAnswer)
        assert upstream.idle == 0
        await until(lambda: instance.open == 0)


async def test_bad_chunks_are_told_after_what_came_before_them() -> None:
    async with speaking(silent(STARTED + b"oops\r\n")) as instance, reaching(instance.url) as upstream:
        with await upstream.open(POST, connect=5, first=5) as response:
            assert await response.read() == b"hello"
            with pytest.raises(BadAnswer):
                await response.read()
        await until(lambda: instance.open == 0)


async def test_a_redirect_is_a_status_and_is_not_followed() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    async with speaking(answering(answer)) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (302, b"")
        assert len(instance.peers[0].heads) == 1


async def test_an_answer_larger_than_the_reader_wants_is_refused() -> None:
    async with speaking(answering(HELLO)) as instance, reaching(instance.url) as upstream:
        response = await upstream.open(POST, connect=5, first=5)
        with response, pytest.raises(BadAnswer, match="more than 4 bytes"):
            await response.read_all(4)
        assert quiet(upstream)


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
async def test_answers_without_a_body_end_with_their_head(method: bytes) -> None:
    status = b"HTTP/1.1 200 OK" if method == b"HEAD" else b"HTTP/1.1 304 Not Modified"
    answer = status + b"\r\nContent-Length: 17\r\n\r\n"
    async with speaking(answering(answer)) as instance, reaching(instance.url) as upstream:
        for _ in range(2):
            assert (await ask(upstream, Request(method, b"/")))[1] == b""
        assert len(instance.peers) == 1
