"""An Ollama in virtual time, at the end of a simulated wire: loads, slots, and every way to fail that a schedule names.

It speaks HTTP as bytes, so that the gateway's own transport, parser and readers are the real ones. Each token it says
tells which call and which request it belongs to: what reaches a client can be compared with what was said.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections import deque
from collections.abc import Callable, Iterator

from gateway.errors import ConnectFailed
from gateway.upstream import InstalledModel, Listing, LoadedModel
from tests.simulation.network import SimulatedLoop, Wire
from tests.simulation.schedule import Behaviour, Kind, Machine, Schedule

STUCK = 40.0  # seconds after which what hangs is given up, by itself or by whoever restarts it
LINGER = 5.0
SIZE = 4  # bytes of a model

_ID = re.compile(rb"\r\nx-request-id: (\d+)\r\n")
_MODEL = re.compile(rb'"model":\s*"([^"]+)"')
_STREAM = re.compile(rb'"stream":\s*true')

_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
_CHUNK = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"%s","choices":'
    '[{"index":0,"delta":{"role":"assistant","content":"%s"},"finish_reason":%s}]}\n\n'
)
_WHOLE = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"%s","choices":'
    '[{"index":0,"message":{"role":"assistant","content":"%s"},"finish_reason":%s}]}'
)
_REFUSALS = {
    Kind.BUSY: (503, "server busy, please try again. maximum pending requests exceeded"),
    Kind.SLOW_DOWN: (429, "too many requests"),
    Kind.FAILS: (500, "llama runner process no longer running"),
    Kind.NO_MEMORY: (500, "model requires more system memory (9.0 GiB) than is available (1.0 GiB)"),
    Kind.MISSING: (404, "model not found, try pulling it first"),
    Kind.NO_PATH: (404, ""),
    Kind.REFUSES: (400, "invalid options"),
    Kind.MOVED: (302, ""),
}


def _answer(status: int, body: bytes, length: int | None = None, *, close: bool = False) -> bytes:
    more = b"Connection: close\r\n" if close else b""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%b\r\n%b" % (
        status,
        len(body) if length is None else length,
        more,
        body,
    )


def _piece(text: str) -> bytes:
    data = text.encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


class Work:
    """One request under way. `said` are the tokens that went out; `whole` that its end marker did, `over` that nothing
    more will.
    """

    def __init__(self, at: Ollama, wire: Wire, call: int, request: bytes, behaviour: Behaviour, nth: int) -> None:
        found = _MODEL.search(request)
        self.call = call
        self.model = found[1].decode() if found else ""
        self.stream = _STREAM.search(request) is not None
        self.behaviour = behaviour
        self.said: list[str] = []
        self.whole = False
        self.over = False
        self.answering = False
        self.wire = wire
        self.wanted = True  # the gateway still waits for it
        self._at = at
        self._nth = nth
        self._timer: asyncio.TimerHandle | None = None
        self._script = self._stream() if self.stream else self._reply()

    @property
    def open(self) -> bool:
        """The gateway still waits for some of it."""
        return self.wanted and not (self.whole or self.over)

    def begin(self) -> None:
        """There is a slot for it."""
        self._step()

    def leave(self) -> None:
        """The gateway closed its connection. Ollama notices when it has something to say."""
        self.wanted = False
        if self.answering:
            self.end()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at.ended(self)

    def _step(self) -> None:
        self._timer = None
        delay = next(self._script, None)
        if delay is None:
            self.end()
        elif self in self._at.works:
            self._timer = self._at.loop.call_later(delay, self._step)

    def _token(self, number: int) -> str:
        return f"{self.call}.{self._nth}.{number} "

    def _stream(self) -> Iterator[float]:
        kind, at = self.behaviour.kind, self.behaviour.at
        yield self._at.loads(self.model)
        if kind is Kind.HANGS:
            yield STUCK
        elif kind is Kind.MUTE:
            self.wire.say(_HEAD)
            yield STUCK
        yield self.behaviour.first
        if not self.wanted:
            return
        self.answering = True
        if kind is not Kind.MUTE:
            self.wire.say(_HEAD)
        self._at.on_speaking(self.call)
        for number in range(self.behaviour.tokens):
            if number == at and kind in _BREAKS:
                yield from self._break(kind)
                return
            token = self._token(number)
            self.said.append(token)
            self.wire.say(_piece(_CHUNK % (self.model, token, "null")))
            if (gap := 3.0 if kind is Kind.CRAWLS else self.behaviour.gap) > 0:
                yield gap  # else they come all at once
        yield from self._finish(kind)

    def _break(self, kind: Kind) -> Iterator[float]:
        if kind is Kind.STALLS:
            yield STUCK
        if kind is Kind.RESETS:
            self.wire.reset()
        elif kind in (Kind.CUTS, Kind.STALLS):
            self.wire.end()
        elif kind is Kind.ENDS_SHORT:
            self.wire.say(b"0\r\n\r\n")
        elif kind is Kind.SAYS_ERROR:
            self.wire.say(_piece('data: {"error":{"message":"an error was encountered while running the model"}}\n\n'))
            self.wire.say(b"0\r\n\r\n")
        elif kind is Kind.NO_CHUNK:
            self.wire.say(_piece("data: <html>\n\n"))

    def _finish(self, kind: Kind) -> Iterator[float]:
        quietly = kind is Kind.DIES_QUIETLY
        end = "" if quietly else _CHUNK % (self.model, "", '"stop"')
        self.whole = not quietly
        surplus = _piece(_CHUNK % (self.model, "more ", "null")) if kind is Kind.SURPLUS else b""
        self.wire.say(_piece(f"{end}data: [DONE]\n\n") + surplus)
        if tail := LINGER if kind is Kind.LINGERS else self.behaviour.tail:
            yield tail
        self.over = True
        self.wire.say(b"0\r\n\r\n")
        if kind is Kind.CLOSES:
            self.wire.end()
        yield 0.0

    def _reply(self) -> Iterator[float]:
        kind, behaviour = self.behaviour.kind, self.behaviour
        yield self._at.loads(self.model)
        if kind in (Kind.HANGS, Kind.MUTE):
            yield STUCK
        yield behaviour.first + behaviour.gap * behaviour.tokens + (6.0 if kind is Kind.CRAWLS else 0.0)
        if not self.wanted:
            return
        self.answering = True
        self._at.on_speaking(self.call)
        said = [self._token(number) for number in range(behaviour.tokens)]
        body = (_WHOLE % (self.model, "".join(said), "null" if kind is Kind.DIES_QUIETLY else '"stop"')).encode()
        if kind in (Kind.SAYS_ERROR, Kind.NO_CHUNK):
            body = b'{"error":"it broke"}' if kind is Kind.SAYS_ERROR else b"<html>"
        if kind in (Kind.CUTS, Kind.STALLS, Kind.RESETS):
            self.wire.say(_answer(200, body[:40], len(body)))
            yield from self._break(kind)
            return
        self.whole = kind not in _UNSOUND
        self.said = said
        self.wire.say(_answer(200, body, close=kind is Kind.CLOSES) + (b"HTTP" if kind is Kind.SURPLUS else b""))
        if kind is Kind.CLOSES:
            self.wire.end()
        yield 0.0


_BREAKS = frozenset({Kind.STALLS, Kind.RESETS, Kind.CUTS, Kind.ENDS_SHORT, Kind.SAYS_ERROR, Kind.NO_CHUNK})
_UNSOUND = frozenset({Kind.SAYS_ERROR, Kind.NO_CHUNK, Kind.DIES_QUIETLY})


class Ollama:
    """One instance. `works` are the requests it is busy with, those that wait for a slot included.

    `count(call)` numbers the requests of a call, wherever they come; `on_request(work)` is told of each, and
    `on_speaking(call)` when it begins to answer one.
    """

    def __init__(
        self, host: str, machine: Machine, loop: SimulatedLoop, schedule: Schedule, count: Callable[[int], int]
    ) -> None:
        self.host = host
        self.loop = loop
        self.machine = machine
        self.mood = "well"
        self.death = ""  # how it is dead
        self.slow = 0.0  # seconds it takes to accept a connection
        self.seems: bool | None = None  # what its probes say, whatever is true
        self.works: list[Work] = []
        self.wires: dict[Wire, None] = {}
        self.on_request: Callable[[Work], None] = lambda _: None
        self.on_speaking: Callable[[int], None] = lambda _: None
        self._count = count
        self._schedule = schedule
        self._waiting: deque[Work] = deque()
        self._loaded = dict.fromkeys(machine.loaded[: machine.fit], 0.0)  # since when; the last used is the last

    # what befalls it

    def dies(self, how: str) -> None:
        self.death = how
        for wire in list(self.wires):
            wire.reset()
        for work in list(self.works):
            work.end()
        self._loaded.clear()

    def lives(self) -> None:
        self.death = ""

    def unload(self) -> None:
        self._loaded.clear()

    def drop_idle(self) -> None:
        """Close the connections that nothing is under way on."""
        busy = [work.wire for work in self.works]
        for wire in [wire for wire in self.wires if wire not in busy]:
            wire.end()

    # what probes and lists hear

    def probe(self) -> tuple[bool, str]:
        ok = not self.death if self.seems is None else self.seems
        return ok, "" if ok else "no answer"

    def listing(self) -> Listing:
        """Raises UpstreamError."""
        if self.death:
            raise ConnectFailed(self.host, "connection refused")
        installed = tuple(InstalledModel(name, digest=name, size=SIZE) for name in self.machine.models)
        there = (name for name, since in self._loaded.items() if since <= self.loop.time())
        loaded = tuple(LoadedModel(name, size_vram=SIZE) for name in there)
        return Listing(installed, loaded if self.machine.tells else None)

    # the wire

    def connecting(self) -> float:
        if self.death == "refuses":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return STUCK if self.death else self.slow

    def connected(self, wire: Wire) -> None:
        self.wires[wire] = None

    def gone(self, wire: Wire) -> None:
        self.wires.pop(wire, None)
        for work in [work for work in self.works if work.wire is wire]:
            if work in self._waiting:
                self._waiting.remove(work)
                work.end()
            else:
                work.leave()

    def received(self, wire: Wire, data: bytes) -> None:
        found = _ID.search(data)
        assert found is not None, "a request without its id"
        call = int(found[1])
        nth = self._count(call)
        work = Work(self, wire, call, data, self._schedule.behaviour(call, nth, self.mood), nth)
        self.on_request(work)
        kind = work.behaviour.kind
        if kind in _REFUSALS:
            status, words = _REFUSALS[kind]
            wire.say(_answer(status, b'{"error":{"message":"%b"}}' % words.encode() if words else b""))
        elif kind is Kind.DROPS:
            wire.reset()
        elif kind is Kind.GARBAGE:
            wire.say(b"SSH-2.0-OpenSSH_9.6\r\n")
        else:
            self._take(work)

    def _take(self, work: Work) -> None:
        self.works.append(work)
        if len(self.works) - len(self._waiting) > self.machine.parallel:
            self._waiting.append(work)
        else:
            work.begin()

    def ended(self, work: Work) -> None:
        if work in self.works:
            self.works.remove(work)
            if self._waiting and len(self.works) - len(self._waiting) < self.machine.parallel:
                self._waiting.popleft().begin()

    def loads(self, model: str) -> float:
        """Seconds until it is in memory. Loads are one after the other, and an idle model makes room."""
        now = self.loop.time()
        ready = self._loaded.pop(model, None)
        if ready is None:
            ready = max(now, *self._loaded.values(), now) + self.machine.load
            busy = {work.model for work in self.works}
            idle = [name for name in self._loaded if name not in busy]
            for name in idle[: max(0, len(self._loaded) + 1 - self.machine.fit)]:
                del self._loaded[name]
        self._loaded[model] = ready
        return max(0.0, ready - now)


class Tells:
    """What stands for the prober of one instance: its lists, as they are at the moment it is asked."""

    def __init__(self, ollama: Ollama) -> None:
        self._ollama = ollama

    async def listing(self, timeout: float, native: bool) -> Listing:
        """Raises UpstreamError."""
        found = self._ollama.listing()
        await asyncio.sleep(0.05)
        return found
