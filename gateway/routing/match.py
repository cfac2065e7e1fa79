"""Which route a call takes: the first entry of the table whose conditions all hold.

A model the pool knows beats a task (D2), so an entry that asks for nothing but a task is passed over by a call that
names such a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from gateway.call import Call, model_key
from gateway.config import Config, RouteConfig


def first_match(call: Call, config: Config, *, task: str, model_known: bool) -> RouteConfig | None:
    """The route for `call`, or None: then the built-in rules decide.

    `task` is the task in force; `model_known` says whether some instance has the model the call names.
    """
    return next((route for route in config.routes if _matches(route, call, task, model_known)), None)


def _matches(route: RouteConfig, call: Call, task: str, model_known: bool) -> bool:
    match = route.match
    if match.task is not None and (task not in _several(match.task) or (model_known and match.model is None)):
        return False
    if match.model is not None and not any(same_model(pattern, call.model) for pattern in _several(match.model)):
        return False
    return match.header is None or _headers_match(match.header, call.headers)


def same_model(pattern: str, model: str) -> bool:
    """A pattern without a tag stands for every tag only where it has a wildcard; `x` alone is `x:latest`."""
    if not model:
        return False
    if "*" in pattern or "?" in pattern:
        return fnmatchcase(model_key(model), pattern.casefold()) or fnmatchcase(model.casefold(), pattern.casefold())
    return model_key(pattern) == model_key(model)


def _headers_match(wanted: Mapping[str, str], headers: Mapping[str, str]) -> bool:
    return all(fnmatchcase(headers.get(name.lower(), ""), value) for name, value in wanted.items())


def _several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
