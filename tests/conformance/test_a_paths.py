"""Section A of the statements: paths, liveness and version."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from tests.conformance.plain import KEY, KEYS, asked, fetch, first_reply
from tests.house import MODEL, House, ask, request

CHAT = json.dumps(ask("say: fine")).encode()
MESSAGE = json.dumps({"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "say: fine"}]}).encode()


def one(**config: object) -> House:
    return House({"alpha": Behaviour()}, config)


async def test_001_the_root_says_that_ollama_is_running_as_plain_text() -> None:
    async with one() as house:
        reply = await house.get("/")
        assert (reply.status, reply.body) == (200, b"Ollama is running")
        assert reply.headers["content-type"].startswith("text/plain")


async def test_002_head_of_the_root_is_200_without_a_body() -> None:
    async with one() as house:
        reply = await fetch(house, "/", method="HEAD")
        assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_003_a_bare_prefix_answers_200_with_or_without_its_last_slash(method: str) -> None:
    prefixes = ("/v1", "/t/reasoning", f"/k/{KEY}", f"/k/{KEY}/t/reasoning", "/t/reasoning/v1", f"/k/{KEY}/v1")
    async with one() as house:
        for path in [prefix + end for prefix in prefixes for end in ("", "/")]:
            reply = await fetch(house, path, method=method)
            assert reply.status == 200, path
            assert method == "GET" or reply.body == b""


async def test_004_the_root_and_the_version_answer_while_every_instance_is_down_and_only_readiness_tells() -> None:
    async with House({"alpha": Behaviour()}, {"health": {"interval": 0.02, "fall": 1}}) as house:
        house.simulator("alpha").faults.arm("refuse", times=None)
        await house.until(lambda: not any(reading.up for reading in house.engine.reading().instances))
        assert (await house.get("/")).status == 200
        version = await house.get("/api/version")
        assert re.fullmatch(r"\d+\.\d+\.\d+", version.json["version"])
        assert (await house.get("/livez")).status == 200
        assert (await house.get("/readyz")).status == 503


async def test_005_the_version_is_the_lowest_of_the_healthy_instances_as_plain_numbers() -> None:
    behaviours = {"alpha": Behaviour(version="0.32.15"), "beta": Behaviour(version="0.9.12-rc1")}
    async with House(behaviours, {"health": {"interval": 0.02, "fall": 1}}) as house:
        assert (await house.get("/api/version")).json == {"version": "0.9.12"}
        house.simulator("beta").faults.arm("refuse", times=None)
        await house.until(lambda: sum(reading.up for reading in house.engine.reading().instances) == 1)
        assert (await house.get("/api/version")).json == {"version": "0.32.15"}


async def test_006_head_works_on_the_version_and_the_list() -> None:
    async with one() as house:
        for path in ("/api/version", "/api/tags"):
            reply = await fetch(house, path, method="HEAD")
            assert (reply.status, reply.body) == (200, b"")


async def test_007_a_doubled_or_trailing_slash_means_the_same_path_and_is_never_redirected() -> None:
    async with one() as house:
        for path, plain in (
            ("//api/tags", "/api/tags"),
            ("/v1/models/", "/v1/models"),
            ("/api//version/", "/api/version"),
        ):
            reply = await fetch(house, path)
            assert (reply.status, reply.json) == (200, (await fetch(house, plain)).json), path
        for path in ("/v1//chat/completions", "//v1/chat/completions/"):
            assert (await fetch(house, path, method="POST", body=CHAT)).text.strip() == "fine"
        assert (await fetch(house, "//api//chat/", method="POST", body=CHAT)).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/v1/messages"),
        ("POST", "/v1/v1/chat/completions"),
        ("POST", "/chat/completions"),
        ("POST", "/t/general_chat/v1/v1/chat/completions"),
        ("GET", "/api/api/tags"),
        ("GET", "/v1/api/tags"),
        ("GET", "/models"),
    ],
)
async def test_008_a_base_url_that_was_doubled_mixed_or_left_out_still_works(method: str, path: str) -> None:
    async with one() as house:
        body = b"" if method == "GET" else MESSAGE
        reply = await fetch(house, path, method=method, body=body)
        assert reply.status == 200, reply.body
        assert MODEL.encode() in reply.body


async def test_009_query_parameters_nobody_knows_do_not_change_where_a_call_goes() -> None:
    async with one() as house:
        for query in ("?beta=true", "?client_version=0.169.0", "?a=b&c&=d&%00=%ff"):
            reply = await fetch(house, f"/v1/chat/completions{query}", method="POST", body=CHAT)
            assert (reply.status, reply.instance) == (200, "alpha")
            assert reply.headers["x-gateway-route"] == "by-model"
            assert (await fetch(house, f"/v1/models{query}")).json["object"] == "list"
        assert {seen.path for seen in asked(house, "alpha")} == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/generate", 405),
        ("POST", "/api/tags", 405),
    ],
)
async def test_010_what_is_not_there_is_404_or_405_in_the_shape_of_its_family(
    method: str, path: str, status: int
) -> None:
    async with one() as house:
        reply = await fetch(house, path, method=method)
        assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
        error = reply.json["error"]
        if path.startswith("/api"):
            assert isinstance(error, str)
        else:
            assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/anything"])
async def test_011_a_websocket_upgrade_is_refused_at_once_with_426(path: str) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
    async with one() as house, house.wire() as wire, asyncio.timeout(2):
        await wire.send(request(path, b"", *upgrade, method="GET"))
        assert (await wire.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 426 ")


async def test_011_a_plain_get_of_responses_is_a_json_404_or_405() -> None:
    async with one() as house:
        reply = await fetch(house, "/v1/responses")
        assert reply.status in (404, 405)
        assert reply.json["error"]["message"]


async def test_012_a_prefix_carries_task_and_key_goes_no_further_and_the_key_is_never_logged() -> None:
    behaviours = {"plain": Behaviour(), "coding": Behaviour(models=(SimulatedModel(name="coder:1b"),))}
    capabilities = {"coding": {"capabilities": ["coding"]}}
    async with House(behaviours, {"auth": KEYS}, capabilities) as house:
        for end in ("/v1/chat/completions", "/api/chat"):
            for prefix in (f"/k/{KEY}/t/code_generation", f"/t/code_generation/k/{KEY}"):
                body = json.dumps(ask("say: fine", model="auto")).encode()
                reply = await fetch(house, prefix + end, method="POST", body=body)
                assert (reply.status, reply.instance) == (200, "coding"), prefix + end
            assert (await fetch(house, f"/k/wrong{end}", method="POST", body=CHAT)).status == 401
        assert {seen.path for seen in asked(house, "coding")} == {"/v1/chat/completions", "/api/chat"}
        for simulator in house.simulators.values():
            assert not [seen for seen in simulator.requests if KEY in f"{seen.path}{seen.headers}{seen.body!r}"]
        for path in ("/metrics", "/gateway/status"):
            assert KEY.encode() not in (await fetch(house, f"/k/{KEY}{path}")).body
        assert KEY not in repr(house.lines)


async def test_013_an_offer_of_h2c_is_passed_over() -> None:
    async with one() as house, house.wire() as wire:
        offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
        await wire.send(request("/v1/chat/completions", CHAT, *offer))
        reply = await first_reply(wire)
        assert (reply.status, reply.text.strip()) == (200, "fine")


async def test_013_three_megabytes_with_expect_100_continue_work_and_expect_is_not_passed_on() -> None:
    async with one() as house, house.wire() as wire:
        body = json.dumps(ask("say: fine", padding="x" * 3_000_000)).encode()
        whole = request("/v1/chat/completions", body, "Expect: 100-continue")
        head = whole[: -len(body)]
        await wire.send(head)
        await wire.until(b"HTTP/1.1 100 Continue\r\n\r\n")
        wire.seen.clear()
        await wire.send(body)
        assert (await first_reply(wire)).status == 200
        (seen,) = asked(house, "alpha")
        assert len(seen.body) > 3_000_000
        assert seen.header("expect") is None
