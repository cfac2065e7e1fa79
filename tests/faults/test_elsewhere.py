"""Row B11: an image that would have to be fetched is refused, and nobody goes there, however the place is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.house import MODEL, House

# Each with a port of this machine where somebody listens.
PLACES = {
    "loopback": "http://127.0.0.1:{port}/a.png",
    "a name": "http://localhost:{port}/a.png",
    "another loopback": "http://127.1.2.3:{port}/a.png",
    "short": "http://127.1:{port}/a.png",
    "decimal": "http://2130706433:{port}/a.png",
    "octal": "http://0177.0.0.1:{port}/a.png",
    "hexadecimal": "http://0x7f000001:{port}/a.png",
    "nowhere": "http://0.0.0.0:{port}/a.png",
    "IPv6": "http://[::1]:{port}/a.png",
    "IPv4 in IPv6": "http://[::ffff:127.0.0.1]:{port}/a.png",
    "IPv4 in IPv6 in hexadecimal": "http://[::ffff:7f00:1]:{port}/a.png",
    "link-local": "http://169.254.169.254/latest/meta-data/",
    "link-local in decimal": "http://2852039166/latest/meta-data/",
    "link-local in IPv6": "http://[fe80::1]:{port}/a.png",
    "a name that means another place each time": "http://rebind.invalid:{port}/a.png",
    "one that redirects": "http://127.0.0.1:{port}/redirect?to=http://169.254.169.254/",
    "with a user": "http://gateway@127.0.0.1:{port}/a.png",
    "in capitals": "HTTPS://127.0.0.1:{port}/a.png",
    "after a space": " http://127.0.0.1:{port}/a.png",
    "with a tab in it": "ht\ttp://127.0.0.1:{port}/a.png",
    "without a scheme": "//127.0.0.1:{port}/a.png",
    "with backslashes": "http:\\\\127.0.0.1:{port}\\a.png",
    "another scheme": "ftp://127.0.0.1:{port}/a.png",
    "a file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:{port}/_GET",
}


def bodies(url: str) -> dict[str, dict[str, Any]]:
    """The same image in each dialect that has URLs, as a part of a message and in what a tool said."""

    def chat(shape: Any) -> dict[str, Any]:
        parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": shape}]
        return {"model": MODEL, "messages": [{"role": "user", "content": parts}]}

    image = {"type": "image", "source": {"type": "url", "url": url}}
    result = [{"type": "tool_result", "tool_use_id": "t", "content": [image]}]
    seen = [{"type": "input_image", "image_url": url}]
    more: dict[str, Any] = {"model": MODEL, "max_tokens": 5}
    return {
        "/v1/chat/completions": chat({"url": url}),
        "/v1/chat/completions?text": chat(url),
        "/v1/responses": {"model": MODEL, "input": [{"role": "user", "content": seen}]},
        "/v1/responses?tool": {"model": MODEL, "input": [{"type": "function_call_output", "output": seen}]},
        "/v1/messages": {**more, "messages": [{"role": "user", "content": [image]}]},
        "/v1/messages?tool": {**more, "messages": [{"role": "user", "content": result}]},
    }


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[object]]]:
    """A port on every address of this machine, and who came there."""
    came: list[object] = []

    def noted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(noted, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], came


@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
async def test_b11_an_image_elsewhere_is_400_in_every_dialect_and_nobody_connects_to_it(place: str) -> None:
    async with listening() as (port, came), House({"alpha": Behaviour()}) as house:
        house.simulator("alpha").forget()
        for path, body in bodies(place.format(port=port)).items():
            reply = await house.post(path, body)
            assert reply.status == 400, (path, reply.body)
            assert "the gateway fetches none" in reply.body.decode(), (path, reply.body)
        assert not [seen for seen in house.simulator("alpha").requests if seen.method == "POST"]
        assert came == []


async def test_b11_what_ollama_takes_for_an_image_in_its_own_dialect_is_passed_on_and_not_looked_up() -> None:
    """There an image is Base64 and nothing else: an address is the instance's to refuse, and leads nowhere."""
    async with listening() as (port, came), House({"alpha": Behaviour()}) as house:
        images = [place.format(port=port) for place in PLACES.values()]
        await house.post("/api/generate", {"model": MODEL, "prompt": "x", "images": images, "stream": False})
        said = [{"role": "user", "content": "x", "images": images}]
        await house.post("/api/chat", {"model": MODEL, "messages": said, "stream": False})
        assert came == []
