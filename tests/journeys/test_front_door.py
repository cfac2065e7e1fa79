"""The front door: who may come in, from which page, by which path, and under which name for a model."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from gateway.client import OllamaClient
from gateway.simulator import Behaviour, SimulatedModel
from tests.house import MODEL, House, Reply, ask, request

KEY = "alice-secret-0001"
PAGE = "http://localhost:3000"
EVIL = "https://evil.example"
CHAT = "/v1/chat/completions"
CODER = "coder:30b"


def locked(**auth: Any) -> House:
    keys = [{"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]
    return House({"alpha": Behaviour()}, {"auth": {"keys": keys, **auth}})


def one(**config: Any) -> House:
    return House({"alpha": Behaviour()}, config)


def pair(**config: Any) -> House:
    coding = Behaviour(models=(SimulatedModel(name=CODER),))
    return House({"general": Behaviour(), "coding": coding}, config, {"coding": {"capabilities": ["coding"]}})


async def fetch(house: House, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    content = b"" if body is None else json.dumps(body).encode()
    response = await house.client.request(method, path, content=content, headers=sent)
    return Reply(response.status_code, response.headers, response.content)


# Keys


WAYS: list[tuple[str, dict[str, str]]] = [
    (CHAT, {"Authorization": f"Bearer {KEY}"}),
    (CHAT, {"Authorization": "Basic " + base64.b64encode(f"anyone:{KEY}".encode()).decode()}),
    (CHAT, {"Authorization": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()}),
    (CHAT, {"X-Api-Key": KEY}),
    (CHAT, {"Api-Key": KEY}),
    (f"/k/{KEY}{CHAT}", {}),
    (f"/k/{KEY}{CHAT}", {"Authorization": "Bearer ollama"}),
    (f"/k/{KEY}/t/general_chat{CHAT}", {}),
    (f"/t/general_chat/k/{KEY}/api/chat", {}),
]


@pytest.mark.parametrize(("path", "headers"), WAYS)
async def test_a_key_lets_its_owner_in_and_only_the_owner_is_named(path: str, headers: dict[str, str]) -> None:
    async with locked() as house:
        assert (await house.post(path, ask("hello"), **headers)).status == 200
        line = house.last_line()
        assert line["key"] == "alice"
        assert KEY not in repr(house.lines)
        assert KEY not in repr([(seen.path, seen.headers, seen.body) for seen in house.simulator("alpha").requests])
        exposition = await house.engine.metrics.exposition(0.0)
        assert KEY not in str(exposition)
        assert "alice" not in str(exposition)


@pytest.mark.parametrize("value", [None, "Bearer", "Bearer ollama", "Basic x"])
async def test_without_keys_any_key_and_none_is_welcome(value: str | None) -> None:
    async with one() as house:
        reply = await house.post(CHAT, ask("hello"), **({} if value is None else {"Authorization": value}))
        assert reply.status == 200
        assert "key" not in house.last_line()


@pytest.mark.parametrize(
    "path", [CHAT, "/api/chat", "/v1/messages", "/k/wrong/api/generate", "/v1/nothing", "/metrics"]
)
async def test_without_a_known_key_it_is_401_in_the_words_of_the_family(path: str) -> None:
    async with locked() as house:
        reply = await house.post(path, ask("hello"))
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert (reply.headers["x-should-retry"], reply.headers["content-type"]) == ("false", "application/json")
        told = reply.json
        if "/api/" in path:
            assert isinstance(told["error"], str)
        elif path == "/v1/messages":
            assert (told["type"], told["error"]["type"]) == ("error", "authentication_error")
            assert reply.headers["request-id"] == reply.headers["x-request-id"]
        else:
            assert told["error"]["code"] == "invalid_api_key"
        assert house.last_line()["reason"] == "auth"
        assert not [seen for seen in house.simulator("alpha").requests if seen.method == "POST"]


async def test_401_comes_before_the_body() -> None:
    async with locked() as house, house.wire() as wire:
        await wire.send(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{{".encode())
        assert (await wire.until(b"invalid_api_key")).startswith(b"HTTP/1.1 401 ")


async def test_401_comes_instead_of_the_go_ahead_for_a_body() -> None:
    async with locked() as house, house.wire() as wire:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        await wire.send(head.encode())
        assert (await wire.until(b"invalid_api_key")).startswith(b"HTTP/1.1 401 ")


async def test_liveness_and_preflights_need_no_key_and_what_tells_of_the_house_does() -> None:
    async with locked() as house:
        for path in ("/", "/livez", "/readyz", "/v1", "/k/whatever"):
            assert (await house.get(path)).status == 200
        for path in ("/metrics", "/gateway/status", "/gateway/explain?model=auto", "/v1/models"):
            assert (await house.get(path)).status == 401
            assert (await house.get(f"/k/{KEY}{path}")).status == 200
        assert (await house.get(CHAT, "OPTIONS")).status == 204


async def test_lists_can_be_left_open() -> None:
    async with locked(open_lists=True) as house:
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/api/chat/models"):
            assert (await house.get(path)).status == (await house.get(path, "HEAD")).status == 200
        assert (await house.chat()).status == (await house.get("/metrics")).status == 401


async def test_a_reload_changes_who_may_call() -> None:
    async with locked() as house:
        assert (await house.chat()).status == 401
        house.engine.apply(house.loaded(auth={}))
        assert (await house.chat()).status == 200
        house.engine.apply(house.loaded())
        assert (await house.chat()).status == 401


# Pages in a browser


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/models", "/", "/nothing/at/all", "/api/pull"])
async def test_a_preflight_is_answered_everywhere_without_a_key(path: str) -> None:
    asked = "authorization,content-type,x-stainless-os,x-api-key,anthropic-version,x-task-type"
    async with locked() as house:
        headers = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": asked}
        reply = await fetch(house, "OPTIONS", path, Origin=PAGE, **headers)
        assert (reply.status, reply.body) == (204, b"")
        assert reply.headers.get_list("access-control-allow-origin") == [PAGE]
        assert reply.headers["access-control-allow-headers"] == asked
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert int(reply.headers["access-control-max-age"]) >= 600
        denied = await fetch(house, "OPTIONS", path, Origin=EVIL, **headers)
        assert not [name for name in denied.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", [PAGE, "vscode-webview://x", "null"])
async def test_every_answer_to_an_allowed_page_names_it_once(origin: str) -> None:
    async with one() as house:
        replies = [
            await house.chat(Origin=origin),
            await house.chat(stream=True, Origin=origin),
            await house.chat(model="nobody", Origin=origin),
            await house.post("/api/nothing", {}, Origin=origin),
            await house.post("/api/chat", b"{", Origin=origin),
        ]
        assert [reply.status for reply in replies] == [200, 200, 404, 404, 400]
        for reply in replies:
            assert reply.headers.get_list("access-control-allow-origin") == [origin]
            assert "x-gateway-instance" in reply.headers["access-control-expose-headers"]
            assert reply.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in reply.headers


async def test_a_stream_that_fails_before_it_speaks_names_the_page_too() -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("refuse", times=None)
        reply = await house.chat(stream=True, Origin=PAGE)
        assert reply.status >= 500
        assert reply.headers.get_list("access-control-allow-origin") == [PAGE]


async def test_without_an_origin_nothing_of_this_is_said() -> None:
    async with one() as house:
        reply = await house.chat()
        assert not [name for name in reply.headers if name.startswith("access-control-") or name == "vary"]


async def test_a_page_that_may_not_call_starts_nothing_and_a_program_with_an_origin_is_served() -> None:
    async with one() as house:
        denied = await house.chat(Origin=EVIL, Sec_Fetch_Site="cross-site", Content_Type="text/plain")
        assert (denied.status, denied.json["error"]["code"]) == (403, "forbidden")
        assert not [seen for seen in house.simulator("alpha").requests if seen.method == "POST"]
        served = await house.chat(Origin=EVIL)
        assert served.status == 200
        for reply in (denied, served):
            assert "access-control-allow-origin" not in reply.headers


async def test_origin_and_referer_stay_here() -> None:
    async with one() as house:
        await house.chat(Origin=PAGE, Referer=f"{PAGE}/chat")
        seen = house.seen("alpha")
        assert (seen.header("origin"), seen.header("referer")) == (None, None)


# Paths and what HTTP brings along


async def test_a_base_url_that_was_doubled_or_cut_short_still_answers() -> None:
    async with one() as house:
        for path in ("/v1/v1/chat/completions", "/chat/completions", "//v1//chat/completions/", "/v1/api/chat"):
            reply = await house.post(f"{path}?beta=true&client_version=1&a=%ff", ask("say: fine"))
            assert (reply.status, b"fine" in reply.body) == (200, True), path
        assert (await house.get("/models")).json == (await house.get("/v1/models")).json


async def test_a_body_of_three_megabytes_waits_for_the_go_ahead_and_expect_stays_here() -> None:
    async with one() as house, house.wire() as wire:
        body = json.dumps(ask("say: fine", padding="x" * 3_000_000)).encode()
        head, _, _ = request(CHAT, body, "Expect: 100-continue").partition(b"\r\n\r\n")
        await wire.send(head + b"\r\n\r\n")
        await wire.until(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.send(body)
        assert b"HTTP/1.1 200 " in await wire.until(b"fine")
        assert house.seen("alpha").header("expect") is None


async def test_an_offer_of_http_2_is_passed_over_and_a_websocket_is_426() -> None:
    async with one() as house:
        async with house.wire() as wire:
            offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
            await wire.send(request("/v1/models", b"", *offer, method="GET"))
            assert b"HTTP/1.1 200 " in await wire.until(b'"list"')
            await wire.send(request(CHAT, json.dumps(ask("say: over it")).encode(), *offer))
            assert b"HTTP/1.1 200 " in await wire.until(b"over it")
        async with house.wire() as wire:
            await wire.send(request("/v1/responses", b"", "Connection: Upgrade", "Upgrade: websocket", method="GET"))
            assert (await wire.until(b"upgrade_refused")).startswith(b"HTTP/1.1 426 ")


async def test_a_thousand_offers_of_http_2_in_one_go_are_all_passed_over() -> None:
    async with one() as house, house.wire() as wire:
        offer = ("Connection: Upgrade", "Upgrade: h2c")
        await wire.send(request("/livez", b"", *offer, method="GET") * 1000)
        await wire.send(request("/gone", b"", "Connection: close, Upgrade", "Upgrade: h2c", method="GET"))
        said = await wire.rest()
        assert said.count(b"HTTP/1.1 200 ") == 1000
        assert b"connection: close" in said.partition(b"HTTP/1.1 404 ")[2]


async def test_who_goes_on_sending_after_the_last_answer_does_not_keep_the_connection() -> None:
    async with one(server={"head_timeout": 0.3, "max_body": 2**20}) as house, house.wire() as wire:
        await wire.send(
            b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 9999999\r\n\r\n{"
        )
        await wire.until(b"body_too_large")
        await wire.send(b"more")
        await wire.rest()


async def test_many_and_large_headers_nobody_knows_are_no_error() -> None:
    many = {f"X-Codex-{n}": "y" * 500 for n in range(60)}
    async with one() as house:
        assert (await fetch(house, "POST", CHAT, ask("hello"), **many)).status == 200
        assert (await house.chat(Anthropic_Version="tomorrow", X_Unknown="%00, ;")).status == 200


# What is told


@pytest.mark.parametrize("name", ["X_Request_Id", "X_Client_Request_Id"])
async def test_the_clients_own_id_is_kept_by_either_name(name: str) -> None:
    async with one() as house:
        for stream in (False, True):
            reply = await fetch(house, "POST", CHAT, ask("hello", stream=stream), **{name: f"their-own.{stream}"})
            assert reply.headers.get_list("x-request-id") == [f"their-own.{stream}"]
        odd = await fetch(house, "POST", CHAT, ask("hello"), **{name: "not sane"})
        assert odd.headers["x-request-id"] != "not sane"


async def test_every_source_of_a_task_gives_the_same_route_and_is_told() -> None:
    async with pair(aliases={"gpt-x": "auto:code_generation"}) as house:
        asked = [
            (CHAT, "auto", {"X_Task_Type": "code_generation"}, "header"),
            (f"/t/code_generation{CHAT}", "auto", {}, "path"),
            (CHAT, "auto:code_generation", {}, "alias"),
            (CHAT, "gpt-x", {}, "alias"),
            (f"{CHAT}?task=code_generation", "auto", {}, "query"),
        ]
        for stream in (False, True):
            for path, model, headers, source in asked:
                reply = await house.post(path, ask("hello", model=model, stream=stream), **headers)
                assert (reply.instance, reply.headers["x-gateway-route"]) == ("coding", "by-task"), (path, model)
                assert reply.headers["x-gateway-task"] == f"code_generation; from={source}"


async def test_who_was_overruled_about_the_task_is_told() -> None:
    async with pair() as house:
        path = f"/t/reasoning{CHAT}?task=anything%3Bx"
        reply = await house.post(path, ask("hello", model="auto:planning"), X_Task_Type="code_generation")
        told = "code_generation; from=header; ignored=path:reasoning,alias:planning,query:unknown"
        assert reply.headers["x-gateway-task"] == told
        agreed = await house.post(f"/t/planning{CHAT}", ask("hello", model="auto:planning"))
        assert agreed.headers["x-gateway-task"] == "planning; from=path"


async def test_a_task_nobody_named_is_told_without_a_source_and_none_where_the_model_decided() -> None:
    async with pair() as house:
        assert (await house.chat(model="auto")).headers["x-gateway-task"] == "general_chat"
        assert "x-gateway-task" not in (await house.chat(X_Task_Type="planning")).headers


# Aliases


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, ask("say: fine", model="gpt-4o")),
        (CHAT, ask("say: fine", model="GPT-4o:latest", stream=True)),
        ("/v1/completions", {"model": "gpt-4o", "prompt": "say: fine"}),
        ("/api/chat", ask("say: fine", model="gpt-4o")),
        ("/api/generate", {"model": "gpt-4o", "prompt": "say: fine"}),
        ("/api/chat", {"model": "gpt-4o", "message": "say: fine"}),
    ],
)
async def test_an_alias_serves_every_dialect_and_is_told(path: str, body: dict[str, Any]) -> None:
    async with pair(aliases={"gpt-4o": CODER}) as house:
        reply = await house.post(path, body)
        assert (reply.status, reply.instance) == (200, "coding"), reply.body
        told = f"model {CODER} stands in for {body['model']}"
        assert reply.headers["x-gateway-substituted"] == told == house.last_line()["substituted"]
        assert json.loads(house.seen("coding").body)["model"] == CODER


async def test_aliases_are_not_listed() -> None:
    async with pair(aliases={"gpt-4o": CODER}) as house:
        assert b"gpt-4o" not in (await house.get("/v1/models")).body
        assert b"gpt-4o" not in (await house.get("/api/chat/models")).body


async def test_explain_tells_of_an_alias() -> None:
    async with pair(aliases={"claude-*": "auto:code_generation"}) as house:
        told = (await house.get("/gateway/explain?model=claude-opus-4")).json
        assert (told["route"], told["task"]) == ("by-task", "code_generation")
        assert told["candidates"][0]["substitution"] == f"model {CODER} stands in for claude-opus-4"


async def test_the_python_library_knows_aliases_too() -> None:
    async with pair(aliases={"gpt-4o": CODER}) as house, OllamaClient(house.loaded()) as client:
        answer = await client.generate("say: fine", model="gpt-4o")
        assert (answer.model, answer.substitution) == (CODER, f"model {CODER} stands in for gpt-4o")
        async with client.generate_stream("say: fine", model="gpt-4o") as pieces:
            assert "fine" in "".join([piece async for piece in pieces])
            assert pieces.substitution == answer.substitution
