"""What is shown of a model: asked once, kept within bounds, and never waited for by more than two attempts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.catalog import Catalog
from gateway.config import Config
from gateway.errors import FirstTokenTimeout, Refused, UnknownModel
from gateway.lists import Shows, shows
from gateway.upstream import InstalledModel, Listing


def answer(**fields: Any) -> bytes:
    told = {"details": {}, "capabilities": ["completion"], "model_info": {}, "template": "t", "parameters": ""}
    return json.dumps({**told, **fields}).encode()


class Pool:
    """Instances that have the models they are given, and what each says when asked."""

    def __init__(self, **digests: dict[str, str]) -> None:
        entries = [{"name": name, "url": f"http://{name}:1"} for name in digests]
        self.catalog = Catalog(Config.model_validate({"instances": entries}))
        for name, models in digests.items():
            self.has(name, models)
        self.asked: list[tuple[str, str, bool]] = []
        self.said: dict[str, bytes | Exception] = {}
        self.down: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.shows = Shows(self.catalog, self.ask, lambda name: name not in self.down)

    def has(self, name: str, models: dict[str, str]) -> None:
        self.catalog.learned(name, Listing(tuple(InstalledModel(one, digest) for one, digest in models.items()), None))

    async def ask(self, instance: str, model: str, timeout: float, verbose: bool) -> bytes:
        assert timeout < 1
        self.asked.append((instance, model, verbose))
        if self.gate is not None:
            await self.gate.wait()
        said = self.said.get(instance, answer(license=instance))
        if isinstance(said, Exception):
            raise said
        return said


def who(shown: shows.Shown) -> str:
    found: str = json.loads(shown.body).get("license", "")
    return found


TIMEOUT = FirstTokenTimeout("a", "no answer")
GONE = Refused("a", 404, "no such model")


async def test_a_model_is_asked_about_once_however_it_is_spelt() -> None:
    pool = Pool(a={"x:latest": "1"})
    for name in ("x", "X:latest", "library/x"):
        assert who(await pool.shows.of(name)) == "a"
    assert pool.asked == [("a", "x:latest", False)]
    assert pool.shows.kept("X") is not None


async def test_all_who_ask_at_once_share_one_question() -> None:
    pool = Pool(a={"x": "1"})
    pool.gate = asyncio.Event()
    waiting = [asyncio.create_task(pool.shows.of("x"), name="show") for _ in range(20)]
    while not pool.asked:
        await asyncio.sleep(0)
    pool.gate.set()
    assert len(set(await asyncio.gather(*waiting))) == 1
    assert len(pool.asked) == 1


async def test_another_digest_is_another_model_and_until_it_is_shown_the_old_answer_serves() -> None:
    pool = Pool(a={"x": "1"})
    await pool.shows.of("x")
    pool.has("a", {"x": "2"})
    pool.said["a"] = TIMEOUT
    assert (await pool.shows.of("x")).digest == "1"
    pool.said["a"] = answer(license="new")
    assert who(await pool.shows.of("x")) == "new"
    assert len(pool.asked) == 3


@pytest.mark.parametrize("failure", [TIMEOUT, GONE, b"[]", b'{"capabilities":7}', b"\xff", b"[" * 100_000])
async def test_the_next_instance_is_asked_where_one_fails(failure: Any) -> None:
    pool = Pool(a={"x": "1"}, b={"x": "1"}, c={"x": "1"})
    pool.said["a"] = failure
    assert who(await pool.shows.of("x")) == "b"
    assert [name for name, _, _ in pool.asked] == ["a", "b"]


async def test_no_more_than_two_are_waited_for() -> None:
    pool = Pool(**{name: {"x": "1"} for name in "abcd"})
    pool.said = dict.fromkeys("abcd", TIMEOUT)
    assert json.loads((await pool.shows.of("x")).body)["template"] == ""
    assert len(pool.asked) == shows.ATTEMPTS
    assert shows.ATTEMPTS * shows.ATTEMPT < 2


async def test_an_instance_that_is_down_is_not_asked() -> None:
    pool = Pool(a={"x": "1"}, b={"x": "1"})
    pool.down = {"a"}
    assert who(await pool.shows.of("x")) == "b"
    pool.shows._kept.clear()
    pool.down = {"a", "b"}
    assert json.loads((await pool.shows.of("x")).body)["capabilities"] == ["completion"]
    assert [name for name, _, _ in pool.asked] == ["b"]


async def test_the_digest_that_is_listed_is_asked_for_first_and_another_is_not_kept_for_it() -> None:
    pool = Pool(a={"x": "1"}, b={"x": "2"}, c={"x": "1"})
    pool.down = {"a"}
    assert who(await pool.shows.of("x")) == "c"
    pool.shows._kept.clear()
    pool.down = {"a", "c"}
    assert who(await pool.shows.of("x")) == "b"
    assert pool.shows.kept("x") is None


async def test_a_model_that_all_deny_is_unknown() -> None:
    pool = Pool(a={"x": "1"})
    pool.said["a"] = GONE
    with pytest.raises(UnknownModel):
        await pool.shows.of("x")
    with pytest.raises(UnknownModel):
        await pool.shows.of("never:heard")
    assert len(pool.asked) == 1


async def test_the_long_answer_is_kept_apart() -> None:
    pool = Pool(a={"x": "1"})
    for verbose in (True, False, True, False):
        await pool.shows.of("x", verbose=verbose)
    assert [verbose for _, _, verbose in pool.asked] == [True, False]


def bound(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(shows, name, value)


@pytest.mark.parametrize(
    ("limits", "left"),
    [({"MAX_KEPT": 3}, 3), ({"MAX_BYTES": 3 * len(answer(license="a"))}, 3), ({"MAX_ENTRY": 10}, 0)],
)
async def test_what_is_kept_is_bounded_and_the_least_used_goes_first(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], left: int
) -> None:
    bound(monkeypatch, **limits)
    pool = Pool(a={f"m{n}": str(n) for n in range(6)})
    for n in (0, 1, 2, 0, 3, 4, 0, 5):
        await pool.shows.of(f"m{n}")
    assert len(pool.shows) == left
    assert pool.asked.count(("a", "m0", False)) == (1 if left else 3)
    assert pool.shows.size == left * len(answer(license="a"))
    assert [name for name in ("m0", "m4", "m5") if pool.shows.kept(name)] == ["m0", "m4", "m5"][: 3 if left else 0]


@pytest.mark.parametrize(
    ("info", "length"),
    [
        ({"general.architecture": "f", "f.context_length": 7}, 7),
        ({"general.architecture": "f"}, None),
        ({"f.context_length": 7}, None),
        ({"general.architecture": 9, "9.context_length": 7}, None),
        ({"general.architecture": "f", "f.context_length": "7"}, None),
        (None, None),
    ],
)
async def test_the_context_is_the_one_of_the_models_own_architecture(info: Any, length: int | None) -> None:
    pool = Pool(a={"x": "1"})
    pool.said["a"] = answer(model_info=info, capabilities=["tools"])
    shown = await pool.shows.of("x")
    assert (shown.capabilities, shown.context_length) == (frozenset({"tools"}), length)


async def test_a_caller_that_leaves_does_not_end_the_question_of_another() -> None:
    pool = Pool(a={"x": "1"})
    pool.gate = asyncio.Event()
    first, second = (asyncio.create_task(pool.shows.of("x"), name="show") for _ in range(2))
    while not pool.asked:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    pool.gate.set()
    assert who(await second) == "a"
