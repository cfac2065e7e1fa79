"""The virtual models: their names. What they can do is told in tests/journeys/test_lists.py, on real sockets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Candidate, Plan
from gateway.catalog import Catalog
from gateway.config import Config
from gateway.errors import NoInstance
from gateway.lists import Facts, Shows, Virtual
from gateway.upstream import InstalledModel, Listing

CONFIG = Config.model_validate({"instances": [{"name": "a", "url": "http://a:1"}], "tasks": {"my_task": ["x"]}})


class Drawn:
    """Dispatch, as far as it draws plans: always the same one."""

    def __init__(self, *candidates: Candidate, route: str = "by-task") -> None:
        self._plan = Plan(route=route, task="t", candidates=candidates)

    def plan(self, call: Any) -> Plan:
        if not self._plan.candidates:
            raise NoInstance("none", retry_after=1)
        return self._plan


def virtual(drawn: Drawn, *models: InstalledModel) -> Virtual:
    catalog = Catalog(CONFIG)
    catalog.learned("a", Listing(models, None))

    async def nobody(*_: object) -> bytes:
        raise AssertionError

    given: Any = drawn
    return Virtual(lambda: CONFIG, given, catalog, Shows(catalog, nobody, lambda _: False))


def model(name: str, length: int, *capabilities: str) -> InstalledModel:
    return InstalledModel(name, capabilities=frozenset(capabilities), context_length=length)


def candidate(name: str, tier: int = 0) -> Candidate:
    return Candidate(instance="a", model=name, tier=tier, reason="")


def test_auto_comes_first_and_then_each_task_those_of_the_file_included() -> None:
    names = virtual(Drawn()).names()
    assert names[0] == "auto"
    assert names[1:] == sorted(names[1:])
    assert "auto:my_task" in names
    assert all(virtual(Drawn()).named(name) == name for name in names)


@pytest.mark.parametrize(
    ("name", "listed"),
    [("AUTO", "auto"), ("auto:latest", "auto"), ("auto:", "auto"), ("Auto:my_task", "auto:my_task")],
)
def test_another_spelling_is_the_same_name(name: str, listed: str) -> None:
    assert virtual(Drawn()).named(name) == listed


@given(name=st.text(alphabet="auto:/my_k", max_size=12))
def test_a_name_is_virtual_only_if_it_is_listed(name: str) -> None:
    them = virtual(Drawn())
    assert them.named(name) in (None, *them.names())


@pytest.mark.parametrize("name", ["", "auto:nothing", "auto/x", "automatic", "auto:my_task:latest", "llama3.1:8b"])
def test_other_names_are_not(name: str) -> None:
    assert virtual(Drawn()).named(name) is None


BIG, SMALL = model("big", 100, "completion", "tools"), model("small", 10, "completion", "vision")


@pytest.mark.parametrize(
    ("drawn", "capabilities", "length"),
    [
        (Drawn(candidate("big")), {"completion", "tools"}, 100),
        (Drawn(candidate("big"), candidate("small")), {"completion"}, 10),
        (Drawn(candidate("big"), candidate("small", 1)), {"completion", "tools"}, 10),
        (Drawn(candidate("big", 1), candidate("small", 1)), {"completion"}, 10),
        (Drawn(candidate("big"), candidate("small", 1), route="mine"), {"completion"}, 10),
        (Drawn(candidate("big"), candidate("unheard-of")), {"completion"}, 100),
        (Drawn(), {"completion"}, 4096),
    ],
)
def test_35_no_more_is_claimed_than_routing_can_keep(drawn: Drawn, capabilities: set[str], length: int) -> None:
    assert virtual(drawn, BIG, SMALL).facts("auto") == Facts(frozenset(capabilities), length)
