"""For how long an instance, or one of its models, is left out, and why: in words for whoever asks."""

from __future__ import annotations

from gateway.config import BreakerConfig
from gateway.errors import ConnectionLost, Refused, UpstreamError
from gateway.instances.breaker import Breakers

NO_MEMORY = Refused("alpha", 500, "model requires more system memory (24.0 GiB) than is available (7.5 GiB)")


def some_breakers(error: UpstreamError, times: int) -> Breakers:
    breakers = Breakers(BreakerConfig.model_validate({"failures": 2, "cooldown": 10}), lambda: 0.5)
    for _ in range(times):
        breakers.failed(object(), "m:latest", error, 0.0, running=0)
    return breakers


def test_of_an_instance_that_fails_all_models_are_left_out() -> None:
    breakers = some_breakers(ConnectionLost("alpha", "reset"), times=2)
    why = breakers.whole.why
    assert why
    assert breakers.left_out("m:latest", 4.0) == f"all models for 6 s more: {why}"
    assert breakers.left_out("n:latest", 4.0) == f"all models for 6 s more: {why}"
    assert breakers.left_out("n:latest", 10.0) == f"all models until one call has tried it: {why}"


def test_a_model_that_finds_no_memory_is_left_out_alone() -> None:
    breakers = some_breakers(NO_MEMORY, times=1)
    why = breakers.models["m:latest"].why
    assert why
    assert breakers.left_out("m:latest", 4.0) == f"model m:latest for 6 s more: {why}"
    assert breakers.left_out("m:latest", 11.0) == f"model m:latest until one call has tried it: {why}"
    assert breakers.left_out("n:latest", 4.0) == ""


def test_after_one_failure_nothing_is_left_out() -> None:
    assert some_breakers(ConnectionLost("alpha", "reset"), times=1).left_out("m:latest", 0.0) == ""
