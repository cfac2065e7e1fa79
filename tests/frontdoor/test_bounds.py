"""Every bound of the front door: what just keeps to it is taken, one more is refused, however the bytes are cut."""

from __future__ import annotations

import pytest

from gateway.frontdoor.head import MAX_TARGET
from gateway.frontdoor.protocol import MAX_AHEAD, MAX_FRAMING, MAX_HEAD, MAX_HEADERS
from tests.frontdoor.asked import OurDoor
from tests.frontdoor.readers import Reading

LINE = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"\r\n\r\n"


def head(size: int) -> bytes:
    return LINE + b"X: " + b"y" * (size - len(LINE) - 3 - len(END)) + END


def target(size: int) -> bytes:
    return b"GET /" + b"x" * (size - 1) + b" HTTP/1.1\r\nHost: a" + END


def headers(count: int) -> bytes:
    return LINE + b"X: y\r\n" * (count - 1) + b"\r\n"


def trailers(count: int) -> bytes:
    return CHUNKED + b"1\r\na\r\n0\r\n" + b"X: y\r\n" * count + b"\r\n"


BOUNDS = {
    "head": (head, MAX_HEAD, "431 the head is larger than"),
    "target": (target, MAX_TARGET, "414 "),
    "headers": (headers, MAX_HEADERS, "431 more than 100 headers"),
    "trailers": (trailers, MAX_HEADERS, "400 more than 100 trailers"),
}


async def read_both_ways(data: bytes) -> Reading:
    """What became of it whole, and in pieces of some size; in both it must be the same."""
    async with OurDoor().open() as door:
        whole, cut = await door.read(data), await door.read(data, range(0, len(data), 97))
    assert (whole.requests, whole.end) == (cut.requests, cut.end)
    return whole


@pytest.mark.parametrize("bound", BOUNDS)
async def test_what_keeps_to_a_bound_is_taken_and_one_more_is_refused(bound: str) -> None:
    make, most, words = BOUNDS[bound]
    taken = await read_both_ways(make(most))
    assert (len(taken.requests), taken.end) == (1, "clean")
    refused = await read_both_ways(make(most + 1))
    assert refused.requests == ()
    assert refused.why.startswith(words)


async def test_the_bounds_of_one_request_do_not_add_up_over_several() -> None:
    data = head(MAX_HEAD) + headers(MAX_HEADERS) + trailers(MAX_HEADERS) + trailers(MAX_HEADERS) + target(MAX_TARGET)
    taken = await read_both_ways(data)
    assert (len(taken.requests), taken.end) == (5, "clean")


@pytest.mark.parametrize("before", [b"", b"3\r\nabc\r\n"], ids=["before the first chunk", "after one"])
async def test_framing_has_a_bound_between_two_pieces_of_body_and_the_body_has_none(before: bytes) -> None:
    small = b"3;" + b"x" * (MAX_FRAMING // 2) + b"\r\nabc\r\n"
    taken = await read_both_ways(CHUNKED + before + small * 20 + b"0\r\n\r\n" + LINE + b"\r\n")
    assert (len(taken.requests), taken.end) == (2, "clean")
    large = b"3;" + b"x" * (4 * MAX_FRAMING) + b"\r\nabc\r\n"
    refused = await read_both_ways(CHUNKED + before + large + b"0\r\n\r\n")
    assert refused.why.startswith(f"400 more than {MAX_FRAMING} bytes of chunk extensions or trailers")


async def test_so_many_requests_of_one_read_are_answered_and_the_next_is_refused() -> None:
    one = LINE + b"\r\n"
    async with OurDoor().open() as door:
        taken = await door.read(one * (MAX_AHEAD + 1))
        assert (len(taken.requests), taken.end) == (MAX_AHEAD + 1, "clean")
        refused = await door.read(one * (MAX_AHEAD + 2))
        assert len(refused.requests) == MAX_AHEAD + 1
        assert refused.why.startswith(f"400 more than {MAX_AHEAD} requests ahead")
