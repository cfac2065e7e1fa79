"""Answers kept for calls that must give the same answer again, and one flight per key for those under way.

Storage is aiocache's backend interface, so another store can take its place; the bound in bytes, the expiry, the key
and the flights are ours, because aiocache's memory backend has none of them (faults.md §0.17). Values are immutable.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

import msgspec
from aiocache.base import BaseCache
from aiocache.serializers import NullSerializer

from gateway.call import Call, Reply, Usage
from gateway.config import CacheConfig
from gateway.wire import json

T = TypeVar("T")

_ENTRY_OVERHEAD = 512  # bytes a kept answer costs besides its body: key, tuple, dictionary slot
_NEUTRAL = frozenset({"stream", "stream_options", "user", "metadata", "store", "model", "task_type"})
_SCHEMA = b"1"


class BoundedMemory(BaseCache):  # type: ignore[misc]
    """aiocache's interface over a dictionary: least recently used goes first, expiry is looked at when read."""

    def __init__(self, max_bytes: int, now: Callable[[], float], evicted: Callable[[str], None]) -> None:
        super().__init__(serializer=NullSerializer(), timeout=None)
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._now = now
        self._evicted = evicted
        self.max_bytes = max_bytes
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def _get(self, key: str, encoding: str | None = None, _conn: object = None) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, value = entry
        if expires <= self._now():
            self._drop(key, "ttl")
            return None
        self._entries.move_to_end(key)
        return value

    async def _set(
        self, key: str, value: bytes, ttl: float | None = None, _cas_token: object = None, _conn: object = None
    ) -> bool:
        if key in self._entries:
            self._drop(key, "replaced")
        if len(value) + _ENTRY_OVERHEAD > self.max_bytes:
            return False  # it would push out everything else, and then itself
        self._entries[key] = (self._now() + ttl if ttl else float("inf"), value)
        self.size += len(value) + _ENTRY_OVERHEAD
        self.bound(self.max_bytes)
        return True

    def bound(self, max_bytes: int) -> None:
        """Keep to `max_bytes` from now on."""
        self.max_bytes = max_bytes
        while self.size > self.max_bytes:
            self._drop(next(iter(self._entries)), "size")

    async def _delete(self, key: str, _conn: object = None) -> int:
        if key not in self._entries:
            return 0
        self._drop(key, "deleted")
        return 1

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        self._entries.clear()
        self.size = 0
        return True

    def _drop(self, key: str, reason: str) -> None:
        _, value = self._entries.pop(key)
        self.size -= len(value) + _ENTRY_OVERHEAD
        self._evicted(reason)


class Flight(Generic[T]):
    """One piece of work that several callers wait for. The work owns it, not the first caller."""

    def __init__(self, work: Awaitable[T], name: str) -> None:
        self.task = asyncio.ensure_future(work)
        if isinstance(self.task, asyncio.Task):
            self.task.set_name(name)
        self.waiting = 0


class Flights(Generic[T]):
    """At most one flight per key. The last caller to leave ends it."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[T]] = {}
        self._ending: set[asyncio.Future[T]] = set()

    def __len__(self) -> int:
        return len(self._flights) + len(self._ending)

    async def join(self, key: str, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result, and whether it was another caller's flight. Raises what the work raises, to all of them."""
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._take_off(key, work)
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task])
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._end(key, flight)
        return flight.task.result(), joined

    def _take_off(self, key: str, work: Callable[[], Awaitable[T]]) -> Flight[T]:
        flight = self._flights[key] = Flight(work(), f"flight {key[:12]}")
        flight.task.add_done_callback(lambda _: self._landed(key, flight))
        return flight

    def _landed(self, key: str, flight: Flight[T]) -> None:
        if not flight.task.cancelled():
            flight.task.exception()  # looked at, also where nobody is left to raise it to: asyncio would complain
        self._forget(key, flight)

    def _forget(self, key: str, flight: Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _end(self, key: str, flight: Flight[T]) -> None:
        self._forget(key, flight)
        self._ending.add(flight.task)
        flight.task.add_done_callback(self._ending.discard)
        flight.task.cancel()


class Cache:
    """What dispatch asks: is there an answer, and whose flight is it?"""

    def __init__(self, config: CacheConfig, now: Callable[[], float], evicted: Callable[[str], None]) -> None:
        self._config = config
        self._store = BoundedMemory(config.max_bytes, now, evicted)
        self._flights: Flights[Reply] = Flights()

    @property
    def entries(self) -> int:
        return len(self._store)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._store.size

    @property
    def flights(self) -> int:
        return len(self._flights)

    @property
    def enabled(self) -> bool:
        return self._config.enabled

    def apply(self, config: CacheConfig) -> None:
        """New limits from now on; entries keep the expiry they were given."""
        self._config = config
        self._store.bound(config.max_bytes if config.enabled else 0)

    async def through(self, key: str, work: Callable[[], Awaitable[Reply]]) -> tuple[Reply, str]:
        """The answer for `key` and how it came about: hit, miss or collapsed. Only whole answers are kept."""
        kept: bytes | None = await self._store.get(key)
        if kept is not None:
            return _unpack(kept), "hit"
        reply, joined = await self._flights.join(key, lambda: self._fetch(key, work))
        return reply, "collapsed" if joined else "miss"

    async def alone(self, key: str, work: Callable[[], Awaitable[Reply]]) -> tuple[Reply, str]:
        """The same for one whose work nobody should share, as it has less time than others: hit or miss."""
        kept: bytes | None = await self._store.get(key)
        return (_unpack(kept), "hit") if kept is not None else (await self._fetch(key, work), "miss")

    async def _fetch(self, key: str, work: Callable[[], Awaitable[Reply]]) -> Reply:
        reply = await work()
        if self._config.ttl > 0 and len(reply.body) <= self._config.max_entry:
            await self._store.set(key, _pack(reply), ttl=self._config.ttl)
        return reply


def key_for(call: Call, route: str, models: Iterable[str]) -> str:
    """The key of a call: SHA-256 over all that may change its answer, each part with its length before it.

    `models` names the weights that could answer, by digest, so a model pulled anew is a miss. Every field of the body
    counts but those that cannot change the answer; numbers and key order are brought to one form.
    """
    parts = [_SCHEMA, call.operation.dialect.encode(), call.operation.name.encode(), route.encode()]
    parts += [call.task.encode(), call.model.encode(), *(model.encode() for model in models), _canonical(call.body)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _canonical(body: bytes) -> bytes:
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    wanted = {name: _value(raw) for name, raw in fields.items() if name not in _NEUTRAL}
    return msgspec.json.encode(wanted, order="deterministic")


def _value(raw: msgspec.Raw) -> object:
    """The value; where it cannot be held, as a whole number of thousands of digits, it stays as it was written."""
    try:
        return _VALUE.decode(raw)
    except json.UNREADABLE:
        return raw


def _number(text: str) -> float | msgspec.Raw:
    """1.0 and 1e0 are 1; a number that no float can hold stays as it was written."""
    value = float(text)
    if math.isinf(value):
        return msgspec.Raw(text.encode())
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


_VALUE = msgspec.json.Decoder(float_hook=_number)


def _pack(reply: Reply) -> bytes:
    return msgspec.msgpack.encode((reply.body, reply.usage))


def _unpack(kept: bytes) -> Reply:
    body, usage = msgspec.msgpack.decode(kept, type=tuple[bytes, Usage | None])
    return Reply(body=body, usage=usage)
