"""Loading and unloading: told to the instances that have the model; 100 is the statement of clients.md §9."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from tests.house import House

EMPTY: dict[str, dict[str, Any]] = {"/api/generate": {"prompt": ""}, "/api/chat": {"messages": []}}
each_path = pytest.mark.parametrize("path", EMPTY)


def three() -> House:
    """Three instances that all have the model."""
    return House({name: Behaviour(models=(SimulatedModel(name="talker:8b"),)) for name in ("alpha", "beta", "gamma")})


async def load(house: House, *names: str) -> None:
    """Have the model in memory on these instances, and known to be there."""
    for name in names:
        await house.client.post(f"{house.simulator(name).url}/api/generate", json={"model": "talker:8b"})
        house.engine.catalog.answered(name, "talker:8b")
    assert [name for name, one in house.simulators.items() if one.loaded] == list(names)


@each_path
@pytest.mark.parametrize("keep_alive", [0, 0.0, "0", "0s", "0m0s"])
@pytest.mark.parametrize("question", [True, False])
async def test_100_an_unload_reaches_every_copy_and_nobody_else(path: str, keep_alive: Any, question: bool) -> None:
    async with three() as house:
        await load(house, "alpha", "gamma")
        empty = EMPTY[path] if question else {}
        reply = await house.post(path, {"model": "TALKER:8b", "keep_alive": keep_alive, **empty})
        assert (reply.json["done_reason"], reply.instance) == ("unload", "alpha")
        assert not any(one.loaded for one in house.simulators.values())
        assert not [seen for seen in house.simulator("beta").requests if seen.method == "POST"]
        assert (await house.get("/api/ps")).json == {"models": []}


@each_path
async def test_100_an_unload_of_what_nobody_is_known_to_have_loaded_goes_to_all_that_might(path: str) -> None:
    async with three() as house:
        await load(house, "beta")
        house.engine.catalog.known("beta").loaded.clear()  # another client loaded it since the last look
        assert (await house.post(path, {"model": "talker:8b", "keep_alive": 0})).json["done_reason"] == "unload"
        assert house.simulator("beta").loaded == []


@each_path
@pytest.mark.parametrize("keep_alive", [-1, "1h", None])
async def test_100_a_load_goes_where_the_model_is_loaded_and_makes_no_second_copy(path: str, keep_alive: Any) -> None:
    async with three() as house:
        await load(house, "gamma")
        for _ in range(6):
            reply = await house.post(path, {"model": "talker:8b", "keep_alive": keep_alive})
            assert (reply.json["done_reason"], reply.instance) == ("load", "gamma")
        assert [name for name, one in house.simulators.items() if one.loaded] == ["gamma"]


@each_path
async def test_100_a_load_of_what_nobody_has_loaded_goes_through_the_line_like_any_call(path: str) -> None:
    async with three() as house:
        reply = await house.post(path, {"model": "talker:8b"})
        assert (reply.json["done_reason"], reply.headers["x-gateway-attempts"]) == ("load", "1")
        assert sum(bool(one.loaded) for one in house.simulators.values()) == 1


@each_path
async def test_100_an_unload_nobody_takes_is_an_error_and_an_unknown_model_404(path: str) -> None:
    async with three() as house:
        await load(house, "alpha")
        house.simulator("alpha").faults.arm("status", path="/api")
        assert (await house.post(path, {"model": "talker:8b", "keep_alive": 0})).status == 500
        unknown = await house.post(path, {"model": "nobody", "keep_alive": 0})
        assert unknown.status == 404
        assert "nobody" in unknown.json["error"]


@each_path
async def test_100_a_load_that_its_instance_does_not_take_goes_to_another(path: str) -> None:
    async with three() as house:
        await load(house, "alpha")
        house.simulator("alpha").faults.arm("status", path="/api", times=None)
        reply = await house.post(path, {"model": "talker:8b"})
        assert (reply.status, reply.json["done_reason"]) == (200, "load")
        assert reply.instance != "alpha"
        house.simulator("alpha").faults.clear()
