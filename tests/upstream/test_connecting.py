"""No connection, and why: in words, without the address, and without blaming the instance for what is ours."""

from __future__ import annotations

import sys

import pytest

from gateway.errors import ConnectFailed
from gateway.upstream import Prober, Upstream
from tests.upstream.scripted import NO_SUCH_NAME, Peer, reaching, refuses, speaking


@pytest.mark.parametrize("url", ["alpha:11434", "ftp://alpha", "http://", "http:///v1", "/alpha", ""])
def test_what_is_no_address_of_ours_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        Upstream("alpha", url)


async def test_a_name_that_nobody_knows_is_a_failed_connection() -> None:
    async with reaching(f"http://{NO_SUCH_NAME}:1") as upstream:
        assert await refuses(upstream, ConnectFailed) == "instance alpha: its name does not resolve"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere loopback has no broadcast address")
async def test_an_address_without_a_way_to_it_is_told_from_one_where_nobody_listens() -> None:
    async with reaching("http://127.255.255.255:1") as upstream:  # loopback's broadcast address: TCP cannot go there
        assert await refuses(upstream, ConnectFailed) == "instance alpha: no route to it"
        seen = await Prober(upstream).health(5)
        assert seen.problem == "no route to it. Is the machine up, and is this its address?"


async def test_an_https_address_of_what_speaks_http_comes_with_the_likely_fix() -> None:
    async def speaks_http(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")
        await peer.until_gone()

    async with speaking(speaks_http) as instance, reaching(instance.url.replace("http:", "https:")) as upstream:
        assert await refuses(upstream, ConnectFailed) == "instance alpha: does not speak TLS as we do"
        seen = await Prober(upstream).health(5)
        assert seen.problem == "does not speak TLS as we do. Should the address begin with http:// instead?"


async def test_whatever_else_prevents_a_connection_is_a_failed_one() -> None:
    async def hangs_up(peer: Peer) -> None:
        peer.reset()

    async with speaking(hangs_up) as instance, reaching(instance.url.replace("http:", "https:")) as upstream:
        assert await refuses(upstream, ConnectFailed) == "instance alpha: no connection"
