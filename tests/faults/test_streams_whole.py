"""S4 to S8 of the fault matrix: a stream is cut oddly, huge, fast, or says odd things; where it can be, it is whole."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.faults.asking import (
    CHAT,
    COMPLETIONS,
    GENERATE,
    MESSAGES,
    NATIVE,
    RESPONSES,
    Dialect,
    alike,
    asked,
    each_dialect,
    failures,
    one,
    two,
    words,
)
from tests.faults.proxy import Flow, Say
from tests.faults.test_bad_answers import MIB, within
from tests.house import MODEL, NO_TLS, Reply

ODD = 'say: naïve ☃ 𝄞 \u2028\u0085 \\ " \t{ } text'
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def said(dialect: Dialect, text: str) -> bytes:
    """One frame that says `text`."""
    frame: dict[str, Any] = {"model": MODEL, "message": {"role": "assistant", "content": text}, "done": False}
    if dialect is not NATIVE:
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return framed(dialect, json.dumps(frame).encode())


def framed(dialect: Dialect, data: bytes) -> bytes:
    return data + b"\n" if dialect is NATIVE else b"data: " + data + b"\n\n"


def closing(dialect: Dialect) -> bytes:
    if dialect is NATIVE:
        return b'{"model":"llama3.1:8b","message":{"role":"assistant","content":""},"done":true}\n'
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return framed(dialect, json.dumps(frame).encode()) + b"data: [DONE]\n\n"


either = pytest.mark.parametrize("dialect", [CHAT, NATIVE], ids=lambda one: one.path)


@pytest.mark.parametrize("piece", [1, 3, 7])
@each_dialect
async def test_s4_a_stream_is_the_same_however_its_bytes_are_cut(piece: int, dialect: Dialect) -> None:
    async with one() as house:
        whole = await house.post(dialect.path, dialect.ask(ODD))
        house.proxies["alpha"].downstream = Flow(piece=piece)
        cut = await house.post(dialect.path, dialect.ask(ODD))
        assert alike(cut.body) == alike(whole.body)
        assert "".join(dialect.said(cut)).split() == ODD.removeprefix("say: ").split()
        assert dialect.end in cut.body
        house.proxies["alpha"].downstream = Flow()


@each_dialect
async def test_s4_so_is_a_whole_answer_that_comes_byte_by_byte(dialect: Dialect) -> None:
    async with one() as house:
        whole = await house.post(dialect.path, dialect.ask(ODD, stream=False))
        house.proxies["alpha"].downstream = Flow(piece=1)
        cut = await house.post(dialect.path, dialect.ask(ODD, stream=False))
        assert (cut.status, alike(cut.body)) == (200, alike(whole.body))
        assert "cache-status" not in cut.headers or "hit" not in cut.headers["cache-status"]
        house.proxies["alpha"].downstream = Flow()


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
@pytest.mark.parametrize("piece", [1, 2, 64 * 1024])
async def test_s4_so_it_is_where_lines_end_otherwise_and_are_cut_between_the_two_bytes_of_an_end(
    line_end: bytes, piece: int
) -> None:
    events = (said(CHAT, "snow ☃") + said(CHAT, " and more") + closing(CHAT)).replace(b"\n", line_end)
    async with one() as house:
        house.proxies["alpha"].downstream = Say(data=HEAD + chunk(events) + END, piece=piece)
        reply = await house.chat(stream=True)
        assert (reply.status, reply.text, reply.events[-1]) == (200, "snow ☃ and more", "[DONE]")


@either
async def test_s5_a_frame_of_two_mebibytes_is_passed_on(dialect: Dialect) -> None:
    """The matrix sets the limit at 1 MiB; Ollama's own for one line is 8 MiB, and what it may say we must bear."""
    text = "x" * 2 * MIB
    async with one() as house:
        answer = HEAD + chunk(said(dialect, text)) + chunk(closing(dialect)) + END
        house.proxies["alpha"].downstream = Say(data=answer)
        reply = await house.post(dialect.path, dialect.ask("x"))
        assert dialect.said(reply) == [text]
        assert dialect.end in reply.body


@each_dialect
async def test_s5_a_frame_that_never_ends_is_told_of_at_its_limit_and_takes_no_more_memory(dialect: Dialect) -> None:
    async with one() as house:
        proxy = house.proxies["alpha"]
        house.simulator("alpha").faults.arm("endless_frame", path=dialect.path, after=2)
        before = proxy.down.passed
        with within(24 * MIB):
            reply = await house.post(dialect.path, dialect.ask(words(5)))
        assert reply.status == 200
        assert dialect.said(reply) == ["n0é", " n1é"]
        assert "longer than the limit of 8388608 bytes" in dialect.failure(reply)[1]
        assert dialect.end not in reply.body
        assert proxy.down.passed - before < 16 * MIB
        assert await failures(house) == {
            "error alpha bad_answer": 1,
            "failed bad_answer": 1,
            "interrupted bad_answer": 1,
        }


@either
async def test_s5_a_frame_beyond_the_limit_is_not_passed_on_though_it_ends(dialect: Dialect) -> None:
    async with one() as house:
        frames = [said(dialect, "fine"), said(dialect, "x" * 9 * MIB), closing(dialect)]
        house.proxies["alpha"].downstream = Say(data=HEAD + b"".join(map(chunk, frames)) + END, times=1)
        with within(64 * MIB):  # the nine of the test itself, too, some of them three times
            reply = await house.post(dialect.path, dialect.ask("x"))
        assert (reply.status, dialect.said(reply)) == (200, ["fine"])
        assert "longer than the limit of 8388608 bytes" in dialect.failure(reply)[1]
        assert dialect.end not in reply.body
        assert (await house.chat("say: next")).text.strip() == "next"


@pytest.mark.parametrize("dialect", [CHAT, RESPONSES, GENERATE], ids=lambda one: one.path)
async def test_s6_ten_thousand_tokens_at_once_arrive_as_they_were_said_and_hold_nobody_else_up(
    dialect: Dialect,
) -> None:
    prompt = words(10_000)
    async with one(parallel=2) as house:
        burst = asyncio.create_task(house.post(dialect.path, dialect.ask(prompt)))
        await house.until(lambda: asked(house) == 1)
        assert (await house.chat("say: me too", stream=True)).text == "me too"
        assert (await house.get("/livez")).status == 200
        assert not burst.done(), "it was no burst"
        reply: Reply = await burst
        assert dialect.said(reply) == [f"{' ' if number else ''}n{number}é" for number in range(10_000)]
        assert dialect.end in reply.body
        assert await failures(house) == {}


@pytest.mark.parametrize("dialect", [NATIVE, GENERATE], ids=lambda one: one.path)
async def test_s7_a_line_that_is_no_json_is_passed_on_as_it_is_where_we_translate_nothing(dialect: Dialect) -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("bad_frame", path=dialect.path, after=2)
        reply = await house.post(dialect.path, dialect.ask("say: one two three"))
        assert (reply.status, dialect.end in reply.body) == (200, True)
        assert [line for line in reply.body.split(b"\n") if line == b"{]"] == [b"{]"]
        assert await failures(house) == {}


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, RESPONSES, MESSAGES], ids=lambda one: one.path)
async def test_s7_elsewhere_it_ends_the_stream_with_an_error(dialect: Dialect) -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("bad_frame", path=dialect.path, after=2)
        reply = await house.post(dialect.path, dialect.ask("say: one two three"))
        assert dialect.said(reply) == ["one", " two"]
        assert dialect.failure(reply)[0] == ("api_error" if dialect is MESSAGES else "stream_interrupted")
        assert dialect.end not in reply.body
        assert await failures(house) == {
            "error alpha stream_broken": 1,
            "failed stream_broken": 1,
            "interrupted stream_broken": 1,
        }


MALFORMED = [
    b"{",
    b'{"choices":[{"delta":',
    b'{"choices":"\xff\xfe"}',
    b"[]",
    b"7",
    b"null",
    b'"word"',
    b"<html>",
    b"{}{}",
]


@pytest.mark.parametrize("what", MALFORMED)
async def test_s7_whatever_is_wrong_with_it(what: bytes) -> None:
    async with one() as house:
        events = said(CHAT, "fine") + framed(CHAT, what) + said(CHAT, "more") + closing(CHAT)
        house.proxies["alpha"].downstream = Say(data=HEAD + chunk(events) + END, times=1)
        reply = await house.chat(stream=True)
        assert (reply.status, CHAT.said(reply)) == (200, ["fine"])
        assert CHAT.failure(reply)[0] == "stream_interrupted"
        assert CHAT.end not in reply.body


@pytest.mark.parametrize("what", MALFORMED)
async def test_s7_and_where_nothing_is_translated_it_is_as_it_was_to_the_byte(what: bytes) -> None:
    async with one() as house:
        lines = said(NATIVE, "fine") + framed(NATIVE, what) + said(NATIVE, "more") + closing(NATIVE)
        house.proxies["alpha"].downstream = Say(data=HEAD + chunk(lines) + END, times=1)
        reply = await house.post(NATIVE.path, NATIVE.ask("x"))
        assert (reply.status, reply.body) == (200, lines)
        assert await failures(house) == {}


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, RESPONSES, MESSAGES], ids=lambda one: one.path)
async def test_s7_before_the_first_word_it_is_tried_elsewhere(dialect: Dialect) -> None:
    async with two() as house:
        house.simulator("alpha").faults.arm("bad_frame", path=dialect.path)
        reply = await house.post(dialect.path, dialect.ask("say: one two three"))
        assert (reply.status, reply.instance, "".join(dialect.said(reply))) == (200, "beta", "one two three")
        assert await failures(house) == {"error alpha stream_broken": 1, "retry stream_broken tried": 1}


@each_dialect
async def test_s8_of_two_end_markers_the_first_counts_and_nothing_after_it_is_passed_on(dialect: Dialect) -> None:
    async with one() as house:
        whole = await house.post(dialect.path, dialect.ask("say: enough"))
        house.simulator("alpha").faults.arm("extra_frames", path=dialect.path)
        for _ in range(2):
            reply = await house.post(dialect.path, dialect.ask("say: enough"))
            assert alike(reply.body) == alike(whole.body)
        assert await failures(house) == {}


@each_dialect
async def test_s8_nor_is_a_second_answer_behind_the_first_and_its_connection_is_closed(dialect: Dialect) -> None:
    """The instance's own words twice, and no end of the message: only their end marker ends them."""
    async with one() as house:
        proxy = house.proxies["alpha"]
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
            asked_itself = await client.post(
                house.simulator("alpha").url + dialect.path, json=dialect.ask("say: enough")
            )
        raw = asked_itself.content
        whole = await house.post(dialect.path, dialect.ask("say: enough"))
        before = proxy.over
        proxy.downstream = Say(data=HEAD + chunk(raw) + chunk(raw), times=1)
        reply = await house.post(dialect.path, dialect.ask("say: enough"))
        assert alike(reply.body) == alike(whole.body)
        await house.until(lambda: proxy.over == before + 1)
        assert (await house.chat("say: next")).text.strip() == "next"
        assert await failures(house) == {}


@either
async def test_s8_an_instance_that_goes_on_after_its_end_marker_is_cut_off_and_the_client_does_not_wait(
    dialect: Dialect,
) -> None:
    async with one() as house:
        proxy = house.proxies["alpha"]
        before = proxy.over
        more = said(dialect, " more") + closing(dialect)
        answer = HEAD + chunk(said(dialect, "enough") + closing(dialect) + more) + chunk(more) * 3
        proxy.downstream = Say(data=answer, times=1)
        reply = await house.post(dialect.path, dialect.ask("x"))
        assert dialect.said(reply) == ["enough"]
        assert reply.body.count(dialect.end) == 1
        await house.until(lambda: proxy.over == before + 1)
        assert (await house.chat("say: next")).text.strip() == "next"
        assert await failures(house) == {}
