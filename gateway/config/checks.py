"""All that is wrong with a configuration: each value against its model, then the parts against each other.

Messages are ours, calm and with the way out; pydantic finds, it does not speak. A part that could not be
understood is left out of the second round, so that one mistake is told once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from gateway.call import AUTO, model_key
from gateway.config.document import Missing, Steps, Written, printable
from gateway.config.models import (
    BUILT_IN_TASKS,
    SHA256,
    WORD,
    CacheConfig,
    Config,
    InstanceConfig,
    Match,
    RouteConfig,
    Target,
)
from gateway.errors import Problem

MAX_PROBLEMS = 100  # more are counted, not told
_MAX_CHOICES = 200  # looked through for a "did you mean"

M = TypeVar("M", bound=BaseModel)


class Finding(NamedTuple):
    """Something wrong at a value, or (`key`) at the key it stands under."""

    steps: Steps
    message: str
    key: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """The parts that could be understood, by their place in the lists; all of them where nothing is wrong."""

    instances: dict[int, InstanceConfig]
    routes: dict[int, RouteConfig]
    tasks: dict[str, tuple[str, ...]]
    aliases: dict[str, str]
    cache: CacheConfig | None
    names: tuple[str, ...] | None  # of all instances, those not understood included; None where one has none
    whole: bool  # every instance was understood


@dataclass(frozen=True, slots=True)
class Checked:
    """`config` is None where anything was found."""

    written: Written
    config: Config | None
    draft: Draft
    problems: tuple[Problem, ...]


def check(written: Written) -> Checked:
    """Everything wrong with `written`, in the order of its lines; at most `MAX_PROBLEMS` are told."""
    config, found = None, []
    try:
        config = Config.model_validate(written.data)
    except ValidationError as error:
        found = list(_told(error, written))
    draft = _draft(written.data)
    found += islice(chain.from_iterable(rule(draft) for rule in _RULES), MAX_PROBLEMS)
    problems = ordered([*written.problems, *(_placed(finding, written) for finding in found)])
    return Checked(written, None if problems else config, draft, problems)


def ordered(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """By line, those without a place last; none twice; cut to what a person reads."""
    once = {(p.line, p.column, p.message, "" if p.line else p.where): p for p in problems}
    ranked = sorted(once.values(), key=lambda p: (not p.line, p.line, p.column))
    if len(ranked) > MAX_PROBLEMS:
        ranked = [*ranked[:MAX_PROBLEMS], Problem("", f"and more: these are the first {MAX_PROBLEMS}")]
    return tuple(ranked)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`. Did you mean "ttl"?`, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, islice(choices, _MAX_CHOICES), n=1) if len(word) <= 64 else []
    return f'. Did you mean "{printable(near[0])}"?' if near else ""


def address(url: str) -> tuple[str, str, int]:
    """What makes two spellings of an instance's URL the same place."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)


# --- each value against its model


def _told(error: ValidationError, written: Written) -> Iterator[Finding]:
    placed = []
    for fault in error.errors(include_url=False):
        steps = _steps(fault, written.data)
        # A list none of whose entries could be read is not an empty list, though pydantic says so as well.
        misled = isinstance(fault["input"], Missing) or (fault["type"] == "too_short" and fault["input"])
        if steps is not None and not misled:
            placed.append((written.spot(steps), steps, fault))
    placed.sort(key=lambda entry: entry[0])
    for _, steps, fault in placed[: MAX_PROBLEMS + 1]:
        key = fault["type"] in ("extra_forbidden", "missing") or fault["loc"][-1] == "[key]"
        yield Finding(steps, _message(fault, steps, written), key)


def _steps(fault: Any, data: Any) -> Steps | None:
    """Where in `data` pydantic found `fault`; None for the branch of a choice that was not meant.

    Its location also names things that are not in the data: a missing key, "[key]", the branches of a union.
    """
    steps: list[str | int] = []
    for part in fault["loc"]:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if inside:
            steps.append(part)
            data = data[part]
        elif fault["type"] != "missing" and part != "[key]" and part.startswith("tuple[") != isinstance(data, list):
            return None
    return tuple(steps)


def _message(fault: Any, steps: Steps, written: Written) -> str:
    kind = fault["type"]
    if kind == "missing":
        return f'needs the key "{fault["loc"][-1]}"'
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(str(steps[-1]), _keys_at(steps[:-1]))
    words = _WORDS.get(kind)
    context = fault.get("ctx", {})
    must = words(context) if words else str(context.get("error", fault["msg"])).rstrip(".")
    if kind in _COUNTED:
        return must
    return f"{must}, found {_found(fault['input'], steps, written)}{_way_out(kind, fault['input'], steps)}"


_PATTERNS = {
    WORD: 'must be letters, digits, "_", "." and "-", and not begin with "." or "-"',
    SHA256: "must be a SHA-256: 64 digits of lower-case hex",
}
_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model_type": lambda _: "must be a mapping of keys to values",
    "dict_type": lambda _: "must be a mapping of names to values",
    "tuple_type": lambda _: "must be a list",
    "string_type": lambda _: "must be text",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": lambda c: f"must have at most {c['max_length']} characters",
    "string_pattern_mismatch": lambda c: _PATTERNS[c["pattern"]],
    "too_short": lambda _: "must have at least one entry",
    "too_long": lambda c: f"must have at most {c['max_length']} entries",
    "int_type": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_parsing_size": lambda _: "must be a smaller number",
    "int_from_float": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "float_parsing": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "bool_type": lambda _: "must be true or false",
    "bool_parsing": lambda _: "must be true or false",
    "literal_error": lambda c: f"must be {c['expected'].replace(chr(39), '')}",
    "greater_than_equal": lambda c: f"must be {c['ge']:g} or more",
    "greater_than": lambda c: f"must be more than {c['gt']:g}",
    "less_than_equal": lambda c: f"must be {c['le']:g} or less",
}
_COUNTED = ("too_short", "too_long", "string_too_short")


def _found(value: Any, steps: Steps, written: Written) -> str:
    if steps in written.sources:
        return f"{printable(written.sources[steps])} (hidden)"
    if steps and steps[-1] == "url" and "@" in str(value):
        return "one that does (hidden)"
    if steps and steps[-1] == "sha256":  # it may be the key itself, by mistake
        return "something else (hidden)"
    if isinstance(value, str):
        return f'"{printable(written.redacted(value))}"'
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else f"{value:.15g}"


def _way_out(kind: str, value: Any, steps: Steps) -> str:
    if kind == "tuple_type" and isinstance(value, str):
        return ". Put it in [ ]"
    if kind == "string_type" and isinstance(value, int | float):
        return ". Put it in quotes"
    if kind == "greater_than_equal" and steps[-1:] == ("max_concurrent",):
        return ". To rest an instance, write `drain: true`"
    return ""


def _keys_at(steps: Steps) -> Iterable[str]:
    """The keys that may stand at `steps`."""
    model: type[BaseModel] = Config
    for step in steps:
        if isinstance(step, str) and step in model.model_fields:
            model = next(_models_in(model.model_fields[step].annotation), model)
    return model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _placed(finding: Finding, written: Written) -> Problem:
    spot = written.spot(finding.steps, key=finding.key)
    return Problem(written.where(finding.steps), printable(written.redacted(finding.message), 400), *spot)


# --- the parts against each other


def _draft(data: dict[str, Any]) -> Draft:
    items = _list(data.get("instances"))
    instances = _understood(InstanceConfig, items)
    names = [item["name"] for item in items if isinstance(item, dict) and isinstance(item.get("name"), str)]
    own, aliases = data.get("tasks"), data.get("aliases")
    tasks = {
        name: tuple(words)
        for name, words in (own.items() if isinstance(own, dict) else ())
        if isinstance(words, list) and all(isinstance(word, str) for word in words)
    }
    return Draft(
        instances=instances,
        routes=_understood(RouteConfig, _list(data.get("routes"))),
        tasks=tasks,
        aliases={name: to for name, to in aliases.items() if isinstance(to, str)} if isinstance(aliases, dict) else {},
        cache=_understood(CacheConfig, [data.get("cache", {})]).get(0),
        names=tuple(names) if len(names) == len(items) else None,
        whole=isinstance(data.get("instances"), list) and len(instances) == len(items),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _understood(model: type[M], items: list[Any]) -> dict[int, M]:
    understood = {}
    for index, item in enumerate(items):
        try:
            understood[index] = model.model_validate(item)
        except ValidationError:
            continue
    return understood


def _names_are_unique(draft: Draft) -> Iterator[Finding]:
    yield from _twice("instances", "name", ((i, one.name, one.name) for i, one in draft.instances.items()))
    yield from _twice("instances", "url", ((i, address(one.url), one.url) for i, one in draft.instances.items()))
    yield from _twice("routes", "name", ((i, one.name, one.name) for i, one in draft.routes.items()))


def _twice(part: str, key: str, entries: Iterable[tuple[int, Any, str]]) -> Iterator[Finding]:
    first: dict[Any, int] = {}
    for index, same, text in entries:
        if first.setdefault(same, index) != index:
            yield Finding((part, index, key), f'"{text}" is already the {key} of {part}[{first[same]}]')


def _instances_can_serve(draft: Draft) -> Iterator[Finding]:
    for index, instance in draft.instances.items():
        offered = _offered(instance)
        if instance.model and offered is not None and model_key(instance.model) not in offered:
            yield Finding(("instances", index, "model"), f'"{instance.model}" is not among its own `models`')
    if draft.whole and draft.instances and all(instance.drain for instance in draft.instances.values()):
        yield Finding(("instances",), "all instances are draining: nothing could be served", key=True)


def _tasks_can_be_served(draft: Draft) -> Iterator[Finding]:
    # Built-in tasks fall back to a general instance (design: D1). Whoever writes a task down means one of these
    # capabilities to exist, so that none does is a slip.
    known = _capabilities(draft)
    for name, words in draft.tasks.items():
        if not words:
            yield Finding(("tasks", name), "needs at least one capability")
        elif draft.whole and not known.intersection(words):
            message = f"no instance has {_any_of(words)}{did_you_mean(words[0], sorted(known))}"
            yield Finding(("tasks", name), message)


def _aliases_name_a_task_there_is(draft: Draft) -> Iterator[Finding]:
    tasks = {**BUILT_IN_TASKS, **draft.tasks}
    for name, meant in draft.aliases.items():
        head, _, task = meant.partition(":")
        if head == AUTO and task not in ("", "latest", *tasks):
            yield Finding(("aliases", name), f'there is no task "{task}"{did_you_mean(task, tasks)}')


def _matches_mean_something(draft: Draft) -> Iterator[Finding]:
    tasks = {**BUILT_IN_TASKS, **draft.tasks}
    for index, route in draft.routes.items():
        steps = ("routes", index, "match")
        if not any((route.match.task, route.match.model, route.match.header)):
            yield Finding(steps, 'needs a task, a model or a header; for every call write `model: "*"`')
        for task in _several(route.match.task):
            if task not in tasks:
                yield Finding((*steps, "task"), f'there is no task "{task}"{did_you_mean(task, tasks)}')


def _routes_can_be_reached(draft: Draft) -> Iterator[Finding]:
    first: dict[Any, int] = {}
    for index, route in draft.routes.items():
        earlier = first.setdefault(_meaning(route.match), index)
        if earlier != index:
            message = f'never reached: "{draft.routes[earlier].name}" (routes[{earlier}]) matches the same and is first'
            yield Finding(("routes", index, "match"), message)


def _targets_exist(draft: Draft) -> Iterator[Finding]:
    by_name = {instance.name: (instance, _offered(instance)) for instance in draft.instances.values()}
    known = _capabilities(draft)
    for index, route in draft.routes.items():
        for number, target in enumerate(route.to):
            steps: Steps = ("routes", index, "to", number)
            if not any((target.model, target.instance, target.capability)):
                yield Finding(steps, "needs a model, an instance or a capability")
            if target.instance and draft.names is not None and target.instance not in draft.names:
                near = did_you_mean(target.instance, draft.names)
                yield Finding((*steps, "instance"), f'no instance is called "{target.instance}"{near}')
            elif target.capability and draft.whole and target.capability not in known:
                near = did_you_mean(target.capability, sorted(known))
                yield Finding((*steps, "capability"), f'no instance has the capability "{target.capability}"{near}')
            elif target.instance in by_name:
                yield from _instance_fits(target, *by_name[target.instance], steps)


def _instance_fits(
    target: Target, instance: InstanceConfig, offered: set[str] | None, steps: Steps
) -> Iterator[Finding]:
    if target.model and offered is not None and model_key(target.model) not in offered:
        near = did_you_mean(target.model, instance.models or ())
        yield Finding((*steps, "model"), f'"{target.model}" is not among the `models` of {instance.name}{near}')
    if target.capability and target.capability not in instance.capabilities:
        yield Finding((*steps, "capability"), f'{instance.name} does not have the capability "{target.capability}"')


_RULES: tuple[Callable[[Draft], Iterator[Finding]], ...] = (
    _names_are_unique,
    _instances_can_serve,
    _tasks_can_be_served,
    _aliases_name_a_task_there_is,
    _matches_mean_something,
    _routes_can_be_reached,
    _targets_exist,
)


def _capabilities(draft: Draft) -> set[str]:
    return {word for instance in draft.instances.values() for word in instance.capabilities}


def _offered(instance: InstanceConfig) -> set[str] | None:
    """The models it may be asked for, as keys; None where that is all it has."""
    return None if instance.models is None else {model_key(model) for model in instance.models}


def _several(value: tuple[str, ...] | str | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value or ()


def _any_of(words: tuple[str, ...]) -> str:
    shown = [f'"{printable(word)}"' for word in words[:5]]
    return "the capability " + shown[0] if len(words) == 1 else "any of the capabilities " + ", ".join(shown)


def _meaning(match: Match) -> tuple[Any, ...]:
    """The same for two matches that match the same calls, however they are written."""
    headers = {name.casefold(): value for name, value in (match.header or {}).items()}
    models = frozenset(map(model_key, _several(match.model)))
    return frozenset(_several(match.task)), models, frozenset(headers.items())
