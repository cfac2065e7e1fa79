"""E. POST /v1/chat/completions: statements 59 to 65 of clients.md §9, on silence, failure and departure."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from gateway.simulator import Behaviour
from tests.conformance.asking import (
    DONE,
    comments,
    each_generation,
    events,
    finish_reasons,
    foreign,
    freed_within_a_second,
    one,
    saying,
)
from tests.house import ALPHA_FIRST, House, ask

CHAT = "/v1/chat/completions"


async def test_059_a_keep_alive_is_one_comment_line_between_two_events() -> None:
    """Not `: ping`, at which one reader stops; and no blank line after it, at which older ones fail (clients.md §4)."""
    async with one({"stream": {"hold": 0.02, "keep_alive": 0.03}}, first_token=0.2, per_second=10.0) as house:
        reply = await house.chat("say: one two three", stream=True)
        assert reply.text.strip() == "one two three"
        assert len(comments(reply.body)) > 3
        before = ""
        for line in reply.body.decode().split("\n"):
            if line.startswith(":"):
                assert not line.startswith(": ping")
                assert not before.startswith("data: ")
            if not line:
                assert before.startswith("data: ") or not before
            before = line


# One second of the real thing is five milliseconds here.
SCALE = 0.005
PATIENCE = 300 * SCALE  # of undici under Node: until the headers, and then between any two pieces of the body
STREAM = {"hold": 10 * SCALE, "keep_alive": 15 * SCALE}


async def read_as_a_javascript_sdk_does(house: House) -> str:
    """The text of a stream. Raises httpx.ReadTimeout where nothing came for as long as undici bears."""
    text, rest = "", ""
    timeout = httpx.Timeout(10, read=PATIENCE)
    body = ask("say: at last", stream=True)
    async with house.client.stream("POST", CHAT, json=body, timeout=timeout) as response:
        async for piece in response.aiter_text():
            *whole, rest = (rest + piece).split("\n")
            for line in whole:
                name, _, value = line.partition(":")
                if name == "data" and value.strip() != DONE:
                    text += json.loads(value)["choices"][0]["delta"].get("content") or ""
    return text.strip()


@each_generation
async def test_060_two_minutes_before_the_first_token_are_borne(version: str) -> None:
    """Scaled; the real SDKs are asked in tests/clients."""
    async with one({"stream": STREAM}, version=version, first_token=120 * SCALE) as house:
        assert await read_as_a_javascript_sdk_does(house) == "at last"


async def test_061_more_silence_than_node_bears_is_borne_thanks_to_keep_alives() -> None:
    """Scaled; the real SDK and the real 320 s are in tests/clients."""
    async with one({"stream": STREAM}, first_token=320 * SCALE) as house:
        assert await read_as_a_javascript_sdk_does(house) == "at last"


async def test_061_without_keep_alives_it_would_not_be() -> None:
    async with one({"stream": {"hold": 3600, "keep_alive": 3600}}, first_token=320 * SCALE) as house:
        with pytest.raises(httpx.ReadTimeout):
            await read_as_a_javascript_sdk_does(house)


@each_generation
@pytest.mark.parametrize("kind", ["cut", "reset", "error_in_band", "swallowed_error", "hang_mid_stream"])
async def test_062_a_failure_after_bytes_is_an_error_in_the_stream_and_no_end(version: str, kind: str) -> None:
    """D7 against the statement: no [DONE] follows, for a client that reads no further must not take it for an end."""
    async with one({"timeouts": {"idle": 0.2}}, version=version) as house:
        house.simulator("alpha").faults.arm(kind, path="/v1", after=3)
        reply = await house.chat("say: one two three four five", stream=True)
        *found, last = [event.data for event in events(reply.body)]
        assert reply.status == 200
        assert 1 <= len(found) <= 3  # a reset takes back what was not read yet
        assert set(last["error"]) == {"message", "type", "param", "code"}
        assert not finish_reasons(found)
        assert DONE not in reply.body.decode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["refuse", "drop", "status", "busy", "reset", "cut"])
async def test_063_a_failure_before_bytes_is_not_seen_by_the_client(kind: str, stream: bool) -> None:
    async with House({"alpha": Behaviour(), "beta": Behaviour()}, {"routes": [ALPHA_FIRST]}) as house:
        where = {} if kind == "refuse" else {"path": "/v1"}
        house.simulator("alpha").faults.arm(kind, times=None, **where)
        reply = await house.chat("say: here I am", stream=stream)
        assert (reply.status, reply.instance, reply.text.strip()) == (200, "beta", "here I am")
        assert reply.headers["x-gateway-attempts"] == "2"
        house.simulator("alpha").faults.clear()


@pytest.mark.parametrize("stream", [False, True])
async def test_064_who_leaves_the_line_gives_up_the_place_at_once(stream: bool) -> None:
    async with one(alpha={"max_concurrent": 1}) as house:
        house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
        async with house.asking(ask("x", stream=True)) as holder, house.asking(ask("y", stream=stream)) as waiting:
            await holder.until(b"data: ")
            await house.until(lambda: house.engine.pool.depth == 1)
            left = time.monotonic()
            waiting.leave()
            await house.until(lambda: house.engine.pool.depth == 0)
            assert time.monotonic() - left < 1.0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["hang_before_headers", "hang_before_first_token", "hang_mid_stream"])
async def test_064_who_leaves_a_call_under_way_frees_the_instance_at_once(kind: str, stream: bool) -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm(kind, path="/v1", after=1)
        async with house.asking(ask("x", stream=stream)) as wire:
            await alpha.until(lambda: alpha.busy == 1)
            if stream and kind == "hang_mid_stream":
                await wire.until(b"data: ")
            await freed_within_a_second(house, wire)


async def test_065_who_leaves_right_after_the_end_marker_has_had_a_whole_answer() -> None:
    """Also while the instance, which has said its last word, has not ended its message."""
    said = foreign({"role": "assistant", "content": "hi"}, "stop") + b"data: [DONE]\n\n"
    async with saying(said, "text/event-stream", owed=1) as house, house.asking(ask("hi", stream=True)) as wire:
        await wire.until(b"data: [DONE]\n\n")
        wire.leave()
        await house.quiet()
        line = house.last_line()
        assert (line["status"], line.get("reason", "")) == (200, "")
