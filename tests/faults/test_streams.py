"""S1 to S3 of the fault matrix: a stream breaks after the client has had part of it, in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.simulator import SimulatedModel
from tests.faults.asking import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    Dialect,
    alike,
    asked,
    each_dialect,
    each_family,
    failures,
    one,
    refused,
    streamed_or_whole,
    two,
    words,
)
from tests.faults.proxy import Cut, Flow, Reset, Say
from tests.house import MODEL, Reply

BROKEN = "stream_interrupted"
EMBEDDER = "nomic-embed-text"


def broken(dialect: Dialect, reply: Reply, code: str = BROKEN) -> list[str]:
    """Hold a stream to having ended with an error of its family and nothing that looks like an end; what it said.

    That its last HTTP chunk came has been seen by the client, who would have raised otherwise.
    """
    word, message = dialect.failure(reply)
    family = {"/v1/messages": "timeout_error" if code != BROKEN else "api_error", "/api/chat": "", "/api/generate": ""}
    assert (reply.status, word) == (200, family.get(dialect.path, code)), reply.body[-500:]
    assert message
    assert dialect.end not in reply.body
    return dialect.said(reply)


@pytest.mark.parametrize("after", [1, 10, 1000])
@pytest.mark.parametrize("kind", ["reset", "cut"])
@each_dialect
async def test_s1_what_came_before_a_break_is_passed_on_and_then_it_is_told(
    kind: str, after: int, dialect: Dialect
) -> None:
    prompt = words(after + 3)
    async with two() as house:
        house.simulator("alpha").faults.arm(kind, path=dialect.path, after=after)
        reply = await house.post(dialect.path, dialect.ask(prompt))
        assert broken(dialect, reply) == [f"{' ' if number else ''}n{number}é" for number in range(after)]
        assert (asked(house, "alpha"), asked(house, "beta")) == (1, 0), "another attempt was made"
        assert await failures(house) == {
            "error alpha upstream_reset": 1,
            "failed upstream_reset": 1,
            "interrupted upstream_reset": 1,
        }
        line = house.last_line()
        assert (line["status"], line["reason"], line["attempts"]) == (200, "upstream_reset", 1)
        whole = await house.post(dialect.path, dialect.ask(prompt))
        assert alike(whole.body).startswith(alike(dialect.before_error(reply)))


@pytest.mark.parametrize("ending", ["chunked", "closed"])
@each_dialect
async def test_s1_an_end_without_an_end_marker_is_a_break_however_proper_the_end_of_the_message(
    ending: str, dialect: Dialect
) -> None:
    """The last chunk of HTTP, or where the body has no length the end of the connection: neither ends an answer."""
    async with two() as house:
        half = _half(dialect)
        head, tail = b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b""
        if ending == "chunked":
            head += b"Transfer-Encoding: chunked\r\n"
            half, tail = b"%x\r\n%b\r\n" % (len(half), half), b"0\r\n\r\n"
        house.proxies["alpha"].downstream = Say(data=head + b"\r\n" + half + tail, close=True)
        reply = await house.post(dialect.path, dialect.ask("x"))
        assert broken(dialect, reply) == ["half"]
        assert asked(house, "beta") == 0
        assert await failures(house) == {
            "error alpha stream_broken": 1,
            "failed stream_broken": 1,
            "interrupted stream_broken": 1,
        }


@each_dialect
async def test_s1_an_error_that_the_instance_lost_on_its_way_is_a_break_as_well(dialect: Dialect) -> None:
    """Ollama says nothing of it but a chunk without a model, or nothing at all (ollama.md §4.4)."""
    async with two() as house:
        house.simulator("alpha").faults.arm("swallowed_error", path=dialect.path, after=3)
        reply = await house.post(dialect.path, dialect.ask(words(6)))
        assert broken(dialect, reply) == ["n0é", " n1é", " n2é"]
        assert asked(house, "beta") == 0
        assert (await failures(house))["interrupted stream_broken"] == 1


def _half(dialect: Dialect) -> bytes:
    """One frame of an answer, and nothing after it."""
    said: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"choices": [{"index": 0, "delta": {"content": "half"}}]},
        "/v1/completions": {"choices": [{"index": 0, "text": "half"}]},
        "/v1/responses": {"type": "response.output_text.delta", "sequence_number": 1, "delta": "half"},
        "/v1/messages": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "half"}},
        "/api/chat": {"message": {"role": "assistant", "content": "half"}, "done": False},
        "/api/generate": {"response": "half", "done": False},
    }
    text = json.dumps({"model": "llama3.1:8b", **said[dialect.path]}).encode()
    return text + b"\n" if dialect.path.startswith("/api") else b"data: " + text + b"\n\n"


@pytest.mark.parametrize("kind", [Reset, Cut])
async def test_s1_wherever_in_its_bytes_a_stream_breaks_no_part_of_a_frame_is_sent_on(
    kind: type[Reset | Cut],
) -> None:
    async with one({"breaker": {"failures": 1000}}) as house:
        proxy, began = house.proxies["alpha"], 0
        whole = alike((await house.chat("say: nö nö", stream=True)).body)
        for after in range(200, 900, 37):
            proxy.downstream = kind(after=after)
            reply = await house.chat("say: nö nö", stream=True)
            if reply.status != 502:  # before the first word there is a status
                broken(CHAT, reply)
                assert whole.startswith(alike(CHAT.before_error(reply)))
                began += 1
        assert began > 10
        proxy.downstream = Flow()


@pytest.mark.parametrize("kind", ["reset", "cut", "short_length", "bad_frame"])
@each_family
async def test_s1_half_an_answer_is_never_kept_for_the_next_who_asks(kind: str, dialect: Dialect) -> None:
    same: dict[str, Any] = {"stream": False, "temperature": 0, "options": {"temperature": 0}}
    async with one() as house:
        house.simulator("alpha").faults.arm(kind, path=dialect.path, after=2)
        reply = await house.post(dialect.path, dialect.ask("say: hello", **same))
        assert reply.status == 502
        for expected in ("gateway; fwd=uri-miss; stored", "gateway; hit"):
            reply = await house.post(dialect.path, dialect.ask("say: hello", **same))
            assert (reply.status, reply.headers["cache-status"]) == (200, expected)
            assert b"hello" in reply.body
        assert asked(house) == 2


@pytest.mark.parametrize("kind", ["reset", "cut", "short_length", "bad_frame"])
@pytest.mark.parametrize(
    ("path", "upstream", "body"),
    [
        ("/api/chat", "", {"message": "say: hello"}),  # the facade, whose answers are always kept
        ("/v1/embeddings", "/v1/embeddings", {"model": EMBEDDER, "input": "hello"}),
        ("/api/embed", "/api/embed", {"model": EMBEDDER, "input": "hello"}),
    ],
)
async def test_s1_nor_is_half_of_what_is_kept_without_having_been_asked_for(
    kind: str, path: str, upstream: str, body: dict[str, Any]
) -> None:
    models = (SimulatedModel(name=MODEL), SimulatedModel(name=EMBEDDER, capabilities=("embedding",)))
    async with one(models=models) as house:
        house.simulator("alpha").faults.arm(kind, path=upstream, after=1)
        assert (await house.post(path, body)).status == 502
        for _ in range(2):
            assert (await house.post(path, body)).status == 200
        assert asked(house) == 2


@each_dialect
async def test_s1_a_stream_that_broke_is_not_kept_for_who_asks_for_all_of_it(dialect: Dialect) -> None:
    same: dict[str, Any] = {"temperature": 0, "options": {"temperature": 0}}
    async with one() as house:
        house.simulator("alpha").faults.arm("cut", path=dialect.path, after=2)
        broken(dialect, await house.post(dialect.path, dialect.ask("say: hello my friend", **same)))
        for stream in (True, False):
            reply = await house.post(dialect.path, dialect.ask("say: hello my friend", stream=stream, **same))
            assert (reply.status, "hit" in reply.headers.get("cache-status", "")) == (200, False)
            assert b"friend" in reply.body
        assert asked(house) == 3


@each_dialect
async def test_s2_an_error_in_the_middle_is_told_in_the_dialects_words_and_ends_it(dialect: Dialect) -> None:
    async with two() as house:
        house.simulator("alpha").faults.arm("error_in_band", path=dialect.path, after=3, text="it fell over")
        reply = await house.post(dialect.path, dialect.ask(words(6)))
        assert broken(dialect, reply) == ["n0é", " n1é", " n2é"]
        assert "it fell over" in dialect.failure(reply)[1]
        assert asked(house, "beta") == 0
        assert await failures(house) == {
            "error alpha stream_broken": 1,
            "failed stream_broken": 1,
            "interrupted stream_broken": 1,
        }


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, RESPONSES, MESSAGES], ids=lambda one: one.path)
async def test_s2_so_does_one_that_is_not_in_the_dialects_own_form(dialect: Dialect) -> None:
    async with two() as house:
        body = _half(dialect) + b'data: {"error":"it fell over"}\n\n' + _half(dialect)
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        house.proxies["alpha"].downstream = Say(data=answer)
        reply = await house.post(dialect.path, dialect.ask("x"))
        assert broken(dialect, reply) == ["half"]
        assert "it fell over" in dialect.failure(reply)[1]
        assert asked(house, "beta") == 0


@each_dialect
async def test_s3_a_stream_that_falls_silent_is_ended_at_the_idle_limit_and_its_instance_told(
    dialect: Dialect,
) -> None:
    async with two(timeouts={"idle": 0.3}) as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("hang_mid_stream", path=dialect.path, after=3)
        reply = await house.post(dialect.path, dialect.ask(words(6)))
        assert broken(dialect, reply, "idle_timeout") == ["n0é", " n1é", " n2é"]
        await alpha.until(lambda: house.seen("alpha").left_at is not None)
        assert await failures(house) == {
            "error alpha upstream_timeout_idle": 1,
            "failed upstream_timeout_idle": 1,
            "interrupted upstream_timeout_idle": 1,
        }


@each_dialect
async def test_s3_a_stream_that_outlasts_the_whole_limit_is_ended_though_it_still_speaks(dialect: Dialect) -> None:
    async with one({"timeouts": {"total": 0.5}, "stream": {"hold": 0}}, per_second=20) as house:
        alpha = house.simulator("alpha")
        reply = await house.post(dialect.path, dialect.ask(words(1000)))
        assert len(broken(dialect, reply, "timeout")) < 1000
        await alpha.until(lambda: house.seen("alpha").left_at is not None)
        assert await failures(house) == {"failed timeout": 1, "interrupted timeout": 1}


@streamed_or_whole
async def test_s3_before_the_first_word_both_limits_are_a_status(stream: bool) -> None:
    async with one({"timeouts": {"total": 0.2}}) as house:
        house.simulator("alpha").faults.arm("hang_before_headers", path="/v1")
        reply = await house.chat(stream=stream)
        assert (reply.status, CHAT.failure(reply)[0]) == (504, "timeout")


@each_dialect
async def test_s3_a_whole_answer_that_falls_silent_half_way_is_a_status_and_its_instance_is_told(
    dialect: Dialect,
) -> None:
    """No limit for each silence: nobody sees it pause, so only the limit of the whole call holds."""
    async with one({"timeouts": {"total": 0.3}}) as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("hang_mid_stream", path=dialect.path)
        reply = await house.post(dialect.path, dialect.ask(words(6), stream=False))
        refused(dialect, reply, 504, "timeout")
        await alpha.until(lambda: house.seen("alpha").left_at is not None)
        assert await failures(house) == {"failed timeout": 1}
