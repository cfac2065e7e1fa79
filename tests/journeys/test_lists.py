"""Ollama's own lists over the whole pool, as its clients read them; numbers are statements of clients.md §9."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from tests.house import LIMIT, MODEL, House, ask

QUICK = {"health": {"interval": 0.02, "catalog": 0.02, "timeout": 1.0, "fall": 2, "rise": 1}}
TALKER = SimulatedModel(name="talker:8b", capabilities=("completion", "tools", "thinking"), context_length=131_072)
CODER = SimulatedModel(name="coder:30b", capabilities=("completion", "tools"), context_length=8192, family="qwen3moe")
TASKS = ("code_analysis", "code_generation", "general_chat", "planning", "reasoning", "text_generation")
NAMES = ["auto", *(f"auto:{task}" for task in TASKS)]
VIRTUAL = ["auto:latest", *NAMES[1:]]  # as Ollama lists every model, with its tag


def having(*models: SimulatedModel, **more: Any) -> Behaviour:
    return Behaviour(models=models, **more)


def pair(**more: Any) -> House:
    """A general instance and one for code."""
    return House(
        {"general": having(TALKER, **more), "coding": having(CODER, **more)},
        instances={"coding": {"capabilities": ["coding"]}},
    )


async def entries(house: House, path: str = "/api/tags") -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in (await house.get(path)).json["models"]}


async def shown(house: House, model: str, **headers: str) -> dict[str, Any]:
    reply = await house.post("/api/show", {"model": model}, **headers)
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json
    return found


def context(show: dict[str, Any]) -> int:
    info = show["model_info"]
    found: int = info[f"{info['general.architecture']}.context_length"]
    return found


def shows(house: House, name: str) -> list[str]:
    """The models an instance was asked to show."""
    return [json.loads(seen.body)["model"] for seen in house.simulator(name).requests if seen.path == "/api/show"]


async def holds(found: Any) -> None:
    """Wait until an asynchronous question is answered with yes."""
    async with asyncio.timeout(LIMIT):
        while not await found():
            await asyncio.sleep(0)


# Version


async def test_05_the_version_is_the_lowest_of_the_healthy_instances() -> None:
    async with House({"alpha": Behaviour(version="0.32.15"), "beta": Behaviour(version="0.9.6")}, QUICK) as house:
        assert (await house.get("/api/version")).json == {"version": "0.9.6"}
        house.simulator("beta").faults.arm("refuse", times=None)
        await house.until(lambda: house.engine.pool.instances["beta"].state(0) == "down")
        assert (await house.get("/api/version")).json == {"version": "0.32.15"}
        house.simulator("beta").faults.clear()


@pytest.mark.parametrize("version", ["0.32.15-rc2", "0.32.15+build.7"])
async def test_05_the_version_is_numbers_alone(version: str) -> None:
    async with House({"alpha": Behaviour(version=version)}) as house:
        assert (await house.get("/api/version")).json == {"version": "0.32.15"}


@pytest.mark.parametrize("version", ["0.0.0", "dev", "1.2", "1.2.3.4"])
async def test_05_an_instance_whose_version_means_nothing_does_not_set_it(version: str) -> None:
    async with House({"alpha": Behaviour(version=version), "beta": Behaviour(version="0.31.1")}) as house:
        assert (await house.get("/api/version")).json == {"version": "0.31.1"}


async def test_04_the_version_answers_while_every_instance_is_down_and_before_any_was_up() -> None:
    async with House({"alpha": Behaviour(version="0.30.1")}, QUICK) as house:
        house.simulator("alpha").faults.arm("refuse", times=None)
        await house.until(lambda: house.engine.pool.instances["alpha"].state(0) == "down")
        assert (await house.get("/api/version")).json == {"version": "0.30.1"}
        house.engine.catalog.known("alpha").version = ""
        told = (await house.get("/api/version")).json["version"]
        assert tuple(map(int, told.split("."))) >= (0, 13, 4)
        house.simulator("alpha").faults.clear()


@pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/ps", "/v1/models"])
async def test_06_head_is_answered_like_get_without_a_body(path: str) -> None:
    async with pair() as house:
        reply = await house.get(path, "HEAD")
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["content-type"] == "application/json"


# Tags


async def test_27_tags_are_the_union_of_the_pool_without_doubles_in_a_stable_order() -> None:
    shared = SimulatedModel(name=MODEL)
    async with House({"b": having(shared, TALKER), "a": having(CODER, shared)}, QUICK) as house:
        names = list(await entries(house))
        assert names == [*VIRTUAL, "coder:30b", MODEL, "talker:8b"]
        assert [entry["id"] for entry in (await house.get("/v1/models")).json["data"]] == ["auto", *names[1:]]
        house.simulator("b").faults.arm("refuse", times=None)
        await house.until(lambda: house.engine.pool.instances["b"].state(0) == "down")
        assert list(await entries(house)) == names
        house.simulator("b").faults.clear()


@pytest.mark.parametrize("models", [(), (TALKER,)])
async def test_29_the_openai_list_has_the_fields_the_anthropic_sdk_reads(models: Sequence[SimulatedModel]) -> None:
    async with House({"alpha": having(*models)}) as house:
        told = (await house.get("/v1/models")).json
        assert told["has_more"] is False
        assert (told["first_id"], told["last_id"]) == ("auto", models[0].name if models else VIRTUAL[-1])


async def test_30_an_entry_is_what_its_instance_says_of_it_and_nothing_less() -> None:
    async with House({"alpha": having(TALKER)}) as house:
        own = (await house.client.get(f"{house.simulator('alpha').url}/api/tags")).json()["models"][0]
        assert (await entries(house))["talker:8b"] == own


@pytest.mark.parametrize("behaviour", [{"version": "0.9.0"}, {"native": False}])
async def test_30_entries_of_instances_that_tell_less_are_completed(behaviour: dict[str, Any]) -> None:
    async with House({"alpha": having(TALKER, **behaviour)}) as house:
        entry = (await entries(house))["talker:8b"]
        assert (entry["model"], type(entry["size"])) == ("talker:8b", int)
        assert re.fullmatch("[0-9a-f]{64}", entry["digest"])
        assert datetime.fromisoformat(entry["modified_at"]).year == 2026
        assert {type(entry["details"][name]) for name in ("parent_model", "format", "family", "parameter_size")} == {
            str
        }
        assert isinstance(entry["details"]["families"], list)


async def test_31_virtual_entries_are_complete_and_no_two_are_one() -> None:
    async with pair() as house:
        found = await entries(house)
        assert all(set(found["talker:8b"]) <= set(found[name]) for name in VIRTUAL)
        assert len({entry["digest"] for entry in found.values()}) == len(found)
        names = {(await shown(house, name))["model_info"]["general.basename"] for name in VIRTUAL}
        assert names == set(NAMES)


async def test_32_lists_answer_from_what_was_known_while_an_instance_hangs() -> None:
    async with House({"alpha": having(TALKER), "beta": having(CODER)}, QUICK) as house:
        await shown(house, "coder:30b")
        before = {path: (await house.get(path)).body for path in ("/api/tags", "/api/ps", "/v1/models", "/api/version")}
        beta = house.simulator("beta")
        beta.faults.arm("hang_before_headers", times=None)
        seen = len(beta.requests)
        await beta.until(lambda: len(beta.requests) > seen)
        async with asyncio.timeout(2):
            for path, body in before.items():
                assert (await house.get(path)).body == body
            assert "tools" in (await shown(house, "coder:30b"))["capabilities"]
        beta.faults.clear()


async def test_38_one_name_with_two_digests_is_one_entry_and_can_be_seen_to_be_two() -> None:
    first, second = SimulatedModel(name=MODEL, digest="1" * 64), SimulatedModel(name=MODEL, digest="2" * 64)
    async with House({"z": having(first, TALKER), "a": having(second, TALKER)}) as house:
        assert (await entries(house))[MODEL]["digest"] == "1" * 64  # the first configured, whatever its name
        assert "\ngateway_model_digest_conflicts 1.0\n" in (await house.get("/metrics")).body.decode()
        status = (await house.get("/gateway/status")).json
        assert status["digest_conflicts"] == {MODEL: {"z": "1" * 64, "a": "2" * 64}}
        assert shows(house, "z") == shows(house, "a") == []
        await shown(house, MODEL)
        assert (shows(house, "z"), shows(house, "a")) == ([MODEL], [])


# Show


@pytest.mark.parametrize("field", ["model", "name"])
async def test_33_every_listed_name_is_shown_in_every_spelling(field: str) -> None:
    async with House({"alpha": having(SimulatedModel(name="mistral")), "bare": having(CODER, native=False)}) as house:
        spellings = [*VIRTUAL, "auto:latest", "AUTO", "mistral", "mistral:latest", "MISTRAL", "library/mistral"]
        for name in [*spellings, *await entries(house)]:
            assert (await house.post("/api/show", {field: name})).status == 200, name


async def test_33_a_name_nobody_lists_is_404_in_ollamas_words() -> None:
    async with pair() as house:
        for name in ("nobody", "auto:nothing", "auto/x"):
            reply = await house.post("/api/show", {"model": name})
            assert (reply.status, reply.json) == (404, {"error": f"model '{name}' not found"})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"model":7}', b'{"model":""}', b'{"Model":"x"}'])
@pytest.mark.parametrize("path", ["/api/show", "/api/pull"])
async def test_33_a_body_that_names_no_model_is_400_in_ollamas_shape(path: str, body: bytes) -> None:
    async with pair() as house:
        reply = await house.post(path, body)
        assert (reply.status, list(reply.json)) == (400, ["error"])


async def test_34_what_an_instance_shows_is_passed_on_as_it_is_and_asked_for_once() -> None:
    async with pair() as house:
        first = await house.post("/api/show", {"model": "coder:30b"})
        assert first.json["template"] == "{{ .Prompt }}"
        assert first.json["model_info"]["qwen3moe.context_length"] == 8192
        for name in ("coder:30b", "CODER:30B", "coder:30b"):
            assert (await house.post("/api/show", {"name": name})).body == first.body
        assert shows(house, "coding") == ["coder:30b"]


async def test_34_a_model_pulled_anew_is_asked_about_anew() -> None:
    async with House({"alpha": having(TALKER)}, QUICK) as house:
        await shown(house, "talker:8b")
        newer = SimulatedModel(name="talker:8b", digest="f" * 64, context_length=77)
        house.simulator("alpha").behaviour = having(newer)
        await house.until(lambda: house.engine.catalog.offers("talker:8b")[0].model.digest == "f" * 64)
        assert context(await shown(house, "talker:8b")) == 77


async def test_34_a_model_that_is_gone_is_404_at_once() -> None:
    async with House({"alpha": having(TALKER)}) as house:
        house.simulator("alpha").behaviour = having(CODER)
        assert (await house.post("/api/show", {"model": "talker:8b"})).status == 404
        assert "talker:8b" not in await entries(house)


async def test_34_the_client_ollama_renames_models_for_gets_its_names_and_nobody_else_does() -> None:
    async with pair() as house:
        for _ in range(2):
            renamed = await shown(house, "CODER:30b", User_Agent="GitHubCopilotChat/0.40.0")
            plain = await shown(house, "CODER:30b", User_Agent="other/GitHubCopilotChat/1")
            assert renamed["model_info"]["general.basename"] == "CODER:30b"
            assert plain["model_info"]["general.basename"] == "coder"
            plain["model_info"]["general.basename"] = "CODER:30b"
            assert renamed == plain
        virtual = await shown(house, "auto", User_Agent="GitHubCopilotChat/0.40.0")
        assert virtual["model_info"]["general.basename"] == "auto"


async def test_34_the_long_answer_is_another_answer() -> None:
    async with pair() as house:
        await shown(house, "coder:30b")
        assert (await house.post("/api/show", {"model": "coder:30b", "verbose": True})).status == 200
        bodies = [json.loads(seen.body) for seen in house.simulator("coding").requests if seen.path == "/api/show"]
        assert bodies == [{"model": "coder:30b"}, {"model": "coder:30b", "verbose": True}]


async def test_35_a_virtual_model_can_do_what_all_that_serve_it_can_in_the_smallest_of_their_contexts() -> None:
    weak = SimulatedModel(name="weak:1b", capabilities=("completion", "thinking"), context_length=2048)
    behaviours = {"general": having(TALKER), "other": having(weak), "coding": having(CODER)}
    async with House(behaviours, instances={"coding": {"capabilities": ["coding"]}}) as house:
        chat, code = await shown(house, "auto:general_chat"), await shown(house, "auto:code_generation")
        assert (chat["capabilities"], context(chat)) == (["completion", "thinking"], 2048)
        assert await shown(house, "auto") | {"model_info": 0, "modelfile": 0} == chat | {
            "model_info": 0,
            "modelfile": 0,
        }
        # A stand-in that lacks tools is left out of calls with tools, but a long prompt may reach it.
        assert (code["capabilities"], context(code)) == (["completion", "tools"], 2048)
        listed = (await entries(house))["auto:code_generation"]
        assert (listed["capabilities"], listed["details"]["context_length"]) == (code["capabilities"], 2048)


async def test_35_the_model_an_instance_would_use_is_the_one_that_counts() -> None:
    behaviours = {"alpha": having(CODER, TALKER)}
    async with House(behaviours, instances={"alpha": {"model": "talker:8b"}}) as house:
        assert context(await shown(house, "auto")) == 131_072


async def test_35_all_targets_of_a_route_count_since_a_call_may_reach_each() -> None:
    route = {"name": "r", "match": {"task": "reasoning"}, "to": [{"instance": "general"}, {"instance": "weak"}]}
    weak = SimulatedModel(name="weak:1b", capabilities=("completion",), context_length=2048)
    async with House({"general": having(TALKER), "weak": having(weak)}, {"routes": [route]}) as house:
        told = await shown(house, "auto:reasoning")
        assert (told["capabilities"], context(told)) == (["completion"], 2048)


async def test_35_an_ollama_whose_lists_do_not_tell_is_asked() -> None:
    async with House({"alpha": having(TALKER, version="0.12.0")}) as house:
        told = await shown(house, "auto")
        assert (told["capabilities"], context(told)) == (["completion", "tools", "thinking"], 131_072)
        assert shows(house, "alpha") == ["talker:8b"]
        assert (await entries(house))["auto:latest"]["capabilities"] == told["capabilities"]


async def test_35_where_nothing_is_known_little_is_claimed() -> None:
    for behaviours in ({"alpha": having()}, {"alpha": having(TALKER, native=False)}):
        async with House(behaviours) as house:
            told = await shown(house, "auto")
            assert (told["capabilities"], context(told)) == (["completion"], 4096)


async def test_36_many_shows_at_once_are_one_question_and_take_no_place() -> None:
    async with House({"alpha": having(TALKER)}, instances={"alpha": {"max_concurrent": 1}}) as house:
        house.simulator("alpha").faults.arm("hang_mid_stream", path="/v1", after=1)
        async with house.asking(ask("x", model="talker:8b", stream=True)) as holder:
            await holder.until(b"data: ")
            async with asyncio.timeout(2):
                found = await asyncio.gather(*(shown(house, "talker:8b") for _ in range(50)))
            assert shows(house, "alpha") == ["talker:8b"]
            assert all(one == found[0] for one in found)
            assert house.engine.pool.depth == 0
            holder.leave()


@pytest.mark.parametrize("fault", ["hang_before_headers", "cut", "garbage", "status"])
async def test_36_an_instance_that_will_not_show_is_replaced_by_one_that_does_or_by_what_the_lists_tell(
    fault: str,
) -> None:
    async with House({"alpha": having(TALKER), "beta": having(TALKER)}) as house:
        alpha, beta = house.simulator("alpha"), house.simulator("beta")
        for name in ("alpha", "beta"):
            house.simulator(name).faults.arm(fault, times=None, path="/api/show")
        beta.faults.clear()
        async with asyncio.timeout(2):
            assert (await shown(house, "talker:8b"))["template"] == "{{ .Prompt }}"
        house.engine.shows._kept.clear()
        beta.faults.arm(fault, times=None, path="/api/show")
        async with asyncio.timeout(4):
            told = await shown(house, "talker:8b")
        assert (told["template"], told["capabilities"]) == ("", ["completion", "tools", "thinking"])
        assert context(told) == 131_072
        alpha.faults.clear()
        assert (await shown(house, "talker:8b"))["template"] == "{{ .Prompt }}"
        beta.faults.clear()


# Loaded


async def test_37_what_is_loaded_anywhere_is_listed_once_with_a_proper_date() -> None:
    async with House({"alpha": having(TALKER), "beta": having(TALKER, CODER)}, QUICK) as house:
        assert (await house.get("/api/ps")).json == {"models": []}
        for name, keep in (("alpha", "5m"), ("beta", "2h")):
            body = {"model": "talker:8b", "keep_alive": keep}
            await house.client.post(f"{house.simulator(name).url}/api/generate", json=body)
        await house.chat(model="coder:30b")

        async def all_seen() -> bool:
            found = await entries(house, "/api/ps")
            return set(found) == {"talker:8b", "coder:30b"} and "context_length" in found["coder:30b"]

        await holds(all_seen)
        await house.until(lambda: all(house.engine.catalog.is_loaded(one, "talker:8b") for one in ("alpha", "beta")))
        found = await entries(house, "/api/ps")
        until = datetime.fromisoformat(found["talker:8b"]["expires_at"])
        assert (until - datetime.now(UTC)).total_seconds() > 3600  # the copy that stays longest
        assert re.fullmatch("[0-9a-f]{64}", found["coder:30b"]["digest"])
        assert found["coder:30b"]["size_vram"] == CODER.size


async def test_37_a_model_that_has_just_answered_is_listed_whole_before_the_next_look() -> None:
    async with pair() as house:
        await house.chat(model="coder:30b")
        entry = (await entries(house, "/api/ps"))["coder:30b"]
        assert datetime.fromisoformat(entry["expires_at"]) > datetime.now(UTC)
        assert (entry["digest"], entry["size"], entry["details"]["family"]) == (CODER.digest, CODER.size, "qwen3moe")


async def test_37_what_was_loaded_on_an_instance_that_is_down_is_not_listed() -> None:
    async with House({"alpha": having(TALKER)}, QUICK) as house:
        await house.chat(model="talker:8b")
        house.simulator("alpha").faults.arm("refuse", times=None)
        await house.until(lambda: house.engine.pool.instances["alpha"].state(0) == "down")
        assert (await house.get("/api/ps")).json == {"models": []}
        house.simulator("alpha").faults.clear()


# Pulling


async def test_39_pulling_what_is_there_succeeds_at_once_in_either_form() -> None:
    async with pair() as house:
        for name in ("coder:30b", "CODER:30b", "auto", "auto:planning"):
            streamed = await house.post("/api/pull", {"model": name})
            lines = [json.loads(line) for line in streamed.body.splitlines()]
            assert streamed.headers["content-type"] == "application/x-ndjson"
            assert lines[-1] == {"status": "success"}
            whole = await house.post("/api/pull", {"name": name, "stream": False})
            assert whole.json == {"status": "success"}
        assert not any(seen.path == "/api/pull" for one in house.simulators.values() for seen in one.requests)


async def test_40_any_other_pull_is_refused_and_says_what_to_do() -> None:
    async with pair() as house:
        reply = await house.post("/api/pull", {"model": "new:1b"})
        assert (reply.status, reply.headers["x-should-retry"]) == (403, "false")
        assert "run `ollama pull new:1b`" in reply.json["error"]
        assert (await house.post("/api/pull/x", {"model": "coder:30b"})).status == 403


# Names


async def test_41_an_alias_means_the_same_to_lists_as_to_calls() -> None:
    aliases = {"gpt-*": "coder:30b", "helper": "auto:planning", "broken": "nobody"}
    async with House({"alpha": having(CODER)}, {"aliases": aliases}) as house:
        assert (await house.chat(model="gpt-4o")).status == 200
        assert context(await shown(house, "gpt-4o")) == 8192
        assert (await shown(house, "helper"))["model_info"]["general.basename"] == "auto:planning"
        assert (await house.post("/api/pull", {"model": "gpt-4o"})).status == 200
        assert (await house.get("/v1/models/gpt-4o")).json["id"] == "gpt-4o"
        missing = await house.post("/api/show", {"model": "broken"})
        assert (missing.status, missing.json) == (404, {"error": "model 'broken' not found"})
        await house.post("/api/generate", {"model": "gpt-4o", "keep_alive": 0})
        assert house.simulator("alpha").loaded == []


async def test_41_a_model_that_may_not_be_offered_is_in_no_list() -> None:
    async with House({"alpha": having(TALKER, CODER)}, instances={"alpha": {"models": ["coder:30b"]}}) as house:
        await house.chat(model="coder:30b")
        assert set(await entries(house)) - set(VIRTUAL) == {"coder:30b"}
        assert set(await entries(house, "/api/ps")) == {"coder:30b"}
        assert (await house.post("/api/show", {"model": "talker:8b"})).status == 404
        assert (await house.post("/api/pull", {"model": "talker:8b"})).status == 403
