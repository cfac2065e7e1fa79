"""Row B1 of the fault matrix: every raw payload of faults.md §8.1, judged on the socket as its last column says."""

from __future__ import annotations

import json
import re

import pytest

from gateway.simulator import Behaviour
from tests.house import House, ask, request

HOST = b"Host: gateway\r\n"
GET = b"GET /livez HTTP/1.1\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
ONE = b"1\r\na\r\n0\r\n\r\n"  # the body "a", which is no JSON: whoever reads it as a body answers 400 in other words
END = b"\r\n"

MALFORMED = {
    "a length and a coding": POST + b"Content-Length: 11\r\nTransfer-Encoding: chunked\r\n\r\n" + ONE,
    "a coding and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 11\r\n\r\n" + ONE,
    "two equal lengths": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "two equal lengths in one line": POST + b"Content-Length: 1, 1\r\n\r\na",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    **{
        f"a length of {n!r}": POST + b"Content-Length: " + n + b"\r\n\r\nabc"
        for n in (b"+3", b"-1", b"0x3", b"1_0", b"")
    },
    "a length of thirty digits": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "a length of 2^64": POST + b"Content-Length: 18446744073709551616\r\n\r\n",
    "a chunk size of 17 digits": CHUNKED + b"1" * 17 + b"\r\na",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + ONE,
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + ONE,
    "chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + ONE,
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "an empty coding": POST + b"Transfer-Encoding: \r\n\r\n",
    "a comma before the coding": POST + b"Transfer-Encoding: ,chunked\r\n\r\n" + ONE,
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + ONE,
    "a vertical tab before the coding": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + ONE,
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + ONE,
    "a coding in HTTP/1.0": POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + ONE,
    "a folded header": GET + HOST + b"X: a\r\n b\r\n\r\n",
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + ONE,
    "bare line feeds": (GET + HOST + END).replace(b"\r\n", b"\n"),
    "a bare line feed after a value": GET + HOST + b"X: a\n\r\n",
    "bare line feeds in chunks": CHUNKED + ONE.replace(b"\r\n", b"\n"),
    "a NUL in a value": GET + HOST + b"X: a\0b\r\n\r\n",
    "a bare carriage return in a value": GET + HOST + b"X: a\rb\r\n\r\n",
    "an escape in a value": GET + HOST + b"X: \x1b[2J\r\n\r\n",
    "a space in a name": GET + HOST + b"X a: b\r\n\r\n",
    "an empty name": GET + HOST + b": b\r\n\r\n",
    "a name beyond ASCII": GET + HOST + b"\xff: b\r\n\r\n",
    "a header without a colon": GET + HOST + b"X\r\n\r\n",
    "a space before the first header": GET + b" X: a\r\n" + HOST + END,
    "no Host": GET + END,
    "two Hosts": GET + HOST + HOST + END,
    "a Host with a path": GET + b"Host: a/b?c#d\r\n\r\n",
    "a Host with a space": GET + b"Host: a b\r\n\r\n",
    "a Host with a user": GET + b"Host: me@gateway\r\n\r\n",
    "an absolute target": b"GET http://gateway/livez HTTP/1.1\r\n" + HOST + END,
    "a target that is no path": b"GET livez HTTP/1.1\r\n" + HOST + END,
    "an asterisk": b"GET * HTTP/1.1\r\n" + HOST + END,
    "a fragment": b"GET /livez#x HTTP/1.1\r\n" + HOST + END,
    "two spaces before the target": b"GET  /livez HTTP/1.1\r\n" + HOST + END,
    "two spaces after the target": b"GET /livez  HTTP/1.1\r\n" + HOST + END,
    "a space in the target": b"GET /li vez HTTP/1.1\r\n" + HOST + END,
    "an empty line before the request": END + GET + HOST + END,
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\n" + HOST + END,
    "a target beyond ASCII": b"GET /\xff HTTP/1.1\r\n" + HOST + END,
    "a chunk extension of 20 KB": CHUNKED + b"1;" + b"x" * 20_000 + b"\r\na\r\n0\r\n\r\n",
    "trailers of 20 KB": CHUNKED + b"1\r\na\r\n0\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    "a thousand trailers": CHUNKED + b"1\r\na\r\n0\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "a chunk longer than its size": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "a chunk size in Python's way": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "a space after a chunk size": CHUNKED + b"1 \r\na\r\n0\r\n\r\n",
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": b"GET / ICE/1.0\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "something else": b"this is no HTTP\r\n\r\n",
}
OTHERWISE = {
    "a method in lower case": (405, b"get /livez HTTP/1.1\r\n" + HOST + END),
    "a method nobody knows": (405, b"FOO /livez HTTP/1.1\r\n" + HOST + END),
    "CONNECT": (405, b"CONNECT gateway:80 HTTP/1.1\r\n" + HOST + END),
    "a method that is not spoken here": (405, b"PROPFIND /livez HTTP/1.1\r\nConnection: close\r\n" + HOST + END),
    "HTTP/1.9": (505, b"GET /livez HTTP/1.9\r\n" + HOST + END),
    "HTTP/2.0": (505, b"GET /livez HTTP/2.0\r\n" + HOST + END),
    "HTTP/0.9": (505, b"GET /livez\r\n\r\n"),
    "10,000 headers": (431, GET + HOST + b"X: y\r\n" * 10_000 + END),
    "a header of 1 MB": (431, GET + HOST + b"X: " + b"y" * 1_000_000 + END + END),
    "a target of 9 KB": (414, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n" + HOST + END),
}
NOWHERE = [
    "/%2e%2e/api/delete",
    "/v1/%2e%2e/api/delete",
    "/v1/../api/tags",
    "/livez%00",
    "/%ff",
    "/livez;x",
    "/v1%2f%2e%2e",
]


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED.keys())
async def test_b1_what_two_readers_could_take_for_two_things_is_400_and_closes(payload: bytes) -> None:
    await refused(400, payload, "malformed_request")


@pytest.mark.parametrize(("status", "payload"), OTHERWISE.values(), ids=OTHERWISE.keys())
async def test_b1_what_is_known_to_be_too_much_or_not_spoken_has_its_own_status(status: int, payload: bytes) -> None:
    await refused(status, payload)


async def refused(status: int, payload: bytes, code: str = "") -> None:
    """A second request that follows in the same breath must not be answered."""
    async with House({"alpha": Behaviour()}) as house, house.wire() as wire:
        await wire.send(payload + request("/livez", b"", method="GET"))
        answer = await wire.rest()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1.1 %d " % status, head)
    assert len(re.findall(rb"HTTP/1.1 \d", answer)) == 1
    assert b"alive" not in answer
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code or not code
    assert reached(house) == []


def reached(house: House) -> list[str]:
    """What an instance was asked beside the gateway's own probes."""
    probes = ("/api/version", "/api/tags", "/api/ps", "/api/show")
    return [one.path for one in house.simulator("alpha").requests if one.path not in probes]


@pytest.mark.parametrize("path", NOWHERE)
async def test_b8_a_path_that_leads_elsewhere_when_decoded_leads_nowhere(path: str) -> None:
    async with House({"alpha": Behaviour()}) as house, house.wire() as wire:
        await wire.send(request(path, b"", "Connection: close", method="GET"))
        assert (await wire.rest()).startswith(b"HTTP/1.1 404 ")
        assert reached(house) == []


async def test_b1_trailers_are_dropped_and_a_small_chunk_extension_is_passed_over() -> None:
    body = b'{"model":"llama3.1:8b","messages":[{"role":"user","content":"hello"}]}'
    chunks = b"%x;ext=1\r\n%b\r\n0\r\nX-Priority: nonsense\r\n\r\n" % (len(body), body)
    async with House({"alpha": Behaviour()}) as house, house.wire() as wire:
        await wire.send(CHUNKED + chunks)
        assert (await wire.until(b"chat.completion")).startswith(b"HTTP/1.1 200 ")


async def test_b1_an_offer_of_http_2_is_passed_over_and_not_sent_on() -> None:
    async with House({"alpha": Behaviour()}) as house, house.wire() as wire:
        offer = ("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        await wire.send(request("/v1/chat/completions", json.dumps(ask("hello")).encode(), *offer))
        assert (await wire.rest()).startswith(b"HTTP/1.1 200 ")
        assert b"upgrade" not in [name.lower() for name, _ in house.seen("alpha").headers]


async def test_an_error_before_the_application_is_in_the_words_of_its_path() -> None:
    async with House({"alpha": Behaviour()}) as house:
        for path, has in (
            (b"/api/chat", b'{"error":"'),
            (b"/v1/messages", b'{"type":"error"'),
            (b"/v1/x", b'"code":"'),
        ):
            async with house.wire() as wire:
                await wire.send(b"POST " + path + b" HTTP/1.1\r\n\r\n")
                assert has in await wire.rest()
