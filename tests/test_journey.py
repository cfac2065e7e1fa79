"""When a call may be tried again, and when its answer may be kept. Its way on real sockets is told in journeys/."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Operation, Wish
from gateway.config import Config
from gateway.dialects import facade, ollama, openai
from gateway.errors import ConnectFailed, ConnectionLost, UpstreamError
from gateway.journey import RetryBudget, Setting

SENT: UpstreamError = ConnectionLost("alpha", "reset")
NOT_SENT: UpstreamError = ConnectFailed("alpha", "connection refused")


def granted(budget: RetryBudget, tries: int) -> int:
    """How many of so many attempts after the first are allowed now."""
    return sum(budget.spend(SENT) for _ in range(tries))


# The budget of attempts after the first


def test_the_reserve_is_there_before_any_call_came() -> None:
    assert granted(RetryBudget(0.2, 10), 50) == 10


def test_calls_earn_attempts_at_the_ratio() -> None:
    budget = RetryBudget(0.5, 0)
    assert granted(budget, 1) == 0
    for _ in range(7):
        budget.earn()
    assert granted(budget, 50) == 3
    budget.earn()
    assert granted(budget, 50) == 1


def test_no_more_is_saved_than_the_reserve_or_what_ten_calls_earn() -> None:
    for ratio, reserve, most in ((0.2, 10, 10), (0.5, 0, 5), (2.0, 3, 20), (0.0, 4, 4)):
        budget = RetryBudget(ratio, reserve)
        for _ in range(10_000):
            budget.earn()
        assert granted(budget, 1000) == most


def test_a_budget_of_nothing_allows_nothing() -> None:
    budget = RetryBudget(0.0, 0)
    for _ in range(100):
        budget.earn()
    assert granted(budget, 10) == 0


def test_what_was_never_sent_costs_nothing_and_is_always_allowed() -> None:
    budget = RetryBudget(0.2, 1)
    assert all(budget.spend(NOT_SENT) for _ in range(1000))
    assert granted(budget, 5) == 1
    assert budget.spend(NOT_SENT)


@given(
    ratio=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]),
    reserve=st.integers(0, 20),
    steps=st.lists(st.sampled_from(["call", "failure"]), max_size=200),
)
def test_a_pool_that_fails_is_never_tried_again_more_often_than_was_earned(
    ratio: float, reserve: int, steps: list[str]
) -> None:
    budget = RetryBudget(ratio, reserve)
    calls = spent = 0
    for step in steps:
        if step == "call":
            calls += 1
            budget.earn()
        else:
            spent += budget.spend(SENT)
        assert spent <= reserve + ratio * calls


# What may be kept


def setting(rule: str = "auto", **keys: Any) -> Setting:
    """With one route, r, that says `cache: <rule>`."""
    route = {"name": "r", "match": {"model": "x"}, "to": [{"instance": "alpha"}], "cache": rule}
    given_keys = {"instances": [{"name": "alpha", "url": "http://alpha:1"}], "routes": [route]}
    config = Config.model_validate(given_keys | keys)
    return Setting(config=config, digest="d", routes={one.name: one for one in config.routes}, upstreams={})


def call(operation: Operation = openai.CHAT, *, no_store: bool = False, **wish: Any) -> Call:
    return Call(request_id="r", operation=operation, wish=Wish(**wish), body=b"{}", no_store=no_store)


@pytest.mark.parametrize("operation", [openai.CHAT, openai.COMPLETIONS, ollama.CHAT, ollama.GENERATE])
@pytest.mark.parametrize(
    ("rule", "deterministic", "kept"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("always", False, True),
        ("always", True, True),
        ("never", True, False),
        ("never", False, False),
    ],
)
def test_the_route_decides_and_by_itself_keeps_what_is_deterministic(
    operation: Operation, rule: str, deterministic: bool, kept: bool
) -> None:
    assert setting(rule).cacheable(call(operation, deterministic=deterministic), "r") is kept


@pytest.mark.parametrize("route", ["by-model", "by-task", "gone"])
def test_without_a_route_of_ones_own_only_what_is_deterministic_is_kept(route: str) -> None:
    assert setting("always").cacheable(call(deterministic=True), route)
    assert not setting("always").cacheable(call(), route)


def test_the_facade_is_kept_unless_its_route_says_never() -> None:
    assert setting().cacheable(call(facade.CHAT), "r")
    assert setting().cacheable(call(facade.CHAT), "by-task")
    assert not setting("never").cacheable(call(facade.CHAT), "r")


@pytest.mark.parametrize("rule", ["auto", "always"])
@pytest.mark.parametrize("operation", [openai.CHAT, facade.CHAT])
def test_nothing_overrules_a_client_a_stream_or_a_cache_that_is_off(rule: str, operation: Operation) -> None:
    assert setting(rule).cacheable(call(operation, deterministic=True), "r")
    assert not setting(rule).cacheable(call(operation, deterministic=True, no_store=True), "r")
    assert not setting(rule).cacheable(call(operation, deterministic=True, stream=True), "r")
    assert not setting(rule, cache={"enabled": False}).cacheable(call(operation, deterministic=True), "r")


# Time limits


def test_a_route_replaces_the_limits_it_gives_and_leaves_the_others() -> None:
    route = {"name": "r", "match": {"model": "x"}, "to": [{"instance": "alpha"}], "timeouts": {"line": 5, "total": 0}}
    limits = setting(routes=[route], timeouts={"line": 60, "idle": 7})
    assert (limits.timeouts("r").line, limits.timeouts("r").idle, limits.timeouts("r").total) == (5, 7, 0)
    assert (limits.timeouts("by-model").line, limits.timeouts("by-model").idle) == (60, 7)
