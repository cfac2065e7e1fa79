"""U12 to U14 of the fault matrix: bytes that are no answer, too many of them, and answers that lead elsewhere."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.simulator import Simulator
from tests.faults.asking import CHAT, Dialect, each_family, failures, one, refused, streamed_or_whole, two
from tests.faults.proxy import Flow, Say
from tests.house import House

MIB = 2**20
OK = b"HTTP/1.1 200 OK\r\n"
JSON = b'{"choices": []}'
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BAD_ANSWERS = {
    "a head of 300 KB": OK + b"X-Filler: x\r\n" * 25_000 + b"Content-Length: 2\r\n\r\n{}",
    "one header of 300 KB": OK + b"X-Filler: " + b"x" * 300_000,
    "257 headers": OK + b"X: y\r\n" * 257 + b"Content-Length: 2\r\n\r\n{}",
    "a length and chunks": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length that is none": OK + b"Content-Length: -2\r\n\r\n{}",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a chunk without a size": CHUNKED + b"xyz\r\n{}\r\n0\r\n\r\n",
    "a chunk of 2^64 bytes": CHUNKED + b"10000000000000000\r\n{}\r\n",
    "endless chunk extensions": CHUNKED + b"2;" + b"x" * 300_000,
    "endless trailers": CHUNKED + b"0\r\n" + b"X: y\r\n" * 50_000,
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status 999": b"HTTP/1.1 999 Beyond\r\nContent-Length: 2\r\n\r\n{}",
    "status 42": b"HTTP/1.1 042 Below\r\nContent-Length: 2\r\n\r\n{}",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "another HTTP": b"HTTP/3.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "204 with a body": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{}",
    "endless 100s": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "a NUL in a header": OK + b"X-Filler: a\0b\r\nContent-Length: 2\r\n\r\n{}",
}
each_bad_answer = pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=list(BAD_ANSWERS))


@contextmanager
def within(size: int) -> Iterator[None]:
    """All of this process, test and simulators included, takes no more than that at once, beyond what it had."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak / MIB:.1f} MiB"


async def still_works(house: House) -> None:
    """On a connection of its own: on the one that was spoilt no answer would ever come."""
    house.proxies["alpha"].downstream = Flow()
    reply = await house.chat("say: fine")
    assert (reply.status, reply.text.strip(), reply.headers["x-gateway-attempts"]) == (200, "fine", "1")


@each_bad_answer
@streamed_or_whole
async def test_u12_what_is_no_answer_is_a_502_and_its_connection_is_never_used_again(
    answer: bytes, stream: bool
) -> None:
    async with one() as house:
        house.proxies["alpha"].downstream = Say(data=answer, times=1)
        refused(CHAT, await house.chat(stream=stream), 502, "bad_upstream_response")
        assert await failures(house) == {"error alpha bad_answer": 1, "failed bad_answer": 1}
        await still_works(house)


@each_family
async def test_u12_it_is_told_in_the_words_of_each_family_without_those_of_the_instance(dialect: Dialect) -> None:
    async with one() as house:
        house.proxies["alpha"].downstream = Say(data=BAD_ANSWERS["another protocol"], times=1)
        reply = await house.post(dialect.path, dialect.ask("x"))
        assert "OpenSSH" not in refused(dialect, reply, 502, "bad_upstream_response")


@each_bad_answer
async def test_u12_where_there_is_another_instance_the_client_does_not_notice(answer: bytes) -> None:
    async with two() as house:
        house.proxies["alpha"].downstream = Say(data=answer)
        reply = await house.chat("say: fine", stream=True)
        assert (reply.status, reply.instance, reply.text.strip()) == (200, "beta", "fine")
        assert await failures(house) == {"error alpha bad_answer": 1, "retry bad_answer tried": 1}


@pytest.mark.parametrize(
    ("kind", "stream", "most"),
    [
        ("endless_headers", True, 3 * MIB),
        ("endless_headers", False, 3 * MIB),
        ("endless_frame", True, 24 * MIB),  # an event may have 8 MiB, as a line of Ollama's own
        ("endless_frame", False, 72 * MIB),  # a whole answer may have 64 MiB
    ],
)
async def test_u12_what_never_ends_is_not_waited_for_and_takes_no_memory(kind: str, stream: bool, most: int) -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm(kind, path="/v1")
        with within(most):
            reply = await house.chat(stream=stream)
        refused(CHAT, reply, 502, "bad_upstream_response")


@pytest.mark.parametrize(
    ("length", "code"), [(len(JSON) + 10, "upstream_error"), (len(JSON) - 1, "stream_interrupted")]
)
async def test_u12_a_wrong_length_is_no_answer_either_whichever_way_it_is_wrong(length: int, code: str) -> None:
    async with one() as house:
        answer = OK + b"Content-Length: %d\r\n\r\n%b" % (length, JSON)
        house.proxies["alpha"].downstream = Say(data=answer, close=True, times=1)
        refused(CHAT, await house.chat(), 502, code)
        await still_works(house)


async def test_u12_a_stream_longer_than_its_length_ends_where_that_says_and_is_told_of() -> None:
    async with one() as house:
        body = FRAME % b"half" + END
        answer = OK + b"Content-Length: %d\r\n\r\n%b" % (len(body) - len(END) + 5, body)
        house.proxies["alpha"].downstream = Say(data=answer, times=1)
        reply = await house.chat(stream=True)
        assert (reply.status, CHAT.said(reply), CHAT.failure(reply)[0]) == (200, ["half"], "stream_interrupted")
        assert CHAT.end not in reply.body
        await still_works(house)


async def test_u12_a_stream_shorter_than_its_length_is_whole_once_its_end_marker_came_and_its_connection_is_over() -> (
    None
):
    async with one() as house:
        proxy = house.proxies["alpha"]
        before, body = proxy.over, FRAME % b"whole" + END
        proxy.downstream = Say(data=OK + b"Content-Length: %d\r\n\r\n%b" % (len(body) + 10, body), times=1)
        reply = await house.chat(stream=True)
        assert (reply.status, reply.text, reply.events[-1]) == (200, "whole", "[DONE]")
        await house.until(lambda: proxy.over == before + 1)
        assert await failures(house) == {}
        await still_works(house)


async def test_u12_an_early_hint_is_passed_over() -> None:
    async with one() as house:
        hint = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        body = b'{"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}'
        answer = hint + OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        house.proxies["alpha"].downstream = Say(data=answer)
        reply = await house.chat()
        assert (reply.status, reply.text) == (200, "fine")


POISON = OK + b'Content-Length: 75\r\n\r\n{"choices": [{"message": {"content": "POISON"}, "finish_reason": "stop"}]}\n'


@pytest.mark.parametrize("surplus", [b"x", b"\r\n\r\nx", JSON, POISON])
@streamed_or_whole
async def test_u13_bytes_after_a_complete_answer_go_to_nobody(surplus: bytes, stream: bool) -> None:
    async with one() as house:
        proxy = house.proxies["alpha"]
        before = proxy.over
        house.simulator("alpha").faults.arm("extra_bytes", path="/v1", text=surplus.decode("latin-1"))
        for word in ("first", "second", "third"):
            reply = await house.chat(f"say: {word}", stream=stream)
            assert (reply.status, reply.text.strip()) == (200, word)
            await house.until(lambda: proxy.over == before + 1)
        assert await failures(house) == {}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@each_family
async def test_u14_a_redirect_is_a_502_and_nobody_goes_there(status: int, dialect: Dialect) -> None:
    async with one() as house, Simulator() as inner:
        answer = b"HTTP/1.1 %d Elsewhere\r\nLocation: %b/api/delete\r\nContent-Length: 0\r\n\r\n"
        house.proxies["alpha"].downstream = Say(data=answer % (status, inner.url.encode()))
        reply = await house.post(dialect.path, dialect.ask("x"))
        assert inner.url not in refused(dialect, reply, 502, "bad_upstream_response")
        assert not inner.requests


BOMB = gzip.compress(b" " * 64 * MIB, 9)


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip"])
@pytest.mark.parametrize("status", [b"200 OK", b"500 Internal Server Error"])
@streamed_or_whole
async def test_u14_a_compressed_answer_that_nobody_asked_for_is_a_502_and_not_inflated(
    coding: bytes, status: bytes, stream: bool
) -> None:
    assert len(BOMB) < MIB / 8
    async with one() as house:
        head = b"HTTP/1.1 %b\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
        house.proxies["alpha"].downstream = Say(data=head % (status, coding, len(BOMB)) + BOMB, times=1)
        with within(3 * MIB):
            reply = await house.chat(stream=stream)
        refused(CHAT, reply, 502, "bad_upstream_response")
        assert house.seen("alpha").header("accept-encoding") == "identity"
        await still_works(house)


@pytest.mark.parametrize("head", [b"302 Found\r\nLocation: http://127.0.0.1:1/", b"200 OK\r\nContent-Encoding: gzip"])
@each_family
async def test_u14_where_there_is_another_instance_neither_is_noticed(head: bytes, dialect: Dialect) -> None:
    async with two() as house:
        answer = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (head, len(BOMB)) + BOMB
        house.proxies["alpha"].downstream = Say(data=answer)
        reply = await house.post(dialect.path, dialect.ask("say: fine"))
        assert (reply.status, reply.instance, "".join(dialect.said(reply)).strip()) == (200, "beta", "fine")
        assert await failures(house) == {"error alpha bad_answer": 1, "retry bad_answer tried": 1}


FRAME = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


async def test_u13_a_thousand_frames_that_come_at_once_are_an_answer() -> None:
    body = FRAME % b"x" * 1100 + END
    async with one() as house:
        house.proxies["alpha"].downstream = Say(data=CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), times=1)
        reply = await house.chat(stream=True)
        assert (reply.status, reply.text, reply.events[-1]) == (200, "x" * 1100, "[DONE]")


async def test_u13_a_thousand_frames_that_say_nothing_are_none() -> None:
    body = FRAME % b"" * 1100
    async with one() as house:
        house.proxies["alpha"].downstream = Say(data=CHUNKED + b"%x\r\n%b\r\n" % (len(body), body), times=1)
        refused(CHAT, await house.chat(stream=True), 502, "bad_upstream_response")
        await still_works(house)
