"""Answers kept: the bound in bytes, the expiry, one flight for many, and what makes two calls the same call."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import _ENTRY_OVERHEAD, BoundedMemory, Cache, Flights, key_for
from gateway.call import Call, Operation, Reply, Usage, Wish
from gateway.config import CacheConfig
from gateway.dialects import facade, openai

LIMIT = 10.0  # seconds; guards against a hang


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


# Flights


class Work:
    """Work that goes on until it is told how to end."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.hold = asyncio.Event()  # while clear, a cancelled run is slow to end
        self.hold.set()

    async def __call__(self) -> str:
        self.runs += 1
        end = self.end
        try:
            return await end
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.hold.wait()
            raise


async def turns(count: int = 5) -> None:
    """Let everything that can go on go on."""
    for _ in range(count):
        await asyncio.sleep(0)


def joining(flights: Flights[str], work: Work, count: int = 1) -> list[asyncio.Task[tuple[str, bool]]]:
    return [asyncio.create_task(flights.join("key", work), name=f"caller {number}") for number in range(count)]


async def left(*callers: asyncio.Task[tuple[str, bool]]) -> None:
    for caller in callers:
        caller.cancel()
    for caller in callers:
        with pytest.raises(asyncio.CancelledError):
            await caller


@pytest.fixture
async def complaints() -> list[dict[str, Any]]:
    """What asyncio would log: exceptions that nobody looked at."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def test_many_callers_share_one_flight() -> None:
    flights, work = Flights[str](), Work()
    callers = joining(flights, work, 100)
    await turns()
    assert len(flights) == 1
    work.end.set_result("answer")
    assert await asyncio.gather(*callers) == [("answer", False), *[("answer", True)] * 99]
    assert (work.runs, len(flights)) == (1, 0)


async def test_different_keys_are_different_flights() -> None:
    flights, work = Flights[str](), Work()
    work.end.set_result("answer")
    await asyncio.gather(flights.join("a", work), flights.join("b", work))
    assert work.runs == 2


async def test_a_failure_is_told_to_all_who_wait_and_to_nobody_after_them() -> None:
    flights, work = Flights[str](), Work()
    callers = joining(flights, work, 5)
    await turns()
    work.end.set_exception(LookupError("no"))
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(result, LookupError) for result in results)
    work.end = asyncio.get_running_loop().create_future()
    work.end.set_result("answer")
    assert await flights.join("key", work) == ("answer", False)
    assert work.runs == 2


async def test_the_flight_goes_on_when_the_caller_that_began_it_leaves() -> None:
    flights, work = Flights[str](), Work()
    leader, follower = joining(flights, work, 2)
    await turns()
    await left(leader)
    assert work.cancelled == 0
    work.end.set_result("answer")
    assert await follower == ("answer", True)
    assert work.runs == 1


async def test_a_follower_that_leaves_is_missed_by_nobody() -> None:
    flights, work = Flights[str](), Work()
    leader, follower = joining(flights, work, 2)
    await turns()
    await left(follower)
    work.end.set_result("answer")
    assert await leader == ("answer", False)


async def test_the_last_to_leave_ends_the_flight_and_nothing_is_left_over() -> None:
    before = asyncio.all_tasks()
    flights, work = Flights[str](), Work()
    callers = joining(flights, work, 3)
    await turns()
    await left(*callers)
    await turns()
    assert (work.runs, work.cancelled, len(flights)) == (1, 1, 0)
    assert asyncio.all_tasks() == before


async def test_a_caller_that_leaves_at_once_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    flights, work = Flights[str](), Work()
    (caller,) = joining(flights, work)
    await asyncio.sleep(0)  # it has joined; the work has hardly begun
    await left(caller)
    await turns()
    assert (work.cancelled, len(flights)) == (work.runs, 0)
    assert asyncio.all_tasks() == before


async def test_a_new_flight_may_begin_while_the_old_one_is_still_ending() -> None:
    flights, work = Flights[str](), Work()
    work.hold.clear()
    (first,) = joining(flights, work)
    await turns()
    await left(first)
    await turns()
    assert len(flights) == 1  # it is counted until it has ended

    work.end = asyncio.get_running_loop().create_future()
    (second,) = joining(flights, work)
    await turns()
    assert (work.runs, len(flights)) == (2, 2)
    work.hold.set()
    await turns()
    assert len(flights) == 1  # the end of the old one has not taken the new one's place
    third = joining(flights, work)[0]
    await turns()
    work.end.set_result("answer")
    assert [await second, await third] == [("answer", False), ("answer", True)]
    assert (work.runs, len(flights)) == (2, 0)


async def test_a_failure_that_nobody_waits_for_any_more_is_no_complaint(complaints: list[dict[str, Any]]) -> None:
    flights, work = Flights[str](), Work()
    (caller,) = joining(flights, work)
    await turns()
    work.end.set_exception(LookupError("no"))
    await asyncio.sleep(0)  # the flight has failed, its caller has not been told
    await left(caller)
    await turns()
    gc.collect()
    assert complaints == []
    assert len(flights) == 0


async def test_a_flight_that_fails_while_it_is_ended_is_no_complaint(complaints: list[dict[str, Any]]) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise LookupError("no") from None
        raise AssertionError

    flights = Flights[str]()
    caller = asyncio.create_task(flights.join("key", stubborn), name="caller")
    await turns()
    await left(caller)
    await turns()
    gc.collect()
    assert (complaints, len(flights)) == ([], 0)


# Keys


def call(body: Any, operation: Operation = openai.CHAT, **facts: Any) -> Call:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    facts = {"request_id": "r", "operation": operation, "wish": Wish(), "body": content} | facts
    return Call(**facts)


BODY: dict[str, Any] = {
    "model": "llama3.1:8b",
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "seed": 1,
    "options": {"num_ctx": 4096, "top_k": 5},
    "tools": [{"name": "a"}, {"name": "b"}],
}


def key(body: Any = BODY, route: str = "r", models: tuple[str, ...] = ("digest",), **facts: Any) -> str:
    return key_for(call(body, **facts), route, models)


def without(name: str) -> dict[str, Any]:
    return {field: value for field, value in BODY.items() if field != name}


def shuffled(value: Any) -> Any:
    """The same with the fields of every object the other way round."""
    if isinstance(value, dict):
        return {name: shuffled(value[name]) for name in reversed(value)}
    return [shuffled(one) for one in value] if isinstance(value, list) else value


def test_a_key_is_short_and_says_nothing_of_the_body() -> None:
    assert len(key()) == 64
    assert int(key(), 16)


def test_the_order_of_fields_and_the_white_space_do_not_matter() -> None:
    spaced = json.dumps(shuffled(BODY), indent=3).encode()
    assert key(spaced) == key()


def test_an_escaped_character_is_the_character() -> None:
    assert key(b'{"message":"\\u00e9"}') == key('{"message":"é"}'.encode())


@pytest.mark.parametrize(
    ("one", "other"), [("1", "1.0"), ("1", "1e0"), ("0.5", "5E-1"), ("0", "-0.0"), ("0.1", "0.10")]
)
def test_a_number_is_the_same_however_it_is_written(one: str, other: str) -> None:
    for form in ('{"seed":%s}', '{"options":{"x":[%s]}}'):
        assert key((form % one).encode()) == key((form % other).encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", '"1"'),
        ("1", "true"),
        ("0", "null"),
        ("1", "1.5"),
        ("9007199254740992", "9007199254740993"),
        ("18446744073709551616", "18446744073709551617"),
        ("1e400", "null"),
        ("1e400", '"1e400"'),
        ("1e400", "1e401"),
    ],
)
def test_different_values_are_different_however_large(one: str, other: str) -> None:
    for form in ('{"seed":%s}', '{"options":{"x":[%s]}}'):
        assert key((form % one).encode()) != key((form % other).encode())


@pytest.mark.parametrize(
    "changed",
    [
        BODY | {"seed": 2},
        BODY | {"temperature": 0.5},
        BODY | {"messages": [{"role": "user", "content": "hello "}]},
        BODY | {"messages": [{"role": "user", "content": "hello", "images": ["AAAA"]}]},
        BODY | {"tools": [{"name": "b"}, {"name": "a"}]},
        BODY | {"options": {"num_ctx": 4096, "top_k": 6}},
        BODY | {"a_field_we_do_not_know": 1},
        BODY | {"seed": None},
        without("seed"),
        without("tools"),
    ],
)
def test_whatever_may_change_the_answer_changes_the_key(changed: dict[str, Any]) -> None:
    assert key(changed) != key()


@pytest.mark.parametrize("name", ["stream", "stream_options", "user", "metadata", "store"])
def test_what_cannot_change_the_answer_does_not_change_the_key(name: str) -> None:
    assert key(BODY | {name: {"any": "thing"}}) == key()


def test_the_model_counts_as_it_was_understood_and_not_as_it_was_written() -> None:
    assert key(BODY | {"model": "auto:reasoning"}, model="x") == key(BODY | {"model": "x"}, model="x")
    assert key(model="x") != key(model="y")


@pytest.mark.parametrize(
    "facts",
    [
        {"operation": facade.CHAT},
        {"operation": openai.COMPLETIONS},
        {"task": "reasoning"},
        {"model": "x"},
        {"route": "other"},
        {"models": ("another digest",)},
        {"models": ("digest", "another")},
        {"models": ()},
    ],
)
def test_dialect_operation_task_model_route_and_weights_change_the_key(facts: dict[str, Any]) -> None:
    assert key(**facts) != key()


def test_who_asks_and_when_does_not_change_the_key() -> None:
    assert key(request_id="other", arrived=5.0, agent="curl", headers={"x": "y"}) == key()


WORDS = st.text(alphabet="ab", max_size=3)
PARTS = st.tuples(WORDS, WORDS, WORDS, st.lists(WORDS, max_size=3).map(tuple), st.sampled_from([b"{}", b'{"a":1}']))


def keyed(parts: tuple[str, str, str, tuple[str, ...], bytes]) -> str:
    route, task, model, models, body = parts
    return key_for(call(body, task=task, model=model), route, models)


def splits(text: str, count: int) -> Iterator[tuple[str, ...]]:
    if count == 1:
        yield (text,)
        return
    for at in range(len(text) + 1):
        yield from ((text[:at], *rest) for rest in splits(text[at:], count - 1))


@given(one=PARTS, other=PARTS)
def test_keys_are_equal_only_where_all_parts_are(one: Any, other: Any) -> None:
    assert (keyed(one) == keyed(other)) == (one == other)


def test_parts_that_read_the_same_one_after_the_other_have_different_keys() -> None:
    ways = [way for count in (3, 4, 5) for way in splits("abc", count)]
    keys = {keyed((route, task, model, tuple(digests), b"{}")) for route, task, model, *digests in ways}
    assert len(keys) == len(ways)
