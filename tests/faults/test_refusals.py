"""U6 to U10 and U15 of the fault matrix: an instance that answers, and not with what was asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.faults.asking import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    NATIVE,
    RESPONSES,
    Dialect,
    asked,
    each_dialect,
    each_family,
    failures,
    one,
    streamed_or_whole,
    two,
)
from tests.faults.proxy import Say
from tests.house import MODEL, House

BROKE = "something went wrong"  # of no kind that is known: it counts against the whole instance


def state(house: House, name: str = "alpha") -> str:
    return house.engine.pool.instances[name].state(house.engine._loop.time())


@streamed_or_whole
async def test_u7_five_failures_in_a_row_take_an_instance_out(stream: bool) -> None:
    async with two() as house:
        house.simulator("alpha").faults.arm("status", times=5, path="/v1", status=500, text=BROKE)
        for _ in range(5):
            assert state(house) == "healthy"
            reply = await house.chat(stream=stream)
            assert (reply.status, reply.instance, reply.headers["x-gateway-attempts"]) == (200, "beta", "2")
        assert state(house) == "open"
        assert (await house.chat(stream=stream)).headers["x-gateway-attempts"] == "1"
        breaker = house.engine.pool.instances["alpha"].breaker
        assert breaker.until is not None
        assert breaker.until - house.engine._loop.time() <= 12.0  # 10 s, 20 % more or less
        assert await failures(house) == {
            "error alpha upstream_5xx": 5,
            "retry upstream_5xx tried": 5,
            "breaker alpha open": 1,
        }


async def test_u7_and_of_fifty_calls_that_come_when_it_may_be_tried_again_exactly_one_tries_it() -> None:
    async with two(breaker={"failures": 1, "cooldown": 0.2}) as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("status", path="/v1", status=500, text=BROKE)
        assert (await house.chat()).instance == "beta"
        await house.until(lambda: state(house) == "half_open")
        alpha.faults.arm("hang_before_headers", times=None, path="/v1")
        alpha.forget()
        calls = [asyncio.create_task(house.chat(f"say: {number}")) for number in range(50)]
        await house.until(lambda: sum(call.done() for call in calls) == 49)
        assert asked(house) == 1
        assert {call.result().instance for call in calls if call.done()} == {"beta"}
        (trial,) = [call for call in calls if not call.done()]
        trial.cancel()
        await asyncio.wait([trial])
        alpha.faults.clear()
        await house.quiet()
        assert (await house.chat()).instance == "alpha"
        assert state(house) == "slow_start"


@pytest.mark.parametrize("what", ["busy", "rate_limited"])
@each_dialect
@streamed_or_whole
async def test_u6_u9_whatever_the_words_and_the_dialect_a_busy_instance_costs_one_attempt_and_nobody_their_answer(
    what: str, dialect: Dialect, stream: bool
) -> None:
    async with two(breaker={"failures": 1}) as house:
        house.simulator("alpha").faults.arm(what, times=None, path=dialect.path)
        reply = await house.post(dialect.path, dialect.ask("say: hello", stream=stream))
        assert (reply.status, reply.instance, reply.headers["x-gateway-attempts"]) == (200, "beta", "2")
        assert b"hello" in reply.body
        assert (asked(house), state(house)) == (1, "saturated")
        assert await failures(house) == {"error alpha upstream_busy": 1, "retry upstream_busy tried": 1}
        house.simulator("alpha").faults.clear()


@each_dialect
async def test_u8_a_model_that_one_instance_lost_is_found_on_the_other_and_no_longer_listed(dialect: Dialect) -> None:
    async with two() as house:
        house.simulator("alpha").behaviour = Behaviour(models=())
        reply = await house.post(dialect.path, dialect.ask("say: hello"))
        assert (reply.status, reply.instance, reply.headers["x-gateway-attempts"]) == (200, "beta", "2")
        assert "".join(dialect.said(reply)) == "hello"
        await house.until(lambda: not house.engine.catalog.has("alpha", MODEL))
        reply = await house.post(dialect.path, dialect.ask("say: hello"))
        assert reply.headers["x-gateway-attempts"] == "1"
        assert await failures(house) == {"error alpha not_found": 1, "retry not_found tried": 1}


@each_family
async def test_u8_it_is_a_404_where_nobody_has_it(dialect: Dialect) -> None:
    async with two() as house:
        for simulator in house.simulators.values():
            simulator.behaviour = Behaviour(models=())
        reply = await house.post(dialect.path, dialect.ask("x"))
        word, message = dialect.failure(reply)
        assert (reply.status, reply.headers["x-should-retry"]) == (404, "false")
        assert word == {CHAT: "model_not_found", MESSAGES: "not_found_error", NATIVE: ""}[dialect]
        assert "not found" in message
        assert (asked(house, "alpha"), asked(house, "beta")) == (1, 1)


async def test_u9_a_call_an_instance_is_too_busy_for_goes_to_another_at_once() -> None:
    async with two() as house:
        house.simulator("alpha").faults.arm("rate_limited", path="/v1", retry_after=3600.0)
        reply = await house.chat()
        assert (reply.status, reply.instance, reply.headers["x-gateway-attempts"]) == (200, "beta", "2")
        assert state(house) == "saturated"
        assert await failures(house) == {"error alpha upstream_busy": 1, "retry upstream_busy tried": 1}


async def test_u9_an_instance_that_is_alone_is_asked_again_when_it_said_and_not_before() -> None:
    async with one({"retry": {"attempts": 2}}) as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("rate_limited", path="/v1", retry_after=1.0)
        reply = await house.chat()
        assert (reply.status, reply.headers["x-gateway-attempts"]) == (200, "2")
        first, second = [seen.arrived for seen in alpha.requests if seen.method == "POST"]
        assert second - first >= 1.0
        assert await failures(house) == {"error alpha upstream_busy": 1, "retry upstream_busy tried": 1}


async def test_u9_whoever_leaves_while_that_is_awaited_is_gone_at_once() -> None:
    async with one({"retry": {"attempts": 2}}) as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("rate_limited", path="/v1", retry_after=9.0)
        async with house.asking(CHAT.ask("x")) as wire:
            await house.until(lambda: asked(house) == 1 and not house.engine.pool.instances["alpha"].held)
            wire.leave()
            await house.quiet()
        assert house.last_line()["status"] == 499
        assert asked(house) == 1


@each_family
@pytest.mark.parametrize(("wait", "patience"), [(2.0, "1"), (11.0, "3600")])
async def test_u9_where_that_is_too_late_the_client_is_told_when(dialect: Dialect, wait: float, patience: str) -> None:
    async with one({"retry": {"attempts": 3}}) as house:
        house.simulator("alpha").faults.arm("rate_limited", times=None, path=dialect.path, retry_after=wait)
        reply = await house.post(dialect.path, dialect.ask("x"), X_Request_Timeout=patience)
        assert (reply.status, reply.headers["x-gateway-attempts"]) == (429, "1")
        assert reply.headers["retry-after"] == f"{wait:.0f}"
        assert "x-should-retry" not in reply.headers
        assert "too many requests" in dialect.failure(reply)[1]
        assert state(house) == "saturated"
        house.simulator("alpha").faults.clear()


@each_dialect
@streamed_or_whole
async def test_u9_what_the_client_did_wrong_it_is_told_once_and_nobody_is_asked_again(
    dialect: Dialect, stream: bool
) -> None:
    async with two(breaker={"failures": 1}) as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("status", times=None, path=dialect.path, status=400, text="invalid options")
        reply = await house.post(dialect.path, dialect.ask("x", stream=stream))
        assert (reply.status, reply.headers["x-should-retry"]) == (400, "false")
        assert "invalid options" in dialect.failure(reply)[1]
        assert (asked(house, "alpha"), asked(house, "beta"), state(house)) == (1, 0, "healthy")
        assert await failures(house) == {"error alpha bad_request": 1, "failed bad_request": 1}
        for simulator in house.simulators.values():
            simulator.faults.clear()


@each_dialect
@streamed_or_whole
async def test_u10_an_error_after_status_200_and_before_the_first_word_is_tried_elsewhere(
    dialect: Dialect, stream: bool
) -> None:
    async with two() as house:
        proxy = house.proxies["alpha"]
        proxy.downstream = Say(data=_failed(dialect, whole=not stream))
        reply = await house.post(dialect.path, dialect.ask("say: here I am", stream=stream))
        assert (reply.status, reply.instance, reply.headers["x-gateway-attempts"]) == (200, "beta", "2"), reply.body
        assert b"it fell over" not in reply.body
        assert await failures(house) == {"error alpha stream_broken": 1, "retry stream_broken tried": 1}


@pytest.mark.parametrize("line", [b'data: {"error":"it fell over"}\n\n', b'{"error":"it fell over"}\n', b""])
@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, RESPONSES, MESSAGES], ids=lambda one: one.path)
async def test_u10_so_it_is_where_that_error_is_not_in_the_dialects_own_form_or_is_no_event_at_all(
    dialect: Dialect, line: bytes
) -> None:
    async with two() as house:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(line), line)
        house.proxies["alpha"].downstream = Say(data=answer)
        reply = await house.post(dialect.path, dialect.ask("say: here I am"))
        assert (reply.status, reply.instance, reply.headers["x-gateway-attempts"]) == (200, "beta", "2"), reply.body
        assert "".join(dialect.said(reply)) == "here I am"
        assert b"it fell over" not in reply.body
        assert dialect.end in reply.body
        assert await failures(house) == {"error alpha stream_broken": 1, "retry stream_broken tried": 1}


_BEGUN: dict[Dialect, dict[str, Any]] = {
    CHAT: {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
    },
    RESPONSES: {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_alpha"}},
    MESSAGES: {"type": "message_start", "message": {"id": "msg_alpha", "role": "assistant", "content": []}},
}


@pytest.mark.parametrize("dialect", _BEGUN, ids=lambda one: one.path)
async def test_u10_what_came_before_that_error_is_not_seen_so_that_every_stream_begins_once(dialect: Dialect) -> None:
    async with two() as house:
        house.proxies["alpha"].downstream = Say(data=_failed(dialect, after=_framed(dialect, _BEGUN[dialect])))
        reply = await house.post(dialect.path, dialect.ask("say: here I am"))
        assert (reply.status, reply.instance, reply.headers["x-gateway-attempts"]) == (200, "beta", "2"), reply.body
        assert "".join(dialect.said(reply)) == "here I am"
        begun = {CHAT: b'"role":"assistant"', RESPONSES: b'"response.created"', MESSAGES: b'"message_start"'}[dialect]
        assert reply.body.count(begun) == 1
        assert b"_alpha" not in reply.body
        assert dialect.end in reply.body


def _framed(dialect: Dialect, value: dict[str, Any]) -> bytes:
    text = json.dumps(value).encode()
    return text + b"\n" if dialect.path.startswith("/api") else b"data: " + text + b"\n\n"


def _failed(dialect: Dialect, *, after: bytes = b"", whole: bool = False) -> bytes:
    """A complete answer with status 200: what came, then an error in the dialect's words, in a stream or whole."""
    error: dict[str, Any] = {"error": {"message": "it fell over", "type": "api_error", "param": None, "code": None}}
    if dialect.path.startswith("/api"):
        error = {"error": "it fell over"}
    elif dialect is MESSAGES:
        error = {"type": "error", **error}
    elif dialect is RESPONSES and not whole:
        error = {"type": "error", "message": "it fell over"}
    body = json.dumps(error).encode() if whole else after + _framed(dialect, error)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_u15_where_everything_fails_half_the_time_no_more_is_tried_again_than_was_earned() -> None:
    async with two(breaker={"failures": 1000}, line={"max_calls": 1000, "max_calls_per_caller": 1000}) as house:
        for simulator in house.simulators.values():
            simulator.faults.arm("status", times=None, every=2, path="/v1", status=500, text=BROKE)
        replies = await asyncio.gather(*(house.chat(stream=number % 2 == 0) for number in range(100)))
        attempts = asked(house, "alpha") + asked(house, "beta")
        assert 100 < attempts <= 1.2 * 100 + 10
        assert {reply.status for reply in replies} == {200, 500}
        moved = await failures(house)
        assert moved["retry upstream_5xx budget_denied"] > 0
        assert moved["retry upstream_5xx tried"] == attempts - 100
        given_up = [reply for reply in replies if reply.status == 500]
        assert moved["failed upstream_5xx"] == len(given_up)
        for simulator in house.simulators.values():
            simulator.faults.clear()
