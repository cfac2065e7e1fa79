"""Where a call may go: candidates in order, each with its reason. Pure; the line decides among them.

Aliases were replaced before. Precedence is D2: a route of the table, else a model the pool knows, else a
task; an unknown model goes by task only if a task was named explicitly. Tiers are a fallback chain: a later one is for
when nothing in the earlier is fit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from gateway.call import Call, Candidate, Plan, model_key
from gateway.config import DEFAULT_TASK, GENERAL, Config, RouteConfig, Target
from gateway.errors import InvalidCall, NoInstance, NotToldYet, UnknownModel, UnknownPath
from gateway.routing.aliases import split_alias
from gateway.routing.match import first_match
from gateway.routing.view import InstanceView, ModelView, PoolView

BY_MODEL = "by-model"  # the route's name where no entry of the table decided
BY_TASK = "by-task"
MAX_COMPARED = 200  # names looked at for a "did you mean": comparing costs the event loop 60 us each
RETRY_AFTER = 5.0  # seconds: about one probe interval, the soonest an instance can be back


def plan(call: Call, config: Config, view: PoolView) -> Plan:
    """All that may serve `call`, best first.

    Raises InvalidCall for a task nobody declared, UnknownModel, UnknownPath for an operation that no instance has, and
    NoInstance where nothing could be offered at all: NotToldYet where that may be another thing in a moment.
    """
    task = call.task or DEFAULT_TASK
    if task not in config.all_tasks:
        raise InvalidCall(_unknown_task(task, config), param="task_type")
    if call.operation.native:
        view = PoolView(tuple(instance for instance in view.instances if instance.native))
        if not view.instances:
            raise UnknownPath("no instance has Ollama's own API here; its models are served under /v1")
    having = view.having(call.model) if call.model else []
    route = first_match(call, config, task=task, model_known=bool(having))
    if route is not None:
        drawn = _by_route(call, route, task, view)
    elif having:
        drawn = _by_model(call, having)
    elif call.model and not call.task:
        raise _unknown_model(call, view)
    else:
        drawn = _by_task(call, task, config, view)
    if not drawn.candidates:
        kind = NotToldYet if any(instance.awaited for instance in view.instances) else NoInstance
        raise kind(_nothing_for(call, task, drawn), retry_after=RETRY_AFTER)
    return drawn


def _by_route(call: Call, route: RouteConfig, task: str, view: PoolView) -> Plan:
    candidates: list[Candidate] = []
    left_out: list[tuple[str, str]] = []
    for tier, target in enumerate(route.to):
        for instance in view.instances:
            found = _at(call, target, instance, left_out)
            if found is not None:
                candidates.append(_candidate(call, found, instance, tier, f"target {tier + 1} of route {route.name}"))
    reason = f"route {route.name}: the first whose match fits"
    return Plan(route=route.name, task=task, candidates=tuple(candidates), reasons=(reason,), left_out=tuple(left_out))


def _at(call: Call, target: Target, instance: InstanceView, left_out: list[tuple[str, str]]) -> str | None:
    """The model that `instance` would use for `target`, or None with the reason noted."""
    if target.instance is not None and target.instance != instance.name:
        return None
    if target.capability is not None and target.capability not in instance.capabilities:
        left_out.append((instance.name, f"has no capability {target.capability}"))
        return None
    if target.model is not None:
        found = instance.models.get(model_key(target.model))
        if found is None and instance.known:
            left_out.append((instance.name, f"has no model {target.model}"))
            return None
        return found.name if found else target.model
    if call.model and (found := instance.models.get(model_key(call.model))):
        return found.name
    return _own_choice(call, instance, left_out)


def _by_model(call: Call, having: Iterable[InstanceView]) -> Plan:
    key = model_key(call.model)
    candidates = [_candidate(call, instance.models[key].name, instance, 0, "has it") for instance in having]
    reason = "the pool knows this model by name"
    return Plan(route=BY_MODEL, task=call.task, candidates=tuple(candidates), reasons=(reason,))


def _by_task(call: Call, task: str, config: Config, view: PoolView) -> Plan:
    wanted = config.all_tasks[task]
    left_out: list[tuple[str, str]] = []
    capable = list(_capable(call, wanted, view, left_out))
    general = [
        _candidate(
            call,
            model,
            instance,
            1,
            "general, stands in",
            f"no healthy instance has {' or '.join(wanted)}: {instance.name} stands in",
        )
        for instance in view.instances
        if not set(wanted) & set(instance.capabilities) and set(GENERAL) & set(instance.capabilities)
        for model in (_own_choice(call, instance, left_out),)
        if model is not None
    ]
    reasons = [f"task {task}" + (f" from {call.task_from}" if call.task_from else ", since none was named")]
    if call.model:
        reasons.append(f"model {call.model} is unknown, but the task was named")
    reasons.append(f"served by capability {', then '.join(wanted)}")
    return Plan(
        route=BY_TASK,
        task=task,
        candidates=tuple(capable + general),
        reasons=tuple(reasons),
        left_out=tuple(left_out),
    )


def _capable(
    call: Call, wanted: tuple[str, ...], view: PoolView, left_out: list[tuple[str, str]]
) -> Iterator[Candidate]:
    """One tier: any instance with any of the capabilities; an earlier capability only breaks ties."""
    for instance in view.instances:
        capability = next((word for word in wanted if word in instance.capabilities), None)
        if capability is None:
            left_out.append((instance.name, f"has none of {', '.join(wanted)}"))
            continue
        model = _own_choice(call, instance, left_out)
        if model is not None:
            reason = f"has capability {capability}"
            yield _candidate(call, model, instance, 0, reason, rank=wanted.index(capability))


def _own_choice(call: Call, instance: InstanceView, left_out: list[tuple[str, str]]) -> str | None:
    """The model `instance` uses when none was named: its default, else one that is loaded, else one installed."""
    default = instance.default_model
    if default is not None:
        found = instance.models.get(model_key(default))
        if found is None and instance.known:
            left_out.append((instance.name, f"its model {default} is not installed"))
            return None
        if found is None or _can(found, call.wish.needs):
            return default
    fitting = [model for model in instance.models.values() if _can(model, call.wish.needs)]
    if not fitting:
        why = "has no model that fits" if instance.known else "its models are not known yet"
        left_out.append((instance.name, why))
        return None
    return next((model.name for model in fitting if model.loaded), fitting[0].name)


def _can(model: ModelView, needs: frozenset[str]) -> bool:
    """Whether a model can do what the call needs; an instance that does not tell is believed.

    Which words there are: ollama.md §2.6. An embedding model cannot chat, and a chat model is not asked to embed.
    """
    if model.capabilities is None:
        return True
    if "embedding" in needs:
        return "embedding" in model.capabilities
    return needs | {"completion"} <= model.capabilities


def _candidate(
    call: Call, model: str, instance: InstanceView, tier: int, reason: str, substitution: str = "", rank: int = 0
) -> Candidate:
    named = bool(call.model) and model_key(model) == model_key(call.model)
    asked = split_alias(call.wish.model)[0]
    if asked and model_key(model) != model_key(asked):
        stands_in = f"model {model} stands in for {asked}"
        substitution = f"{stands_in}; {substitution}" if substitution else stands_in
    return Candidate(
        instance=instance.name,
        model=model,
        spelt=call.model if named else "",
        tier=tier,
        rank=rank,
        reason=f"{reason}; {_where(instance, model)}",
        substitution=substitution,
    )


def _where(instance: InstanceView, model: str) -> str:
    found = instance.models.get(model_key(model))
    state = "loaded" if found and found.loaded else "installed" if found else "not seen yet"
    return f"{model} is {state} there" + (f", but {instance.why_not}" if instance.why_not else "")


def _unknown_model(call: Call, view: PoolView) -> UnknownModel | NoInstance:
    model = call.model
    if not any(instance.known for instance in view.instances):
        kind = NotToldYet if any(instance.awaited for instance in view.instances) else NoInstance
        return kind("no instance has told its models yet", retry_after=RETRY_AFTER)
    names = sorted({found.name for instance in view.instances for found in instance.models.values()})
    near = difflib.get_close_matches(model_key(model), [model_key(name) for name in names[:MAX_COMPARED]], 1)
    silent = sum(not instance.known for instance in view.instances)
    hint = f". Did you mean '{near[0]}'?" if near else ""
    if model != call.wish.model:
        hint += f" ('{call.wish.model[:256]}' stands for it, by an alias)"
    if any(instance.awaited and instance.healthy for instance in view.instances):
        words = f"no instance is known to have model '{model}', and {silent} of {len(view.instances)} have not told yet"
        return NotToldYet(words, retry_after=RETRY_AFTER)
    if silent:
        hint += f" ({silent} of {len(view.instances)} instances could not be asked yet)"
    return UnknownModel(model, hint)


def _unknown_task(task: str, config: Config) -> str:
    near = difflib.get_close_matches(task, config.all_tasks, 1)
    known = ", ".join(sorted(config.all_tasks))
    return f"unknown task {task!r}. " + (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {known}."


def _nothing_for(call: Call, task: str, drawn: Plan) -> str:
    wish = f"model {call.model}" if call.model and drawn.route != BY_TASK else f"task {task}"
    why = "; ".join(f"{name} {reason}" for name, reason in drawn.left_out[:4])
    return f"no instance can serve {wish}" + (f": {why}" if why else "")
