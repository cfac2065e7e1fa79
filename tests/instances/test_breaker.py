"""What calls say of an instance: what opens a breaker, what closes it, who may try, and how it comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import BreakerConfig
from gateway.errors import (
    ConnectFailed,
    ConnectionLost,
    FirstTokenTimeout,
    IdleTimeout,
    Refused,
    StreamBroken,
    UpstreamError,
)
from gateway.instances.breaker import MAX_MODELS, NEVER, Breaker, Breakers, BreakerState, Tally

LOST = ConnectionLost("alpha", "reset")
UNREACHABLE = ConnectFailed("alpha", "refused")
SILENT = FirstTokenTimeout("alpha", "silent")
BROKEN = StreamBroken("alpha", "it ended without its end marker")
NO_MEMORY = Refused("alpha", 500, "model requires more system memory (24.0 GiB) than is available (7.5 GiB)")
STOPPED = Refused("alpha", 500, "model runner has unexpectedly stopped, this may be due to resource limitations")
BUSY = Refused("alpha", 503, "server busy, please try again.  maximum pending requests exceeded")

CLOSED, OPEN, HALF_OPEN = BreakerState


def settings(**changed: float) -> BreakerConfig:
    """Opens at 2 failures or 3 failed connections, for 10 s."""
    return BreakerConfig.model_validate({"failures": 2, "connects": 3, **changed})


def a_breaker(chance: float = 0.5, **changed: float) -> Breaker:
    """A chance of 0.5 means no jitter."""
    return Breaker(settings(**changed), lambda: chance)


def fail(breaker: Breaker, times: int, now: float = 0.0, error: UpstreamError = LOST) -> None:
    for _ in range(times):
        breaker.failed(object(), error, now)


def a_trial(breaker: Breaker, now: float) -> object:
    call = object()
    breaker.begin(call, now)
    return call


def an_open_breaker(error: UpstreamError = LOST, **changed: float) -> Breaker:
    breaker = a_breaker(**changed)
    fail(breaker, 3 if error is UNREACHABLE else 2, error=error)
    return breaker


# What opens it


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = a_breaker()
    fail(breaker, 1)
    assert breaker.allows(0.0)
    fail(breaker, 1)
    assert breaker.state_at(0.0) is OPEN
    assert not breaker.allows(9.99)
    assert breaker.why == "2 failed calls in a row, the last: upstream_reset"


def test_a_call_that_ended_well_begins_the_row_anew() -> None:
    breaker = a_breaker()
    fail(breaker, 1)
    breaker.succeeded(0.0)
    fail(breaker, 1)
    assert breaker.state_at(0.0) is CLOSED


def test_failed_connections_are_a_row_of_their_own() -> None:
    breaker = a_breaker()
    fail(breaker, 2, error=UNREACHABLE)
    fail(breaker, 1)
    assert breaker.state_at(0.0) is CLOSED
    fail(breaker, 1, error=UNREACHABLE)
    assert breaker.state_at(0.0) is OPEN
    assert breaker.why == "3 failed connections in a row"


def test_a_first_token_ends_a_row_of_failed_connections_but_not_of_failed_calls() -> None:
    breaker = a_breaker()
    fail(breaker, 2, error=UNREACHABLE)
    breaker.heard(object(), 0.0)
    fail(breaker, 1, error=UNREACHABLE)
    assert breaker.state_at(0.0) is CLOSED


def test_two_calls_in_a_row_without_a_first_token_open_it_whatever_came_between_but_a_first_token() -> None:
    breaker = a_breaker(failures=100)
    fail(breaker, 1, error=SILENT)
    fail(breaker, 5, error=LOST)
    assert breaker.state_at(0.0) is CLOSED
    fail(breaker, 1, error=SILENT)
    assert breaker.state_at(0.0) is OPEN
    assert breaker.why == "2 calls in a row had no first token in time"


def test_a_first_token_ends_a_row_of_silences() -> None:
    breaker = a_breaker(failures=100)
    for _ in range(5):
        fail(breaker, 1, error=SILENT)
        breaker.heard(object(), 0.0)
    assert breaker.state_at(0.0) is CLOSED


def test_streams_that_run_out_well_while_nothing_new_begins_end_neither_row() -> None:
    for error in (SILENT, UNREACHABLE):
        breaker = a_breaker(failures=100)
        for _ in range(3):
            fail(breaker, 1, error=error)
            breaker.succeeded(0.0)
        assert breaker.state_at(0.0) is OPEN


def test_how_many_silences_open_it_is_configured() -> None:
    breaker = a_breaker(failures=100, first_tokens=3)
    fail(breaker, 2, error=SILENT)
    assert breaker.state_at(0.0) is CLOSED
    fail(breaker, 1, error=SILENT)
    assert breaker.state_at(0.0) is OPEN


def test_an_instance_that_dies_in_every_stream_is_taken_out() -> None:
    breaker = a_breaker()
    for _ in range(2):
        call = object()
        breaker.heard(call, 0.0)
        breaker.failed(call, BROKEN, 0.0)
    assert breaker.state_at(0.0) is OPEN


def test_half_of_many_calls_failing_opens_it_though_they_fail_in_no_row() -> None:
    breaker = a_breaker(calls=20, ratio=0.5, window=30.0)
    for second in range(9):
        breaker.succeeded(float(second))
        fail(breaker, 1, now=float(second))
    breaker.succeeded(9.0)
    assert breaker.state_at(9.0) is CLOSED, "of 19 calls nothing can be said yet"
    fail(breaker, 1, now=9.0)
    assert breaker.state_at(9.0) is OPEN
    assert breaker.why == "10 of the last 20 calls failed, the last: upstream_reset"


def test_fewer_than_half_do_not() -> None:
    breaker = a_breaker(calls=20, ratio=0.5, window=30.0)
    for call in range(200):
        breaker.succeeded(call / 10)
        if call % 2:
            fail(breaker, 1, now=call / 10)
    assert breaker.state_at(20.0) is CLOSED


def test_half_of_calls_long_ago_do_not() -> None:
    breaker = a_breaker(calls=20, ratio=0.5, window=30.0)
    for second in range(100):
        breaker.succeeded(4.0 * second)
        fail(breaker, 1, now=4.0 * second)
    assert breaker.state_at(400.0) is CLOSED, "16 calls in 30 s"


def test_one_failure_to_load_for_want_of_memory_is_enough() -> None:
    breaker = a_breaker()
    fail(breaker, 1, error=NO_MEMORY)
    assert (breaker.until, breaker.why) == (10.0, "it could not load the model: no_memory")


# The trial


def test_a_half_open_breaker_lets_exactly_one_call_through() -> None:
    breaker = an_open_breaker()
    assert breaker.state_at(10.0) is HALF_OPEN
    assert breaker.allows(10.0)
    a_trial(breaker, 10.0)
    for last_resort in (False, True):
        assert not breaker.allows(10.0, last_resort=last_resort)
        assert not breaker.allows(1e9, last_resort=last_resort)


def test_a_trial_that_is_answered_closes_it_at_once() -> None:
    breaker = an_open_breaker()
    breaker.heard(a_trial(breaker, 10.0), 10.0)
    assert breaker.state_at(10.0) is CLOSED
    assert breaker.why == ""


def test_a_trial_that_leaves_without_a_verdict_gives_its_turn_to_the_next() -> None:
    breaker = an_open_breaker()
    breaker.left(a_trial(breaker, 10.0))
    assert breaker.allows(10.0)
    assert breaker.state_at(10.0) is HALF_OPEN


def test_each_failed_trial_makes_the_cooldown_longer_up_to_its_cap() -> None:
    breaker = a_breaker(max_cooldown=25.0)
    fail(breaker, 2)
    ends = []
    for _ in range(3):
        now = breaker.until or 0.0
        assert breaker.allows(now)
        breaker.failed(a_trial(breaker, now), UNREACHABLE, now)
        ends.append((breaker.until or 0.0) - now)
    assert ends == [20.0, 25.0, 25.0]
    assert breaker.why == "the trial call failed: connect"


def test_a_call_that_ends_well_makes_the_next_cooldown_short_again() -> None:
    breaker = an_open_breaker()
    trial = a_trial(breaker, 10.0)
    breaker.heard(trial, 10.0)
    breaker.succeeded(10.0)
    breaker.left(trial)
    fail(breaker, 2, now=100.0)
    assert breaker.until == 110.0


def test_a_trial_that_breaks_after_its_first_token_opens_it_again_for_longer() -> None:
    breaker = an_open_breaker()
    trial = a_trial(breaker, 10.0)
    breaker.heard(trial, 10.0)
    breaker.failed(trial, BROKEN, 12.0)
    assert breaker.until == 32.0


def test_calls_from_before_it_opened_move_nothing() -> None:
    breaker = an_open_breaker()
    trial = a_trial(breaker, 10.0)
    late = object()
    breaker.heard(late, 11.0)
    breaker.succeeded(11.0)
    fail(breaker, 5, now=11.0)
    fail(breaker, 5, now=11.0, error=UNREACHABLE)
    breaker.left(late)
    assert breaker.state_at(11.0) is HALF_OPEN
    assert not breaker.allows(11.0)
    breaker.heard(trial, 11.0)
    assert breaker.allows(11.0)


def test_what_failed_before_it_opened_is_not_held_against_it_when_it_is_back() -> None:
    breaker = a_breaker(failures=100, calls=20)
    fail(breaker, 20)
    assert breaker.state_at(0.0) is OPEN
    trial = a_trial(breaker, 10.0)
    breaker.heard(trial, 10.0)
    breaker.succeeded(10.0)
    breaker.left(trial)
    fail(breaker, 19, now=11.0)
    assert breaker.state_at(11.0) is OPEN, "19 of 20"
    assert breaker.why == "19 of the last 20 calls failed, the last: upstream_reset"


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
        assert breaker.state_at(10.0) is HALF_OPEN
        assert breaker.state_at(1.0) is OPEN
        assert breaker.ramp(4, 1.0) == 4


# The last resort


@pytest.mark.parametrize(("error", "bends"), [(LOST, True), (SILENT, True), (STOPPED, True), (UNREACHABLE, False)])
def test_an_open_breaker_lets_one_call_go_as_a_last_resort_unless_nobody_listens(
    error: UpstreamError, *, bends: bool
) -> None:
    breaker = an_open_breaker(error)
    assert not breaker.allows(1.0)
    assert breaker.allows(1.0, last_resort=True) is bends


def test_one_last_resort_comes_after_the_other_and_none_makes_the_cooldown_longer() -> None:
    breaker = an_open_breaker()
    for second in range(1, 9):
        call = object()
        assert breaker.begin(call, float(second)), "it is a last resort"
        assert not breaker.allows(float(second), last_resort=True)
        breaker.failed(call, LOST, float(second))
        breaker.left(call)
        assert breaker.allows(float(second), last_resort=True)
    assert breaker.until == 10.0


def test_a_last_resort_that_is_answered_closes_it() -> None:
    breaker = an_open_breaker()
    breaker.heard(a_trial(breaker, 1.0), 1.5)
    assert (breaker.state_at(1.5), breaker.since) == (CLOSED, 1.5)


def test_a_last_resort_that_finds_nobody_listening_is_the_last_of_them() -> None:
    breaker = an_open_breaker()
    breaker.failed(a_trial(breaker, 1.0), UNREACHABLE, 1.0)
    assert not breaker.allows(2.0, last_resort=True)
    assert breaker.allows(10.0)


def test_a_trial_that_finds_somebody_listening_who_fails_makes_it_soft() -> None:
    breaker = an_open_breaker(UNREACHABLE)
    breaker.failed(a_trial(breaker, 10.0), LOST, 10.0)
    assert breaker.allows(11.0, last_resort=True)


def test_a_last_resort_that_breaks_off_after_its_first_token_opens_it_for_longer() -> None:
    breaker = an_open_breaker()
    call = a_trial(breaker, 1.0)
    breaker.heard(call, 1.0)
    breaker.failed(call, BROKEN, 2.0)
    assert breaker.until == 22.0


# Slow start


def closed_again(at: float = 10.0, **changed: float) -> Breaker:
    breaker = an_open_breaker(LOST, **changed)
    breaker.heard(a_trial(breaker, at), at)
    return breaker


def test_closed_again_it_has_one_call_at_a_time_and_more_and_more_until_its_limit() -> None:
    breaker = closed_again(slow_start=30.0)
    seconds = [0.0, 9.9, 10.0, 19.9, 20.0, 29.9, 30.0, 99.0]
    assert [breaker.ramp(4, 10.0 + s) for s in seconds] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_it_tells_when_the_next_step_is_until_there_is_none() -> None:
    breaker = closed_again(slow_start=30.0)
    now, steps = 10.0, []
    while (now := breaker.settle(4, now)) < NEVER:
        steps.append((now, breaker.ramp(4, now)))
    assert steps == [(20.0, 2), (30.0, 3), (40.0, 4)]
    assert breaker.since is None


@given(limit=st.integers(1, 4096), span=st.floats(0.1, 3600.0), at=st.floats(0.0, 1e6))
def test_a_slow_start_goes_on_with_every_step_never_ahead_of_time(limit: int, span: float, at: float) -> None:
    breaker = closed_again(at, slow_start=span)
    now, allowed = at, breaker.ramp(limit, at)
    assert allowed == 1
    for _ in range(40):
        due = breaker.settle(limit, now)
        if allowed == limit:
            assert (due, breaker.since) == (NEVER, None)
            break
        assert due > now
        now, before = due, allowed
        allowed = breaker.ramp(limit, now)
        assert before < allowed <= 1 + (limit - 1) * (now - at) / span + 1e-5


def test_an_instance_that_was_never_out_has_no_slow_start() -> None:
    breaker = a_breaker()
    fail(breaker, 1)
    breaker.heard(object(), 0.0)
    breaker.succeeded(0.0)
    assert (breaker.ramp(4, 0.0), breaker.settle(4, 0.0)) == (4, NEVER)


def test_without_a_slow_start_it_has_its_limit_at_once() -> None:
    breaker = closed_again(slow_start=0.0)
    assert breaker.ramp(4, 10.0) == 4


def test_opened_in_its_slow_start_it_begins_another_when_it_is_back() -> None:
    breaker = closed_again(slow_start=30.0)
    fail(breaker, 2, now=15.0)
    until = breaker.until
    assert until == 35.0
    breaker.heard(a_trial(breaker, until), until)
    assert breaker.ramp(4, until) == 1


# The tally


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.booleans()), max_size=200))
def test_a_tally_counts_what_ended_within_its_span_to_a_tenth(calls: list[tuple[float, bool]]) -> None:
    tally, now, noted = Tally(30.0), 1000.0, []
    for wait, failed in calls:
        now += wait
        tally.note(now, failed=failed)
        noted.append((now, failed))
        for counted, those in zip(tally.counts(now), ([f for f in noted if f[1]], noted), strict=True):
            assert sum(at > now - 27.0 for at, _ in those) <= counted <= sum(at > now - 30.0 for at, _ in those)


def test_a_tally_never_grows() -> None:
    tally = Tally(30.0)
    for call in range(10_000):
        tally.note(call * 0.37, failed=True)
    assert (len(tally._ended), len(tally._failed)) == (10, 10)


def test_another_window_begins_to_count_anew_and_the_same_one_goes_on() -> None:
    breaker = a_breaker(failures=100, calls=4)
    fail(breaker, 3)
    breaker.configure(settings(failures=100, calls=4))
    fail(breaker, 1)
    assert breaker.state_at(0.0) is OPEN
    breaker = a_breaker(failures=100, calls=4)
    fail(breaker, 3)
    breaker.configure(settings(failures=100, calls=4, window=10.0))
    fail(breaker, 1)
    assert breaker.state_at(0.0) is CLOSED


# Of the whole, or of a model


def breakers(**changed: float) -> Breakers:
    return Breakers(settings(**changed), lambda: 0.5)


def failed(some: Breakers, error: UpstreamError, model: str = "m", times: int = 1, now: float = 0.0) -> None:
    for _ in range(times):
        some.failed(object(), model, error, now, running=0)


def allowed(some: Breakers, now: float = 0.0) -> tuple[bool, bool]:
    return some.allows("m", now), some.allows("n", now)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("model requires more system memory (24.0 GiB) than is available (7.5 GiB)", "no_memory"),
        ("unable to load full model on GPU", "no_memory"),
        ("llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory", "no_memory"),
        ("CUDA error: out of memory", "no_memory"),
        ("ggml_backend: failed to allocate buffer", "no_memory"),
        ("llama-server process has terminated: exit status 2", "load_failed"),
        ("llama runner process has terminated: signal: killed", "load_failed"),
        ("timed out waiting for llama-server to start: context deadline exceeded", "load_failed"),
        ("this model may be incompatible with your version of Ollama", "load_failed"),
    ],
)
def test_a_load_that_fails_takes_that_model_out_at_once_and_leaves_the_others(words: str, cause: str) -> None:
    for error in (Refused("alpha", 500, words), StreamBroken("alpha", words)):
        some = breakers()
        failed(some, error)
        assert allowed(some) == (False, True)
        assert (error.cause, error.repeatable, error.failover) == (cause, False, True)


def test_a_runner_that_dies_again_and_again_takes_only_its_model_out() -> None:
    some = breakers()
    failed(some, STOPPED)
    assert allowed(some) == (True, True)
    failed(some, STOPPED)
    assert allowed(some) == (False, True)
    assert STOPPED.repeatable


@pytest.mark.parametrize("error", [Refused("alpha", 400, "out of memory"), Refused("alpha", 404, "out of memory")])
def test_words_of_a_refusal_that_is_the_clients_count_for_nothing(error: UpstreamError) -> None:
    some = breakers()
    failed(some, error, times=50)
    assert (error.cause, some.calm) == ("", True)


def test_a_failed_connection_is_of_the_whole() -> None:
    some = breakers()
    failed(some, UNREACHABLE, times=3)
    assert (allowed(some), dict(some.models)) == ((False, False), {})


@pytest.mark.parametrize("error", [LOST, SILENT, BROKEN, IdleTimeout("alpha", "silent"), Refused("alpha", 500, "boom")])
def test_what_may_be_either_opens_the_whole_where_all_models_fail(error: UpstreamError) -> None:
    some = breakers()
    failed(some, error)
    failed(some, error, "n")
    assert allowed(some) == (False, False)
    assert all(own.until is None for own in some.models.values())


@pytest.mark.parametrize("error", [LOST, SILENT, BROKEN, Refused("alpha", 500, "boom")])
def test_what_may_be_either_takes_the_model_out_where_the_others_do_well(error: UpstreamError) -> None:
    some = breakers()
    for _ in range(2):
        failed(some, error)
        some.heard(object(), "n", 0.0)
        some.succeeded("n", 0.0)
    assert allowed(some) == (False, True)


@pytest.mark.parametrize("error", [LOST, SILENT, Refused("alpha", 502, "the cloud is away")])
def test_what_goes_wrong_in_the_cloud_is_not_the_instances_fault(error: UpstreamError) -> None:
    some = breakers()
    failed(some, error, "big@cloud", times=2)
    assert (some.allows("big@cloud", 0.0), some.whole.until) == (False, None)


def test_a_trial_is_that_of_the_whole_and_of_its_model() -> None:
    some = breakers()
    failed(some, NO_MEMORY)
    failed(some, UNREACHABLE, "n", times=3)
    call = object()
    assert not some.begin(call, "m", 10.0)
    assert not some.whole.allows(10.0)
    some.heard(call, "m", 10.0)
    assert allowed(some, 10.0) == (True, True)


def test_a_trial_for_a_model_that_fails_by_itself_says_nothing_of_the_whole() -> None:
    some = breakers()
    failed(some, LOST, times=2)
    call = object()
    some.begin(call, "m", 10.0)
    some.failed(call, "m", NO_MEMORY, 10.0, running=0)
    some.left(call, "m")
    assert allowed(some, 10.0) == (False, True)


def test_at_most_so_many_models_have_a_breaker_the_last_that_failed() -> None:
    some = breakers()
    for number in range(MAX_MODELS):
        failed(some, NO_MEMORY, f"m{number}")
    failed(some, NO_MEMORY, "m0")
    failed(some, NO_MEMORY, "another")
    assert len(some.models) == MAX_MODELS
    assert not some.allows("m0", 0.0)
    assert some.allows("m1", 0.0)


def test_the_breaker_of_a_model_is_forgotten_when_it_says_nothing_any_more() -> None:
    some = breakers(window=30.0)
    failed(some, LOST)
    some.succeeded("m", 1.0)
    some.settle(4, slots, 20.0)
    assert list(some.models) == ["m"], "its failure still counts"
    some.settle(4, slots, 40.0)
    assert (list(some.models), some.calm) == ([], True)


def test_the_breaker_of_a_model_is_kept_while_a_row_goes_on_however_slowly() -> None:
    some = breakers(window=30.0)
    for now in (0.0, 100.0):
        failed(some, STOPPED, now=now)
        some.settle(4, slots, now + 50.0)
    assert allowed(some, 100.0) == (False, True)


def slots(model: str) -> int:
    return 4


def test_changes_are_told_once_with_the_model() -> None:
    some = breakers(slow_start=0.0)
    failed(some, NO_MEMORY)
    failed(some, LOST, "n", times=2)
    assert list(some.news(0.0)) == [
        ("", OPEN, "2 failed calls in a row, the last: upstream_reset"),
        ("m", OPEN, "it could not load the model: no_memory"),
    ]
    assert list(some.news(0.0)) == []
    assert [(model, state) for model, state, _ in some.news(10.0)] == [("", HALF_OPEN), ("m", HALF_OPEN)]
    call = object()
    some.begin(call, "m", 10.0)
    some.heard(call, "m", 10.0)
    assert [(model, state) for model, state, _ in some.news(10.0)] == [("", CLOSED), ("m", CLOSED)]


def test_it_is_calm_again_when_everything_is_over_and_told() -> None:
    some = breakers(slow_start=30.0)
    failed(some, LOST, times=2)
    assert not some.calm
    call = object()
    some.begin(call, "m", 10.0)
    some.heard(call, "m", 10.0)
    some.succeeded("m", 11.0)
    some.left(call, "m")
    ends: Callable[[float], float] = lambda now: some.settle(4, slots, now)  # noqa: E731
    assert ends(11.0) == 20.0
    assert not some.calm
    list(some.news(50.0))
    assert ends(50.0) == NEVER
    assert (some.calm, dict(some.models)) == (True, {})


# Saturated


def busy(some: Breakers, now: float, running: int, retry_after: float | None = None) -> None:
    some.failed(object(), "m", Refused("alpha", 429, "slow down", retry_after=retry_after), now, running=running)


def test_an_instance_that_says_it_is_busy_has_no_more_than_it_has_for_a_while() -> None:
    some = breakers(busy=5.0)
    some.failed(object(), "m", BUSY, 0.0, running=2)
    assert [some.limit(4, now) for now in (0.0, 4.9, 5.0)] == [2, 2, 4]
    assert some.settle(4, slots, 0.0) == 5.0
    assert (some.settle(4, slots, 5.0), some.calm) == (NEVER, True)


def test_busy_never_opens_a_breaker() -> None:
    some = breakers()
    for _ in range(100):
        busy(some, 0.0, running=0)
    assert allowed(some) == (True, True)
    assert not some.models


@pytest.mark.parametrize(("asked", "until"), [(None, 5.0), (2.0, 2.0), (0.0, 0.0), (60.0, 10.0)])
def test_how_long_it_asks_to_be_left_alone_counts_up_to_ten_seconds(asked: float | None, until: float) -> None:
    some = breakers(busy=5.0)
    busy(some, 0.0, running=0, retry_after=asked)
    assert not some.saturated(until)
    assert until == 0.0 or some.saturated(until - 0.01)


def test_said_again_it_counts_from_then_with_what_runs_by_then() -> None:
    some = breakers(busy=5.0)
    busy(some, 0.0, running=3)
    busy(some, 1.0, running=2)
    busy(some, 2.0, running=3)
    assert [some.limit(4, now) for now in (3.0, 6.9, 7.0)] == [2, 2, 4]
    busy(some, 8.0, running=3)
    assert some.limit(4, 8.0) == 3


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    some = breakers(busy=5.0)
    busy(some, 0.0, running=1, retry_after=8.0)
    busy(some, 1.0, running=1)
    assert [some.limit(4, now) for now in (7.9, 8.0)] == [1, 4]


def test_busy_in_the_cloud_is_not_busy_here() -> None:
    some = breakers()
    some.failed(object(), "big@cloud", Refused("alpha", 429, "too many requests"), 0.0, running=0)
    assert (some.calm, some.limit(4, 0.0)) == (True, 4)
