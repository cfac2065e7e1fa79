"""Answers kept: the bound in bytes, the expiry, and what is never kept. Flights and keys have files of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import _ENTRY_OVERHEAD, BoundedMemory, Cache
from gateway.call import Reply, Usage
from gateway.config import CacheConfig


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A BoundedMemory that holds `room` answers of `size` bytes, with its clock and what it dropped."""

    def __init__(self, room: int = 3, size: int = 100) -> None:
        self.entry = size + _ENTRY_OVERHEAD
        self.value = b"x" * size
        self.clock = Clock()
        self.dropped: Counter[str] = Counter()
        self.memory = BoundedMemory(room * self.entry, self.clock, self._note)

    def _note(self, reason: str) -> None:
        self.dropped[reason] += 1

    async def keep(self, *keys: str, ttl: float = 60.0) -> None:
        for key in keys:
            await self.memory.set(key, self.value, ttl=ttl)

    async def kept(self, *keys: str) -> list[str]:
        return [key for key in keys if await self.memory.get(key) is not None]


# What is kept


async def test_what_was_kept_is_given_back() -> None:
    store = Store()
    await store.keep("a")
    assert await store.memory.get("a") == store.value
    assert await store.memory.get("b") is None


async def test_beyond_the_bound_the_oldest_goes_first() -> None:
    store = Store(room=3)
    await store.keep("a", "b", "c", "d")
    assert await store.kept("a", "b", "c", "d") == ["b", "c", "d"]
    assert store.dropped == {"size": 1}


async def test_what_was_read_lately_stays_longer() -> None:
    store = Store(room=3)
    await store.keep("a", "b", "c")
    await store.kept("a")
    await store.keep("d")
    assert await store.kept("a", "b", "c", "d") == ["a", "c", "d"]


async def test_one_large_answer_takes_the_room_of_many() -> None:
    store = Store(room=3)
    await store.keep("a", "b", "c")
    await store.memory.set("large", b"x" * (2 * store.entry - _ENTRY_OVERHEAD))
    assert await store.kept("a", "b", "c", "large") == ["c", "large"]


async def test_an_answer_larger_than_the_whole_cache_drives_nothing_out() -> None:
    store = Store(room=3)
    await store.keep("a", "b", "c")
    await store.memory.set("huge", b"x" * (4 * store.entry))
    assert await store.kept("a", "b", "c", "huge") == ["a", "b", "c"]


async def test_an_answer_expires_at_its_time_and_not_before() -> None:
    store = Store()
    await store.keep("a", ttl=60)
    store.clock.now += 59.999
    assert await store.kept("a") == ["a"]
    store.clock.now += 0.001
    assert await store.kept("a") == []
    assert (len(store.memory), store.memory.size) == (0, 0)
    assert store.dropped == {"ttl": 1}


async def test_reading_an_answer_does_not_make_it_live_longer() -> None:
    store = Store()
    await store.keep("a", ttl=60)
    store.clock.now += 30
    await store.kept("a")
    store.clock.now += 30
    assert await store.kept("a") == []


async def test_an_answer_in_place_of_another_takes_its_room() -> None:
    store = Store(room=1)
    for _ in range(5):
        await store.keep("a")
    assert (len(store.memory), store.memory.size) == (1, store.entry)
    assert store.dropped == {"replaced": 4}


async def test_an_answer_too_large_for_the_cache_still_takes_the_old_one_away() -> None:
    store = Store(room=1)
    await store.keep("a")
    await store.memory.set("a", b"x" * (2 * store.entry))
    assert (await store.kept("a"), store.memory.size) == ([], 0)


KEYS = st.sampled_from("abcde")
OPERATIONS = st.one_of(
    st.tuples(st.just("set"), KEYS, st.integers(0, 3000), st.sampled_from([None, 1, 10])),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("clear")),
    st.tuples(st.just("later"), st.integers(1, 20)),
    st.tuples(st.just("bound"), st.integers(0, 8000)),
)


@given(operations=st.lists(OPERATIONS, max_size=40))
def test_the_size_is_that_of_the_answers_held_and_within_the_bound(operations: list[tuple[Any, ...]]) -> None:
    async def run() -> None:
        store = Store(room=5, size=500)
        memory = store.memory
        for name, *arguments in operations:
            match name:
                case "set":
                    key, size, ttl = arguments
                    await memory.set(key, b"x" * size, ttl=ttl)
                case "get":
                    await memory.get(*arguments)
                case "delete":
                    await memory.delete(*arguments)
                case "clear":
                    await memory.clear()
                case "later":
                    store.clock.now += arguments[0]
                case "bound":
                    memory.bound(*arguments)
            assert memory.size == sum(len(value) + _ENTRY_OVERHEAD for _, value in memory._entries.values())
            assert memory.size <= memory.max_bytes
            assert len(memory) == len(memory._entries)

    asyncio.run(run())


# The cache as dispatch asks it


class Asked:
    """A cache and work that counts how often it was done."""

    def __init__(self, **config: Any) -> None:
        self.clock = Clock()
        self.dropped: Counter[str] = Counter()
        self.cache = Cache(CacheConfig(**config), self.clock, self._note)
        self.runs = 0
        self.body = b'{"answer":42}'
        self.usage: Usage | None = Usage(3, 4)

    def _note(self, reason: str) -> None:
        self.dropped[reason] += 1

    async def work(self) -> Reply:
        self.runs += 1
        return Reply(body=self.body, usage=self.usage)

    async def ask(self, key: str = "key") -> str:
        reply, how = await self.cache.through(key, self.work)
        assert reply == Reply(body=self.body, usage=self.usage)
        return how


@pytest.mark.parametrize("usage", [Usage(3, 4), None])
async def test_a_kept_answer_is_the_same_to_the_byte(usage: Usage | None) -> None:
    asked = Asked()
    asked.usage, asked.body = usage, bytes(range(256))
    assert [await asked.ask(), await asked.ask()] == ["miss", "hit"]
    assert asked.runs == 1


async def test_a_time_to_live_of_0_keeps_nothing() -> None:
    asked = Asked(ttl=0)
    assert [await asked.ask(), await asked.ask()] == ["miss", "miss"]
    assert (asked.cache.entries, asked.cache.size) == (0, 0)


async def test_an_answer_is_asked_for_again_after_its_time() -> None:
    asked = Asked(ttl=60)
    await asked.ask()
    asked.clock.now += 60
    assert await asked.ask() == "miss"


async def test_an_answer_larger_than_max_entry_is_given_and_not_kept() -> None:
    asked = Asked(max_entry=10)
    asked.body = b"x" * 11
    assert [await asked.ask(), await asked.ask()] == ["miss", "miss"]
    asked.body = b"x" * 10
    assert [await asked.ask(), await asked.ask()] == ["miss", "hit"]


async def test_a_smaller_cache_gives_up_at_once_what_no_longer_fits() -> None:
    asked = Asked()
    for number in range(10):
        await asked.ask(f"key {number}")
    asked.cache.apply(CacheConfig(max_bytes=asked.cache.size // 2))
    assert asked.cache.entries == 5
    assert [await asked.ask("key 9"), await asked.ask("key 0")] == ["hit", "miss"]


async def test_a_new_time_to_live_holds_for_new_answers_only() -> None:
    asked = Asked(ttl=60)
    await asked.ask("old")
    asked.cache.apply(CacheConfig(ttl=10))
    await asked.ask("new")
    asked.clock.now += 30
    assert [await asked.ask("old"), await asked.ask("new")] == ["hit", "miss"]


async def test_a_failure_is_not_kept() -> None:
    asked = Asked()

    async def fail() -> Reply:
        raise LookupError("no")

    with pytest.raises(LookupError):
        await asked.cache.through("key", fail)
    assert (asked.cache.entries, asked.cache.flights) == (0, 0)
    assert await asked.ask() == "miss"


async def test_a_million_different_calls_take_no_more_than_the_bound() -> None:
    asked = Asked(max_bytes=100_000)
    for number in range(2000):  # a million would prove no more
        await asked.ask(f"{number}")
    assert asked.cache.size <= 100_000
    assert asked.cache.entries + asked.dropped["size"] == 2000
