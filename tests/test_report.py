"""What a person at a terminal reads: columns that stand, and for everything that is wrong a way out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import report
from gateway.api.ops import explained, hypothetical
from gateway.config import Config, Loaded
from gateway.engine import Engine
from gateway.simulator import Behaviour, SimulatedModel, Simulator

NOWHERE = "http://127.0.0.1:1"  # a port that nobody listens on
LLAMA = "llama3.1:8b"


def loaded(instances: list[dict[str, Any]], **keys: Any) -> Loaded:
    config = Config.model_validate({"instances": instances, "health": {"interval": 60}, **keys})
    return Loaded(config=config, source="the test", digest="d")


@asynccontextmanager
async def looking_at(instances: dict[str, dict[str, Any]], **behaviours: Behaviour) -> AsyncIterator[Engine]:
    """An engine that had its first look at these simulators, and at nothing where an instance has none."""
    async with AsyncExitStack() as stack:
        urls = {
            name: (await stack.enter_async_context(Simulator(behaviour))).url for name, behaviour in behaviours.items()
        }
        entries = [{"name": name, "url": urls.get(name, NOWHERE), **keys} for name, keys in instances.items()]
        yield await stack.enter_async_context(Engine(loaded(entries)))


def having(*models: str) -> Behaviour:
    return Behaviour(models=tuple(SimulatedModel(name=name) for name in models))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


# Tables

TEXTS = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9)
ROWS = st.integers(1, 5).flatmap(lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1))


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert report.table([("a", "bb", "c"), ("dddd", "e", "f")]) == "  a     bb  c\n  dddd  e   f"


@given(rows=ROWS)
def test_every_cell_begins_where_its_column_begins(rows: list[list[str]]) -> None:
    lines = report.table(rows).split("\n")
    assert len(lines) == len(rows)
    at = 2
    for column in range(len(rows[0])):
        for line, row in zip(lines, rows, strict=True):
            assert line[at:].startswith(row[column])
            assert line[at - 2 : at] == "  "
        at += max(len(row[column]) for row in rows) + 2
    assert all(line == line.rstrip() for line in lines)


# Instances and what is wrong with them


async def test_before_anyone_answered_nothing_is_claimed() -> None:
    engine = Engine(loaded([{"name": "alpha", "url": NOWHERE, "max_concurrent": 3}]))
    heading, row = report.instances(engine).split("\n")
    assert tuple(cells(heading)) == report.HEADINGS
    assert cells(row) == ["alpha", "unknown", "-", "-", "-", "3", "-"]
    assert report.problems(engine) == [f"alpha ({NOWHERE}) has not answered yet."]


async def test_a_healthy_pool_is_shown_with_what_it_has_and_no_complaint() -> None:
    async with looking_at(
        {"alpha": {"model": LLAMA}, "b": {"max_concurrent": 9}}, alpha=having(LLAMA), b=having("x", "y")
    ) as engine:
        _, alpha, b = report.instances(engine).split("\n")
        assert cells(alpha)[:2] == ["alpha", "healthy"]
        assert cells(alpha)[2] == engine.catalog.known("alpha").version != ""
        assert cells(alpha)[3] == "1"
        assert cells(alpha)[-1].endswith(" ms")
        assert (cells(b)[3], cells(b)[5]) == ("2", "9")
        assert report.problems(engine) == []
        assert "!" not in report.start(engine, "http://localhost:8080")


async def test_models_in_memory_are_shown_by_name() -> None:
    async with looking_at({"alpha": {}}, alpha=having(LLAMA)) as engine:
        engine.catalog.answered("alpha", LLAMA)
        assert cells(report.instances(engine).split("\n")[1])[4] == LLAMA
        assert cells(report.models(engine).split("\n")[1])[:3] == [LLAMA, "alpha", "yes"]


async def test_an_instance_that_cannot_be_reached_is_told_with_the_reason_and_the_way_out() -> None:
    async with looking_at({"alpha": {}, "gone": {}}, alpha=having(LLAMA)) as engine:
        (problem,) = report.problems(engine)
        assert problem.startswith(f"cannot reach gone ({NOWHERE}): connection refused.")
        assert "Is Ollama running there" in problem
        shown = report.start(engine, "http://localhost:8080")
        assert f"  ! {problem}\n" in shown
        assert cells(report.instances(engine).split("\n")[2])[2:] == ["-", "-", "-", "1", "-"]


@pytest.mark.parametrize(
    ("models", "wanted", "problem"),
    [
        ((), None, "alpha has no models. Run `ollama pull <model>` there."),
        ((), LLAMA, "alpha has no models. Run `ollama pull <model>` there."),
        (("x",), LLAMA, f"alpha does not have its model {LLAMA}. Run `ollama pull {LLAMA}` there."),
    ],
)
async def test_a_model_that_is_missing_is_told_with_the_command_that_brings_it(
    models: tuple[str, ...], wanted: str | None, problem: str
) -> None:
    async with looking_at({"alpha": {"model": wanted}}, alpha=having(*models)) as engine:
        assert report.problems(engine) == [problem]


async def test_a_model_that_is_there_under_another_spelling_is_not_missing() -> None:
    async with looking_at({"alpha": {"model": "Library/Mistral"}}, alpha=having("mistral:latest")) as engine:
        assert report.problems(engine) == []


async def test_38_one_name_for_two_models_is_told_with_the_command_that_makes_them_one() -> None:
    one, other = (Behaviour(models=(SimulatedModel(name=LLAMA, digest=digit * 64),)) for digit in "12")
    async with looking_at({"alpha": {}, "beta": {}}, alpha=one, beta=other) as engine:
        (problem,) = report.problems(engine)
        assert problem.startswith(f"{LLAMA} is not the same on alpha, beta")
        assert problem.endswith(f"Run `ollama pull {LLAMA}` on each.")


async def test_what_serve_prints_says_where_to_go() -> None:
    async with looking_at({"alpha": {}}, alpha=having(LLAMA)) as engine:
        shown = report.start(engine, "http://localhost:8080")
    assert "http://localhost:8080/v1\n" in shown
    assert "http://localhost:8080/metrics\n" in shown
    assert "http://localhost:8080/gateway/status\n" in shown


async def test_every_model_of_every_instance_has_a_row() -> None:
    async with looking_at({"alpha": {}, "beta": {}}, alpha=having("x:1b", "y:1b"), beta=having("x:1b")) as engine:
        rows = [cells(line)[:2] for line in report.models(engine).split("\n")[1:]]
    assert rows == [["x:1b", "alpha"], ["y:1b", "alpha"], ["x:1b", "beta"]]


async def test_a_pool_without_models_is_a_table_of_nothing() -> None:
    async with looking_at({"alpha": {}}, alpha=having()) as engine:
        assert [cells(line) for line in report.models(engine).split("\n")] == [
            ["model", "instance", "loaded", "capabilities"]
        ]


# Plans


async def test_a_plan_is_told_in_order_with_its_reasons() -> None:
    instances = {"alpha": {"capabilities": ["coding"]}, "beta": {"capabilities": ["general"]}, "gone": {}}
    async with looking_at(instances, alpha=having(LLAMA), beta=having(LLAMA)) as engine:
        engine.pool.observe("gone", ok=False, problem="connection refused")
        drawn = engine.dispatch.plan(hypothetical(LLAMA, "", ""))
        shown = report.plan(explained(drawn)).split("\n")
    assert shown[0] == f"route    {drawn.route}"
    assert not any(line.startswith("task") for line in shown)
    assert [line for line in shown if line.startswith("because")] == [f"because  {reason}" for reason in drawn.reasons]
    numbered = [line for line in shown if line[:3].strip().rstrip(".").isdigit()]
    assert [line.split(":")[0].split()[1] for line in numbered] == [one.instance for one in drawn.candidates]
    assert numbered[0].startswith(" 1. ")


def test_a_plan_tells_fallbacks_substitutions_and_who_is_left_out() -> None:
    told = {
        "route": "r",
        "task": "planning",
        "reasons": ["asked for by header"],
        "candidates": [
            {"instance": "alpha", "model": "m", "tier": 0, "reason": "has it"},
            {"instance": "beta", "model": "n", "tier": 1, "reason": "general", "substitution": "n instead of m"},
        ],
        "left_out": [{"instance": "gone", "reason": "gone is down"}],
    }
    assert report.plan(told).split("\n") == [
        "route    r",
        "task     planning",
        "because  asked for by header",
        " 1. alpha with m: has it",
        " 2. beta with n (fallback 1): general",
        "    note: n instead of m",
        " -  gone is left out: gone is down",
    ]
