"""Names that stand for something else: those of the configuration, and `auto`, which asks for a task.

An alias goes before everything: before a model the pool has under that name. What it stands for is not looked up again,
so there are no chains and no circles. `auto` itself cannot be given another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from gateway.call import AUTO, Call
from gateway.routing.match import same_model

_BEFORE_ALIAS = ("header", "path")  # sources of a task that go before a model's name (D2)


def stands_for(model: str, aliases: Mapping[str, str]) -> str:
    """What `model` means: the value of the first alias that fits it, else `model` itself."""
    return next((value for pattern, value in aliases.items() if same_model(pattern, model)), model)


def unaliased(call: Call, aliases: Mapping[str, str]) -> Call:
    """`call` as if the client had named what its model stands for. `call.wish.model` still tells what it did name."""
    if not aliases:
        return call
    meant = stands_for(call.model, aliases)
    if meant == call.model:
        return call
    model, task = split_alias(meant)
    if task and call.task_from not in _BEFORE_ALIAS:
        return replace(call, model=model, task=task, task_from="alias")
    return replace(call, model=model)


def split_alias(model: str) -> tuple[str, str]:
    """A model as the client spelt it -> (model, task): `auto` and `auto:<task>` are no model but ask for a task."""
    head, _, tag = model.partition(":")
    if head.casefold() != AUTO or "/" in tag:
        return model, ""
    return "", "" if tag.casefold() == "latest" else tag
