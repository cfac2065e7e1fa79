"""httpx over our own connections: the same answers, its exceptions, and none of its habits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from gateway.errors import UpstreamError
from gateway.upstream import client
from tests.upstream.scripted import (
    CHUNKED,
    HELLO,
    STARTED,
    Peer,
    answering,
    at_paths,
    black_hole,
    body,
    once,
    quiet,
    reaching,
    silent,
    speaking,
    until,
)


async def test_a_client_gets_and_posts_over_kept_connections() -> None:
    answers = {"/api/tags": body(b'{"models":[]}'), "/api/show": body(b'{"ok":true}')}
    async with (
        speaking(at_paths(answers)) as instance,
        reaching(instance.url) as upstream,
        client(upstream) as asking,
    ):
        assert (await asking.get("/api/tags")).json() == {"models": []}
        reply = await asking.post("/api/show", json={"model": "m"})
        assert (reply.status_code, reply.json()) == (200, {"ok": True})
        assert (await asking.get("/nowhere")).status_code == 404

        assert len(instance.peers) == 1
        assert instance.peers[0].bodies == [b"", b'{"model":"m"}', b""]
        sent = instance.peers[0].heads[1].lower()
        for header in (b"host:", b"accept-encoding: identity\r\n", b"content-length: 13\r\n"):
            assert sent.count(header) == 1
        assert b"gzip" not in sent
        assert b"connection:" not in sent
        assert (upstream.idle, upstream.busy) == (1, 0)


async def test_closing_the_client_leaves_the_upstream_open() -> None:
    async with speaking(answering(HELLO)) as instance, reaching(instance.url) as upstream:
        for _ in range(2):
            async with client(upstream) as asking:
                assert (await asking.get("/")).text == "hello"
        assert len(instance.peers) == 1


async def test_a_stream_is_read_as_it_comes_and_left_at_any_time() -> None:
    async with (
        speaking(silent(STARTED)) as instance,
        reaching(instance.url) as upstream,
        client(upstream) as asking,
    ):
        async with asking.stream("GET", "/") as reply:
            pieces = reply.aiter_raw()
            assert await anext(pieces) == b"hello"
        assert quiet(upstream)
        async with asyncio.timeout(5):
            await instance.peers[0].gone.wait()
        await pieces.aclose()  # type: ignore[attr-defined]  # httpx says iterator, and means generator


async def test_only_the_one_instance_is_reached() -> None:
    async with (
        speaking(answering(HELLO)) as instance,
        reaching(instance.url) as upstream,
        client(upstream) as asking,
    ):
        port = instance.url.rpartition(":")[2]
        for url in ("http://127.0.0.1:1/", f"http://localhost:{port}/", f"https://127.0.0.1:{port}/"):
            with pytest.raises(httpx.ConnectError):
                await asking.get(url)
        assert not instance.peers


async def test_redirects_are_not_followed_and_cookies_not_kept() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: /other\r\nSet-Cookie: who=me; Path=/\r\nContent-Length: 0\r\n\r\n"
    async with (
        speaking(answering(answer)) as instance,
        reaching(instance.url) as upstream,
        client(upstream) as asking,
    ):
        for _ in range(2):
            assert (await asking.get("/")).status_code == 302
        assert [head.split(b" ")[1] for head in instance.peers[0].heads] == [b"/", b"/"]
        assert b"cookie" not in instance.peers[0].heads[1].lower()
        assert len(asking.cookies.jar) == 0


async def test_proxies_and_passwords_of_the_environment_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with (
        speaking(answering(HELLO)) as instance,
        reaching(instance.url) as upstream,
        client(upstream) as asking,
    ):
        assert (await asking.get("/")).text == "hello"
        assert b"authorization" not in instance.peers[0].heads[0].lower()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"garbage\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", httpx.RemoteProtocolError),
        (b"", httpx.ReadError),
        (STARTED, httpx.ReadError),
    ],
)
async def test_failures_are_told_as_httpx_tells_them_with_ours_as_the_cause(
    answer: bytes, kind: type[httpx.TransportError]
) -> None:
    async with speaking(once(answer)) as instance, reaching(instance.url) as upstream, client(upstream) as asking:
        with pytest.raises(kind) as caught:
            await asking.get("/")
        assert isinstance(caught.value.__cause__, UpstreamError)
        assert "127.0.0.1" not in str(caught.value)
        assert quiet(upstream)


@pytest.mark.parametrize("said", [b"", STARTED])
async def test_the_read_timeout_holds_before_and_after_the_head(said: bytes) -> None:
    async with speaking(silent(said)) as instance, reaching(instance.url) as upstream, client(upstream) as asking:
        with pytest.raises(httpx.ReadTimeout):
            await asking.get("/", timeout=0.05)
        assert quiet(upstream)


async def test_the_read_timeout_is_for_each_silence_and_not_for_the_whole() -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED)
        for _ in range(12):
            await asyncio.sleep(0.05)
            await peer.say(b"1\r\nx\r\n")
        await peer.say(b"0\r\n\r\n")
        await peer.until_gone()

    async with speaking(drip) as instance, reaching(instance.url) as upstream, client(upstream) as asking:
        assert (await asking.get("/", timeout=0.4)).text == "x" * 12


async def test_the_connect_timeout_and_a_refusal_are_told_apart() -> None:
    async with black_hole() as url, reaching(url) as upstream, client(upstream) as asking:
        with pytest.raises(httpx.ConnectTimeout):
            await asking.get("/", timeout=0.05)
    async with speaking(answering(HELLO)) as instance:
        pass
    async with reaching(instance.url) as upstream, client(upstream) as asking:
        with pytest.raises(httpx.ConnectError):
            await asking.get("/")


async def test_a_header_that_would_end_its_line_is_the_callers_mistake() -> None:
    async with (
        speaking(answering(HELLO)) as instance,
        reaching(instance.url) as upstream,
        client(upstream) as asking,
    ):
        with pytest.raises(httpx.LocalProtocolError):
            await asking.get("/", headers={"x": "a\r\nevil: yes"})
        assert not instance.peers


@pytest.mark.parametrize("said", [b"", STARTED])
async def test_a_caller_that_is_cancelled_closes_its_socket(said: bytes) -> None:
    async with speaking(silent(said)) as instance, reaching(instance.url) as upstream, client(upstream) as asking:
        task = asyncio.ensure_future(asking.get("/", timeout=None))
        await until(lambda: bool(instance.peers and instance.peers[0].bodies))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert quiet(upstream)
        async with asyncio.timeout(5):
            await instance.peers[0].gone.wait()
