"""Requests as these tests need them: as given, where a library would tidy up; keys; holders of an instance's places."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx

from tests.house import LIMIT, House, Reply, Wire, ask, request

KEY = "sk-conformance-0123456789"
KEYS = {"keys": [{"name": "amy", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}


async def fetch(house: House, path: str, *headers: str, method: str = "GET", body: bytes = b"") -> Reply:
    """One request on a connection of its own, its path and header lines sent as they are given."""
    async with house.wire() as wire:
        await wire.send(request(path, body, *headers, "Connection: close", method=method))
        return parsed(await wire.rest())


def parsed(answer: bytes) -> Reply:
    """The bytes of a whole response as a reply, whether it came with a length or in chunks."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = httpx.Headers([(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)])
    body = rest
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return Reply(int(first.split(" ")[1]), headers, body)


async def first_reply(wire: Wire) -> Reply:
    """The response that comes first on a connection, which need not be closed after it."""
    head, _, _ = (await wire.until(b"\r\n\r\n")).partition(b"\r\n\r\n")
    length = int(parsed(head).headers["content-length"])
    async with asyncio.timeout(LIMIT):
        wire.seen += await wire.reader.readexactly(len(head) + 4 + length - len(wire.seen))
    return parsed(bytes(wire.seen))


def asked(house: House, name: str) -> list[Any]:
    """The inferences an instance has seen: everything posted to it that is no question about a model."""
    seen = house.simulator(name).requests
    return [one for one in seen if one.method == "POST" and one.path != "/api/show"]


@asynccontextmanager
async def saturated(house: House, name: str = "alpha", places: int = 1) -> AsyncIterator[list[Wire]]:
    """While inside, streams that never end hold `places` of an instance; leaving gives them back."""
    house.simulator(name).faults.arm("hang_mid_stream", path="/v1", after=1, times=places)
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(house.asking(ask("x", stream=True))) for _ in range(places)]
        await asyncio.gather(*(wire.until(b"data: ") for wire in wires))
        yield wires
        for wire in wires:
            wire.leave()
