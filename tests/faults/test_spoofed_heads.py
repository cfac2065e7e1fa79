"""Rows B9 and B14: what a client says of itself, or of others, decides nothing; no text becomes a page."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.faults.test_the_line import held
from tests.house import House, ask, request

CHAT = "/v1/chat/completions"
KEY = "amys-secret-key"
HOSTS = (
    b"a/b", b"a?b", b"a#b", b"a@b", b"me:secret@gateway", b"a b", b"a\tb", b"a\\b", b"http://gateway", b"[::1", b"a:b",
    b"a:80:80", b"a\x00b", b"a\xff", b"/", b"?", b"#", b"@", b"gateway/../admin", b"gateway#@127.0.0.1",
)  # fmt: skip
SPOOFS = (
    "X-Forwarded-For: 127.0.0.1", "X-Forwarded-For: 10.0.0.1, 127.0.0.1", "X-Forwarded-For: amy",
    "X-Real-IP: 127.0.0.1",
    "Forwarded: for=127.0.0.1;host=gateway;proto=https;by=amy", "X-Forwarded-Host: evil.example",
    "X-Forwarded-Proto: https", "X-Forwarded-Port: 443", "X-Forwarded-Prefix: /livez", "X-Original-URL: /livez",
    "X-Rewrite-URL: /livez", "X-Forwarded-User: amy", "X-Remote-User: amy", "Remote-User: amy", "X-User: amy",
    "X-Gateway-Caller: amy", "X-Authenticated: true", "X-HTTP-Method-Override: OPTIONS", "Via: 1.1 gateway",
    "Connection: authorization", "Connection: close, Authorization, X-Api-Key", "Connection: x-forwarded-for",
    "Proxy-Authorization: Bearer " + KEY, "Cookie: authorization=Bearer " + KEY,
)  # fmt: skip


@pytest.mark.parametrize(
    "hosts", [[host] for host in HOSTS] + [[], [b"gateway", b"gateway"], [b"gateway", b"evil"]], ids=repr
)
async def test_b9_a_host_that_is_none_or_two_or_left_out_is_400_before_the_application(hosts: list[bytes]) -> None:
    lines = [b"GET /v1/models HTTP/1.1", *(b"Host: " + host for host in hosts), b"", b""]
    async with House({"alpha": Behaviour()}) as house, house.wire() as wire:
        await wire.send(b"\r\n".join(lines))
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == "malformed_request"
        assert not [line for line in house.lines if line["event"] == "call.done"]


async def test_b9_no_header_but_a_key_lets_anybody_in_and_none_takes_a_key_away() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    async with House({"alpha": Behaviour()}, {"auth": {"keys": [{"name": "amy", "sha256": digest}]}}) as house:
        for spoof in SPOOFS:
            for key, status in ((KEY, 200), ("wrong", 401), ("", 401)):
                told = [f"Authorization: Bearer {key}"] if key else []
                for headers in ([spoof, *told], [*told, spoof]):
                    assert await answered(house, *headers) == status, (headers, status)
                    line = house.last_line()
                    assert (line["status"], line.get("key")) == (status, "amy" if key == KEY else None), headers
        passed = repr([seen.headers for seen in house.simulator("alpha").requests]).lower()
        assert not re.search(r"forwarded|real-ip|original-url|authorization|evil|127\.0\.0\.1, |cookie|amy", passed)


async def answered(house: House, *headers: str) -> int:
    async with house.wire() as wire:
        await wire.send(request(CHAT, json.dumps(ask("x")).encode(), *headers, "Connection: close"))
        head, _, body = (await wire.rest()).partition(b"\r\n\r\n")
        assert b"evil.example" not in head + body
        return int(head[9:12])


async def test_b9_an_address_that_a_client_makes_up_gives_it_no_second_share_of_the_line() -> None:
    config = {"line": {"max_running_per_caller": 1}}
    async with House({"alpha": Behaviour(parallel=4)}, config) as house, held(house, "X-Forwarded-For: 192.0.2.1"):
        call = asyncio.create_task(house.chat(X_Forwarded_For="192.0.2.2", Forwarded="for=192.0.2.3"))
        await house.until(lambda: house.engine.pool.depth == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_b9_where_the_peer_is_a_trusted_proxy_its_word_counts() -> None:
    config = {"line": {"max_running_per_caller": 1}, "server": {"trusted_proxies": ["127.0.0.0/8", "::1/128"]}}
    async with House({"alpha": Behaviour(parallel=4)}, config) as house, held(house, "X-Forwarded-For: 192.0.2.1"):
        assert (await house.chat(X_Forwarded_For="192.0.2.2")).status == 200


SCRIPT = "<script>alert(1)</script>"


async def test_b14_script_in_a_name_a_path_or_an_instances_error_is_never_sent_as_a_page() -> None:
    """There is no dashboard yet: nothing that the gateway says is HTML."""
    async with House({"alpha": Behaviour()}) as house:
        house.simulator("alpha").faults.arm("status", status=400, text=SCRIPT, path="/v1/chat")
        replies = [
            await house.chat(), await house.chat(model=SCRIPT), await house.get(f"/{SCRIPT}"),
            await house.get(f"/v1/models/{SCRIPT}"), await house.post("/api/chat", ask("x", model=SCRIPT)),
            await house.post("/v1/messages", ask("x", model=SCRIPT, max_tokens=1)),
            await house.get(f"/gateway/explain?model={SCRIPT}&task={SCRIPT}"),
            *[await house.get(path) for path in ("/", "/livez", "/readyz", "/metrics", "/gateway/status")],
        ]  # fmt: skip
        for reply in replies:
            kind = reply.headers["content-type"].partition(";")[0]
            assert kind in ("application/json", "text/plain", "application/openmetrics-text"), reply.headers
            assert SCRIPT.encode() not in reply.body or kind == "application/json"


async def test_b14_script_in_the_configuration_is_never_sent_as_a_page() -> None:
    route = {"name": "scripted", "match": {"model": SCRIPT}, "to": [{"model": SCRIPT, "instance": "alpha"}]}
    facts: dict[str, Any] = {"alpha": {"model": SCRIPT}}
    async with House({"alpha": Behaviour()}, {"routes": [route]}, facts) as house:
        replies = [await house.chat(model=SCRIPT), await house.post("/api/show", {"model": SCRIPT})] + [
            await house.get(path)
            for path in (
                "/api/chat/models", "/v1/models", "/api/tags", "/gateway/status", "/gateway/line", "/metrics",
                f"/gateway/explain?model={SCRIPT}",
            )
        ]  # fmt: skip
        assert any(SCRIPT.encode() in reply.body for reply in replies), "nothing of it was told: so nothing was tried"
        for reply in replies:
            kind = reply.headers["content-type"].partition(";")[0]
            assert kind == ("text/plain" if b"gateway_build_info" in reply.body else "application/json"), reply.headers
