"""Where a configuration comes from: a file, the environment, the command line, or nothing at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.config import load
from gateway.errors import ConfigError
from tests.config.examples import GOOD, Read, Refused

ROOT = Path(__file__).parent.parent


# --- where it comes from


def test_without_anything_it_is_one_ollama_on_this_machine() -> None:
    loaded = load(env={"PATH": "/bin", "OLLAMA_HOST": "gpu9", "OLLAMA_KEEP_ALIVE": "5m", "OLLAMA_MODELS": "/models"})
    assert loaded.source == "the defaults"
    assert [(one.name, one.url) for one in loaded.config.instances] == [("ollama", "http://127.0.0.1:11434")]


def test_urls_are_instances_named_after_their_hosts() -> None:
    urls = ["http://gpu1:11434", "http://gpu2:1", "http://gpu2:2/v1", "http://[::1]:11434", "https://127.0.0.1"]
    loaded = load(urls=urls, env={"OLLAMA_URL_1": "http://elsewhere", "ENABLE_CACHING": "0"})
    assert loaded.source == "the command line"
    assert [one.name for one in loaded.config.instances] == ["gpu1", "gpu2-1", "gpu2-2", "1", "127.0.0.1"]
    assert loaded.config.instances[0].capabilities == ("general",)
    assert not loaded.config.cache.enabled


@pytest.mark.parametrize("url", ["gpu1:11434", "http://", "http://[", "http://u:hunter2@gpu1", "-", "http://gpu1:x"])
def test_a_url_that_is_none_is_told_by_its_place(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(urls=["http://gpu0", url], env={})
    assert [problem.where for problem in caught.value.problems] == ["address 2"]
    assert "hunter2" not in str(caught.value)


def test_the_same_url_twice_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(urls=["http://gpu1", "http://gpu1"], env={})
    assert [problem.where for problem in caught.value.problems] == ["address 2"]


def test_urls_and_a_file_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="on the command line or in a file, not both"):
        load(file=ROOT / "routes.yaml", urls=["http://gpu1"], env={})


def test_a_file_says_what_it_says(read: Read, tmp_path: Path) -> None:
    loaded = read(GOOD)
    assert loaded.source == str(tmp_path / "routes.yaml")
    assert loaded.digest == hashlib.sha256(GOOD.encode()).hexdigest()[:12]
    assert [one.name for one in loaded.config.instances] == ["alpha", "beta"]
    assert loaded.config.routes[0].match.task == ("code_generation", "summarise")
    assert loaded.config.cache.ttl == 12 * 3600


def test_the_digest_changes_with_a_variable_but_never_with_a_secret(read: Read) -> None:
    text = GOOD + "log: {level: '${LEVEL}'}\nserver:\n  host: ${HOST_PASSWORD}\n"
    first = read(text, LEVEL="info", HOST_PASSWORD="a").digest
    assert read(text, LEVEL="info", HOST_PASSWORD="b").digest == first
    assert read(text, LEVEL="debug", HOST_PASSWORD="a").digest != first
    assert (
        load(env={}).digest
        != load(env={"OLLAMA_URL_1": "http://gpu1"}).digest
        != load(urls=["http://a"], env={}).digest
    )


# --- the file against the environment


def test_variables_that_say_what_the_file_says_are_fine(read: Read) -> None:
    read(
        GOOD,
        OLLAMA_URL_1="http://gpu2:11434/v1/",
        OLLAMA_NAME_1="beta",
        OLLAMA_CAPABILITIES_1="coding",
        OLLAMA_MAX_CONCURRENT_1="2",
        OLLAMA_CACHING_TTL_HOURS="12",
        ENABLE_CACHING="true",
    )


def test_variables_may_spell_a_model_otherwise_and_order_capabilities_otherwise(read: Read) -> None:
    read(
        "instances: [{name: a, url: 'http://gpu1', model: 'Qwen3', capabilities: [coding, general]}]",
        OLLAMA_URL_1="http://GPU1:80/",
        OLLAMA_MODEL_1="qwen3:latest",
        OLLAMA_CAPABILITIES_1="general,coding",
    )


def test_variables_that_contradict_the_file_are_told_with_both_places(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    problems = refused(
        GOOD,
        OLLAMA_URL_1="http://gpu2:11434",
        OLLAMA_MODEL_1="qwen3-coder",
        OLLAMA_CAPABILITIES_1="coding,general",
        OLLAMA_MAX_CONCURRENT_1="4",
        OLLAMA_URL_7="http://gpu7:11434",
        OLLAMA_CACHING_TTL_HOURS="24",
        ENABLE_CACHING="false",
    )
    assert problems == {
        "OLLAMA_URL_7": (
            f"http://gpu7:11434 is no instance of {file}. Add it under `instances`, or unset the variable",
            (1, 1),
        ),
        "instances[1].model": ("is not set here, but OLLAMA_MODEL_1 says qwen3-coder. Keep one", (6, 5)),
        "instances[1].capabilities": (
            "is coding here, but OLLAMA_CAPABILITIES_1 says coding, general. Keep one",
            (8, 19),
        ),
        "instances[1].max_concurrent": ("is 2 here, but OLLAMA_MAX_CONCURRENT_1 says 4. Keep one", (9, 21)),
        "cache.ttl": ("is 43200 s here, but OLLAMA_CACHING_TTL_HOURS says 86400 s. Keep one", (20, 8)),
        "cache.enabled": ("is true here, but ENABLE_CACHING says false. Keep one", (20, 3)),
    }
