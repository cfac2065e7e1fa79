"""Every problem of a configuration at once, in our own words, each with its place."""

from __future__ import annotations

import pytest

from gateway.errors import ConfigError, Problem
from tests.config.examples import GOOD, Read, Refused


def test_one_mistake_of_each_kind_is_told_in_the_order_of_the_lines(read: Read) -> None:
    with pytest.raises(ConfigError) as caught:
        read(
            "instances:\n"
            "  - name: alpha\n"
            "    url: http://gpu1:11434\n"
            "    max_concurrent: 0\n"
            "    capabilities: coding\n"
            "  - url: http://gpu2\n"
            "    model: 1.5\n"
            "routes:\n"
            "  - name: r\n"
            "    match: {task: [x, [3]]}\n"
            "    to: []\n"
            "cache:\n"
            "  tll: 3\n"
            "  enabled: perhaps\n"
            "log:\n"
            "server: {port: 99999}\n"
            "health: {interval: 0, fall: 1.5}\n"
        )
    assert caught.value.problems == (
        Problem(
            "instances[0].max_concurrent",
            "must be 1 or more, found 0. To rest an instance, write `drain: true`",
            4,
            21,
        ),
        Problem("instances[0].capabilities", 'must be a list, found "coding". Put it in [ ]', 5, 19),
        Problem("instances[1]", 'needs the key "name"', 6, 5),
        Problem("instances[1].model", "must be text, found 1.5. Put it in quotes", 7, 12),
        Problem("routes[0].match.task[1]", "must be text, found a list", 10, 23),
        Problem("routes[0].to", "must have at least one entry", 11, 9),
        Problem("cache.tll", 'unknown key. Did you mean "ttl"?', 13, 3),
        Problem("cache.enabled", 'must be true or false, found "perhaps"', 14, 12),
        Problem("log", "must be a mapping of keys to values, found nothing", 15, 5),
        Problem("server.port", "must be 65535 or less, found 99999", 16, 16),
        Problem("health.interval", "must be more than 0, found 0", 17, 20),
        Problem("health.fall", "must be a whole number, found 1.5", 17, 29),
    )


@pytest.mark.parametrize(
    ("old", "new", "where", "message"),
    [
        ("gpu2:11434", "GPU1:11434/v1", "instances[1].url", '"http://GPU1:11434" is already the url of instances[0]'),
        ("instance: beta", "instance: bata", "routes[0].to[0].instance",
         'no instance is called "bata". Did you mean "beta"?'),
        ("summarise]", "sumarise]", "routes[0].match.task", 'there is no task "sumarise". Did you mean "summarise"?'),
        ("- capability: general", "- capability: generl", "routes[0].to[1].capability",
         'no instance has the capability "generl". Did you mean "general"?'),
        ("summarise: [general]", "summarise: [generl]", "tasks.summarise",
         'no instance has the capability "generl". Did you mean "general"?'),
        ("summarise: [general]", "summarise: []", "tasks.summarise", "needs at least one capability"),
        ("- capability: general", "- {}", "routes[0].to[1]", "needs a model, an instance or a capability"),
        ("instance: beta", "instance: alpha", "routes[0].to[0].model",
         '"qwen3-coder" is not among the `models` of alpha'),
        ("model: qwen3-coder", "capability: general", "routes[0].to[0].capability",
         'beta does not have the capability "general"'),
        ("{task: [code_generation, summarise]}", "{}", "routes[0].match",
         'needs a task, a model or a header; for every call write `model: "*"`'),
        ('models: ["llama3.1:8b"]', "models: [a]\n    model: b", "instances[0].model",
         '"b" is not among its own `models`'),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_together_are_told(
    refused: Refused, old: str, new: str, where: str, message: str
) -> None:
    assert old in GOOD
    problems = refused(GOOD.replace(old, new, 1))
    assert {at: text for at, (text, _) in problems.items()} == {where: message}
    assert problems[where][1][0] > 0


def test_a_route_that_an_earlier_one_hides_is_told(refused: Refused) -> None:
    hidden = "  - name: again\n    match: {task: [summarise, code_generation]}\n    to: [{instance: alpha}]\n"
    problems = refused(GOOD.replace("cache:\n", hidden + "cache:\n"))
    assert problems == {
        "routes[1].match": ('never reached: "code" (routes[0]) matches the same and is first', (20, 12))
    }


def test_two_instances_of_one_name_are_told(refused: Refused) -> None:
    problems = refused(GOOD.replace("name: alpha", "name: beta"))
    assert problems["instances[1].name"] == ('"beta" is already the name of instances[0]', (6, 11))


def test_two_routes_of_one_name_are_told(refused: Refused) -> None:
    second = "  - name: code\n    match: {model: x}\n    to: [{instance: alpha}]\n"
    assert list(refused(GOOD.replace("cache:\n", second + "cache:\n"))) == ["routes[1].name"]


def test_resting_every_instance_is_a_problem_and_resting_one_is_not(read: Read, refused: Refused) -> None:
    one = GOOD.replace("name: beta\n", "name: beta\n    drain: true\n")
    read(one)
    assert list(refused(one.replace("name: alpha\n", "name: alpha\n    drain: yes\n"))) == ["instances"]


def test_models_are_compared_as_ollama_compares_them(read: Read) -> None:
    text = GOOD.replace('"llama3.1:8b"', "Library/Llama3.1")
    read(text.replace("instance: beta", "instance: alpha").replace("model: qwen3-coder", "model: llama3.1:latest"))


def test_a_part_that_was_not_understood_is_not_told_again(refused: Refused) -> None:
    assert list(refused(GOOD.replace("max_concurrent: 2", "max_concurrent: x"))) == ["instances[1].max_concurrent"]
    assert list(refused(GOOD.replace("name: beta", "name: ${NAME}"))) == ["instances[1].name"]


def test_what_only_a_misunderstood_instance_could_have_is_not_missed(refused: Refused) -> None:
    text = GOOD.replace("max_concurrent: 2", "max_concurrent: x").replace("capability: general", "capability: coding")
    assert list(refused(text.replace("summarise: [general]", "summarise: [coding]"))) == ["instances[1].max_concurrent"]


def test_a_mistake_that_an_alias_repeats_is_told_once(read: Read) -> None:
    text = "instances: [{name: a, url: http://gpu1}]\ntimeouts: &same {idle: soon}\nhealth: {<<: *same}\n"
    routes = "routes:\n" + "".join(f"  - {{name: r{i}, match: {{task: planning}}, to: *to}}\n" for i in range(2))
    with pytest.raises(ConfigError) as caught:
        read(text.replace("timeouts:", "breaker: &to [{model: 3}]\ntimeouts:") + routes)
    assert [p.message for p in caught.value.problems].count("must be text, found 3. Put it in quotes") == 1


def test_more_problems_than_anyone_reads_are_cut(read: Read) -> None:
    with pytest.raises(ConfigError) as caught:
        read("instances: [" + "3, " * 500 + "]")
    assert len(caught.value.problems) == 101
    assert caught.value.problems[-1].message == "and more: these are the first 100"


@pytest.mark.parametrize("meant", ["auto", "auto:latest", "auto:planning", "auto:summarise", "llama3.1:8b"])
def test_an_alias_may_stand_for_a_model_or_a_task_there_is(read: Read, meant: str) -> None:
    assert read(GOOD + f'aliases:\n  "claude-*": "{meant}"\n').config.aliases == {"claude-*": meant}


def test_an_alias_for_a_task_there_is_not_is_told(refused: Refused) -> None:
    told = refused(GOOD + 'aliases:\n  "claude-*": auto:planing\n')
    ((message, place),) = told.values()
    assert message == 'there is no task "planing". Did you mean "planning"?'
    assert place == (22, 15)
