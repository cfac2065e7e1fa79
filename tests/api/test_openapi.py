"""The description of the public surface is true: every path is there, every field that is looked at, every refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import gateway
from gateway import __version__
from gateway.api.routes import Entry
from gateway.dialects import anthropic, facade, ollama, openai, responses
from gateway.simulator import Behaviour
from tests.faults.test_bad_bodies import FACADE, MODELS, NATIVE, NUMBER, SOUND, TASK, TEXT, WRONG, Raw
from tests.house import House

TOLD: dict[str, Any] = yaml.safe_load((Path(gateway.__file__).parent / "openapi.yaml").read_text("utf-8"))
OPERATIONS = (
    *(openai.CHAT, openai.COMPLETIONS, openai.EMBEDDINGS, responses.RESPONSES, anthropic.MESSAGES),
    *(ollama.CHAT, ollama.GENERATE, ollama.EMBED, ollama.EMBEDDINGS, facade.CHAT),
)
METHODS = {"get", "post", "put", "patch", "delete"}


def entries(house: House) -> list[Entry]:
    surface = house.app._surface
    return [*(entry for several in surface._exact.values() for entry in several), *surface._below]


def inside(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from inside(inner)


async def test_every_path_and_method_of_the_table_is_described_and_no_other() -> None:
    async with House({"alpha": Behaviour()}) as house:
        table = {
            (entry.path + ("/{model}" if entry.below else ""), method.lower())
            for entry in entries(house)
            for method in entry.methods
            if method != "HEAD"  # which goes wherever GET does
        }
    assert {(path, method) for path, item in TOLD["paths"].items() for method in item if method in METHODS} == table


async def test_it_is_served_as_json_under_our_version() -> None:
    async with House({"alpha": Behaviour()}) as house:
        reply = await house.get("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json == {**TOLD, "info": TOLD["info"] | {"version": __version__}}


def test_whatever_it_refers_to_is_there_and_whatever_is_there_is_referred_to() -> None:
    named = {one["$ref"] for one in inside(TOLD) if isinstance(one, dict) and "$ref" in one}
    there = {f"#/components/{kind}/{name}" for kind, parts in TOLD["components"].items() for name in parts}
    assert named == {one for one in there if "/securitySchemes/" not in one}
    for name, schema in TOLD["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema, name


def test_operations_have_names_of_their_own() -> None:
    names = [item[method]["operationId"] for item in TOLD["paths"].values() for method in item]
    assert len(set(names)) == len(names)


def validator(path: str) -> Draft202012Validator:
    schema = TOLD["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": TOLD["components"]})


def properties(schema: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        schema = TOLD["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return set(schema.get("properties", {})).union(*(properties(one) for one in schema.get("anyOf", ())))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.dialect}-{one.path}")
def test_every_field_that_is_looked_at_is_described(operation: Any) -> None:
    path = NATIVE if operation is facade.CHAT else operation.path
    schema = TOLD["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert operation._form._names <= properties(schema)


UNTOLD = [
    one for one in MODELS if isinstance(one, str) and one.strip() and len(one) <= 256
]  # that they cannot be printed


@pytest.mark.parametrize("path", WRONG)
def test_what_is_refused_is_not_as_described_and_what_is_sound_is(path: str) -> None:
    told = validator(path)
    assert told.is_valid(SOUND[path])
    for field, values in WRONG[path].items():
        for value in values:
            if not isinstance(value, Raw) and not (field == "model" and value in [*UNTOLD, " "]):
                assert not told.is_valid(SOUND[path] | {field: value}), (field, value)


def test_the_same_of_the_facade() -> None:
    told = validator(NATIVE)
    wrong: dict[str, list[Any]] = {"message": [*TEXT, ""], "task_type": TASK, "temperature": NUMBER, "model": TEXT}
    assert told.is_valid(FACADE)
    for field, values in wrong.items():
        assert not [value for value in values if told.is_valid(FACADE | {field: value})], field


async def test_what_is_served_is_as_described() -> None:
    async with House({"alpha": Behaviour()}) as house:
        for path, item in TOLD["paths"].items():
            if "get" not in item or "{" in path:
                continue
            reply = await house.get(path)
            assert reply.status == 200, path
            content = item["get"]["responses"]["200"]["content"]
            kind = reply.headers["content-type"].partition(";")[0]
            assert kind in content, path
            if kind == "application/json":
                schema = {**content[kind]["schema"], "components": TOLD["components"]}
                Draft202012Validator(schema).validate(json.loads(reply.body))
