"""Section K of the statements: limits, retries and load."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any, cast

import pytest

from gateway.frontdoor import Protocol
from gateway.simulator import Behaviour, SimulatedModel
from tests.conformance.plain import KEYS, asked, fetch, first_reply, parsed, saturated
from tests.house import MODEL, House, Reply, ask, request

PATH = "/v1/chat/completions"
CHAT = json.dumps(ask("say: fine")).encode()
STREAM = json.dumps(ask("say: fine", stream=True)).encode()


def one(places: int = 1, **config: Any) -> House:
    return House({"alpha": Behaviour(parallel=8)}, config, {"alpha": {"max_concurrent": places}})


def pair() -> House:
    """One instance for everything, one for code."""
    behaviours = {"general": Behaviour(), "coding": Behaviour(models=(SimulatedModel(name="coder:1b"),))}
    words = {"general": ["general", "reasoning"], "coding": ["coding"]}
    return House(behaviours, {}, {name: {"capabilities": words[name]} for name in behaviours})


def says_when_to_come_back(reply: Reply, status: int) -> None:
    assert reply.status == status, reply.body
    seconds, milliseconds = int(reply.headers["retry-after"]), int(reply.headers["retry-after-ms"])
    assert 1 <= seconds <= 30
    assert 0 < milliseconds <= seconds * 1000


@pytest.mark.parametrize("path", [PATH, "/api/chat", "/v1/messages", "/v1/responses"])
async def test_105_a_full_line_says_when_to_come_back(path: str) -> None:
    body = ask("x", stream=False, max_tokens=8, input="x")
    async with one(line={"max_calls": 0}) as house, saturated(house):
        says_when_to_come_back(await house.post(path, body), 429)


async def test_105_so_does_a_wait_that_was_too_long() -> None:
    async with one(timeouts={"line": 0.05}) as house, saturated(house):
        says_when_to_come_back(await house.chat(), 429)


async def test_105_so_does_a_pool_that_is_down() -> None:
    async with one(health={"interval": 0.02, "fall": 1}, line={"hold": 0}) as house:
        house.simulator("alpha").faults.arm("refuse", times=None)
        await house.until(lambda: not any(reading.up for reading in house.engine.reading().instances))
        says_when_to_come_back(await house.chat(), 503)


@pytest.mark.parametrize(("fault", "status"), [("busy", 503), ("rate_limited", 429)])
async def test_105_so_does_an_instance_that_is_busy_whatever_it_says_itself(fault: str, status: int) -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm(fault, path="/v1", times=None, retry_after=300.0)
        says_when_to_come_back(await house.chat(), status)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", PATH, b"{", 400),
        ("POST", PATH, b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', 404),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", PATH, b"", 405),
        ("POST", PATH, b" " * 70_000, 413),
        ("POST", "/api/delete", b"{}", 403),
        ("POST", "/api/chat", b"{", 400),
        ("POST", "/v1/messages", b"{", 400),
    ],
)
async def test_106_a_failure_that_would_only_repeat_itself_says_not_to_retry(
    method: str, path: str, body: bytes, status: int
) -> None:
    async with one(server={"max_body": 60_000}) as house:
        reply = await fetch(house, path, method=method, body=body)
        assert (reply.status, reply.headers["x-should-retry"]) == (status, "false")


async def test_106_nor_is_there_a_point_in_retrying_a_wrong_key_or_what_an_instance_refused() -> None:
    async with one(auth=KEYS) as house:
        assert (await house.chat()).headers["x-should-retry"] == "false"
    async with one() as house:
        house.simulator("alpha").faults.arm("status", path="/v1", status=400, text="invalid options")
        reply = await house.chat()
        assert (reply.status, reply.headers["x-should-retry"]) == (400, "false")


CODEX = ("Originator: codex_exec", "Session-Id: 7f4a", "Thread-Id: 7f4a", "X-Client-Request-Id: 7f4a")


def turn(text: str) -> bytes:
    """A turn as Codex is recorded to send it; the instructions and tools of a real one are longer."""
    said = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    shell = {"type": "function", "name": "shell", "parameters": {"type": "object", "properties": {}}, "strict": False}
    turned: dict[str, Any] = {"model": MODEL, "instructions": "You are a coding agent.", "input": [said]}
    turned |= {"tools": [shell], "tool_choice": "auto", "parallel_tool_calls": False, "reasoning": None}
    turned |= {"store": False, "stream": True, "include": [], "prompt_cache_key": "7f4a", "client_metadata": {}}
    return json.dumps(turned).encode()


async def test_107_a_codex_turn_against_a_full_pool_waits_in_line_and_costs_one_call() -> None:
    """The request is the one Codex is recorded to send; the program itself is not run here."""
    async with one() as house:
        async with saturated(house) as holders, house.wire() as codex:
            await codex.send(request("/v1/responses", turn("say: fine"), *CODEX))
            await house.until(lambda: house.engine.pool.depth == 1)
            holders[0].leave()
            await codex.until(b"response.completed")
            assert codex.seen.startswith(b"HTTP/1.1 200 ")
        assert len(asked(house, "alpha")) == 2  # the holder's and this one


async def test_107_where_even_the_line_is_full_it_is_429_which_codex_tries_less_often_than_503() -> None:
    async with one(line={"max_calls": 0}) as house, saturated(house):
        says_when_to_come_back(await fetch(house, "/v1/responses", *CODEX, method="POST", body=turn("x")), 429)


@pytest.mark.parametrize("notices_late", [False, True])
async def test_108_a_call_sent_again_does_not_run_beside_the_one_its_client_gave_up(notices_late: bool) -> None:
    behaviour = Behaviour(parallel=8, first_token=0.05, notices_late=notices_late)
    async with House({"alpha": behaviour}, instances={"alpha": {"max_concurrent": 1}}) as house:
        alpha = house.simulator("alpha")
        async with house.wire() as impatient:
            await impatient.send(request(PATH, STREAM, "X-Stainless-Retry-Count: 0"))
            await alpha.until(lambda: alpha.busy == 1)
            impatient.leave()
            again = await fetch(house, PATH, "X-Stainless-Retry-Count: 1", method="POST", body=STREAM)
        assert (again.status, again.text.strip()) == (200, "fine")
        assert alpha.peak == 1


async def test_109_lists_and_descriptions_are_answered_while_every_place_is_taken() -> None:
    async with one(line={"max_calls": 0}) as house, saturated(house):
        for path in ("/", "/api/version", "/api/tags", "/api/ps", "/v1/models", f"/v1/models/{MODEL}"):
            assert (await house.get(path)).status == 200, path
        assert (await house.post("/api/show", {"model": MODEL})).status == 200
        assert (await house.chat()).status == 429


async def test_110_an_idle_connection_is_kept_for_75_seconds_and_works_when_used_again() -> None:
    """Nobody waits that long here: its connection is told what time it is."""
    async with one() as house, house.wire() as wire:
        await wire.send(request(PATH, CHAT))
        assert (await first_reply(wire)).status == 200
        await house.quiet()
        now, limits = asyncio.get_running_loop().time(), house.engine.config.server
        (connection,) = cast(set[Protocol], house.server.server_state.connections)
        connection.check_time(now + 74, limits)
        wire.seen.clear()
        await wire.send(request(PATH, CHAT))
        assert (await first_reply(wire)).status == 200
        await house.quiet()
        connection.check_time(now + 90, limits)
        await wire.rest()


async def test_111_a_body_of_32_mb_is_accepted() -> None:
    async with one() as house:
        reply = await house.chat("say: fine\n" + "x" * 32_000_000)
        assert (reply.status, reply.text.split()[:1]) == (200, ["fine"])
        assert len(asked(house, "alpha")[0].body) > 32_000_000


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize("path", [PATH, "/api/chat", "/v1/messages"])
async def test_111_a_larger_one_is_a_413_that_a_client_can_read_although_it_is_still_sending(
    path: str, connection: str
) -> None:
    async with one(server={"max_body": 1_000_000}) as house, house.wire() as wire:
        await wire.send(request(path, b" " * 8_000_000, f"Connection: {connection}"))
        reply = await first_reply(wire)
        assert reply.status == 413
        assert reply.json["error"]


async def test_112_on_shutdown_readiness_turns_first_and_running_streams_finish() -> None:
    async with House({"alpha": Behaviour(per_second=40)}, {"server": {"drain_delay": 30}}) as house:
        async with house.asking(ask("say: one two three four", stream=True)) as running:
            await running.until(b"data: ")
            house.server.handle_exit(signal.SIGTERM, None)
            await house.until(lambda: house.engine.draining)
            assert (await house.get("/readyz")).status == 503
            assert (await house.get("/livez")).status == 200
            await running.until(b"data: [DONE]\n\n")
        house.server.handle_exit(signal.SIGTERM, None)


async def test_112_what_cannot_be_served_any_more_is_told_to_come_back() -> None:
    """New connections find nobody listening by then; who is connected already, and waits, is told (faults.md §5)."""
    leaving = one(server={"drain_delay": 0, "drain_timeout": 0.1})
    async with leaving as house, saturated(house), house.asking(ask("x")) as waiting:
        await house.until(lambda: house.engine.pool.depth == 1)
        house.server.handle_exit(signal.SIGTERM, None)
        says_when_to_come_back(parsed(await waiting.rest()), 503)


SESSION = ("X-Session-Id: 1", "X-Session-Affinity: 1", "Session-Id: 1")


@pytest.mark.parametrize("places", [1, 2])
async def test_113_two_calls_of_one_conversation_at_the_same_time_both_proceed(places: int) -> None:
    async with one(places) as house:
        calls = (fetch(house, PATH, *SESSION, method="POST", body=STREAM) for _ in range(2))
        for reply in await asyncio.gather(*calls):
            assert (reply.status, reply.text.strip()) == (200, "fine")
        assert house.simulator("alpha").peak <= places


HINTS = [
    "Session-Id",
    "Thread-Id",
    "X-Session-Affinity",
    "X-Session-Id",
    "X-Claude-Code-Session-Id",
    "X-OpenWebUI-Chat-Id",
]


@pytest.mark.parametrize("hint", HINTS)
async def test_114_a_conversation_that_names_itself_stays_on_one_instance_and_moves_on_if_it_fails(
    hint: str,
) -> None:
    async with House({"alpha": Behaviour(), "beta": Behaviour()}, warm=True) as house:
        body = json.dumps(ask("say: fine", prompt_cache_key="1", user="amy")).encode()

        async def turn(conversation: int) -> str:
            reply = await fetch(house, PATH, f"{hint}: {conversation}", method="POST", body=body)
            assert (reply.status, reply.text.strip()) == (200, "fine")
            assert reply.instance is not None
            return reply.instance

        homes = [await turn(conversation) for conversation in range(12)]
        assert set(homes) == {"alpha", "beta"}, "all conversations are on one instance"
        assert [await turn(conversation) for conversation in range(12)] == homes
        house.simulator(homes[0]).faults.arm("refuse", times=None)
        assert await turn(0) != homes[0]
        house.simulator(homes[0]).faults.clear()


def task_of(reply: Reply) -> str:
    """The task that was chosen; behind it the header says where it was named, and what else was."""
    return reply.headers["x-gateway-task"].split(";")[0]


WAYS: list[tuple[str, str, tuple[str, ...]]] = [
    ("auto", PATH, ("X-Task-Type: code_generation",)),
    ("auto", f"/t/code_generation{PATH}", ()),
    ("auto:code_generation", PATH, ()),
    ("auto", f"{PATH}?task=code_generation", ()),
]


@pytest.mark.parametrize(("model", "path", "headers"), WAYS, ids=["header", "path", "alias", "query"])
async def test_115_header_path_alias_and_query_choose_the_same_route(
    model: str, path: str, headers: tuple[str, ...]
) -> None:
    async with pair() as house:
        body = json.dumps(ask("say: fine", model=model)).encode()
        reply = await fetch(house, path, *headers, method="POST", body=body)
        assert (reply.status, reply.instance, reply.headers["x-gateway-route"]) == (200, "coding", "by-task")
        assert task_of(reply) == "code_generation"


async def test_115_where_they_conflict_a_header_says_which_won() -> None:
    async with pair() as house:
        body = json.dumps(ask("say: fine", model="auto:reasoning")).encode()
        odd = f"/t/code_analysis{PATH}?task=planning"
        for header, won in ((("X-Task-Type: code_generation",), "code_generation"), ((), "code_analysis")):
            reply = await fetch(house, odd, *header, method="POST", body=body)
            assert (reply.instance, task_of(reply)) == ("coding", won)
            assert "ignored=" in reply.headers["x-gateway-task"]
        beaten = await fetch(house, f"{PATH}?task=planning", method="POST", body=body)
        assert (beaten.instance, task_of(beaten)) == ("general", "reasoning")
        named = await fetch(house, PATH, "X-Task-Type: code_generation", method="POST", body=CHAT)
        assert (named.instance, named.headers["x-gateway-route"]) == ("general", "by-model")


@pytest.mark.parametrize("path", [PATH, "/api/chat", "/v1/messages", "/v1/responses"])
async def test_116_a_stream_is_never_compressed_and_instances_are_asked_for_plain_bytes(path: str) -> None:
    async with one() as house:
        body = json.dumps(ask("say: fine", stream=True, max_tokens=8, input="say: fine")).encode()
        reply = await fetch(house, path, "Accept-Encoding: gzip, br, zstd", method="POST", body=body)
        assert reply.status == 200
        assert "content-encoding" not in reply.headers
        assert b"fine" in reply.body
        for seen in house.simulator("alpha").requests:
            assert seen.header("accept-encoding") in (None, "identity")


async def test_117_streams_and_errors_carry_the_gateways_headers() -> None:
    async with one() as house:
        body = json.dumps(ask("say: fine", model="auto", stream=True)).encode()
        for fault, status in (("", 200), ("status", 500)):
            if fault:
                house.simulator("alpha").faults.arm(fault, path="/v1", status=status, times=None)
            reply = await fetch(
                house, PATH, "X-Task-Type: reasoning", f"X-Request-Id: mine-{status}", method="POST", body=body
            )
            assert (reply.status, reply.headers["x-request-id"]) == (status, f"mine-{status}")
            told = {name: reply.headers.get(f"x-gateway-{name}") for name in ("instance", "model", "route")}
            assert told == {"instance": "alpha", "model": MODEL, "route": "by-task"}
            assert task_of(reply) == "reasoning"
            assert "line;dur=" in reply.headers["server-timing"]
