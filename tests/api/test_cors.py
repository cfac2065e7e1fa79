"""Which web pages may call: what a pattern stands for, and what a browser is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gateway
from gateway.api.cors import EXPOSED, MAX_ORIGIN, METHODS, Cors
from gateway.config import CorsConfig
from gateway.errors import Forbidden

USUAL = Cors(CorsConfig())


def cors(*origins: str) -> Cors:
    return Cors(CorsConfig(origins=origins))


@pytest.mark.parametrize(
    "origin",
    [
        b"http://localhost",
        b"http://localhost:3000",
        b"https://localhost:8443",
        b"http://127.0.0.1:5173",
        b"vscode-webview://0f3a/x",
        b"app://obsidian.md",
        b"tauri://localhost",
        b"file://",
        b"null",
        b"HTTP://LOCALHOST:3000",
    ],
)
def test_what_runs_on_this_machine_is_allowed_as_ollama_allows_it(origin: bytes) -> None:
    assert USUAL.allows(origin)


@pytest.mark.parametrize(
    "origin",
    [
        b"http://localhost.evil.example",
        b"http://localhost:3000.evil.example",
        b"http://localhostess",
        b"http://127.0.0.1.evil.example",
        b"http://127.0.0.10",
        b"http://localhost@evil.example",
        b"https://evil.example",
        b"https://evil.example/http://localhost",
        b"nullx",
        b"",
        b"app://" + b"x" * MAX_ORIGIN,
    ],
)
def test_a_name_that_only_begins_like_an_allowed_one_is_not(origin: bytes) -> None:
    assert not USUAL.allows(origin)


def test_a_pattern_may_stand_for_hosts_and_characters() -> None:
    some = cors("https://*.corp.example", "https://app?.example", "https://[::1]*", "https://one.example")
    for origin in (b"https://a.b.corp.example", b"https://app1.example", b"https://[::1]:8", b"https://one.example"):
        assert some.allows(origin)
    for origin in (b"https://corp.example", b"https://xcorp.example", b"https://app.example", b"https://onexexample"):
        assert not some.allows(origin)
    assert cors("*").allows(b"https://anyone.example")
    assert not cors().allows(b"http://localhost")


@given(origin=st.binary(max_size=80))
def test_any_origin_at_all_is_allowed_or_not(origin: bytes) -> None:
    assert len(USUAL.headers(origin)) in (1, 3)


def test_an_allowed_origin_is_named_and_another_is_not() -> None:
    allowed = dict(USUAL.headers(b"http://localhost:3000"))
    assert allowed[b"access-control-allow-origin"] == b"http://localhost:3000"
    assert allowed[b"vary"] == b"Origin"
    assert b"access-control-allow-credentials" not in allowed
    assert USUAL.headers(b"https://evil.example") == [(b"vary", b"Origin")]


def test_a_preflight_is_answered_with_what_it_asked_for() -> None:
    asked = b"authorization, content-type, x-stainless-os, x-api-key, anthropic-version, x-task-type"
    told = dict(USUAL.preflight(b"null", asked, b""))
    assert told[b"access-control-allow-headers"] == asked
    assert int(told[b"access-control-max-age"]) >= 600
    assert {b"GET", b"POST", b"DELETE"} <= set(METHODS.split(b", "))
    assert b"access-control-allow-private-network" not in told
    assert dict(USUAL.preflight(b"null", b"", b"true"))[b"access-control-allow-private-network"] == b"true"


def test_a_preflight_of_a_page_that_may_not_call_learns_nothing() -> None:
    assert USUAL.preflight(b"https://evil.example", b"x-api-key", b"true") == []


@pytest.mark.parametrize("asked", [b"", b"a\x00b", b"x;y", b"\xe9", b"a" * 5000])
def test_what_is_no_list_of_header_names_is_not_echoed(asked: bytes) -> None:
    assert b"access-control-allow-headers" not in dict(USUAL.preflight(b"null", asked, b""))


@pytest.mark.parametrize("site", [b"cross-site", b"same-site"])
def test_a_browsers_call_for_a_page_that_may_not_call_is_turned_away(site: bytes) -> None:
    with pytest.raises(Forbidden):
        USUAL.admit(b"https://evil.example", site)
    USUAL.admit(b"http://localhost:3000", site)


@pytest.mark.parametrize("site", [b"", b"none", b"same-origin"])
def test_a_program_with_an_origin_of_its_own_is_served(site: bytes) -> None:
    USUAL.admit(b"https://tool.example", site)


def test_scripts_may_read_every_header_of_ours() -> None:
    sources = "".join(path.read_text() for path in Path(gateway.__file__).parent.rglob("*.py"))
    ours = set(re.findall(r'b"(x-gateway-[a-z-]+|x-request-id|x-should-retry|retry-after-ms|server-timing)"', sources))
    assert len(ours) > 8
    assert ours <= set(EXPOSED.decode().split(", "))
