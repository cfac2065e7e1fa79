"""Who waits, how much that is, and what a full line says."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.call import Candidate
from gateway.config import LineConfig
from gateway.errors import LineTimeout
from gateway.instances.line import Line, Outlook, Ticket, Waiter, Wants
from gateway.instances.roster import Roster
from gateway.instances.shares import Caller


def waiter(*, size: int = 1, since: float = 0.0, caller: Caller | None = None) -> Waiter:
    candidates = (Candidate(instance="alpha", model="m"),)
    owner = caller or Caller("amy")
    owner.waiting += 1
    return Waiter(Ticket(candidates=candidates, size=size), Wants(Roster()).of(candidates), owner, since)


def full(line: Line, newcomer: Waiter, *, slots: int = 1, **bounds: Any) -> str:
    line.join(newcomer)
    return line.overfull(newcomer, LineConfig(**bounds), slots)


def test_the_line_counts_calls_and_bytes_exactly() -> None:
    line = Line()
    first, second = waiter(size=10), waiter(size=5)
    line.join(first)
    line.join(second)
    assert (len(line), line.held_bytes) == (2, 15)
    line.leave(first)
    line.leave(first)
    assert (len(line), line.held_bytes) == (1, 5)
    line.leave(second)
    assert (len(line), line.held_bytes) == (0, 0)


def test_the_oldest_is_the_head_of_the_line() -> None:
    line = Line()
    assert line.oldest(9.0) == 0.0
    line.join(waiter(since=1.0))
    line.join(waiter(since=4.0))
    assert line.oldest(9.0) == 8.0


def test_a_call_in_line_is_found_by_its_ticket() -> None:
    line, one = Line(), waiter()
    assert line.waiter(one.ticket) is None
    line.join(one)
    assert line.waiter(one.ticket) is one
    assert list(line) == [one]
    assert one in line


def test_two_tickets_with_the_same_content_are_two() -> None:
    line = Line()
    for _ in range(2):
        line.join(waiter())
    assert len(line) == 2


def test_a_full_line_names_the_setting() -> None:
    line = Line()
    line.join(waiter(size=10))
    assert full(line, waiter(size=10), max_calls=2, max_bytes=20, max_calls_per_caller=9) == ""
    assert "(line.max_calls)" in full(line, waiter(), max_calls=2)
    assert "(line.max_bytes)" in full(line, waiter(), max_calls=9, max_bytes=20)
    crowd = Caller("bob")
    crowd.waiting = 4
    assert "(line.max_calls_per_caller)" in full(line, waiter(caller=crowd), max_calls=99, max_calls_per_caller=4)


@pytest.mark.parametrize(("slots", "most"), [(1, 32), (4, 32), (5, 40)])
def test_without_a_bound_there_are_eight_places_for_each_call_at_once(slots: int, most: int) -> None:
    line = Line()
    said = [full(line, waiter(), slots=slots) for _ in range(most + 1)]
    assert said[:-1] == [""] * most
    assert f"at most {most} calls" in said[-1]


@pytest.mark.parametrize(("max_calls", "share"), [(32, 24), (4, 3), (1, 1)])
def test_one_caller_leaves_a_quarter_of_the_line_to_others(max_calls: int, share: int) -> None:
    line, greedy = Line(), Caller("greedy")
    said = [full(line, waiter(caller=greedy), max_calls=max_calls) for _ in range(share + 1)]
    assert said[:-1] == [""] * share
    assert said[-1]


def test_a_call_with_an_outcome_wants_nothing_more() -> None:
    one = waiter()
    assert one.wants
    one.settle(LineTimeout("too long", retry_after=1.0))
    assert not one.wants
    with pytest.raises(LineTimeout, match="too long"):
        one.result()


def test_a_call_gets_its_own_wording_of_a_candidate() -> None:
    """Two clients that spell one model differently share a want, and each is served as it spelt it."""
    wants = Wants(Roster())
    lower = (Candidate(instance="alpha", model="m:latest", spelt="m"),)
    upper = (Candidate(instance="alpha", model="M:latest", spelt="M"),)
    first, second = wants.of(lower), wants.of(upper)
    assert first is second
    one, other = (Waiter(Ticket(candidates=c), first, Caller("amy"), 0.0) for c in (lower, upper))
    assert (one.own(lower[0]).spelt, other.own(lower[0]).spelt) == ("m", "M")


def test_an_outlook_reads_as_a_sentence() -> None:
    assert str(Outlook(3, 11.6, lambda: "waiting for m on alpha")) == "position 3, about 12 s: waiting for m on alpha"
