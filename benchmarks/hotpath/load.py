"""Callers in a closed loop: each sends its next call when the last one is answered, and checks every answer.

    python -m benchmarks.hotpath.load 127.0.0.1:8080 --callers 64
    python -m benchmarks.hotpath.load 127.0.0.1:8080 --callers 200 --frames 100 --interval 20

Times are microseconds. TTFT is from sending the call to receiving its first frame; the delay of a frame is from the
instance's writing it, a stamp inside, to its receipt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import httptools
import uvloop

from benchmarks.hotpath import kernel
from benchmarks.hotpath.histogram import Histogram
from benchmarks.hotpath.upstream import MARK, MODEL, STAMP, UNIT

Address = tuple[str, int]
SOURCES = 4  # addresses of ours; one has 28,000 ports
SAID = "Say in two or three sentences how a river is crossed, and by whom, in the calm style of an old book."


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What callers do: whole answers where `frames` is 0, else streams of so many, `interval` milliseconds apart."""

    callers: int = 64
    frames: int = 0
    interval: float = 0.0
    warm_up: float = 0.5  # seconds
    seconds: float = 2.0
    calls: int = 0  # of each caller, who then is done; 0: as many as there is time for

    def body(self, frames: int) -> dict[str, object]:
        asked: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": SAID}]}
        if self.frames:
            asked |= {"stream": True, "max_tokens": frames, "presence_penalty": self.interval / UNIT}
        return asked

    def request(self, frames: int) -> bytes:
        content = json.dumps(self.body(frames)).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nAccept: application/json\r\n"
            "Content-Type: application/json\r\nUser-Agent: bench/1\r\nAuthorization: Bearer sk-bench\r\n"
        )
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@dataclass(slots=True)
class Told:
    """What came of a load, between the end of its warm-up and its own end."""

    seconds: float = 0.0
    calls: int = 0
    frames: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # warm-up included
    took: Histogram = field(default_factory=Histogram)  # a whole call
    ttft: Histogram = field(default_factory=Histogram)
    delay: Histogram = field(default_factory=Histogram)
    cpu: int = 0  # nanoseconds, of the processes that are watched
    rest: int = 0  # of these callers and the instance

    def summary(self) -> dict[str, Any]:
        hists = {name: cast(Histogram, getattr(self, name)) for name in ("took", "ttft", "delay")}
        return {
            "seconds": round(self.seconds, 3),
            "calls": self.calls,
            "frames": self.frames,
            "errors": dict(self.errors),
            "cpu_seconds": self.cpu / 1e9,
            "callers_and_instance_cpu_seconds": self.rest / 1e9,
            **{n: {f"p{q:g}": h.quantile(q / 100) for q in (50, 99, 99.9)} for n, h in hists.items() if h.total},
        }


class Caller(asyncio.Protocol):
    """One connection, and the calls on it, one after the other."""

    __slots__ = (
        "_expected",
        "_first",
        "_frames",
        "_left",
        "_open",
        "_parser",
        "_run",
        "_sent",
        "_tail",
        "_transport",
        "number",
    )

    def __init__(self, run: Run, number: int) -> None:
        self._run, self.number = run, number
        self._expected = self._frames = self._sent = 0
        self._open = self._first = False
        self._tail = b""
        self._left = run.load.calls or sys.maxsize

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)
        self._call()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._run.wrong("not an HTTP answer")
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._run.over:
            if self._open:
                self._run.wrong("connection lost")
            self._run.reconnect(self)

    def leave(self) -> None:
        self._transport.abort()

    def on_body(self, body: bytes) -> None:
        if not self._expected:
            self._tail += body
            return
        text, now, run = self._tail + body, time.monotonic_ns() // 1000, self._run
        place, end = text.find(MARK), 0
        while place >= 0 and place + 1 + STAMP <= len(text):
            end = place + 1 + STAMP
            stamp = int(text[place + 1 : end])
            self._frames += 1
            if run.counting:
                run.told.frames += 1
                run.told.delay.add(now - stamp)
                if self._first:
                    run.told.ttft.add(now - self._sent)
            if self._first:
                run.spoke()
            self._first = False
            place = text.find(MARK, end)
        self._tail = text[max(end, len(text) - STAMP - 1) :]

    def on_message_complete(self) -> None:
        run, self._open = self._run, False
        if problem := self._problem():
            run.wrong(problem)
        elif run.counting:
            run.told.calls += 1
            run.told.took.add(time.monotonic_ns() // 1000 - self._sent)
        self._left -= 1
        if not self._left:
            run.did(self.number)
        elif not self._parser.should_keep_alive():
            self._transport.close()
        elif not run.over:
            self._call()

    def _problem(self) -> str:
        """What is wrong with the answer that just ended; "" where nothing is."""
        if (status := self._parser.get_status_code()) != 200:
            return f"status {status}"
        if not self._expected:
            return "" if b'"finish_reason":"stop"' in self._tail.replace(b" ", b"") else "another answer"
        if self._frames != self._expected:
            return f"{self._frames} frames of {self._expected}"
        return "" if b"[DONE]" in self._tail else "no [DONE]"

    def _call(self) -> None:
        self._expected, request = self._run.next(self.number, first=not self._expected)
        self._frames, self._tail, self._first, self._open = 0, b"", True, True
        self._sent = time.monotonic_ns() // 1000
        self._transport.write(request)


class Run:
    """One load against one address."""

    def __init__(self, load: Load, address: Address) -> None:
        self.load, self._address = load, address
        self._request = load.request(load.frames)
        self._callers: dict[int, Caller] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.told = Told()
        self.counting = self.over = False
        self._answered = 0  # streams that had their first frame, since the beginning
        self._enough: tuple[int, asyncio.Event] | None = None
        self._busy = set(range(load.callers))
        self._done = asyncio.Event()

    def next(self, number: int, *, first: bool) -> tuple[int, bytes]:
        """Frames to expect, and the request. First streams are of all lengths, so that they do not go in step."""
        if first and self.load.interval > 0:
            frames = max(1, self.load.frames * (number + 1) // self.load.callers)
            return frames, self.load.request(frames)
        return self.load.frames, self._request

    def wrong(self, problem: str) -> None:
        self.told.errors[problem] += 1

    def reconnect(self, caller: Caller) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(caller.number), name="reconnect")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, number: int) -> None:
        loop, source = asyncio.get_running_loop(), f"127.0.0.{2 + number % SOURCES}"
        try:
            _, caller = await loop.create_connection(
                lambda: Caller(self, number), *self._address, local_addr=(source, 0)
            )
        except OSError as error:
            self.wrong(type(error).__name__)
            return
        self._callers[number] = caller

    async def __aenter__(self) -> Self:
        """All callers have begun, over the better part of the warm-up."""
        began, slice_ = time.monotonic(), self.load.warm_up * 0.6 / self.load.callers
        for number in range(self.load.callers):
            await self._connect(number)
            await asyncio.sleep(max(0.0, began + (number + 1) * slice_ - time.monotonic()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.over = True
        for task in self._tasks:
            task.cancel()
        for caller in self._callers.values():
            caller.leave()
        await asyncio.sleep(0.01)

    def spoke(self) -> None:
        """A stream had its first frame."""
        self._answered += 1
        if self._enough is not None and self._answered >= self._enough[0]:
            self._enough[1].set()

    async def until_answered(self, streams: int) -> None:
        """Until so many streams had their first frame."""
        if self._answered < streams:
            self._enough = (streams, asyncio.Event())
            await self._enough[1].wait()

    def did(self, number: int) -> None:
        """That caller has made all its calls."""
        self._busy.discard(number)
        if not self._busy:
            self._done.set()

    async def until_done(self) -> None:
        """Until every caller has made all its calls."""
        await self._done.wait()

    async def measure(self, watched: Sequence[int], rest: Sequence[int]) -> Told:
        """What happens in the seconds of the load, and the processor time it takes."""
        await asyncio.sleep(self.load.warm_up * 0.4)
        began, cpu, other = time.monotonic(), kernel.cpu(watched), kernel.cpu(rest)
        self.counting = True
        await asyncio.sleep(self.load.seconds)
        self.counting, told = False, self.told
        told.cpu, told.rest = kernel.cpu(watched) - cpu, kernel.cpu(rest) - other
        told.seconds = time.monotonic() - began
        return told


async def drive(load: Load, address: Address, watched: Sequence[int] = (), rest: Sequence[int] = ()) -> Told:
    async with Run(load, address) as run:
        return await run.measure(watched, rest)


def main() -> None:
    options = argparse.ArgumentParser(description="Calls on one address; prints what came of them as JSON.")
    options.add_argument("address", help="host:port")
    options.add_argument("--callers", type=int, default=64)
    options.add_argument("--frames", type=int, default=0, help="of each stream; 0: whole answers")
    options.add_argument("--interval", type=float, default=0.0, help="milliseconds between frames; 0: none")
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--pid", type=int, action="append", default=[], help="a process whose CPU time to tell")
    given = options.parse_args()
    kernel.many_files()
    load = Load(callers=given.callers, frames=given.frames, interval=given.interval, seconds=given.seconds)
    host, _, port = given.address.rpartition(":")
    watched = [pid for one in given.pid for pid in kernel.tree(one)]
    print(json.dumps(uvloop.run(drive(load, (host, int(port)), watched)).summary(), indent=2))


if __name__ == "__main__":
    main()
