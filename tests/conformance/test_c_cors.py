"""Section C of the statements: browsers."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.simulator import Behaviour
from tests.conformance.plain import KEYS, asked, fetch
from tests.house import MODEL, House, ask

CHAT = json.dumps(ask("say: fine")).encode()
STREAM = json.dumps(ask("say: fine", stream=True)).encode()
PATH = "/v1/chat/completions"
ORIGIN = "http://localhost:3000"
ALLOW = "access-control-allow-origin"

ROUTES = [
    *("/", "/v1/models", "/v1/models/some%2Fmodel:1b", PATH, "/v1/completions", "/v1/embeddings", "/v1/responses"),
    *("/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/api/chat/models", "/api/generate", "/api/embed"),
    *("/api/embeddings", "/api/tags", "/api/show", "/api/ps", "/api/version", "/api/pull", "/t/reasoning/v1/models"),
]


def words(value: str) -> set[str]:
    return {word.strip().lower() for word in value.split(",")}


@pytest.mark.parametrize("auth", [{}, KEYS], ids=["open", "with keys"])
async def test_022_options_works_on_every_route_without_a_key_and_echoes_what_was_asked(
    auth: dict[str, object],
) -> None:
    async with House({"alpha": Behaviour()}, {"auth": auth}) as house:
        for path in ROUTES:
            asking = (f"Origin: {ORIGIN}", "Access-Control-Request-Method: POST")
            headers = "Access-Control-Request-Headers: authorization, x-made-up"
            reply = await fetch(house, path, *asking, headers, method="OPTIONS")
            assert reply.status in (200, 204), path
            assert reply.headers.get_list(ALLOW)[0] in (ORIGIN, "*"), path
            assert words(reply.headers["access-control-allow-headers"]) >= {"authorization", "x-made-up"}
            assert "post" in words(reply.headers["access-control-allow-methods"])
            assert int(reply.headers["access-control-max-age"]) >= 600


async def test_023_a_preflight_naming_the_sdks_own_headers_passes() -> None:
    named = {"authorization", "content-type", "x-stainless-os", "x-stainless-retry-count", "x-stainless-helper-method"}
    named |= {"x-api-key", "anthropic-version", "anthropic-dangerous-direct-browser-access", "x-task-type"}
    async with House({"alpha": Behaviour()}, {"auth": KEYS}) as house:
        listed = f"Access-Control-Request-Headers: {','.join(sorted(named))}"
        asking = (f"Origin: {ORIGIN}", "Access-Control-Request-Method: POST", listed)
        reply = await fetch(house, PATH, *asking, method="OPTIONS")
        assert reply.status in (200, 204)
        assert words(reply.headers["access-control-allow-headers"]) >= named


async def test_024_every_answer_errors_and_streams_too_has_exactly_one_allow_origin() -> None:
    requests = [
        ("POST", PATH, CHAT, 200),
        ("POST", PATH, STREAM, 200),
        ("POST", PATH, b"{", 400),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", PATH, b"", 405),
        ("GET", "/v1/models", b"", 200),
        ("GET", "/api/tags", b"", 200),
        ("POST", "/api/chat", CHAT, 200),
    ]
    async with House({"alpha": Behaviour()}) as house:
        for method, path, body, status in requests:
            reply = await fetch(house, path, f"Origin: {ORIGIN}", method=method, body=body)
            assert reply.status == status
            (allowed,) = reply.headers.get_list(ALLOW)
            assert allowed in (ORIGIN, "*")
    async with House({"alpha": Behaviour()}, {"auth": KEYS}) as house:
        refused = await fetch(house, PATH, f"Origin: {ORIGIN}", method="POST", body=CHAT)
        assert (refused.status, len(refused.headers.get_list(ALLOW))) == (401, 1)


class Generous(asyncio.Protocol):
    """An instance that answers everything at once and lets every origin read it, as an Ollama may be set up to."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ")[1]
        told: dict[str, object] = {"object": "chat.completion", "id": "x", "created": 1, "model": MODEL}
        told["choices"] = [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}]
        lists = {b"/api/version": {"version": "0.32.15"}, b"/api/tags": {"models": [{"name": MODEL}]}, b"/api/ps": {}}
        body = json.dumps(lists.get(path, told)).encode()
        allowed = "Access-Control-Allow-Origin: http://elsewhere\r\nAccess-Control-Allow-Credentials: true"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{allowed}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


async def test_024_what_an_instance_allows_is_not_passed_on() -> None:
    server = await asyncio.get_running_loop().create_server(Generous, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with House({}, {"instances": [{"name": "generous", "url": url, "model": MODEL}]}) as house:
            reply = await fetch(house, PATH, f"Origin: {ORIGIN}", method="POST", body=CHAT)
            assert (reply.status, reply.text) == (200, "fine")
            (allowed,) = reply.headers.get_list(ALLOW)
            assert allowed in (ORIGIN, "*")
            assert "access-control-allow-credentials" not in reply.headers
    finally:
        server.close()


@pytest.mark.parametrize("origin", ["vscode-webview://1a2b3c", "null", "app://obsidian.md", ORIGIN])
async def test_025_origin_and_referer_stay_here_and_an_editors_webview_is_served(origin: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        told = (f"Origin: {origin}", "Referer: http://elsewhere/page")
        reply = await fetch(house, PATH, *told, method="POST", body=CHAT)
        assert reply.status == 200
        assert reply.headers[ALLOW] in (origin, "*")
        (seen,) = asked(house, "alpha")
        assert (seen.header("origin"), seen.header("referer")) == (None, None)


async def test_025_an_origin_that_is_not_allowed_gets_no_leave_to_read() -> None:
    async with House({"alpha": Behaviour()}, {"cors": {"origins": [ORIGIN]}}) as house:
        reply = await fetch(house, PATH, "Origin: http://elsewhere", method="POST", body=CHAT)
        assert ALLOW not in reply.headers
        assert (await fetch(house, PATH, f"Origin: {ORIGIN}", method="POST", body=CHAT)).headers[ALLOW] == ORIGIN


@pytest.mark.parametrize(("body", "status"), [(CHAT, 200), (STREAM, 200), (b"{", 400)])
async def test_026_scripts_may_read_the_request_id_the_retry_headers_and_the_routing(body: bytes, status: int) -> None:
    wanted = {"x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "x-gateway-instance"}
    wanted |= {"x-gateway-model", "x-gateway-route", "x-gateway-substituted", "x-gateway-attempts"}
    async with House({"alpha": Behaviour()}) as house:
        reply = await fetch(house, PATH, f"Origin: {ORIGIN}", method="POST", body=body)
        assert reply.status == status
        assert words(reply.headers["access-control-expose-headers"]) >= wanted
