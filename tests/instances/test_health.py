"""Thresholds over probes, and the loop that asks."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.instances.health import Health, watch


def test_nothing_is_known_before_the_first_probe_and_the_first_decides() -> None:
    assert Health(3, 2).healthy is None
    for ok in (True, False):
        health = Health(3, 2)
        assert health.observe(ok)
        assert health.healthy is ok


def test_an_instance_falls_after_so_many_failures_in_a_row() -> None:
    health = Health(3, 2)
    changes = [health.observe(ok) for ok in (True, False, False, True, False, False, False)]
    assert changes == [True, False, False, False, False, False, True]
    assert health.healthy is False


def test_an_instance_rises_after_so_many_successes_in_a_row() -> None:
    health = Health(3, 2)
    assert [health.observe(ok) for ok in (False, True, False, True, True)] == [True, False, False, False, True]
    assert health.healthy is True


@given(st.lists(st.booleans(), min_size=1), st.integers(1, 4), st.integers(1, 4))
def test_the_verdict_changes_exactly_after_a_full_row_of_the_contrary(
    results: list[bool], fall: int, rise: int
) -> None:
    health = Health(fall, rise)
    health.observe(results[0])
    for place in range(1, len(results)):
        before = health.healthy
        need = fall if before else rise
        row = results[max(0, place + 1 - need) : place + 1]
        changed = row == [not before] * need
        assert health.observe(results[place]) is changed
        assert health.healthy is (not before if changed else before)


async def reports_of(probe_results: list[tuple[bool, str] | Exception], chance: float = 0.0) -> list[tuple[bool, str]]:
    """What `watch` reports of probes that end like this, one after the other."""
    left = list(probe_results)
    reports: list[tuple[bool, str]] = []
    done = asyncio.Event()

    async def probe() -> tuple[bool, str]:
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    def report(ok: bool, problem: str) -> None:
        reports.append((ok, problem))
        if not left:
            done.set()

    task = asyncio.create_task(watch(probe, report, interval=0.001, random=lambda: chance), name="watch")
    async with asyncio.timeout(10):
        await done.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return reports


async def test_a_watch_reports_every_probe_in_order() -> None:
    results: list[tuple[bool, str] | Exception] = [(True, ""), (False, "it answered 500"), (True, "")]
    assert await reports_of(results) == results


async def test_a_probe_that_raises_is_a_failed_probe_and_ends_nothing() -> None:
    reports = await reports_of([OSError("http://10.0.0.1 says no"), (True, "")])
    assert reports == [(False, "the probe failed: OSError"), (True, "")]


async def test_a_watch_that_is_cancelled_in_its_probe_ends() -> None:
    entered = asyncio.Event()

    async def probe() -> tuple[bool, str]:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    reports: list[bool] = []
    watching = watch(probe, lambda ok, _: reports.append(ok), interval=0.001, random=lambda: 0.0)
    task = asyncio.create_task(watching, name="watch")
    async with asyncio.timeout(10):
        await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reports == []


async def test_the_pause_between_two_probes_is_the_interval_and_a_fifth_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise asyncio.CancelledError

    async def probe() -> tuple[bool, str]:
        return True, ""

    chances = iter([0.0, 0.5, 1.0])
    monkeypatch.setattr(asyncio, "sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        await watch(probe, lambda _ok, _why: None, interval=5.0, random=lambda: next(chances), after=0.3)
    assert pauses == pytest.approx([0.3, 4.0, 5.0, 6.0]), "the first of them is the one before the first probe"
