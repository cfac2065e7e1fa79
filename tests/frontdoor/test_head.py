"""`flaw` as a pure function: what it says of one head."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.frontdoor import flaw

HOST = (b"host", b"gateway")


@pytest.mark.parametrize(
    "host", [b"", b"a", b"A-b_c.example:80", b"127.0.0.1:8080", b"[::1]:8080", b"[fe80::1%25eth0]", b"a:", b"a,b"]
)
def test_a_host_may_be_a_name_or_an_address_with_a_port(host: bytes) -> None:
    assert flaw(b"GET", b"/", "1.1", [(b"host", host)]) is None


@pytest.mark.parametrize(
    "host", [b"a/b", b"a b", b"a?b", b"a#b", b"me@a", b"a:b", b"a:123456", b"[::1", b"::1", b"a\\b"]
)
def test_what_is_no_host_is_refused(host: bytes) -> None:
    assert flaw(b"GET", b"/", "1.1", [(b"host", host)])


def test_http_1_0_needs_no_host_and_may_have_one() -> None:
    assert flaw(b"GET", b"/", "1.0", []) is None
    assert flaw(b"GET", b"/", "1.0", [HOST]) is None
    assert flaw(b"GET", b"/", "1.0", [HOST, HOST])


def test_options_may_ask_about_the_whole_server_and_nobody_else() -> None:
    assert flaw(b"OPTIONS", b"*", "1.1", [HOST]) is None
    assert flaw(b"POST", b"*", "1.1", [HOST])


@given(
    target=st.binary(max_size=40),
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"host", b"transfer-encoding", b"x"]), st.sampled_from([b"a", b"chunked", b"a b", b""])
        ),
        max_size=4,
    ),
    version=st.sampled_from(["1.1", "1.0", "0.9", "2.0"]),
)
def test_what_is_taken_has_one_reading(target: bytes, headers: list[tuple[bytes, bytes]], version: str) -> None:
    if flaw(b"POST", target, version, headers) is not None:
        return
    names = [name for name, _ in headers]
    assert version in ("1.1", "1.0")
    assert re.fullmatch(rb"/[^#]*", target, re.DOTALL)
    assert names.count(b"host") == 1 or (version == "1.0" and not names.count(b"host"))
    assert all(value == b"chunked" and version == "1.1" for name, value in headers if name == b"transfer-encoding")
