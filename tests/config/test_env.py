"""The numbered variables, those of the cache, and files of variables."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import load, read_env_file
from gateway.errors import ConfigError


def _alone(**env: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(env=env)
    return {problem.where: problem.message for problem in caught.value.problems}


def test_numbered_variables_are_instances_in_the_order_of_their_numbers() -> None:
    loaded = load(
        env={
            "OLLAMA_URL_10": "http://gpu10:11434/v1",
            "OLLAMA_URL_2": "http://gpu2:11434",
            "OLLAMA_MODEL_2": "qwen3-coder",
            "OLLAMA_CAPABILITIES_2": "coding, code_analysis,",
            "OLLAMA_MAX_CONCURRENT_2": "3",
            "OLLAMA_NAME_10": "large",
            "OLLAMA_MODEL_10": "",
        }
    )
    small, large = loaded.config.instances
    assert loaded.source == "the environment"
    assert (small.name, small.model, small.max_concurrent) == ("ollama-2", "qwen3-coder", 3)
    assert small.capabilities == ("coding", "code_analysis")
    assert (large.name, large.url, large.model) == ("large", "http://gpu10:11434", None)


def test_the_cache_variables_work_without_a_file() -> None:
    loaded = load(env={"OLLAMA_CACHING_TTL_HOURS": "0.5", "ENABLE_CACHING": "No"})
    assert (loaded.config.cache.ttl, loaded.config.cache.enabled) == (1800.0, False)
    assert (loaded.source, loaded.config.instances[0].name) == ("the environment", "ollama")


def test_every_problem_of_the_environment_is_told_with_its_variable() -> None:
    problems = _alone(
        OLLAMA_URL_1="gpu1",
        OLLAMA_MAX_CONCURRENT_1="two",
        OLLAMA_CAPABILITIES_1="a b",
        OLLAMA_MODEL_2="x",
        OLLAMA_MODELS_3="x",
        OLLAMA_URL_0="http://gpu0",
        OLLAMA_URL4="http://gpu4",
        OLLAMA_CACHE_TTL_HOURS="3",
        OLLAMA_CACHING_TTL_HOURS="-1",
        ENABLE_CACHING="perhaps",
    )
    assert problems == {
        "OLLAMA_URL_1": 'must look like http://host:11434, found "gpu1"',
        "OLLAMA_MAX_CONCURRENT_1": 'must be a whole number, found "two"',
        "OLLAMA_CAPABILITIES_1": 'must be letters, digits, "_", "." and "-", and not begin with "." or "-", found "a b"',  # noqa: E501
        "OLLAMA_MODEL_2": "has no OLLAMA_URL_2 to go with it",
        "OLLAMA_MODELS_3": 'unknown variable. Did you mean "OLLAMA_MODEL_3"?',
        "OLLAMA_URL_0": 'unknown variable. Did you mean "OLLAMA_URL_1"?',
        "OLLAMA_URL4": 'unknown variable. Did you mean "OLLAMA_URL_4"?',
        "OLLAMA_CACHE_TTL_HOURS": 'unknown variable. Did you mean "OLLAMA_CACHING_TTL_HOURS"?',
        "OLLAMA_CACHING_TTL_HOURS": 'must be a number of hours, 0 or more, found "-1"',
        "ENABLE_CACHING": 'must be true or false, found "perhaps"',
    }


@pytest.mark.parametrize("hours", ["nan", "inf", "1e999", "a day"])
def test_a_number_of_hours_that_is_none_is_refused(hours: str) -> None:
    assert "must be a number of hours" in _alone(OLLAMA_CACHING_TTL_HOURS=hours)["OLLAMA_CACHING_TTL_HOURS"]


def test_bytes_of_a_variable_that_are_no_text_are_told() -> None:
    problems = _alone(OLLAMA_URL_1="http://gpu1", OLLAMA_MODEL_1="\udcff", OLLAMA_NAME_1="a\udc80")
    assert set(problems) == {"OLLAMA_MODEL_1", "OLLAMA_NAME_1"}
    assert all(message.isprintable() for message in problems.values())


def test_two_variables_for_the_same_ollama_are_refused() -> None:
    problems = _alone(OLLAMA_URL_1="http://gpu1:11434", OLLAMA_URL_2="http://GPU1:11434/v1")
    assert problems["OLLAMA_URL_2"] == '"http://GPU1:11434" is already the url of instances[0]'


@given(
    env=st.dictionaries(st.from_regex(r"OLLAMA_(URL|MODEL|NAME|X)_?[0-9]{0,2}", fullmatch=True), st.text(max_size=9))
)
@settings(deadline=None)
def test_variables_at_random_are_read_or_refused_but_never_break(env: dict[str, str]) -> None:
    try:
        load(env=env)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either outcome is right; nothing else may be raised


# --- files of variables


def test_a_file_of_variables_is_read_as_docker_and_a_shell_read_it(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# the two machines\n"
        "\n"
        "OLLAMA_URL_1=http://gpu1:11434\n"
        "export OLLAMA_NAME_1 = alpha   # the large one\n"
        "OLLAMA_MODEL_1='a # b' # c\r\n"
        'QUOTED="say \\"hi\\"\\n\\\\ $X"\n'
        "HASH=a#b\n"
        "EMPTY=\n"
        "ALSO_EMPTY= # nothing\n"
        "LAST=1\n"
        "LAST=2"
    )
    assert read_env_file(file) == {
        "OLLAMA_URL_1": "http://gpu1:11434",
        "OLLAMA_NAME_1": "alpha",
        "OLLAMA_MODEL_1": "a # b",
        "QUOTED": 'say "hi"\n\\ $X',
        "HASH": "a#b",
        "EMPTY": "",
        "ALSO_EMPTY": "",
        "LAST": "2",
    }


def test_the_lines_of_a_file_of_variables_that_are_none_are_told_without_their_values(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text('A=1\nhunter2\n2A=hunter2\nB=\'hunter2\nC="hunter2" hunter2\n')
    with pytest.raises(ConfigError) as caught:
        read_env_file(file)
    assert [(problem.line, problem.where) for problem in caught.value.problems] == [
        (2, ""),
        (3, ""),
        (4, "B"),
        (5, "C"),
    ]
    assert "hunter2" not in str(caught.value)


@given(content=st.binary(max_size=100))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_variables_at_random_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / ".env"
    file.write_bytes(content)
    try:
        read_env_file(file)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either outcome is right; nothing else may be raised
