"""One answer, cut out of bytes: the same however they were cut, and never more memory than its limits."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.connection import MAX_HEAD, MAX_HEADERS, PIECE, Answer

OK = b"HTTP/1.1 200 OK\r\n"
SOUND = {
    "length": OK + b"Content-Type: application/json\r\nContent-Length: 13\r\n\r\n" + '{"a":"\u00e4\u20ac"}'.encode(),
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7;x=y\r\n\r\nworld\r\n0\r\n\r\n",
    "trailers": OK + b"transfer-encoding: chunked\r\n\r\n1\r\nh\r\n0\r\nChecksum: 12\r\nOther: x\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"
    + OK
    + b"Content-Length: 1\r\n\r\nz",
    "nothing": b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
    "unchanged": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 999\r\n\r\n",
    "to the end": b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil it closes",
    "closing": OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi",
    "refusal": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy",
}

Outcome = tuple[int, tuple[tuple[bytes, bytes], ...], bytes, bool, bool, bool, bool]


def outcome(pieces: list[bytes]) -> Outcome:
    answer = Answer()
    body = b""
    for piece in pieces:
        answer.feed(piece)
        body += answer.take()
    complete = answer.end()
    return answer.status, tuple(answer.headers), body, complete, answer.keep, answer.delimited, answer.surplus


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(places) if start < stop]


@given(name=st.sampled_from(sorted(SOUND)), at=st.lists(st.integers(0, 2**16), max_size=40))
def test_an_answer_does_not_depend_on_where_its_bytes_were_cut(name: str, at: list[int]) -> None:
    data = SOUND[name]

    assert outcome(cut(data, at)) == outcome([data])


@pytest.mark.parametrize("name", sorted(SOUND))
def test_an_answer_may_come_byte_by_byte(name: str) -> None:
    data = SOUND[name]

    assert outcome([data[i : i + 1] for i in range(len(data))]) == outcome([data])


@given(chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=30), at=st.lists(st.integers(0, 2**16)))
def test_a_chunked_body_is_the_sum_of_its_chunks(chunks: list[bytes], at: list[int]) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)

    status, _, seen, complete, keep, _, surplus = outcome(
        cut(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n", at)
    )

    assert (status, seen, complete, keep, surplus) == (200, b"".join(chunks), True, True, False)


@given(data=st.binary(max_size=2000), start=st.sampled_from([b"", b"HTTP/1.1 ", OK, *SOUND.values()]))
def test_whatever_comes_is_an_answer_or_a_value_error(data: bytes, start: bytes) -> None:
    answer = Answer()
    with suppress(ValueError):
        answer.feed(start + data)
    answer.end()
    assert len(answer.take()) <= len(start + data)


def test_each_sound_answer_is_read_as_what_it_is() -> None:
    def seen(name: str) -> tuple[int, bytes, bool, bool]:
        status, _, body, complete, keep, _, _ = outcome([SOUND[name]])
        return status, body, complete, keep

    assert seen("length") == (200, '{"a":"\u00e4\u20ac"}'.encode(), True, True)
    assert seen("chunks") == (200, b"hello\r\nworld", True, True)
    assert seen("trailers") == (200, b"h", True, True)
    assert seen("interim") == (200, b"z", True, True)
    assert seen("nothing") == (204, b"", True, True)
    assert seen("unchanged") == (304, b"", True, True)
    assert seen("to the end") == (200, b"until it closes", True, False)
    assert seen("closing") == (200, b"hi", True, False)
    assert seen("refusal") == (503, b"busy", True, True)


def test_header_names_come_lower_case_and_trailers_and_interim_headers_not_at_all() -> None:
    assert outcome([SOUND["length"]])[1] == ((b"content-type", b"application/json"), (b"content-length", b"13"))
    assert outcome([SOUND["trailers"]])[1] == ((b"transfer-encoding", b"chunked"),)
    assert outcome([SOUND["interim"]])[1] == ((b"content-length", b"1"),)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
        OK + b"Content-Length: -3\r\n\r\n",
        OK + b"Content-Length: 3, 3\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabXX",
        OK + b"X: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_no_ollama_says_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        outcome([data])
    with pytest.raises(ValueError, match=r"\w"):
        outcome([data[i : i + 1] for i in range(len(data))])


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (OK, b"X-Filler: " + b"y" * 990 + b"\r\n"),
        (OK + b"X: ", b"y" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Filler: " + b"y" * 990 + b"\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5;", b"y" * 1000),
    ],
    ids=["headers", "one header", "interim answers", "trailers", "chunk extension"],
)
def test_an_endless_head_trailer_or_extension_ends_at_its_limit(start: bytes, more: bytes) -> None:
    answer = Answer()
    answer.feed(start)
    for _ in range(MAX_HEAD // len(more) - 1):
        with suppress(ValueError):  # where the number of headers is what ends it
            answer.feed(more)

    with pytest.raises(ValueError, match="more than"):
        answer.feed(more * 2)


def test_a_head_beyond_the_limit_is_refused_even_if_it_comes_at_once() -> None:
    with pytest.raises(ValueError, match="bytes of head"):
        Answer().feed(OK + b"X: " + b"y" * MAX_HEAD + b"\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(ValueError, match="headers"):
        Answer().feed(OK + b"X: y\r\n" * (MAX_HEADERS + 1) + b"Content-Length: 0\r\n\r\n")


def test_a_small_head_with_a_large_body_in_one_read_is_welcome() -> None:
    body = b"z" * 3 * MAX_HEAD
    assert outcome([OK + b"Content-Length: %d\r\n\r\n" % len(body) + body])[2:4] == (body, True)


@pytest.mark.parametrize(
    "extra",
    [b"x", b"H", b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON", b"\0"],
)
@pytest.mark.parametrize("name", ["length", "chunks", "trailers", "nothing", "unchanged", "closing"])
def test_bytes_after_a_complete_answer_are_surplus_and_never_part_of_it(name: str, extra: bytes) -> None:
    whole = outcome([SOUND[name]])

    assert outcome([SOUND[name] + extra]) == (*whole[:-1], True)
    assert outcome([SOUND[name], extra]) == (*whole[:-1], True)


def test_the_answer_to_head_ends_with_its_head() -> None:
    answer = Answer(head_only=True)
    answer.feed(OK + b"Content-Length: 17\r\n\r\n")
    assert (answer.done, answer.keep, answer.surplus, answer.take()) == (True, True, False, b"")

    talkative = Answer(head_only=True)
    talkative.feed(OK + b"Content-Length: 5\r\n\r\nhello")
    assert (talkative.done, talkative.surplus, talkative.take()) == (True, True, b"")


@pytest.mark.parametrize("name", ["length", "chunks", "trailers", "closing"])
def test_an_answer_that_stops_early_is_not_complete(name: str) -> None:
    for stop in range(len(SOUND[name])):
        answer = Answer()
        answer.feed(SOUND[name][:stop])
        assert not answer.end()


def test_tiny_pieces_count_for_what_they_cost() -> None:
    answer = Answer()
    answer.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000)

    assert answer.untaken == 1000 * (1 + PIECE)
    assert answer.take() == b"x" * 1000
    assert answer.untaken == 0
