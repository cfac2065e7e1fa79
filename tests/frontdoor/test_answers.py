"""What goes out for what an application sends: the form of each answer, and what becomes of half of one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from starlette.types import Receive, Scope, Send

from tests.frontdoor.asked import OurDoor
from tests.house import Wire

Speak = Callable[[Receive, Send], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"


class Speaking(OurDoor):
    """Our front door before an application that says what it is told to."""

    def __init__(self, speak: Speak) -> None:
        super().__init__()
        self._speak = speak

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._speak(receive, send)


@asynccontextmanager
async def wire(speak: Speak) -> AsyncIterator[Wire]:
    async with Speaking(speak).open() as door:
        one = Wire(*await asyncio.open_connection(*door.address))
        try:
            yield one
        finally:
            one.leave()


def saying(*pieces: bytes, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Speak:
    """An application that answers everything with this."""

    async def speak(_: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    return speak


def length(size: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"content-length", b"%d" % size),)


async def heard(speak: Speak, sent: bytes) -> bytes:
    """All that comes until the front door closes."""
    async with wire(speak) as one:
        await one.send(sent)
        return await one.rest()


CLOSING = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
ASKED_TWICE = GET + CLOSING


def heads(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 .*?\r\n\r\n", answer, re.DOTALL)


async def test_an_answer_of_unknown_length_comes_in_chunks_and_the_connection_is_kept() -> None:
    answer = await heard(saying(b"ab", b"", b"c"), ASKED_TWICE)
    assert answer.count(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n") == 2
    first, second = heads(answer)
    assert b"transfer-encoding: chunked\r\n" in first
    assert (b"connection: close" in first, b"connection: close" in second) == (False, True)


async def test_an_answer_of_known_length_comes_as_it_is() -> None:
    answer = await heard(saying(b"ab", b"c", headers=length(3)), ASKED_TWICE)
    assert answer.count(b"content-length: 3\r\n\r\nabc") == 1
    assert answer.endswith(b"\r\n\r\nabc")
    assert b"chunked" not in answer


async def test_to_http_1_0_an_answer_ends_with_the_connection() -> None:
    answer = await heard(saying(b"ab", b"c"), OLD + GET)
    assert answer.endswith(b"connection: close\r\n\r\nabc")
    assert b"chunked" not in answer


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_that_has_no_body_has_none_and_no_framing(status: int) -> None:
    answer = await heard(saying(b"lost", status=status), ASKED_TWICE)
    assert re.fullmatch(rb"(HTTP/1\.1 %d [^\0]*?\r\n\r\n){2}" % status, answer)
    assert answer.count(b"HTTP/1.1") == 2
    assert not re.search(rb"chunked|content-length|lost", answer)


async def test_the_answer_to_head_tells_the_length_of_a_body_that_does_not_come() -> None:
    answer = await heard(saying(b"abc", headers=length(3)), ASKED_TWICE.replace(b"GET", b"HEAD"))
    assert answer.count(b"content-length: 3\r\n") == 2
    assert b"abc" not in answer


async def test_an_application_can_close_and_can_say_anything_else_of_the_connection_in_vain() -> None:
    closed = await heard(saying(headers=(*length(0), (b"connection", b"close"))), GET + GET)
    assert (closed.count(b"HTTP/1.1 200"), closed.count(b"connection: close")) == (1, 1)
    kept = await heard(saying(headers=(*length(0), (b"connection", b"keep-alive"))), ASKED_TWICE)
    assert (kept.count(b"HTTP/1.1 200"), kept.count(b"connection: ")) == (2, 1)


async def test_a_status_nobody_has_named_has_a_line() -> None:
    assert (await heard(saying(status=299, headers=length(0)), CLOSING)).startswith(b"HTTP/1.1 299 \r\n")


async def nothing(_: Receive, __: Send) -> None:
    """An application that returns without a word."""


async def failing(_: Receive, send: Send) -> None:
    await saying(b"abc", headers=length(4))(_, send)


async def half(_: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def starting_twice(receive: Receive, send: Send) -> None:
    await half(receive, send)
    await half(receive, send)


async def body_first(_: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"abc"})


BROKEN: dict[str, Speak] = {
    "nothing said": nothing,
    "fewer bytes than announced": failing,
    "more bytes than announced": saying(b"abc", b"de", headers=length(4)),
    "a body where none was announced": saying(b"abc", headers=length(0)),
    "half an answer": half,
    "two beginnings": starting_twice,
    "a body without a head": body_first,
    "a header that ends its line": saying(b"abc", headers=((b"x", b"a\r\ny: b"),)),
    "a name that ends its line": saying(b"abc", headers=((b"x: a\ny", b"b"),)),
    "a return in a header": saying(b"abc", headers=((b"x", b"a\rb"),)),
    "a line feed in a header": saying(b"abc", headers=((b"x", b"a\nb"),)),
    "a NUL in a header": saying(b"abc", headers=((b"x", b"a\0b"),)),
}


@pytest.mark.parametrize("speak", BROKEN.values(), ids=BROKEN.keys())
async def test_half_an_answer_never_looks_like_a_whole_one(speak: Speak) -> None:
    answer = await heard(speak, GET + GET)
    assert answer.count(b"HTTP/1.1") <= 1
    assert not answer.endswith(b"0\r\n\r\n")
    told = re.search(rb"content-length: (\d+)\r\n.*?\r\n\r\n(.*)", answer, re.DOTALL)
    assert told is None or len(told[2]) < int(told[1])
    assert not re.search(rb"^(y: b|x: a\0b)|a\ny", answer, re.MULTILINE)


async def test_more_than_a_whole_answer_is_a_defect_but_not_the_clients() -> None:
    async def more(receive: Receive, send: Send) -> None:
        await saying(b"abc", headers=length(3))(receive, send)
        with pytest.raises(RuntimeError, match=r"http.response.body was not to be sent now"):
            await send({"type": "http.response.body", "body": b"more"})

    assert (await heard(more, CLOSING)).endswith(b"\r\n\r\nabc")


async def test_what_an_application_hears_body_in_pieces_then_nothing_until_its_answer_is_complete() -> None:
    told: list[tuple[str, bytes, bool]] = []

    async def listening(receive: Receive, send: Send) -> None:
        for _ in range(2):
            message = await receive()
            told.append((message["type"], message["body"], message["more_body"]))
            await send({"type": "http.response.start", "status": 200, "headers": []}) if len(told) == 1 else None
            await send({"type": "http.response.body", "body": b"go on", "more_body": True})
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        assert not waiting.done()
        await send({"type": "http.response.body"})
        told.append(((await waiting)["type"], b"", False))

    async with wire(listening) as one:
        await one.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\nab")
        await one.until(b"go on")
        await one.send(b"cd")
        await one.rest()
    assert told == [("http.request", b"ab", True), ("http.request", b"cd", False), ("http.disconnect", b"", False)]


async def test_no_go_ahead_is_said_into_an_answer() -> None:
    async def late(receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"go on", "more_body": True})
        await receive()
        await send({"type": "http.response.body"})

    async with wire(late) as one:
        await one.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-Continue\r\n\r\n")
        await one.until(b"go on")
        await one.send(b"abcd")
        assert b"100 Continue" not in await one.rest()


@pytest.mark.parametrize("asks", [True, False])
async def test_the_go_ahead_for_a_body_comes_once_and_only_to_who_is_heard(asks: bool) -> None:
    async def reading(receive: Receive, send: Send) -> None:
        while asks and (await receive()).get("more_body"):
            pass
        await saying(headers=length(0))(receive, send)

    expecting = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-Continue\r\n\r\n"
    async with wire(reading) as one:
        await one.send(expecting)
        if asks:
            await one.until(b"HTTP/1.1 100 Continue\r\n\r\n")
            await one.send(b"ab")
            await one.send(b"cd" + CLOSING)
            assert (await one.rest()).count(b"100 Continue") == 1
            assert one.seen.count(b"HTTP/1.1 200") == 2
        else:
            assert b"connection: close" in await one.until(b"\r\n\r\n")
            assert b"100 Continue" not in one.seen
