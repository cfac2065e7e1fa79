"""An instance that costs next to nothing, to stand behind what is measured. `python -m benchmarks.hotpath.upstream`

It speaks as an Ollama does, from bytes made beforehand, and is told what to do by fields that every gateway passes on:
`max_tokens` frames, `presence_penalty` tens of seconds apart (0: as fast as they are taken; below 0: one, and then
silence); the second one has `frequency_penalty` MiB of text more. Not by `seed`, which would make the answer one that
a cache keeps. Each frame holds the time it was written, by the monotonic clock that all processes share, so whoever
receives it knows its age.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from functools import partial
from typing import cast

import httptools
import msgspec
import uvloop

MODEL = "llama3.1:8b"
MARK = b"@"  # before the stamp, which has 16 digits; in no answer elsewhere
STAMP = 16
UNIT = 10_000.0  # milliseconds of one presence_penalty
TICK = 0.001  # seconds
BURST = 32  # frames written before another stream has its turn
LISTENING = "answers at http://127.0.0.1:"

_COMMON = b'"created":1700000000,"model":"%b","system_fingerprint":"fp_ollama",' % MODEL.encode()
_EVENT = b'data: {"id":"chatcmpl-417","object":"chat.completion.chunk",' + _COMMON + b'"choices":'
_DETAILS = {"format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "8.0B"}
_ENTRY = {"name": MODEL, "model": MODEL, "size": 4_920_753_328, "digest": "46e0c10c039e" * 5, "details": _DETAILS}


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def _frame(delta: bytes, more: int = 0) -> tuple[bytes, bytes]:
    """What goes before and after the stamp, with so many bytes more of text."""
    begin = _EVENT + b'[{"index":0,"delta":{' + delta + b'"content":" ' + MARK
    end = b"x" * more + b'"},"finish_reason":null}]}\n\n'
    return b"%x\r\n%b" % (len(begin) + STAMP + len(end), begin), end + b"\r\n"


def _reply(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json; charset=utf-8\r\n" % status
    return head + b"Date: Tue, 14 Nov 2023 22:13:20 GMT\r\nContent-Length: %d\r\n\r\n" % len(body) + body


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
HEAD += b"Transfer-Encoding: chunked\r\n\r\n"
FIRST, FRAME = _frame(b'"role":"assistant",'), _frame(b"")
STOP = _chunk(_EVENT + b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
USAGE = _chunk(
    _EVENT + b'[],"usage":{"prompt_tokens":31,"completion_tokens":100,"total_tokens":131}}\n\n',
)
DONE = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
WHOLE = _reply(
    b'{"id":"chatcmpl-417","object":"chat.completion",'
    + _COMMON
    + b'"choices":[{"index":0,"message":{"role":"assistant","content":"'
    + b"A calm river under old stone bridges carries light. " * 5
    + b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":31,"completion_tokens":60,"total_tokens":91}}'
)
NOTHING = _reply(b'{"error":"not found"}', b"404 Not Found")


def pages(models: int) -> dict[bytes, bytes]:
    """What is asked of it besides calls, with so many models, all of them loaded."""
    names = [MODEL, *(f"bench-{number}:8b" for number in range(1, models))]
    known = [{**_ENTRY, "name": name, "model": name} for name in names]
    installed = [{**one, "capabilities": ["completion", "tools"]} for one in known]
    loaded = [{**one, "size_vram": 6 << 30, "expires_at": "2318-01-01T00:00:00Z"} for one in known]
    listed = [{"id": name, "object": "model", "owned_by": "library"} for name in names]
    told = {
        b"/api/version": {"version": "0.32.15"},
        b"/api/tags": {"models": installed},
        b"/api/ps": {"models": loaded},
        b"/api/show": {"details": _DETAILS, "model_info": {"llama.context_length": 131072}},
        b"/v1/models": {"object": "list", "data": listed},
    }
    return {path: _reply(msgspec.json.encode(page)) for path, page in told.items()}


class _Options(msgspec.Struct):
    include_usage: bool = False


class _Ask(msgspec.Struct):
    stream: bool | None = False
    max_tokens: int | None = 1
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    stream_options: _Options | None = None


_read = msgspec.json.Decoder(_Ask).decode


class Wheel:
    """Who has to speak at which millisecond; one timer for all."""

    def __init__(self) -> None:
        self._due: defaultdict[int, list[Speaker]] = defaultdict(list)
        self._turned = time.monotonic_ns() // 1_000_000
        self._loop = asyncio.get_running_loop()
        self._turn()

    def add(self, speaker: Speaker, milliseconds: int) -> None:
        self._due[max(speaker.due + milliseconds, self._turned + 1)].append(speaker)

    def _turn(self) -> None:
        now = time.monotonic_ns() // 1_000_000
        for moment in range(self._turned + 1, now + 1):
            self._turned = moment
            for speaker in self._due.pop(moment, ()):
                speaker.due = moment
                speaker.speak()
        self._loop.call_later(TICK, self._turn)


class Speaker:
    """One stream, under way."""

    __slots__ = ("_connection", "_interval", "_large", "_left", "_rushing", "_usage", "_wheel", "due")

    def __init__(self, connection: Connection, ask: _Ask, wheel: Wheel) -> None:
        self._connection, self._wheel = connection, wheel
        self._left = ask.max_tokens or 1
        self._interval = round((ask.presence_penalty or 0.0) * UNIT)
        self._large = round((ask.frequency_penalty or 0.0) * 2**20)
        self._rushing = False
        self._usage = ask.stream_options is not None and ask.stream_options.include_usage
        self.due = time.monotonic_ns() // 1_000_000

    def begin(self) -> None:
        before, after = FIRST
        self._connection.write(b"%b%b%016d%b" % (HEAD, before, time.monotonic_ns() // 1000, after))
        self._left -= 1
        if self._interval == 0:
            self.rush()
        elif self._interval > 0:
            self._wheel.add(self, self._interval)

    def speak(self) -> None:
        """One frame, now, and the next in its time."""
        if self._connection.closed:
            return
        if self._left == 0:
            self._end()
            return
        before, after = FRAME
        if self._large:
            (before, after), self._large = _frame(b"", self._large), 0
        self._connection.write(b"%b%016d%b" % (before, time.monotonic_ns() // 1000, after))
        self._left -= 1
        self._wheel.add(self, self._interval)

    def rush(self) -> None:
        """As many frames as are taken, some at a time."""
        self._rushing = not (self._connection.closed or self._connection.full)
        if not self._rushing:
            return
        (before, after), write = FRAME, self._connection.write
        for _ in range(min(BURST, self._left)):
            write(b"%b%016d%b" % (before, time.monotonic_ns() // 1000, after))
            self._left -= 1
        if self._left == 0:
            self._end()
        else:
            asyncio.get_running_loop().call_soon(self.rush)

    def resumed(self) -> None:
        if self._interval == 0 and self._left > 0 and not self._rushing:
            self.rush()

    def _end(self) -> None:
        self._connection.write(STOP + USAGE + DONE if self._usage else STOP + DONE)
        self._connection.speaker = None


class Connection(asyncio.Protocol):
    """One client; one request at a time."""

    def __init__(self, wheel: Wheel, known: dict[bytes, bytes]) -> None:
        self._wheel, self._pages = wheel, known
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body = b"", bytearray()
        self.closed = self.full = False
        self.speaker: Speaker | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write

    def connection_lost(self, error: Exception | None) -> None:
        self.closed, self.speaker = True, None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self.speaker is not None:
            self.speaker.resumed()

    def on_url(self, url: bytes) -> None:
        self._url, self._body = url, bytearray()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._url.startswith(b"/v1/chat/completions"):
            self.write(self._pages.get(self._url, NOTHING))
            return
        ask = _read(self._body)
        if not ask.stream:
            self.write(WHOLE)
            return
        self.speaker = Speaker(self, ask, self._wheel)
        self.speaker.begin()


async def serve(addresses: int, models: int) -> None:
    """At one port of so many addresses: 127.0.0.1, 127.0.0.2, and on."""
    wheel, known, loop = Wheel(), pages(models), asyncio.get_running_loop()
    port = 0
    for number in range(1, addresses + 1):
        make = partial(Connection, wheel, known)
        server = await loop.create_server(make, f"127.0.0.{number}", port, backlog=4096)
        port = server.sockets[0].getsockname()[1]
    print(f"{LISTENING}{port}", flush=True)
    await loop.create_future()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--addresses", type=int, default=1)
    options.add_argument("--models", type=int, default=1)
    given = options.parse_args()
    uvloop.run(serve(given.addresses, given.models))


if __name__ == "__main__":
    main()
