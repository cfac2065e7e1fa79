"""Nothing a client can name grows our memory or our metrics."""

from __future__ import annotations

import random

import pytest

from gateway.call import model_key
from gateway.simulator import Behaviour
from tests.house import MODEL, House, ask


def series(house: House) -> int:
    return sum(len(family.samples) for family in house.engine.metrics.registry.collect())


def scrambled(text: str, chance: random.Random) -> str:
    return "".join(chance.choice((letter.upper(), letter.lower())) for letter in text)


async def test_names_paths_tasks_ids_and_spellings_leave_the_series_as_they_are() -> None:
    chance = random.Random(7)  # noqa: S311 - not for secrets
    async with House({"alpha": Behaviour()}) as house:

        async def one_of_each(word: str) -> None:
            await house.chat(model=word)
            await house.chat(model=scrambled(MODEL, chance), X_Request_Id=word)
            await house.chat(model="auto", X_Task_Type=word)
            await house.chat(model=word, X_Task_Type="code_generation")
            await house.get(f"/v1/{word}")
            await house.get(f"/v1/models/{word}")
            await house.post(f"/t/{word}/v1/chat/completions", ask("x", model="auto"))
            await house.post("/v1/chat/completions", word.encode())

        await one_of_each("first")
        before = series(house)
        for _ in range(25):
            await one_of_each(f"w{chance.getrandbits(64):x}")
        assert series(house) == before


@pytest.mark.parametrize("path", ["/v1/models/", "/gateway/explain?model="])
async def test_a_name_too_long_for_a_model_is_refused_before_anything_keeps_it(path: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        kept = model_key.cache_info().currsize
        reply = await house.get(path + "x" * 257)
        assert reply.status == (404 if path == "/v1/models/" else 400)
        assert model_key.cache_info().currsize == kept


async def test_what_is_open_is_told_at_the_scrape_and_is_gone_with_its_client() -> None:
    async with House({"alpha": Behaviour(per_second=50)}) as house:

        async def told(at: float) -> tuple[float, float]:
            await house.engine.metrics.exposition(1e9 + at)
            return await house.metric("gateway_client_connections"), await house.metric("gateway_asyncio_tasks")

        connections, tasks = await told(0.0)
        async with house.asking(ask("x", stream=True, max_tokens=10_000)) as wire:
            await wire.until(b"data: ")
            assert await told(10.0) == (connections + 1, tasks + 1)
            wire.leave()
            await house.quiet()
        await house.until(lambda: not house.server.server_state.connections)
        assert await told(20.0) == (0, tasks)
