"""Who waits, who goes next, and which of a call's candidates may take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.call import Candidate
from gateway.config import Config
from gateway.errors import LineTimeout
from gateway.instances.instance import Instance
from gateway.instances.line import FirstCome, Line, Waiter, eligible, free


def candidate(instance: str, tier: int = 0, rank: int = 0) -> Candidate:
    return Candidate(instance=instance, model="m", tier=tier, rank=rank)


def waiter(*instances: str, size: int = 1, since: float = 0.0) -> Waiter:
    return Waiter([candidate(name) for name in instances], size=size, since=since)


def some_instances(*names: str, limit: int = 2, drain: str = "") -> dict[str, Instance]:
    settings = [
        {"name": name, "url": f"http://{name}:11434", "max_concurrent": limit, "drain": name == drain} for name in names
    ]
    config = Config.model_validate({"instances": settings})
    return {each.name: Instance(each, config, lambda: 0.5) for each in config.instances}


def names(candidates: Sequence[Candidate]) -> list[str]:
    return [each.instance for each in candidates]


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


def test_a_full_line_names_the_setting() -> None:
    line = Line()
    line.join(waiter(size=10))
    line.join(waiter(size=10))
    assert line.overfull(2, 20) == ""
    assert "line.max_calls" in line.overfull(1, 20)
    assert "line.max_bytes" in line.overfull(2, 19)


def test_a_call_with_an_outcome_wants_nothing_more() -> None:
    line = Line()
    first, second = waiter(), waiter()
    line.join(first)
    line.join(second)
    first.settle(LineTimeout("too long", retry_after=1.0))
    assert list(line) == [second]


def offering(*having_room: str) -> Callable[[Waiter], Sequence[Candidate]]:
    return lambda waiter: [c for c in waiter.candidates if c.instance in having_room]


def test_first_come_is_first_served_with_its_best_candidate() -> None:
    first, second = waiter("alpha", "beta"), waiter("beta", "alpha")
    choices = FirstCome().choose([first, second], offering("alpha", "beta"))
    assert [(who, c.instance) for who, c in choices] == [(first, "alpha"), (second, "beta")]


def test_a_call_that_cannot_go_lets_others_by_to_instances_it_does_not_want() -> None:
    stuck, free_to_go = waiter("alpha"), waiter("beta")
    choices = FirstCome().choose([stuck, free_to_go], offering("beta"))
    assert [who for who, _ in choices] == [free_to_go]


def test_the_order_looks_no_further_than_it_is_asked_to() -> None:
    looked_at: list[Waiter] = []

    def options(waiter: Waiter) -> Sequence[Candidate]:
        looked_at.append(waiter)
        return waiter.candidates

    line = [waiter("alpha") for _ in range(5)]
    next(FirstCome().choose(line, options))
    assert looked_at == line[:1]


def test_only_the_lowest_tier_with_a_fit_instance_is_eligible() -> None:
    chain = [candidate("beta", tier=1), candidate("alpha", tier=0), candidate("gamma", tier=2)]
    assert names(eligible(chain, some_instances("alpha", "beta", "gamma"), 0.0)) == ["alpha"]
    assert names(eligible(chain, some_instances("alpha", "beta", "gamma", drain="alpha"), 0.0)) == ["beta"]
    assert names(eligible(chain, some_instances("gamma"), 0.0)) == ["gamma"]
    assert eligible(chain, some_instances("delta"), 0.0) == []


def test_being_busy_is_no_reason_for_the_next_tier() -> None:
    instances = some_instances("alpha", "beta", limit=1)
    instances["alpha"].held = 1
    chain = [candidate("alpha", tier=0), candidate("beta", tier=1)]
    assert names(eligible(chain, instances, 0.0)) == ["alpha"]
    assert free(chain, instances, 0.0, lambda: 0.5) == []


def test_the_least_loaded_goes_first_then_rank_then_chance() -> None:
    instances = some_instances("alpha", "beta", "gamma")
    ranked = [candidate("alpha", rank=1), candidate("beta"), candidate("gamma", rank=1)]
    chances = iter([0.9, 0.5, 0.1])
    assert names(free(ranked, instances, 0.0, lambda: next(chances))) == ["beta", "gamma", "alpha"]
    instances["beta"].held = 1
    assert names(free(ranked, instances, 0.0, lambda: 0.5))[-1] == "beta"
