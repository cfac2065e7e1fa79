"""What the gateway learns by asking: who is up, what they have, and when that changes."""

from __future__ import annotations

from gateway.simulator import Behaviour, SimulatedModel
from tests.house import MODEL, House

QUICK = {"health": {"interval": 0.02, "catalog": 0.02, "timeout": 1.0, "fall": 2, "rise": 2}}


async def test_an_instance_that_goes_away_is_taken_out_and_comes_back_by_itself() -> None:
    async with House({"alpha": Behaviour(), "beta": Behaviour()}, QUICK) as house:
        alpha = house.engine.pool.instances["alpha"]
        house.simulator("alpha").faults.arm("refuse", times=None)
        await house.until(lambda: alpha.state(0) == "down")
        assert {(await house.chat()).instance for _ in range(6)} == {"beta"}
        assert (await house.get("/readyz")).status == 200
        house.simulator("alpha").faults.clear()
        await house.until(lambda: alpha.state(0) == "healthy")
        events = [line["event"] for line in house.lines if line.get("instance") == "alpha"]
        assert "instance.down" in events
        assert "instance.up" in events


async def test_with_nobody_up_it_is_not_ready_and_a_call_is_503_with_the_reason() -> None:
    async with House({"alpha": Behaviour()}, QUICK | {"line": {"hold": 0}}) as house:
        house.simulator("alpha").faults.arm("refuse", times=None)
        await house.until(lambda: house.engine.pool.instances["alpha"].state(0) == "down")
        assert (await house.get("/readyz")).status == 503
        assert (await house.get("/livez")).status == 200
        reply = await house.chat()
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_instance")
        assert "alpha is down" in reply.json["error"]["message"]
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        house.simulator("alpha").faults.clear()


async def test_a_model_that_is_pulled_is_found_without_a_restart() -> None:
    async with House({"alpha": Behaviour()}, QUICK) as house:
        assert (await house.chat(model="new:1b")).status == 404
        house.simulator("alpha").behaviour = Behaviour(models=(SimulatedModel(name="new:1b"),))
        await house.until(lambda: house.engine.catalog.has("alpha", "new:1b"))
        assert (await house.chat(model="new:1b")).status == 200
        assert (await house.chat(model=MODEL)).status == 404


async def test_the_model_that_answered_is_seen_as_loaded() -> None:
    async with House({"alpha": Behaviour()}, QUICK) as house:
        await house.chat()
        assert house.engine.catalog.is_loaded("alpha", MODEL)
        await house.until(lambda: house.engine.catalog.known("alpha").loaded != {})
        exposition = (await house.get("/metrics")).body.decode()
        assert f'gateway_upstream_model_loaded{{instance="alpha",model="{MODEL}"}} 1.0' in exposition


async def test_a_server_without_ollamas_own_api_is_served_as_openai_compatible() -> None:
    async with House({"alpha": Behaviour(native=False)}, QUICK) as house:
        assert (await house.chat("say: hello", stream=True)).text.strip() == "hello"
        ids = [model["id"] for model in (await house.get("/v1/models")).json["data"]]
        assert MODEL in ids
        native = await house.post("/api/generate", {"model": MODEL, "prompt": "x"})
        assert native.status == 404


async def test_an_instance_that_hangs_does_not_delay_start_lists_or_status() -> None:
    async with House({"alpha": Behaviour(), "beta": Behaviour()}, QUICK) as house:
        for path in ("/api/version", "/api/tags", "/api/ps"):
            house.simulator("beta").faults.arm("hang_before_headers", times=None, path=path)
        assert (await house.get("/v1/models")).status == 200
        assert (await house.get("/gateway/status")).json["instances"][0]["models"] == [MODEL]
        house.simulator("beta").faults.clear()


async def test_explain_says_where_a_call_would_go_and_why() -> None:
    async with House({"alpha": Behaviour()}, QUICK) as house:
        told = (await house.get("/gateway/explain?task=code_generation&model=auto")).json
        assert told["route"] == "by-task"
        assert told["candidates"][0]["instance"] == "alpha"
        assert "stands in" in told["candidates"][0]["substitution"]
        unknown = await house.get("/gateway/explain?model=nobody")
        assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
