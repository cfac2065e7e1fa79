"""Section B of the statements: keys and headers."""

from __future__ import annotations

import base64
import itertools
import json

import pytest

from gateway.simulator import Behaviour
from tests.conformance.plain import KEY, KEYS, asked, fetch, first_reply
from tests.house import MODEL, House, ask, request

CHAT = json.dumps(ask("say: fine")).encode()
STREAM = json.dumps(ask("say: fine", stream=True)).encode()
MESSAGE = json.dumps({"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "say: fine"}]}).encode()
PATH = "/v1/chat/completions"


def locked(**auth: object) -> House:
    return House({"alpha": Behaviour()}, {"auth": {**KEYS, **auth}})


def basic(text: str) -> str:
    return f"Authorization: Basic {base64.b64encode(text.encode()).decode()}"


WAYS = [
    ("bearer", f"Authorization: Bearer {KEY}"),
    ("lower case", f"authorization: bearer {KEY}"),
    ("basic password", basic(f"anyone:{KEY}")),
    ("basic user", basic(f"{KEY}:")),
    ("x-api-key", f"X-Api-Key: {KEY}"),
    ("api-key", f"api-key: {KEY}"),
]


@pytest.mark.parametrize("header", [way[1] for way in WAYS], ids=[way[0] for way in WAYS])
async def test_014_a_key_may_come_in_any_of_these_headers_and_means_the_same_caller(header: str) -> None:
    async with locked() as house:
        reply = await fetch(house, PATH, header, method="POST", body=CHAT)
        assert (reply.status, reply.text.strip()) == (200, "fine")
        assert "amy" in house.last_line().values()
        assert KEY not in repr(house.lines)


async def test_014_a_key_may_come_in_the_path_and_means_the_same_caller() -> None:
    async with locked() as house:
        assert (await fetch(house, f"/k/{KEY}{PATH}", method="POST", body=CHAT)).status == 200
        assert "amy" in house.last_line().values()


@pytest.mark.parametrize("key", ["Authorization: Bearer ", "Authorization: Bearer ollama", "X-Api-Key: DUMMY_KEY", ""])
async def test_015_without_keys_configured_an_empty_a_dummy_and_no_key_are_welcome(key: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        headers = (key,) if key else ()
        assert (await fetch(house, PATH, *headers, method="POST", body=CHAT)).status == 200


@pytest.mark.parametrize(
    ("path", "shape"),
    [(PATH, "openai"), ("/v1/responses", "openai"), ("/api/chat", "ollama"), ("/v1/messages", "anthropic")],
)
@pytest.mark.parametrize("key", ["Authorization: Bearer wrong", "Authorization: Bearer ", "X-Nothing: at all"])
async def test_016_a_wrong_key_is_401_before_the_body_is_read_in_the_shape_of_its_family(
    path: str, shape: str, key: str
) -> None:
    async with locked() as house, house.wire() as wire:
        whole = request(path, b" " * 1_000_000, key)
        await wire.send(whole[:-900_000])
        reply = await first_reply(wire)
        assert reply.status == 401
        told = reply.json
        if shape == "openai":
            assert told["error"]["code"] == "invalid_api_key"
        elif shape == "anthropic":
            assert (told["type"], told["error"]["type"]) == ("error", "authentication_error")
        else:
            assert isinstance(told["error"], str)
        assert not asked(house, "alpha")
        wire.leave()


OPEN = [("GET", "/"), ("GET", "/api/version"), ("GET", "/api/tags"), ("POST", "/api/show"), ("GET", "/v1/models")]


@pytest.mark.parametrize("is_open", [True, False])
async def test_017_discovery_can_be_left_open_while_everything_else_asks_for_a_key(is_open: bool) -> None:
    async with locked(open_lists=is_open) as house:
        for method, path in OPEN:
            body = json.dumps({"model": MODEL}).encode() if method == "POST" else b""
            reply = await fetch(house, path, method=method, body=body)
            assert reply.status == (200 if is_open or path == "/" else 401), path
        assert (await fetch(house, PATH, method="POST", body=CHAT)).status == 401
        assert (await fetch(house, "/api/chat", method="POST", body=CHAT)).status == 401


async def test_018_every_answer_carries_a_request_id_and_a_sane_one_of_the_clients_is_kept() -> None:
    requests = [
        ("POST", PATH, CHAT, 200),
        ("POST", PATH, STREAM, 200),
        ("POST", PATH, b"{", 400),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/api/generate", b"", 405),
        ("GET", "/api/tags", b"", 200),
        ("GET", "/", b"", 200),
        ("POST", "/v1/messages", MESSAGE, 200),
    ]
    count = itertools.count()
    async with House({"alpha": Behaviour()}) as house:
        for method, path, body, status in requests:
            reply = await fetch(house, path, method=method, body=body)
            assert (reply.status, bool(reply.headers.get("x-request-id"))) == (status, True), path
            for name in ("X-Request-Id", "X-Client-Request-Id"):
                theirs = f"their-own.{next(count)}"
                kept = await fetch(house, path, f"{name}: {theirs}", method=method, body=body)
                assert kept.headers.get_list("x-request-id") == [theirs], (path, name)
            odd = await fetch(house, path, "X-Request-Id: a b", method=method, body=body)
            assert " " not in odd.headers["x-request-id"]


@pytest.mark.parametrize("body", [MESSAGE, b"{"])
async def test_018_messages_carry_the_id_as_request_id_too(body: bytes) -> None:
    async with House({"alpha": Behaviour()}) as house:
        reply = await fetch(house, "/v1/messages", method="POST", body=body)
        assert reply.headers["request-id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("path", [PATH, "/api/chat", "/v1/messages", "/v1/responses"])
async def test_019_keys_cookies_and_our_own_headers_never_reach_an_instance(path: str) -> None:
    async with locked() as house:
        told = (f"Authorization: Bearer {KEY}", f"X-Api-Key: {KEY}", f"api-key: {KEY}", "Cookie: a=secret")
        body = json.dumps(ask("say: fine", input="say: fine", max_tokens=8)).encode()
        reply = await fetch(house, path, *told, "X-Task-Type: reasoning", method="POST", body=body)
        assert reply.status == 200, reply.body
        (seen,) = asked(house, "alpha")
        names = {name.decode() for name, _ in seen.headers}
        assert not names & {"authorization", "x-api-key", "api-key", "cookie", "x-task-type"}
        assert KEY not in repr(seen.headers)
        assert seen.header("host") == house.simulator("alpha").url.removeprefix("http://")


async def test_020_sixty_four_headers_or_32_kib_of_them_are_accepted() -> None:
    async with House({"alpha": Behaviour()}) as house:
        many = [f"X-Codex-{number}: {number}" for number in range(60)]
        assert (await fetch(house, PATH, *many, method="POST", body=CHAT)).status == 200
        large = [f"X-Codex-{number}: {'x' * 2000}" for number in range(16)]
        assert (await fetch(house, PATH, *large, method="POST", body=CHAT)).status == 200
        assert all(len(seen.headers) < 16 for seen in asked(house, "alpha"))


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21", "tomorrow", ""])
async def test_021_headers_nobody_knows_and_any_anthropic_version_are_no_error(version: str) -> None:
    odd = (f"Anthropic-Version: {version}", "Anthropic-Beta: a,b,c", "X-App: cli", "Originator: codex_cli", "Q: \xe9")
    async with House({"alpha": Behaviour()}) as house:
        for path, body in ((PATH, CHAT), ("/api/chat", CHAT), ("/v1/messages", MESSAGE)):
            assert (await fetch(house, path, *odd, method="POST", body=body)).status == 200, path
