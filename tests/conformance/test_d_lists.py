"""Section D of the statements: models and what they can do."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime
from typing import Any

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from tests.conformance.plain import asked, fetch, saturated
from tests.house import LIMIT, MODEL, House, ask

SLASHED = "hf.co/someone/model:Q4_K_M"
SHARED = SimulatedModel(name=MODEL)


def pair(**config: Any) -> House:
    """Two instances that share a model; the second has two more, one of them without a tag."""
    more = (SHARED, SimulatedModel(name=SLASHED, context_length=8192), SimulatedModel(name="mistral"))
    return House({"alpha": Behaviour(models=(SHARED,)), "beta": Behaviour(models=more)}, config)


async def listed(house: House) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = (await house.get("/api/tags")).json["models"]
    return models


async def shown(house: House, name: str) -> dict[str, Any]:
    reply = await house.post("/api/show", {"model": name})
    assert reply.status == 200, (name, reply.body)
    told: dict[str, Any] = reply.json
    return told


def ours(name: str) -> bool:
    """An entry the gateway adds."""
    return name.partition(":")[0] == "auto"


async def test_027_every_model_is_listed_once_in_a_stable_order() -> None:
    async with pair() as house:
        told = (await house.get("/v1/models")).json
        assert told["object"] == "list"
        ids = [entry["id"] for entry in told["data"]]
        assert len(ids) == len(set(ids))
        assert {MODEL, SLASHED, "mistral:latest"} <= set(ids)
        for entry in told["data"]:
            assert (entry["object"], type(entry["created"]), type(entry["owned_by"])) == ("model", int, str)
        assert (await house.get("/v1/models")).json == told


async def test_027_a_pool_without_models_is_a_list_and_not_null() -> None:
    async with House({"alpha": Behaviour(models=())}) as house:
        assert not [entry for entry in (await house.get("/v1/models")).json["data"] if not ours(entry["id"])]
        assert not [entry for entry in await listed(house) if not ours(entry["name"])]


async def test_028_one_model_is_found_by_a_colon_and_by_an_escaped_slash_and_is_404_otherwise() -> None:
    async with pair() as house:
        for path, name in (
            (MODEL, MODEL),
            (SLASHED.replace("/", "%2F"), SLASHED),
            (SLASHED, SLASHED),
            ("auto", "auto"),
        ):
            found = await fetch(house, f"/v1/models/{path}")
            assert (found.status, found.json["id"], found.json["object"]) == (200, name, "model")
        missing = await fetch(house, "/v1/models/no%2Fsuch:1b")
        assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")


async def test_029_the_list_has_what_the_anthropic_sdk_reads_and_nothing_it_would_stumble_over() -> None:
    """Its request and what it reads of a page, as recorded: `data` is a list of entries with ids; no more pages."""
    async with pair() as house:
        told = ("X-Api-Key: unused", "Anthropic-Version: 2023-06-01", "X-Stainless-Lang: python")
        page = (await fetch(house, "/v1/models?limit=20", *told)).json
        assert all(isinstance(entry["id"], str) for entry in page["data"])
        assert page.get("has_more", False) is False
        if "first_id" in page:
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])


async def test_030_every_entry_of_tags_is_complete_and_correctly_typed() -> None:
    async with pair() as house:
        entries = await listed(house)
        assert {MODEL, SLASHED, "mistral:latest"} <= {entry["name"] for entry in entries}
        for entry in entries:
            complete(entry)


async def test_030_so_are_those_of_instances_that_tell_less() -> None:
    old = Behaviour(version="0.9.0", models=(SimulatedModel(name="old:1b"),))
    bare = Behaviour(native=False, models=(SimulatedModel(name="bare:1b"),))
    async with House({"old": old, "bare": bare}) as house:
        entries = await listed(house)
        assert {"old:1b", "bare:1b"} <= {entry["name"] for entry in entries}
        for entry in entries:
            complete(entry)


def complete(entry: dict[str, Any]) -> None:
    assert entry["name"]
    assert entry["model"] == entry["name"]
    assert datetime.fromisoformat(entry["modified_at"]).tzinfo is not None
    assert type(entry["size"]) is int
    assert re.fullmatch("[0-9a-f]{64}", entry["digest"])
    details = entry["details"]
    for name in ("format", "family", "parameter_size", "quantization_level"):
        assert isinstance(details[name], str), (entry["name"], name)
    assert all(isinstance(family, str) for family in details["families"])
    assert "null" not in json.dumps(entry)


async def test_031_added_entries_are_as_complete_with_digests_and_base_names_of_their_own() -> None:
    async with pair() as house:
        entries = await listed(house)
        added = [entry for entry in entries if ours(entry["name"])]
        assert "auto:latest" in [entry["name"] for entry in added] or "auto" in [entry["name"] for entry in added]
        for entry in added:
            complete(entry)
        digests = [entry["digest"] for entry in entries]
        assert len(digests) == len(set(digests))
        assert len({digest[:12] for digest in digests}) == len(digests)
        names = [(await shown(house, entry["name"]))["model_info"]["general.basename"] for entry in added]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models", "/api/ps"])
async def test_032_the_lists_answer_promptly_while_an_instance_hangs(path: str) -> None:
    async with pair(health={"interval": 0.02, "catalog": 0.02, "timeout": 0.2, "fall": 1000}) as house:
        beta = house.simulator("beta")
        beta.faults.arm("hang_before_headers", times=None)
        count = len(beta.requests)
        await beta.until(lambda: len(beta.requests) > count)
        async with asyncio.timeout(2):
            reply = await house.get(path)
        assert reply.status == 200
        assert path == "/api/ps" or SLASHED.encode() in reply.body
        beta.faults.clear()


async def test_033_show_takes_model_or_name_tagged_or_not_for_every_listed_name() -> None:
    async with pair() as house:
        names = {entry["name"] for entry in await listed(house)}
        names |= {entry["id"] for entry in (await house.get("/v1/models")).json["data"]}
        names |= {name.removesuffix(":latest") for name in names}
        for name in names:
            by_model = await house.post("/api/show", {"model": name})
            by_name = await house.post("/api/show", {"name": name})
            assert (by_model.status, by_name.status) == (200, 200), (name, by_model.body)
            assert by_model.json == by_name.json
        missing = await house.post("/api/show", {"model": "nobody"})
        assert (missing.status, type(missing.json["error"])) == (404, str)


async def test_034_show_tells_details_capabilities_architecture_context_template_and_parameters() -> None:
    async with pair() as house:
        for entry in await listed(house):
            told = await shown(house, entry["name"])
            assert isinstance(told["details"]["family"], str)
            assert isinstance(told["capabilities"], list)
            architecture = told["model_info"]["general.architecture"]
            assert type(told["model_info"][f"{architecture}.context_length"]) is int
            assert (type(told["template"]), type(told.get("parameters", ""))) == (str, str)
        told = await shown(house, SLASHED)
        assert told["template"] == "{{ .Prompt }}"
        assert "<|end|>" in told["parameters"]
        assert told["model_info"]["llama.context_length"] == 8192


async def test_035_an_added_model_claims_only_what_all_its_candidates_can_do() -> None:
    large = SimulatedModel(name="large:70b", capabilities=("completion", "tools", "vision"), context_length=131_072)
    small = SimulatedModel(name="small:1b", capabilities=("completion",), context_length=4_096)
    async with House({"large": Behaviour(models=(large,)), "small": Behaviour(models=(small,))}) as house:
        told = await shown(house, "auto")
        assert told["capabilities"] == ["completion"]
        assert told["model_info"][f"{told['model_info']['general.architecture']}.context_length"] == 4_096
    async with House({"large": Behaviour(models=(large,))}) as house:
        told = await shown(house, "auto")
        assert set(told["capabilities"]) == {"completion", "tools", "vision"}
        assert told["model_info"][f"{told['model_info']['general.architecture']}.context_length"] == 131_072


async def test_036_fifty_shows_at_once_are_answered_from_memory_and_use_no_place() -> None:
    async with House({"alpha": Behaviour(parallel=8)}, instances={"alpha": {"max_concurrent": 1}}) as house:
        await shown(house, MODEL)
        alpha = house.simulator("alpha")
        async with saturated(house):
            count = len([one for one in alpha.requests if one.method == "POST"])
            async with asyncio.timeout(2):
                replies = await asyncio.gather(*(house.post("/api/show", {"model": MODEL}) for _ in range(50)))
            assert {reply.status for reply in replies} == {200}
            assert len({reply.body for reply in replies}) == 1
            assert len([one for one in alpha.requests if one.method == "POST"]) == count


async def test_037_ps_joins_what_all_instances_have_loaded_with_proper_dates() -> None:
    behaviours = {"alpha": Behaviour(models=(SHARED,)), "beta": Behaviour(models=(SimulatedModel(name="mistral"),))}
    async with House(behaviours, {"health": {"interval": 0.05, "catalog": 0.05}}) as house:
        assert (await house.get("/api/ps")).json == {"models": []}
        await house.chat(model=MODEL)
        await house.chat(model="mistral")
        async with asyncio.timeout(LIMIT):
            while len(entries := (await house.get("/api/ps")).json["models"]) < 2:
                await asyncio.sleep(0)
        assert {entry["name"] for entry in entries} == {MODEL, "mistral:latest"}
        for entry in entries:
            assert datetime.fromisoformat(entry["expires_at"]).tzinfo is not None
            assert entry["digest"]


async def test_038_one_tag_with_different_digests_is_one_entry_always_the_same_and_a_metric_tells() -> None:
    older = SimulatedModel(name=MODEL, digest="1" * 64)
    newer = SimulatedModel(name=MODEL, digest="2" * 64)
    async with House({"alpha": Behaviour(models=(older,)), "beta": Behaviour(models=(newer,))}) as house:
        found = [[entry for entry in await listed(house) if entry["name"] == MODEL] for _ in range(5)]
        assert all(len(entries) == 1 for entries in found)
        assert len({entries[0]["digest"] for entries in found}) == 1
        exposition = (await house.get("/metrics")).body.decode()
        told = re.findall(r"^gateway_\w*digest\w*(?:\{[^}]*\})? (\S+)$", exposition, re.MULTILINE)
        assert any(float(value) >= 1 for value in told)


async def test_039_pulling_what_is_already_listed_succeeds_at_once() -> None:
    async with pair() as house:
        for name in (MODEL, "mistral", "auto", "auto:reasoning"):
            streamed = await house.post("/api/pull", {"model": name})
            assert streamed.status == 200, (name, streamed.body)
            assert streamed.headers["content-type"].startswith("application/x-ndjson")
            assert json.loads(streamed.body.splitlines()[-1]) == {"status": "success"}
            whole = await house.post("/api/pull", {"name": name, "stream": False})
            assert (whole.status, whole.json) == (200, {"status": "success"})
        assert not asked(house, "alpha") + asked(house, "beta")


async def test_039_any_other_pull_is_refused_in_clear_words() -> None:
    async with pair() as house:
        for body in ({"model": "nobody"}, {"model": "nobody", "stream": False}):
            reply = await house.post("/api/pull", body)
            assert reply.status == 403
            assert len(reply.json["error"]) > 20


MANAGEMENT = [
    *(("POST", "/api/create"), ("POST", "/api/copy"), ("DELETE", "/api/delete"), ("POST", "/api/push")),
    *(("POST", "/api/pull"), ("POST", f"/api/blobs/sha256:{'0' * 64}"), ("HEAD", f"/api/blobs/sha256:{'0' * 64}")),
]


@pytest.mark.parametrize(("method", "path"), MANAGEMENT)
async def test_040_routes_that_change_an_instance_are_closed_and_never_sent_to_one(method: str, path: str) -> None:
    async with pair() as house:
        body = json.dumps({"model": "nobody", "source": MODEL, "destination": "x"}).encode()
        reply = await fetch(house, path, method=method, body=body)
        assert reply.status == 403
        assert method == "HEAD" or isinstance(reply.json["error"], str)
        for simulator in house.simulators.values():
            assert not [seen for seen in simulator.requests if seen.path == path]


@pytest.mark.parametrize("spelling", ["mistral", "mistral:latest", "MISTRAL", "Mistral:Latest", "library/mistral"])
async def test_041_a_model_name_means_the_same_in_every_route(spelling: str) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", ask("say: fine", model=spelling)),
        ("/v1/completions", {"model": spelling, "prompt": "say: fine"}),
        ("/v1/embeddings", {"model": spelling, "input": "fine"}),
        ("/v1/responses", {"model": spelling, "input": "say: fine"}),
        ("/v1/messages", {"max_tokens": 8, **ask("say: fine", model=spelling)}),
        ("/api/chat", ask("say: fine", model=spelling)),
        ("/api/generate", {"model": spelling, "prompt": "say: fine"}),
        ("/api/embed", {"model": spelling, "input": "fine"}),
        ("/api/embeddings", {"model": spelling, "prompt": "fine"}),
        ("/api/show", {"model": spelling}),
        ("/api/pull", {"model": spelling}),
    ]
    async with pair() as house:
        for path, body in bodies:
            assert (await house.post(path, body)).status == 200, path
        assert (await fetch(house, f"/v1/models/{spelling}")).status == 200
        assert not asked(house, "alpha")
