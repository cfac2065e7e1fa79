"""The models of the configuration: what they take for a time, a size and an address, and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.config import (
    BUILT_IN_TASKS,
    CacheConfig,
    Config,
    InstanceConfig,
    LineConfig,
    RouteTimeouts,
    Timeouts,
)

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@given(count=st.integers(0, 100_000), unit=st.sampled_from(sorted(_UNITS)))
def test_a_time_with_a_unit_is_the_same_time_in_seconds(count: int, unit: str) -> None:
    written = Timeouts.model_validate({"idle": f"{count}{unit}"})
    assert written.idle == pytest.approx(count * _UNITS[unit])
    assert Timeouts.model_validate(written.model_dump()) == written


@given(count=st.integers(0, 100_000), unit=st.sampled_from(sorted(_SIZES)), space=st.sampled_from(["", " "]))
def test_a_size_with_a_unit_is_the_same_number_of_bytes(count: int, unit: str, space: str) -> None:
    written = LineConfig.model_validate({"max_bytes": f"{count}{space}{unit}"})
    assert written.max_bytes == count * _SIZES[unit]
    assert LineConfig.model_validate(written.model_dump()) == written


@given(seconds=st.floats(0, 1e9))
def test_a_number_is_seconds(seconds: float) -> None:
    assert CacheConfig.model_validate({"ttl": seconds}).ttl == seconds


@pytest.mark.parametrize("text", ["", "5", "5 minutes", "-5s", "1h30m", "s", "five", "1e3s", ".5s", "5S"])
def test_a_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="must be a time"):
        Timeouts.model_validate({"idle": text})


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_number_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValidationError):
        Timeouts.model_validate({"idle": seconds})


@pytest.mark.parametrize("text", ["", "5", "5 megabytes", "-5MiB", "5mib", "MiB", "1_000B"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="must be a size"):
        LineConfig.model_validate({"max_bytes": text})


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_an_address_is_the_same_with_and_without_v1(tail: str) -> None:
    assert InstanceConfig(name="a", url=f"http://gpu1:11434{tail}").url == "http://gpu1:11434"


@pytest.mark.parametrize(
    "url",
    [
        "gpu1:11434",
        "ftp://gpu1",
        "http://",
        "http://user:word@gpu1",
        "http://gpu1/api",
        "http://gpu1?x=1",
        "http://gpu1#x",
        "http://gpu1:port",
        "http://gpu1:99999",
        "http://[::1",
        "",
    ],
)
def test_an_address_that_is_more_or_less_than_an_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        InstanceConfig(name="a", url=url)


def test_a_configuration_cannot_be_changed_once_it_is_read() -> None:
    config = Config.model_validate({"instances": [{"name": "a", "url": "http://gpu1"}]})
    with pytest.raises(ValidationError, match="frozen"):
        config.cache.enabled = False  # type: ignore[misc]


def test_the_limits_of_a_route_replace_only_those_it_gives() -> None:
    limits = Timeouts().under(RouteTimeouts.model_validate({"idle": "5s", "total": 0}))
    assert (limits.idle, limits.total) == (5.0, 0.0)
    assert limits.first_token == Timeouts().first_token


def test_tasks_of_ones_own_stand_beside_the_built_in_ones_and_may_replace_them() -> None:
    instances = [{"name": "a", "url": "http://gpu1"}]
    config = Config.model_validate({"instances": instances, "tasks": {"planning": ["x"], "mine": ["y"]}})
    assert config.all_tasks == {**BUILT_IN_TASKS, "planning": ("x",), "mine": ("y",)}
