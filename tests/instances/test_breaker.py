"""The breaker of one instance: what opens it, what closes it, and who may try."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.config import BreakerConfig
from gateway.instances.breaker import Breaker, BreakerState


def a_breaker(chance: float = 0.5, **settings: float) -> Breaker:
    """Opens at 2 failures or 3 failed connections, for 10 s; a chance of 0.5 means no jitter."""
    return Breaker(BreakerConfig.model_validate({"failures": 2, "connects": 3, **settings}), lambda: chance)


def fail(breaker: Breaker, times: int, now: float = 0.0, *, connect: bool = False) -> None:
    for _ in range(times):
        breaker.failed(object(), now, "upstream_reset", connect=connect)


def a_trial(breaker: Breaker, now: float) -> object:
    call = object()
    breaker.begin(call, now)
    return call


def an_open_breaker() -> Breaker:
    breaker = a_breaker()
    fail(breaker, 2)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = a_breaker()
    fail(breaker, 1)
    assert breaker.allows(0.0)
    fail(breaker, 1)
    assert breaker.state_at(0.0) is BreakerState.OPEN
    assert not breaker.allows(9.99)
    assert breaker.why == "2 failed calls in a row, the last: upstream_reset"


def test_a_call_that_ended_well_begins_the_row_anew() -> None:
    breaker = a_breaker()
    fail(breaker, 1)
    breaker.succeeded()
    fail(breaker, 1)
    assert breaker.state_at(0.0) is BreakerState.CLOSED


def test_failed_connections_are_a_row_of_their_own() -> None:
    breaker = a_breaker()
    fail(breaker, 2, connect=True)
    fail(breaker, 1)
    assert breaker.state_at(0.0) is BreakerState.CLOSED
    fail(breaker, 1, connect=True)
    assert breaker.state_at(0.0) is BreakerState.OPEN
    assert breaker.why == "3 failed connections in a row"


def test_a_first_token_ends_a_row_of_failed_connections_but_not_of_failed_calls() -> None:
    breaker = a_breaker()
    fail(breaker, 2, connect=True)
    breaker.heard(object())
    fail(breaker, 1, connect=True)
    assert breaker.state_at(0.0) is BreakerState.CLOSED


def test_an_instance_that_dies_in_every_stream_is_taken_out() -> None:
    breaker = a_breaker()
    for _ in range(2):
        call = object()
        breaker.heard(call)
        breaker.failed(call, 0.0, "stream_broken")
    assert breaker.state_at(0.0) is BreakerState.OPEN


def test_a_half_open_breaker_lets_exactly_one_call_through() -> None:
    breaker = an_open_breaker()
    assert breaker.state_at(10.0) is BreakerState.HALF_OPEN
    assert breaker.allows(10.0)
    a_trial(breaker, 10.0)
    assert not breaker.allows(10.0)
    assert not breaker.allows(1e9)


def test_a_trial_that_is_answered_closes_it_at_once() -> None:
    breaker = an_open_breaker()
    breaker.heard(a_trial(breaker, 10.0))
    assert breaker.state_at(10.0) is BreakerState.CLOSED
    assert breaker.why == ""


def test_a_trial_that_leaves_without_a_verdict_gives_its_turn_to_the_next() -> None:
    breaker = an_open_breaker()
    breaker.left(a_trial(breaker, 10.0))
    assert breaker.allows(10.0)
    assert breaker.state_at(10.0) is BreakerState.HALF_OPEN


def test_each_failed_trial_makes_the_cooldown_longer_up_to_its_cap() -> None:
    breaker = a_breaker(max_cooldown=25.0)
    fail(breaker, 2)
    ends = []
    for _ in range(3):
        now = breaker.until or 0.0
        assert breaker.allows(now)
        breaker.failed(a_trial(breaker, now), now, "connect", connect=True)
        ends.append((breaker.until or 0.0) - now)
    assert ends == [20.0, 25.0, 25.0]
    assert breaker.why == "the trial call failed: connect"


def test_a_call_that_ends_well_makes_the_next_cooldown_short_again() -> None:
    breaker = an_open_breaker()
    trial = a_trial(breaker, 10.0)
    breaker.heard(trial)
    breaker.succeeded()
    breaker.left(trial)
    fail(breaker, 2, now=100.0)
    assert breaker.until == 110.0


def test_a_trial_that_breaks_after_its_first_token_opens_it_again_for_longer() -> None:
    breaker = an_open_breaker()
    trial = a_trial(breaker, 10.0)
    breaker.heard(trial)
    breaker.failed(trial, 12.0, "stream_broken")
    assert breaker.until == 32.0


def test_calls_from_before_it_opened_move_nothing() -> None:
    breaker = an_open_breaker()
    trial = a_trial(breaker, 10.0)
    late = object()
    breaker.heard(late)
    breaker.succeeded()
    fail(breaker, 5, now=11.0)
    fail(breaker, 5, now=11.0, connect=True)
    breaker.left(late)
    assert breaker.state_at(11.0) is BreakerState.HALF_OPEN
    assert not breaker.allows(11.0)
    breaker.heard(trial)
    assert breaker.allows(11.0)


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_a_cooldown_is_a_fifth_longer_or_shorter_at_random(chance: float) -> None:
    breaker = a_breaker(chance)
    fail(breaker, 2, now=100.0)
    assert breaker.until is not None
    assert 108.0 <= breaker.until <= 112.0


def test_asking_changes_nothing() -> None:
    breaker = an_open_breaker()
    for _ in range(3):
        assert breaker.allows(10.0)
        assert breaker.state_at(10.0) is BreakerState.HALF_OPEN
        assert breaker.state_at(1.0) is BreakerState.OPEN
