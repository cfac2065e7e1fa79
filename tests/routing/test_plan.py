"""Where a call may go: D1 and D2 of the design, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.ops import hypothetical
from gateway.call import Call, Plan, model_key
from gateway.config import Config
from gateway.errors import InvalidCall, NoInstance, UnknownModel
from gateway.routing import InstanceView, ModelView, PoolView, plan, split_alias

GENERAL = "huihui_ai/deepseek-r1-abliterated:8b"
CODER = "qwen3-coder:30b-a3b-q4_K_M"


def view(name: str, *models: str, loaded: str = "", known: bool = True, **facts: Any) -> InstanceView:
    offered = {model_key(model): ModelView(name=model, loaded=model == loaded) for model in models}
    return InstanceView(name=name, models=offered, known=known, **facts)


POOL = PoolView(
    (
        view("general", GENERAL, capabilities=("general", "reasoning", "conversation"), default_model=GENERAL),
        view("coding", CODER, capabilities=("coding", "code_generation", "code_analysis"), default_model=CODER),
    )
)


def config(routes: list[dict[str, Any]] | None = None, **keys: Any) -> Config:
    instances = [{"name": "general", "url": "http://a:1"}, {"name": "coding", "url": "http://b:1"}]
    return Config.model_validate({"instances": instances, "routes": routes or [], **keys})


def planned(model: str = "auto", task: str = "", pool: PoolView = POOL, needs: str = "", **keys: Any) -> Plan:
    return plan(hypothetical(model, task, needs), config(**keys), pool)


def first(drawn: Plan) -> tuple[str, str]:
    return drawn.candidates[0].instance, drawn.candidates[0].model


def test_a_model_goes_to_the_instance_that_has_it() -> None:
    assert first(planned(CODER)) == ("coding", CODER)
    assert [one.instance for one in planned(CODER).candidates] == ["coding"]


@pytest.mark.parametrize("spelling", ["QWEN3-Coder:30B-a3b-q4_k_m", "library/qwen3-coder:30b-a3b-q4_K_M"])
def test_a_model_is_found_however_it_is_spelt_and_goes_upstream_as_spelt(spelling: str) -> None:
    candidate = planned(spelling).candidates[0]
    assert (candidate.instance, candidate.spelt) == ("coding", spelling)
    assert candidate.model == CODER, "a label must not be a client's to spell"


@pytest.mark.parametrize(
    ("task", "instance"),
    [
        ("code_generation", "coding"),
        ("code_analysis", "coding"),
        ("reasoning", "general"),
        ("planning", "general"),
        ("general_chat", "general"),
        ("text_generation", "general"),
    ],
)
def test_each_built_in_task_goes_to_the_capability_that_serves_it(task: str, instance: str) -> None:
    assert planned(task=task).candidates[0].instance == instance


def test_auto_without_a_task_is_general_chat() -> None:
    drawn = planned("auto")
    assert drawn.task == "general_chat"
    assert first(drawn) == ("general", GENERAL)


def test_the_tag_of_auto_names_the_task() -> None:
    assert first(planned("auto:code_generation")) == ("coding", CODER)
    assert split_alias("Auto:latest") == ("", "")
    assert split_alias("automatic:8b") == ("automatic:8b", "")


def test_a_model_the_pool_knows_beats_a_task() -> None:
    assert first(planned(GENERAL, task="code_generation")) == ("general", GENERAL)


def test_an_unknown_model_with_a_task_is_routed_by_the_task_and_says_what_stands_in() -> None:
    drawn = planned("gpt-4o", task="code_generation")
    assert first(drawn) == ("coding", CODER)
    assert drawn.candidates[0].substitution == f"model {CODER} stands in for gpt-4o"


def test_an_unknown_model_without_a_task_is_not_found_and_the_nearest_is_offered() -> None:
    with pytest.raises(UnknownModel, match=r"Did you mean 'qwen3-coder:30b-a3b-q4_k_m'\?"):
        planned("qwen3-coder:30b-a3b-q4_K")


def test_a_model_nobody_could_tell_of_yet_is_no_404() -> None:
    silent = PoolView((view("general", known=False, capabilities=("general",)),))
    with pytest.raises(NoInstance):
        planned("llama3", pool=silent)


def test_an_unknown_task_is_the_clients_mistake_and_the_nearest_is_offered() -> None:
    with pytest.raises(InvalidCall, match="Did you mean 'code_generation'") as raised:
        planned(task="code_generatoin")
    assert raised.value.param == "task_type"


def test_a_task_of_ones_own_goes_to_its_capabilities_in_order() -> None:
    drawn = planned(task="review", tasks={"review": ["code_analysis", "general"]})
    assert [(one.instance, one.rank) for one in drawn.candidates] == [("general", 1), ("coding", 0)]


def test_a_general_instance_stands_in_as_fallback_and_says_so() -> None:
    drawn = planned(task="code_generation")
    assert [(one.instance, one.tier) for one in drawn.candidates] == [("coding", 0), ("general", 1)]
    assert "no healthy instance has code_generation or coding" in drawn.candidates[1].substitution


def test_the_first_route_that_matches_decides() -> None:
    routes = [
        {"name": "no", "match": {"task": "reasoning"}, "to": [{"instance": "general"}]},
        {"name": "yes", "match": {"task": ["code_generation", "planning"]}, "to": [{"instance": "general"}]},
        {"name": "late", "match": {"task": "code_generation"}, "to": [{"instance": "coding"}]},
    ]
    drawn = planned(task="code_generation", routes=routes)
    assert (drawn.route, first(drawn)) == ("yes", ("general", GENERAL))


def test_a_route_on_a_task_alone_is_passed_over_by_a_model_the_pool_knows() -> None:
    routes = [{"name": "code", "match": {"task": "code_generation"}, "to": [{"instance": "coding"}]}]
    assert first(planned(GENERAL, task="code_generation", routes=routes)) == ("general", GENERAL)


def test_a_route_on_a_model_pattern_sends_it_elsewhere_and_says_what_stands_in() -> None:
    routes = [{"name": "gpt", "match": {"model": "gpt-4*"}, "to": [{"model": CODER}]}]
    drawn = planned("gpt-4o-mini", routes=routes)
    assert first(drawn) == ("coding", CODER)
    assert "stands in for gpt-4o-mini" in drawn.candidates[0].substitution


def test_the_targets_of_a_route_are_a_fallback_chain() -> None:
    routes = [
        {
            "name": "chain",
            "match": {"task": "code_generation"},
            "to": [{"model": CODER, "instance": "coding"}, {"capability": "reasoning"}],
        }
    ]
    drawn = planned(task="code_generation", routes=routes)
    assert [(one.instance, one.tier) for one in drawn.candidates] == [("coding", 0), ("general", 1)]


def test_a_route_on_a_header_needs_that_value() -> None:
    routes = [{"name": "team", "match": {"header": {"X-Team": "red*"}}, "to": [{"instance": "coding"}]}]
    call = hypothetical("auto", "", "")

    def by(headers: dict[str, str]) -> str:
        sent = Call(request_id="1", operation=call.operation, wish=call.wish, body=b"", headers=headers)
        return plan(sent, config(routes), POOL).route

    assert by({"x-team": "red-1"}) == "team"
    assert by({"x-team": "blue"}) == "by-task"
    assert by({}) == "by-task"


def test_an_instance_without_a_default_uses_what_is_loaded_before_what_is_installed() -> None:
    pool = PoolView((view("a", "x:1b", "y:1b", loaded="y:1b", capabilities=("general",)),))
    assert first(planned(pool=pool)) == ("a", "y:1b")


def test_a_model_that_cannot_do_what_the_call_needs_is_not_chosen() -> None:
    def told(name: str, *words: str) -> ModelView:
        return ModelView(name=name, capabilities=frozenset(words))

    models = {
        "e:latest": told("e", "embedding"),
        "t:latest": told("t", "completion", "tools"),
        "c:latest": told("c", "completion"),
    }
    pool = PoolView((InstanceView(name="a", models=models, known=True, capabilities=("general",)),))
    assert first(planned(pool=pool)) == ("a", "t")
    assert first(planned(pool=pool, needs="embedding")) == ("a", "e")
    with pytest.raises(NoInstance, match="has no model that fits"):
        planned(pool=pool, needs="vision")


def test_every_plan_carries_its_reasons() -> None:
    drawn = planned(task="code_generation")
    assert drawn.reasons == ("task code_generation from header", "served by capability code_generation, then coding")
    assert all(one.reason for one in drawn.candidates)
    assert drawn.left_out == (("general", "has none of code_generation, coding"),)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x", "x:latest", True),
        ("X:Latest", "library/x", True),
        ("registry.ollama.ai/library/x:latest", "x", True),
        ("hf.co/User/Repo-GGUF:Q4_K_M", "hf.co/user/repo-gguf:q4_k_m", True),
        ("ns/x", "x", False),
        ("x:8b", "x:70b", False),
        ("gpt-oss:20b-cloud", "gpt-oss:20b", False),
        ("gpt-oss:20b-cloud", "gpt-oss:20b:cloud", True),
        ("host:5000/ns/x", "host:5000/ns/x:latest", True),
    ],
)
def test_names_are_compared_as_ollama_compares_them(one: str, other: str, same: bool) -> None:
    assert (model_key(one) == model_key(other)) is same
