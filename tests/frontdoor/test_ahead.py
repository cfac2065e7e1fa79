"""Requests sent ahead of their answers: each is held to what the first of a read is held to, and has its turn."""

from __future__ import annotations

import json
import re

import pytest

from gateway.simulator import Behaviour
from tests.frontdoor.asked import OurDoor
from tests.frontdoor.readers import Request
from tests.house import House, ask, request

CHAT = "/v1/chat/completions"
HOST = b"Host: gateway\r\n"
LIVEZ = request("/livez", b"", method="GET")
SLOW = request(CHAT, json.dumps(ask("hello")).encode())
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"
BEFORE = {
    "no body": LIVEZ,
    "a body with a length": request("/nowhere", b'{"a":"\r\n\r\n"}'),
    "chunks": CHUNKED + b"2\r\n{}\r\n0\r\n\r\n",
    "chunks with trailers": CHUNKED + b"2\r\n{}\r\n0\r\nX: y\r\n\r\n",
    "an offer": request("/livez", b"", "Connection: Upgrade", "Upgrade: h2c", method="GET"),
}
BAD = {
    "RTSP": (400, b"GET /b RTSP/1.0\r\n" + HOST),
    "ICE": (400, b"GET /b ICE/1.0\r\n" + HOST),
    "two spaces before the target": (400, b"GET  /b HTTP/1.1\r\n" + HOST),
    "two spaces after the target": (400, b"GET /b  HTTP/1.1\r\n" + HOST),
    "an empty line before it": (400, b"\r\nGET /b HTTP/1.1\r\n" + HOST),
    "a line feed before it": (400, b"\nGET /b HTTP/1.1\r\n" + HOST),
    "a carriage return before it": (400, b"\rGET /b HTTP/1.1\r\n" + HOST),
    "no Host": (400, b"GET /b HTTP/1.1\r\n"),
    "no HTTP": (400, b"\x16\x03\x01\r\n"),
    "a method nobody knows": (405, b"FOO /b HTTP/1.1\r\n" + HOST),
    "a version nobody speaks": (505, b"GET /b HTTP/2.0\r\n" + HOST),
    "a header too large": (431, b"GET /b HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n"),
}


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


async def answered(house: House, sent: bytes) -> bytes:
    """All that comes back until the gateway closes."""
    async with house.wire() as wire:
        await wire.send(sent)
        return await wire.rest()


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
async def test_a_bad_request_is_refused_after_a_sound_one_of_the_same_read_is_answered(before: bytes) -> None:
    async with House({"alpha": Behaviour()}) as house:
        for name, (status, bad) in BAD.items():
            answer = await answered(house, before + bad + b"\r\n" + LIVEZ)
            assert statuses(answer)[1:] == [status], (name, answer)
            assert answer.count(b"alive") == (1 if LIVEZ[:10] in before else 0)
            assert answer.count(b"connection: close") == 1


async def test_all_sound_ones_are_answered_in_order_before_the_refusal_however_slow_the_first_is() -> None:
    async with House({"alpha": Behaviour(first_token=0.1)}) as house:
        answer = await answered(house, SLOW + LIVEZ + request("/nowhere", b"{}") + b"GET /b ICE/1.0\r\n\r\n" + LIVEZ)
    assert statuses(answer) == [200, 200, 404, 400]
    assert answer.index(b"chat.completion") < answer.index(b"alive") < answer.index(b"unknown_path")
    assert answer.count(b"connection: close") == 1


async def test_a_bad_body_is_told_in_its_turn_and_by_the_application() -> None:
    async with House({"alpha": Behaviour(first_token=0.1)}) as house:
        answer = await answered(house, SLOW + LIVEZ + CHUNKED + b"1\r\nab\r\n0\r\n\r\n" + LIVEZ)
        assert statuses(answer) == [200, 200, 400]
        assert answer.count(b"x-request-id: ") == 3
        assert house.last_line()["status"] == 400


async def test_a_refusal_is_in_the_words_of_its_own_path_not_of_the_one_before() -> None:
    async with House({"alpha": Behaviour()}) as house:
        before = request("/v1/messages", b"{}")
        chunked = CHUNKED.replace(b"/v1/chat/completions", b"/v1/messages") + b"0\r\n\r\n"
        for sound in (before, chunked):
            assert b'"code":"malformed_request"' in await answered(house, sound + b"no HTTP at all\r\n\r\n")
        answer = await answered(house, LIVEZ + b"POST /v1/messages HTTP/1.1\r\n\r\n")
        assert b'{"type":"error"' in answer.rpartition(b"HTTP/1.1 400")[2]


async def test_a_request_that_begins_where_none_may_adds_nothing_to_the_one_before() -> None:
    evil = b"X-Request-Id: smuggled\r\nX-Evil: y\r\n\r\n"
    async with House({"alpha": Behaviour()}) as house:
        for before in BEFORE.values():
            for line in (b"GET /b RTSP/1.0\r\n", b"GET  /b HTTP/1.1\r\n", b"\r\nGET /b HTTP/1.1\r\n"):
                assert b"smuggled" not in await answered(house, before + line + HOST + evil)


@pytest.mark.parametrize("after", [LIVEZ, b"no HTTP at all\r\n\r\n", b"\r\n" + LIVEZ])
async def test_whatever_follows_a_request_that_closes_is_not_looked_at(after: bytes) -> None:
    closing = request("/livez", b"", "Connection: close", method="GET")
    async with House({"alpha": Behaviour()}) as house:
        assert statuses(await answered(house, closing + after)) == [200]
        assert await house.metric("gateway_http_refusals_total", reason="malformed") == 0


async def test_a_head_that_was_held_back_has_all_its_time_once_it_is_read_on() -> None:
    async with (
        House({"alpha": Behaviour(first_token=0.4)}, {"server": {"head_timeout": 0.1}}) as house,
        house.wire() as wire,
    ):
        await wire.send(SLOW + LIVEZ * 16 + LIVEZ[:20])
        await wire.until(b"chat.completion")
        await wire.send(LIVEZ[20:] + b"end\r\n\r\n")
        assert statuses(await wire.rest()) == [200] * 18 + [400]


# Where a message ends

HIDDEN = b"\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n\r\n\r\n\r\n"
SOUND = {
    "no body": b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a length": b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(HIDDEN), HIDDEN),
    "chunks": b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (len(HIDDEN), HIDDEN),
    "trailers": b"POST /d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0;x\r\nX: y\r\nY: z\r\n\r\n",
}
SEEN = [
    Request(b"GET", b"/a?b", b""),
    Request(b"POST", b"/b", HIDDEN),
    Request(b"POST", b"/c", HIDDEN),
    Request(b"POST", b"/d", b""),
]


async def test_a_message_ends_where_it_ends_wherever_the_reads_are_cut() -> None:
    data = b"".join(SOUND.values())
    async with OurDoor().open() as door:
        for cut in range(len(data)):
            for cuts in ([cut], [cut, cut + 1], [cut, cut + 2], [cut, cut + 3]):
                reading = await door.read(data, cuts)
                assert (list(reading.requests), reading.end) == (SEEN, "clean"), cuts


@pytest.mark.parametrize("before", SOUND.values(), ids=SOUND.keys())
async def test_what_stands_before_a_request_line_is_seen_wherever_the_reads_are_cut(before: bytes) -> None:
    async with OurDoor().open() as door:
        for more in (b"\r\n", b"\n", b"\r"):
            data = before + more + SOUND["no body"]
            for cut in range(len(before) - 4, len(before) + 6):
                for cuts in ([cut], [cut, cut + 1], [cut, cut + 2]):
                    reading = await door.read(data, cuts)
                    assert (len(reading.requests), reading.end) == (1, "refused"), (more, cuts)


async def test_a_body_full_of_blank_lines_is_not_read_in_crumbs() -> None:
    body = b"\r\n\r\n" * 16_000
    data = SOUND["chunks"].partition(b"\r\n\r\n")[0] + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with OurDoor().open() as door:
        (taken,) = (await door.read(data)).requests
        assert taken.body == body
        assert door.pieces < 100
