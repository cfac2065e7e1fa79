"""Where a configuration comes from: a file, the environment, URLs of the command line, or nothing at all.

`load` gives a whole `Config` or raises every problem at once, each with its place; it changes nothing and keeps
nothing, so a configuration being served outlives any number of bad ones. How text is read is in `document`, what
is wrong in `checks`, the variables in `env`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.call import model_key
from gateway.config.checks import Checked, address, check, ordered
from gateway.config.document import Steps, Written, looks_secret, read
from gateway.config.env import add_cache, as_text, from_environment, read_bytes, read_env_file
from gateway.config.models import Config, InstanceConfig
from gateway.errors import ConfigError, Problem

__all__ = ["Loaded", "json_schema", "load", "read_env_file"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and where it came from.

    `source` is the file as it was named, "the environment", "the command line" or "the defaults". `digest` is the
    begin of the SHA-256 of what it was made from: that of the file itself where it uses no variables. The values
    of variables that look secret are no part of it.
    """

    config: Config
    source: str
    digest: str


def load(*, file: Path | None = None, urls: Sequence[str] = (), env: Mapping[str, str]) -> Loaded:
    """The configuration of `file`, else of `urls`, else of `env`, else one Ollama on this machine.

    `urls` stand in the place of numbered variables; beside a file they are refused, and variables that contradict
    the file are too. Raises ConfigError with all problems.
    """
    if file is not None and urls:
        message = "give instances on the command line or in a file, not both"
        raise ConfigError("the command line", [Problem("", message)])
    if file is not None:
        return _from_file(file, env)
    written = _from_urls(urls, env) if urls else from_environment(env)
    source = "the command line" if urls else "the environment" if written.labels or written.problems else "the defaults"
    config = _sound(check(written), source)
    return Loaded(config, source, _digest("\n".join(urls).encode(), written.variables))


def _sound(checked: Checked, source: str) -> Config:
    if checked.config is None:
        raise ConfigError(source, checked.problems)
    return checked.config


def _digest(data: bytes, variables: Mapping[str, str]) -> str:
    lines = [f"\0{name}={variables[name]}" for name in sorted(variables) if not looks_secret(name)]
    return hashlib.sha256(data + "".join(lines).encode(errors="backslashreplace")).hexdigest()[:12]


# --- the command line


def _from_urls(urls: Sequence[str], env: Mapping[str, str]) -> Written:
    instances = [{"name": name, "url": url} for name, url in zip(_names(urls), urls, strict=True)]
    labels: dict[Steps, str] = {("instances", index): f"address {index + 1}" for index in range(len(urls))}
    written = Written({"instances": instances}, labels=labels)
    add_cache(written, env)
    return written


def _names(urls: Sequence[str]) -> list[str]:
    """Each after its host; with the port where hosts are the same, and numbered where even that is."""
    hosts = [_host_and_port(url) for url in urls]
    shared = Counter(host for host, _ in hosts)
    names: list[str] = []
    for host, port in hosts:
        name = host if shared[host] == 1 else f"{host}-{port}"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _host_and_port(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", str(parts.port or 80)
    except ValueError:  # the URL is refused by its model, with the reason
        host, port = "", ""
    return re.sub(r"[^A-Za-z0-9_.-]+|:", "-", host)[:48].strip(".-") or "ollama", port


# --- a file


def _from_file(path: Path, env: Mapping[str, str]) -> Loaded:
    source, data = str(path), read_bytes(path)
    file = check(read(as_text(data, source), env, source=source))
    variables = check(from_environment(env))
    problems = [*file.problems, *variables.problems, *_contradictions(source, file, variables)]
    if problems:
        raise ConfigError(source, ordered(problems))
    return Loaded(_sound(file, source), source, _digest(data, file.written.variables))


def _contradictions(source: str, file: Checked, variables: Checked) -> Iterator[Problem]:
    """What the environment says otherwise than the file; both places are named."""
    by_address = {address(instance.url): index for index, instance in file.draft.instances.items()}
    for index, theirs in variables.draft.instances.items():
        part: Steps = ("instances", index)
        here = by_address.get(address(theirs.url))
        if part not in variables.written.labels:
            continue
        if here is not None:
            labels = _labels(variables, part, ("name", "model", "capabilities", "max_concurrent"))
            yield from _differences(file, ("instances", here), file.draft.instances[here], theirs, labels)
        elif file.draft.whole:
            spot = file.written.spot(("instances",), key=True)
            message = f"{theirs.url} is no instance of {source}. Add it under `instances`, or unset the variable"
            yield Problem(variables.written.labels[part], message, *spot)
    if file.draft.cache and variables.draft.cache:
        labels = _labels(variables, ("cache",), ("ttl", "enabled"))
        yield from _differences(file, ("cache",), file.draft.cache, variables.draft.cache, labels)


def _labels(variables: Checked, part: Steps, keys: Sequence[str]) -> dict[str, str]:
    """Of `keys`, those that a variable was given for, with its name."""
    labels = variables.written.labels
    return {key: labels[*part, key] for key in keys if (*part, key) in labels}


def _differences(file: Checked, part: Steps, ours: Any, theirs: Any, labels: Mapping[str, str]) -> Iterator[Problem]:
    for key, label in labels.items():
        if _meaning(ours, key) != _meaning(theirs, key):
            steps = (*part, key)
            message = f"is {_said(getattr(ours, key))} here, but {label} says {_said(getattr(theirs, key))}. Keep one"
            yield Problem(file.written.where(steps), file.written.redacted(message), *file.written.spot(steps))


def _meaning(part: Any, key: str) -> Any:
    value = getattr(part, key)
    if isinstance(part, InstanceConfig) and key == "model":
        return value and model_key(value)
    return frozenset(value) if key == "capabilities" else value


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(value) or "empty"
    if isinstance(value, float):
        return f"{value:g} s"
    return "not set" if value is None else str(value)


# --- the schema


def json_schema() -> dict[str, Any]:
    """The JSON Schema of routes.yaml, for editors: what `Config` accepts, or a `${VARIABLE}` in its place."""
    schema = Config.model_json_schema()
    schema["$defs"] = {name: _tidied(part) for name, part in schema["$defs"].items()}
    schema["$defs"]["Variable"] = {
        "type": "string",
        "pattern": r"\$\{[A-Za-z_]",
        "description": "Filled in from the environment: ${NAME}, ${NAME:-default} or ${NAME:?message}.",
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ollama-gateway routes.yaml"}
    return head | _tidied({key: value for key, value in schema.items() if key != "title"})


def _tidied(part: dict[str, Any]) -> dict[str, Any]:
    """Without pydantic's titles, and with a variable allowed where not any text will do."""
    tidy = {key: value for key, value in part.items() if key != "title"}
    if "patternProperties" in tidy:
        tidy["additionalProperties"] = False
    for key in ("properties", "patternProperties"):
        if key in tidy:
            tidy[key] = {name: _tidied(inner) for name, inner in tidy[key].items()}
    if "items" in tidy:
        tidy["items"] = _tidied(tidy["items"])
    if "anyOf" not in tidy and _is_fixed(part):
        tidy["anyOf"] = [{key: tidy.pop(key) for key in part if key not in ("title", "description", "default")}]
    if any(_is_fixed(choice) for choice in tidy.get("anyOf", ())):
        tidy["anyOf"] = [*tidy["anyOf"], {"$ref": "#/$defs/Variable"}]
    return tidy


def _is_fixed(part: dict[str, Any]) -> bool:
    """True where only some values will do, and a variable's name is not one of them."""
    text = part.get("type") == "string" and ("pattern" in part or "enum" in part)
    return text or part.get("type") in ("integer", "number", "boolean")
