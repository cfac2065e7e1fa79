"""The shipped routes.yaml: the part that is in force, and the reference that can be uncommented as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from gateway.config import BUILT_IN_TASKS, Config, json_schema, load

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "routes.yaml"
SCHEMA = ROOT / "gateway" / "routes.schema.json"
REGENERATE = """python -c 'import json, gateway.config.file as f; print(json.dumps(f.json_schema(), indent=2))' > \
gateway/routes.schema.json"""


def _reference() -> str:
    """The commented lines without their "# ", as the file tells its reader to do it."""
    lines = SHIPPED.read_text("utf-8").splitlines()[1:]
    return "\n".join(re.sub(r"^# ?", "", line) for line in lines if line.startswith("#"))


@pytest.fixture
def reference(tmp_path: Path) -> Config:
    file = tmp_path / "reference.yaml"
    file.write_text(_reference(), "utf-8")
    return load(file=file, env={}).config


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation)
    for inner in get_args(annotation):
        yield from _models(inner)


def _given(value: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Every key that was written, with the model it belongs to."""
    if isinstance(value, BaseModel):
        for key in value.model_fields_set:
            yield type(value), key
            yield from _given(getattr(value, key))
    elif isinstance(value, tuple):
        for inner in value:
            yield from _given(inner)


def test_the_shipped_file_is_one_ollama_on_this_machine_and_all_defaults() -> None:
    config = load(file=SHIPPED, env={}).config
    assert config == load(env={}).config
    assert [(one.name, one.url) for one in config.instances] == [("ollama", "http://127.0.0.1:11434")]
    assert config.model_fields_set == {"instances"}


def test_every_key_there_is_stands_in_the_reference(reference: Config) -> None:
    every = {(model, key) for model in _models(Config) for key in model.model_fields}
    assert every - set(_given(reference)) == set()


def test_the_reference_shows_the_defaults(reference: Config) -> None:
    plain = Config(instances=reference.instances)
    for section in set(Config.model_fields) - {"instances", "tasks", "routes", "aliases", "auth"}:
        assert getattr(reference, section) == getattr(plain, section), section


def test_the_reference_lists_the_built_in_tasks_as_they_are() -> None:
    listed = re.findall(
        r"(\w+): +\[(\w+(?:, \w+)*)\]", "\n".join(re.findall(r"(?m)^##   .*", SHIPPED.read_text("utf-8")))
    )
    assert {name: tuple(words.split(", ")) for name, words in listed} == BUILT_IN_TASKS


def test_a_part_of_the_reference_can_be_used_on_its_own(tmp_path: Path) -> None:
    parts = yaml.safe_load(_reference())
    for key in set(parts) - {"instances", "routes"}:
        file = tmp_path / f"{key}.yaml"
        file.write_text(yaml.safe_dump({"instances": parts["instances"], key: parts[key]}), "utf-8")
        load(file=file, env={})


def test_the_example_chain_falls_back_to_another_target(reference: Config) -> None:
    code = reference.routes[0]
    assert (code.name, len(code.to)) == ("code", 3)
    assert {one.name: one.max_concurrent for one in reference.instances} == {"general": 2, "coding": 1}


def test_no_line_is_longer_than_a_screen() -> None:
    assert [line for line in SHIPPED.read_text("utf-8").splitlines() if len(line) > 120] == []


def test_the_schema_that_ships_is_the_schema_of_the_models() -> None:
    assert json.loads(SCHEMA.read_text("utf-8")) == json_schema(), f"run: {REGENERATE}"


def test_the_first_line_names_the_schema_that_ships() -> None:
    first = SHIPPED.read_text("utf-8").splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert match
    assert (ROOT / match[1]) == SCHEMA


@pytest.mark.parametrize("text", [SHIPPED.read_text("utf-8"), _reference()], ids=["shipped", "reference"])
def test_the_schema_accepts_what_ships(text: str) -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert [error.message for error in Draft202012Validator(schema).iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"cache": {"tll": 3}},
        {"cach": {}},
        {"cache": {"ttl": "3 hours"}},
        {"cache": {"ttl": -1}},
        {"cache": {"max_bytes": "3 megabytes"}},
        {"cache": {"enabled": 3}},
        {"log": {"level": "loud"}},
        {"tasks": {"not a word": ["x"]}},
        {"tasks": {"x": ["not a word"]}},
        {"server": {"port": 70000}},
        {"instances": []},
        {"routes": [{"name": "r", "match": {}, "to": []}]},
        {"routes": [{"name": "r", "match": {"tasks": "x"}, "to": [{"model": "x"}]}]},
        {"instances": [{"name": "a"}]},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_wrong(wrong: dict[str, Any]) -> None:
    right = {"instances": [{"name": "a", "url": "http://gpu1"}]}
    validator = Draft202012Validator(json_schema())
    assert validator.is_valid(right)
    assert not validator.is_valid(right | wrong)


@pytest.mark.parametrize(
    "variable",
    [
        {"server": {"port": "${PORT:-8080}"}},
        {"cache": {"ttl": "${TTL}"}},
        {"cache": {"enabled": "${CACHE:?on or off}"}},
        {"log": {"level": "${LEVEL}"}},
        {"line": {"max_calls": "${N}", "max_bytes": "${BYTES}"}},
    ],
    ids=str,
)
def test_the_schema_lets_a_variable_stand_for_any_value(variable: dict[str, Any]) -> None:
    whole = {"instances": [{"name": "${NAME}", "url": "${URL}"}], **variable}
    assert Draft202012Validator(json_schema()).is_valid(whole)
