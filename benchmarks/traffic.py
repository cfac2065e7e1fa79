"""Calls of every kind, each with the one answer it may get, and a client that reads them to the last byte.

The simulated instances repeat what they are told (`say: …`), so an answer is right or it is not: every text exact,
every stream with its own end marker, every error in the shape of its family. What an answer was is one word: `served`,
`told` (it broke off, and the client was told in-band) or `refused` (an error status). Anything else is `Wrong`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.processes import MODEL, Address

EMBEDDER = "nomic-embed-text:latest"
COINED = "zz-"  # how every name begins that a client makes up: none may be found in the metrics
MAY_REFUSE = frozenset({429, 502, 503, 504})
HANG = 60.0  # seconds; nothing here takes so long
_WORDS = ("calm", "river", "under", "old", "stone", "bridges", "carries", "light", "to", "open", "water", "slowly")

Judge = Callable[["Heard"], str]


class Wrong(Exception):
    """An answer that is none of those that a client may get."""


@dataclass(slots=True)
class Heard:
    """One answer, as far as it came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False  # the HTTP message came to its end
    left: bool = False  # by us, before that
    first: float = 0.0  # seconds to the first byte of the body
    took: float = 0.0  # seconds


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and what its answer may be."""

    kind: str
    request: bytes
    judge: Judge


class Client:
    """One client with one connection at a time, kept open from call to call as long as the other side does."""

    def __init__(self, address: Address, source: str = "127.0.0.1") -> None:
        self._address = address
        self._source = source
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, *, leave: float | None = None, reset: bool = False) -> Heard:
        """Send it and read the answer, for `leave` seconds at most. Raises TimeoutError where that does not end."""
        heard, began = Heard(), time.monotonic()
        try:
            async with asyncio.timeout(HANG if leave is None else leave):
                await self._exchange(request, heard, began)
        except TimeoutError:
            self.close(reset=reset)
            if leave is None:
                raise
            heard.left = True
        except (OSError, asyncio.IncompleteReadError):
            self.close()
        heard.took = time.monotonic() - began
        if not heard.complete or heard.headers.get("connection") == "close":
            self.close()
        return heard

    def close(self, *, reset: bool = False) -> None:
        if self._streams is None:
            return
        transport, self._streams = self._streams[1].transport, None
        if reset and (sock := transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    async def _exchange(self, request: bytes, heard: Heard, began: float) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, local_addr=(self._source, 0))
        reader, writer = self._streams
        writer.write(request)
        first, *rows = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        heard.status = int(first.split()[1])
        pairs = (row.partition(":") for row in rows if row)
        heard.headers = {name.lower(): value.strip() for name, _, value in pairs}
        if heard.headers.get("transfer-encoding") == "chunked":
            await _chunks(reader, heard, began)
        else:
            heard.body += await reader.readexactly(int(heard.headers.get("content-length", 0)))
            heard.first = time.monotonic() - began
        heard.complete = True


async def _chunks(reader: asyncio.StreamReader, heard: Heard, began: float) -> None:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        heard.body += (await reader.readexactly(size + 2))[:-2]
        heard.first = heard.first or time.monotonic() - began
    await reader.readexactly(2)


def post(path: str, body: object, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    rows = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(rows).encode() + content


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def sentence(chance: random.Random, least: int = 8, most: int = 40) -> str:
    """Something to say that nobody has said before."""
    return " ".join([*chance.choices(_WORDS, k=chance.randint(least, most)), f"{chance.getrandbits(64):x}"])


# Judges


def _answered(heard: Heard, family: str) -> bool:
    """Whether it is an answer; False where it is an error of the right shape. Raises Wrong."""
    if not heard.complete:
        raise Wrong(f"cut after {len(heard.body)} bytes of a {heard.status}")
    if heard.status == 200:
        return True
    if heard.status not in MAY_REFUSE:
        raise Wrong(f"status {heard.status}: {bytes(heard.body[:200])!r}")
    _shaped(heard.body, family)
    return False


def _shaped(body: bytes | bytearray, family: str) -> None:
    said = json.loads(body)["error"]
    if not (isinstance(said, str) if family == "ollama" else isinstance(said.get("message"), str)):
        raise Wrong(f"an error in no shape: {bytes(body[:200])!r}")


def _same(found: str, text: str) -> str:
    if found != text:
        raise Wrong(f"another text: {found[-60:]!r} for {text[-60:]!r}")
    return "served"


def whole(text: str, read: Callable[[Any], str], family: str) -> Judge:
    def judge(heard: Heard) -> str:
        return _same(read(json.loads(heard.body)), text) if _answered(heard, family) else "refused"

    return judge


def streamed(text: str, read: Callable[[Any], str], ends: Callable[[str], bool], family: str = "openai") -> Judge:
    """`ends` knows the end marker among the data of the frames; whatever has an `error` is the other end."""

    def judge(heard: Heard) -> str:
        if not _answered(heard, family):
            return "refused"
        frames = _frames(bytes(heard.body).decode())
        found = "".join(read(json.loads(frame)) for frame in frames if frame != "[DONE]")
        if frames and ends(frames[-1]):
            return _same(found, text)
        if any('"error"' in frame for frame in frames[-2:]) and text.startswith(found):
            return "told"
        raise Wrong(f"a stream without an end: {frames[-1:]}")

    return judge


def _frames(body: str) -> list[str]:
    rows = [row for row in body.split("\n") if row]
    data = [row[6:] for row in rows if row.startswith("data: ")]
    return data or [row for row in rows if row.startswith("{")]


def listed(heard: Heard) -> str:
    if not heard.complete or heard.status != 200:
        raise Wrong(f"a list with status {heard.status}")
    json.loads(heard.body)
    return "served"


def turned_down(status: int, family: str) -> Judge:
    def judge(heard: Heard) -> str:
        if heard.status != status or not heard.complete:
            raise Wrong(f"status {heard.status} in place of {status}: {bytes(heard.body[:200])!r}")
        _shaped(heard.body, family)
        return "served"

    return judge


def embedded(heard: Heard) -> str:
    if not _answered(heard, "openai"):
        return "refused"
    if len(json.loads(heard.body)["data"][0]["embedding"]) != 8:
        raise Wrong("an embedding of another length")
    return "served"


# The kinds of calls


def _messages(text: str) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": f"say: {text}"}]}


def _delta(chunk: Any) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))


def chat_stream(chance: random.Random, most: int = 40) -> Ask:
    text = sentence(chance, 8, most)
    judge = streamed(text, _delta, lambda frame: frame == "[DONE]")
    return Ask("chat, streamed", post("/v1/chat/completions", _messages(text) | {"stream": True}), judge)


def chat_whole(chance: random.Random, most: int = 40) -> Ask:
    text = sentence(chance, 8, most)
    judge = whole(text, lambda said: str(said["choices"][0]["message"]["content"]), "openai")
    return Ask("chat, whole", post("/v1/chat/completions", _messages(text)), judge)


def native_stream(chance: random.Random) -> Ask:
    text = sentence(chance)
    judge = streamed(
        text, lambda said: said.get("message", {}).get("content", ""), lambda frame: '"done":true' in frame, "ollama"
    )
    return Ask("/api/chat, streamed", post("/api/chat", _messages(text)), judge)


def anthropic_stream(chance: random.Random) -> Ask:
    text = sentence(chance)
    body = _messages(text) | {"max_tokens": 1000, "stream": True}
    judge = streamed(
        text, lambda said: said.get("delta", {}).get("text", ""), lambda frame: "message_stop" in frame, "anthropic"
    )
    return Ask("/v1/messages, streamed", post("/v1/messages", body), judge)


def responses_stream(chance: random.Random) -> Ask:
    text = sentence(chance)

    def read(said: Any) -> str:
        return str(said["delta"]) if said["type"] == "response.output_text.delta" else ""

    judge = streamed(text, read, lambda frame: '"response.completed"' in frame)
    body = {"model": MODEL, "input": f"say: {text}", "stream": True}
    return Ask("/v1/responses, streamed", post("/v1/responses", body), judge)


def embedding(chance: random.Random) -> Ask:
    body = {"model": EMBEDDER, "input": sentence(chance)}
    return Ask("embeddings", post("/v1/embeddings", body), embedded)


def again(chance: random.Random) -> Ask:
    """One of a few questions whose answers are kept."""
    text = f"what is kept under {chance.randrange(20)}"
    if chance.random() < 0.5:
        judge = whole(text, lambda said: str(said["response"]), "ollama")
        return Ask("asked before", post("/api/chat", {"message": f"say: {text}"}), judge)
    judge = whole(text, lambda said: str(said["choices"][0]["message"]["content"]), "openai")
    return Ask("asked before", post("/v1/chat/completions", _messages(text) | {"temperature": 0}), judge)


def a_list(chance: random.Random) -> Ask:
    path = chance.choice(("/v1/models", "/api/tags", "/api/ps", "/api/version", f"/v1/models/{MODEL}"))
    return Ask("lists", get(path), listed)


def nonsense(chance: random.Random) -> Ask:
    """What a client may get wrong; every name in it is new."""
    name = f"{COINED}{chance.getrandbits(48):x}"
    body = _messages("x") | {"model": name}
    request, status, family = chance.choice(
        (
            (post("/v1/chat/completions", b"{" + name.encode()), 400, "openai"),
            (post("/v1/chat/completions", body, f"X-Request-Id: {name}"), 404, "openai"),
            (post("/v1/chat/completions", body, f"X-Task-Type: {name}"), 400, "openai"),
            (post("/v1/messages", body | {"max_tokens": 9}), 404, "anthropic"),
            (post("/api/chat", body), 404, "ollama"),
            (post("/api/delete", {"model": name}), 403, "ollama"),
            (post("/v1/chat/completions", _messages("x") | {"messages": name}), 400, "openai"),
            (get(f"/v1/{name}"), 404, "openai"),
        )
    )
    return Ask("nonsense", request, turned_down(status, family))


MIX: dict[Callable[[random.Random], Ask], int] = {
    chat_stream: 30,
    chat_whole: 15,
    native_stream: 10,
    anthropic_stream: 8,
    responses_stream: 7,
    embedding: 10,
    again: 8,
    a_list: 7,
    nonsense: 5,
}
"""What comes in of a hundred calls."""


def any_of(chance: random.Random) -> Ask:
    make = chance.choices(list(MIX), weights=list(MIX.values()))[0]
    return make(chance)
