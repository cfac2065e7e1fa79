"""Any file at all: it is a configuration, or it is refused with every problem in its place; nothing else is raised."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from gateway.config import Config, Loaded, json_schema, load, read_env_file
from gateway.errors import ConfigError, Problem
from tests.config.examples import GOOD, Read
from tests.examples import tried

_SCHEMA = json_schema()
_PARTS = [_SCHEMA, *_SCHEMA["$defs"].values()]
KEYS = sorted({key for part in _PARTS for key in part.get("properties", {})})

ODD_TEXTS = [
    *("", "~", "null", "true", "off", "-1", "0", "1e999", "-1e999", ".nan", ".inf", "9" * 18, "9" * 5000),
    *("9" * 400 + "MiB", "9" * 400 + "h", "1s", "1.5KiB", "1 B", "\u0663s", "\u00b2", "-1s", "30 s", "1d" * 50, "_"),
    *("http://gpu1", "http://gpu1/v1", "http://[::1]:1", "http://[", "http://[::1", "http://a:b", "http://a:0"),
    *("http://a:65536", "http://a:" + "9" * 5000, "http://a@b", "http://ex\u2100mple", "http://a\u2100b:1", "//a"),
    *("http://a/../v1", "http://a?b", "http://a#", "HTTP://A", "http://\x00", "ftp://a", "http://a b", "http://\u00e9"),
    *("http://", "http:a", "*", "?", "[", "[a-", "**", "auto", "auto:", "auto:reasoning", "auto:x", ":", "/"),
    *("a/b/c/d:e:f", "${A}", "${A:-x}", "${", "$$", "${B}", "${A:?no}", "\x1b[31m", "\u2028", "\ufeff", "\U0001f600"),
    *("\ud800", "a" * 300, "x" * 5000, "0x" + "f" * 15),
]
SCALARS = st.sampled_from(ODD_TEXTS) | st.text(max_size=6) | st.integers() | st.floats() | st.booleans() | st.none()
WORDS = st.sampled_from(KEYS) | st.sampled_from(["a", "b", "<<", "Name", "nmae"]) | st.text(max_size=4)
THINGS = st.recursive(
    SCALARS, lambda one: st.lists(one, max_size=4) | st.dictionaries(WORDS, one, max_size=4), max_leaves=10
)
SOUND: dict[str, Any] = yaml.safe_load(GOOD) | {
    "auth": {"keys": [{"name": "k", "sha256": "0" * 64}]},
    "aliases": {"gpt-*": "auto:reasoning"},
    **{name: {} for name in ("timeouts", "stream", "line", "retry", "health", "breaker", "cors", "openai", "server")},
    "log": {"level": "info"},
}
FILES = HealthCheck.function_scoped_fixture  # the fixture keeps nothing from one file to the next


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """A sound configuration in which a few parts were replaced or added."""
    tree = json.loads(json.dumps(SOUND))
    for _ in range(draw(st.integers(1, 4))):
        at: Any = tree
        while draw(st.booleans()) and at:
            inner = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
            if not isinstance(at[inner], dict | list):
                break
            at = at[inner]
        if isinstance(at, dict):
            at[draw(st.sampled_from([*sorted(at), *KEYS]) | WORDS)] = draw(THINGS)
        else:
            at.insert(draw(st.integers(0, len(at))), draw(THINGS))
    return tree


def problems(loading: Callable[[], Loaded]) -> tuple[Problem, ...]:
    """What is wrong with it; nothing where it is a configuration."""
    try:
        loaded = loading()
    except ConfigError as error:
        told, lines = error.problems, str(error).split("\n")
    else:
        assert Config.model_validate(loaded.config.model_dump()) == loaded.config
        return ()
    assert told
    assert len(lines) == 2 + len(told)
    assert all(line.isprintable() for line in lines)
    return told


def checked(read: Read, text: str | bytes) -> None:
    """The file is a configuration, or every problem is told on a line of its own, with a place in the file."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    for problem in problems(lambda: read(data, A="a", OLLAMA_URL_1="http://gpu1:11434")):
        assert problem.line > 0 or problem.message.startswith("and more"), problem
        assert len(problem.message) <= 400


@given(tree=trees(), flow=st.sampled_from([None, True, False]), wide=st.booleans())
@tried(300, suppress_health_check=[FILES, HealthCheck.too_slow])
def test_a_tree_changed_at_random_is_read_or_refused(read: Read, tree: Any, flow: bool | None, wide: bool) -> None:
    checked(read, yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=wide))


@given(tree=THINGS)
@tried(suppress_health_check=[FILES])
def test_any_tree_at_all_is_read_or_refused(read: Read, tree: Any) -> None:
    checked(read, yaml.safe_dump(tree))


def everywhere(value: Any) -> dict[str, Any]:
    """Every key there is, each with this value."""
    tree: dict[str, Any] = {}
    for name, part in _SCHEMA["properties"].items():
        kind = (part.get("$ref") or part.get("items", {}).get("$ref", "")).rpartition("/")[2]
        inner = dict.fromkeys(_SCHEMA["$defs"][kind]["properties"], value) if kind else {"a": value, str(value): "a"}
        tree[name] = [inner] if part.get("type") == "array" else inner
    target = dict.fromkeys(_SCHEMA["$defs"]["Target"]["properties"], value)
    tree["routes"].append({"name": "r", "match": {"header": {"a": value}}, "to": [target]})
    tree["auth"] = {"keys": [dict.fromkeys(_SCHEMA["$defs"]["KeyConfig"]["properties"], value)]}
    return tree


@pytest.mark.parametrize("odd", ODD_TEXTS, ids=lambda text: ascii(text[:16]))
def test_an_odd_value_in_every_place_is_read_or_refused(read: Read, odd: str) -> None:
    text = json.dumps(everywhere("ODD"))
    checked(read, text.replace('"ODD"', json.dumps(odd)))
    checked(read, text.replace('"ODD"', f" {odd} "))


TOKENS = [
    *("- ", "? ", ": ", ", ", "[", "]", "{", "}", "&a ", "*a", "&b ", "*b", "!!", "!x ", "!!str ", "!!python/name:os "),
    *("|", ">", "|2-", "'", '"', "\\", "#", "%YAML 1.1\n", "%TAG ! !x\n", "---", "---\n", "...", "...\n", "@", "`"),
    *("<<: ", "<<", " ", "  ", "\t", "\n", "\r", "\r\n", "\x85", "\u2028", "\ufeff", "\x00", "\x07", "\ud800", "${A}"),
    *("${", "1", "~", "instances: ", "- name: ", "url: ", "http://a", "to: ", "match: ", "a", "a: ", "b: ", "\xe9"),
    "\U0010ffff",
]


@given(text=st.lists(st.sampled_from(TOKENS) | st.text(max_size=3), max_size=25).map("".join))
@tried(400, suppress_health_check=[FILES])
def test_any_text_at_all_is_read_or_refused(read: Read, text: str) -> None:
    checked(read, text)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (GOOD + "server: {max_body: " + "9" * 400 + "MiB}", "must be a finite number"),
        ("instances: [{name: a, url: 'http://me:hunter2@ex\u2100mple'}]", "must look like http://host:11434"),
        ("instances: [{name: a, url: 'http://me:hunter2@[x'}]", "must look like http://host:11434"),
        (GOOD + "auth: {keys: [{name: a, sha256: hunter2}]}", "must be a SHA-256"),
    ],
    ids=["an endless size", "a host that is no text", "a host that is no address", "a key in place of its hash"],
)
def test_what_such_files_found_is_told_calmly_and_shows_no_secret(read: Read, written: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read(written)
    assert "hunter2" not in str(caught.value)


@given(lines=st.lists(st.text(alphabet="AB_1=#'\"\\ \t\r\x00$é\u2028export", max_size=12), max_size=8))
def test_any_file_of_variables_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    file: Path = tmp_path_factory.getbasetemp() / "variables"
    file.write_text("\n".join(lines), newline="")
    problems(lambda: load(env=read_env_file(file)))
