"""How the tests of this room ask, and how they read what comes back: by each format's own rules, and no laxer."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from gateway.simulator.connection import Seen
from tests.house import MODEL, House, Reply, Wire

ABLE = SimulatedModel(name=MODEL, capabilities=("completion", "tools", "thinking", "vision", "insert"))
EMBED = SimulatedModel(name="embed:1b", capabilities=("embedding",))

# The stream of /v1 changed in 0.32.6, the lists in 0.30.0 (ollama.md §3.2).
each_generation = pytest.mark.parametrize("version", ["0.24.0", Behaviour().version])


def one(config: dict[str, Any] | None = None, alpha: dict[str, Any] | None = None, **behaviour: Any) -> House:
    """A gateway in front of one instance, `alpha`, whose chat model can do everything."""
    known = Behaviour(**{"models": (ABLE, EMBED), "parallel": 4, **behaviour})
    return House({"alpha": known}, config or {}, {"alpha": alpha or {}})


class Event(NamedTuple):
    name: str  # "" where the stream names none
    data: Any  # JSON, decoded; the text itself where it is none, as [DONE]


def events(body: bytes) -> list[Event]:
    """Every SSE event of a body, in order. Comments between them are none."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
        named = {name: value for name, _, value in fields}
        if "data" in named:
            text = named["data"]
            found.append(Event(named.get("event", ""), json.loads(text) if text[:1] in "{[" and text != DONE else text))
    return found


DONE = "[DONE]"


def chunks(reply: Reply) -> list[dict[str, Any]]:
    """The chunks of a /v1 stream that came to its end."""
    *found, last = events(reply.body)
    assert (reply.status, last.data) == (200, DONE), reply.body
    return [event.data for event in found]


def deltas(reply: Reply) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks(reply) for choice in chunk["choices"]]


def finish_reasons(found: list[dict[str, Any]]) -> list[str]:
    return [choice["finish_reason"] for chunk in found for choice in chunk["choices"] if choice.get("finish_reason")]


def foreign(delta: dict[str, Any], reason: str | None = None) -> bytes:
    """One chunk as another server than Ollama might word it."""
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices}
    return b"data: " + json.dumps(head).encode() + b"\n\n"


def comments(body: bytes) -> list[str]:
    return [line for line in body.decode().split("\n") if line.startswith(":")]


def lines(reply: Reply) -> list[dict[str, Any]]:
    """The objects of an NDJSON stream, read as its strictest readers do: no line is empty, each ends with LF."""
    assert reply.headers["content-type"].startswith("application/x-ndjson"), reply.headers
    assert reply.body.endswith(b"\n")
    return [json.loads(line) for line in reply.body.split(b"\n")[:-1]]


def received(house: House, name: str = "alpha") -> Seen:
    """The last question an instance was asked."""
    return [seen for seen in house.simulator(name).requests if seen.method == "POST"][-1]


def understood(house: House, name: str = "alpha") -> Any:
    """Its body, decoded."""
    return json.loads(received(house, name).body)


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


async def freed_within_a_second(house: House, wire: Wire) -> None:
    """Leave, and hold the gateway to telling the instance so at once."""
    alpha = house.simulator("alpha")
    seen = received(house)
    left = asyncio.get_running_loop().time()
    wire.leave()
    await alpha.until(lambda: seen.left_at is not None and not alpha.busy)
    assert asyncio.get_running_loop().time() - left < 1.0
    await house.quiet()
    assert house.last_line()["status"] == 499


class Verbatim(asyncio.Protocol):
    """An instance's connection that answers every call with the same bytes, and owes some more if it is told to."""

    def __init__(self, stream_type: str, body: bytes, owed: int) -> None:
        self._said = stream_type, body, owed
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, whole, body = self._seen.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if not whole or len(body) < int(length[1] if length else 0):
            return
        probe = _PROBED.get(head.split()[1])
        kind, said, owed = self._said if probe is None else ("application/json", probe, 0)
        opening = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(said) + owed}\r\n\r\n"
        self._transport.write(opening.encode() + said)
        self._seen = b""


@asynccontextmanager
async def saying(body: bytes, stream_type: str, owed: int = 0) -> AsyncIterator[House]:
    """A gateway in front of an instance that answers every call with these very bytes, `owed` fewer than it says."""
    server = await asyncio.get_running_loop().create_server(lambda: Verbatim(stream_type, body, owed), "127.0.0.1", 0)
    listed = {"instances": [{"name": "verbatim", "url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"}]}
    try:
        async with House({}, listed) as house:
            yield house
    finally:
        server.close()


_PROBED = {
    b"/api/version": b'{"version":"0.32.15"}',
    b"/api/tags": json.dumps({"models": [{"name": MODEL, "model": MODEL}]}).encode(),
    b"/api/ps": b'{"models":[]}',
    b"/api/show": b'{"capabilities":["completion","tools","thinking"],"model_info":{}}',
}
