"""Names that stand for something else: which alias fits, what it comes to, and that it is told."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gateway.api.ops import hypothetical
from gateway.call import Plan, model_key
from gateway.config import Config
from gateway.errors import InvalidCall, UnknownModel
from gateway.routing import InstanceView, ModelView, PoolView, plan, stands_for, unaliased

GENERAL, CODER = "llama3.1:8b", "coder:30b"


def view(name: str, model: str, *capabilities: str) -> InstanceView:
    models = {model_key(model): ModelView(name=model)}
    return InstanceView(name=name, models=models, known=True, default_model=model, capabilities=capabilities)


POOL = PoolView((view("general", GENERAL, "general"), view("coding", CODER, "coding")))


def planned(model: str, aliases: dict[str, str], task: str = "", **keys: Any) -> Plan:
    instances = [{"name": "general", "url": "http://a:1"}, {"name": "coding", "url": "http://b:1"}]
    config = Config.model_validate({"instances": instances, "aliases": aliases, **keys})
    return plan(unaliased(hypothetical(model, task, ""), config.aliases), config, POOL)


@pytest.mark.parametrize("asked", ["gpt-4o", "GPT-4o:latest", "library/gpt-4o"])
def test_an_alias_fits_however_the_name_is_spelt(asked: str) -> None:
    assert stands_for(asked, {"gpt-4o": CODER}) == CODER


@pytest.mark.parametrize("asked", ["gpt-4o-mini", "gpt-4o:mini", "me/gpt-4o", "", CODER])
def test_a_name_no_alias_fits_stands_for_itself(asked: str) -> None:
    assert stands_for(asked, {"gpt-4o": "x"}) == asked


def test_the_first_alias_that_fits_counts() -> None:
    aliases = {"claude-*haiku*": "small", "claude-*": "large", "claude-opus-4": "never"}
    assert stands_for("claude-haiku-4-5-20251001", aliases) == "small"
    assert stands_for("claude-opus-4", aliases) == "large"


def test_an_alias_is_not_looked_up_again() -> None:
    assert stands_for("a", {"a": "b", "b": "c"}) == "b"
    assert stands_for("b", {"a": "b", "b": "a"}) == "a"


def test_an_alias_goes_to_the_instance_that_has_what_it_stands_for_and_that_is_told() -> None:
    drawn = planned("claude-opus-4", {"claude-*": CODER})
    (candidate,) = drawn.candidates
    assert (candidate.instance, candidate.model, candidate.spelt, drawn.route) == ("coding", CODER, CODER, "by-model")
    assert candidate.substitution == f"model {CODER} stands in for claude-opus-4"


def test_an_alias_goes_before_a_model_of_that_name() -> None:
    assert planned(GENERAL, {GENERAL: CODER}).candidates[0].instance == "coding"


def test_another_spelling_of_the_same_model_is_no_substitution() -> None:
    assert planned("CODER:30B", {"CODER:30B": CODER}).candidates[0].substitution == ""


def test_an_alias_may_ask_for_a_task() -> None:
    drawn = planned("claude-opus-4", {"claude-*": "auto:code_generation"})
    assert (drawn.route, drawn.task, drawn.candidates[0].instance) == ("by-task", "code_generation", "coding")
    assert "from alias" in drawn.reasons[0]
    assert drawn.candidates[0].substitution == f"model {CODER} stands in for claude-opus-4"
    assert planned("claude-opus-4", {"claude-*": "auto"}).task == "general_chat"


def test_both_what_stands_in_and_why_are_told() -> None:
    told = planned("claude-opus-4", {"claude-*": "auto:reasoning"}).candidates[0].substitution
    assert told.startswith(f"model {GENERAL} stands in for claude-opus-4; no healthy instance has reasoning")


@pytest.mark.parametrize(
    ("source", "task"), [("header", "planning"), ("path", "planning"), ("query", "reasoning"), ("body", "reasoning")]
)
def test_the_task_of_an_alias_has_its_place_in_the_order_of_sources(source: str, task: str) -> None:
    call = replace(hypothetical("x", "", ""), task="planning", task_from=source)
    meant = unaliased(call, {"x": "auto:reasoning"})
    assert (meant.model, meant.task) == ("", task)
    assert meant.task_from == (source if task == "planning" else "alias")
    assert unaliased(call, {"x": CODER}).task == "planning"


def test_a_call_no_alias_fits_stays_as_it_is() -> None:
    call = hypothetical(CODER, "", "")
    assert unaliased(call, {"x": "y"}) is call


@pytest.mark.parametrize("name", ["auto", "auto:code_generation"])
def test_auto_keeps_its_meaning(name: str) -> None:
    assert planned(name, {"*": GENERAL}, task="").task in ("general_chat", "code_generation")
    assert all(one.substitution == "" for one in planned("auto", {"*": CODER}).candidates)


def test_routes_match_what_an_alias_stands_for() -> None:
    routes = [{"name": "big", "match": {"model": CODER}, "to": [{"instance": "coding"}]}]
    assert planned("claude-x", {"claude-*": CODER}, routes=routes).route == "big"


def test_an_alias_for_a_model_nobody_has_says_who_asked_for_it() -> None:
    with pytest.raises(UnknownModel) as caught:
        planned("claude-x", {"claude-*": "missing:1b"})
    assert "'missing:1b' not found" in caught.value.message
    assert "'claude-x' stands for it" in caught.value.message


def test_an_alias_for_a_task_nobody_declared_is_refused() -> None:
    with pytest.raises(InvalidCall):
        planned("claude-x", {"claude-*": "auto:no_such_task"})
