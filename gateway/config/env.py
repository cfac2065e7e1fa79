"""The numbered variables and the two of the cache: a whole configuration without a file; and files of variables.

    OLLAMA_URL_1  OLLAMA_MODEL_1  OLLAMA_CAPABILITIES_1  OLLAMA_MAX_CONCURRENT_1  OLLAMA_NAME_1
    OLLAMA_URL_2  …                       (any number, gaps allowed)
    OLLAMA_CACHING_TTL_HOURS  ENABLE_CACHING

An empty variable counts as not set. Ollama's own variables (OLLAMA_HOST, OLLAMA_KEEP_ALIVE, …) are none of ours.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.config.document import MAX_BYTES, Missing, Written, printable
from gateway.errors import ConfigError, Problem

TTL = "OLLAMA_CACHING_TTL_HOURS"
ENABLED = "ENABLE_CACHING"
DEFAULT_INSTANCE = {"name": "ollama", "url": "http://127.0.0.1:11434"}

_FIELDS = {
    "URL": "url",
    "MODEL": "model",
    "CAPABILITIES": "capabilities",
    "MAX_CONCURRENT": "max_concurrent",
    "NAME": "name",
}
_NUMBERED = re.compile(rf"OLLAMA_({'|'.join(_FIELDS)})_([1-9][0-9]{{0,5}})")
_NEARLY = re.compile(r"OLLAMA_([A-Z_]*?)_?([0-9]{1,6})")
_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)", re.DOTALL)
_QUOTED = re.compile(r"""(?:'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)")\s*(?:#.*)?""", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def from_environment(env: Mapping[str, str]) -> Written:
    """The configuration that `env` holds, labelled with the variables it came from.

    Without a single URL it has the one default instance, which carries no label.
    """
    ours = {name: value.strip() for name, value in env.items() if value.strip()}
    written = Written({"instances": []})
    numbered: dict[int, dict[str, str]] = {}
    for name in sorted(ours):
        if match := _NUMBERED.fullmatch(name):
            numbered.setdefault(int(match[2]), {})[match[1]] = ours[name]
        elif meant := _meant(name):
            written.problems.append(Problem(printable(name), f'unknown variable. Did you mean "{meant}"?'))
    for number in sorted(numbered):
        _add_instance(written, number, numbered[number])
    if not written.data["instances"]:
        written.data["instances"].append(dict(DEFAULT_INSTANCE))
    add_cache(written, ours)
    return written


def _add_instance(written: Written, number: int, given: dict[str, str]) -> None:
    instances = written.data["instances"]
    if "URL" not in given:
        for word in given:
            message = f"has no OLLAMA_URL_{number} to go with it"
            written.problems.append(Problem(f"OLLAMA_{word}_{number}", message))
        return
    values: dict[str, Any] = {"name": f"ollama-{number}"}
    values |= {_FIELDS[word]: value for word, value in given.items()}
    if "CAPABILITIES" in given:
        values["capabilities"] = [word.strip() for word in given["CAPABILITIES"].split(",") if word.strip()]
    steps = ("instances", len(instances))
    written.labels[steps] = f"OLLAMA_URL_{number}"
    for word, value in given.items():
        written.labels[*steps, _FIELDS[word]] = f"OLLAMA_{word}_{number}"
        written.variables[f"OLLAMA_{word}_{number}"] = value
    instances.append(values)


def add_cache(written: Written, env: Mapping[str, str]) -> None:
    """Put what the two variables of the cache say into `written`."""
    cache: dict[str, Any] = {}
    if hours := env.get(TTL, "").strip():
        cache["ttl"] = _seconds(hours)
        if isinstance(cache["ttl"], Missing):
            message = f'must be a number of hours, 0 or more, found "{printable(hours)}"'
            written.problems.append(Problem(TTL, message))
    if truth := env.get(ENABLED, "").strip():
        cache["enabled"] = _TRUTH.get(truth.casefold(), Missing())
        if isinstance(cache["enabled"], Missing):
            written.problems.append(Problem(ENABLED, f'must be true or false, found "{printable(truth)}"'))
    for key, name in (("ttl", TTL), ("enabled", ENABLED)):
        if key in cache:
            written.labels["cache", key] = name
            written.variables[name] = env[name].strip()
    if cache:
        written.data["cache"] = cache


def _seconds(hours: str) -> float | Missing:
    try:
        seconds = float(hours) * 3600
    except ValueError:
        return Missing()
    return seconds if math.isfinite(seconds) and seconds >= 0 else Missing()


def _meant(name: str) -> str:
    """The variable that `name` nearly spells, where it does."""
    if not name.startswith("OLLAMA_") or len(name) > 64 or name == TTL:
        return ""
    match = _NEARLY.fullmatch(name)
    if match is None:
        return TTL if difflib.get_close_matches(name, [TTL], cutoff=0.85) else ""
    near = difflib.get_close_matches(match[1], _FIELDS, n=1, cutoff=0.75)
    return f"OLLAMA_{near[0]}_{max(int(match[2]), 1)}" if near else ""


def read_bytes(path: Path) -> bytes:
    """A file of at most 1 MiB. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(str(path), [Problem("", f"cannot be read: {reason}")]) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(str(path), [Problem("", "is larger than 1 MiB")])
    return data


def as_text(data: bytes, source: str) -> str:
    """The text of a file. Raises ConfigError with the place of the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        column = error.start - before.rfind(b"\n")
        place = (before.count(b"\n") + 1, column)
        raise ConfigError(source, [Problem("", "is not UTF-8 text", *place)]) from None


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of `KEY=VALUE` lines, as Docker and a shell read them; the last of a name holds.

    A line may begin with `export`; a value may stand in single quotes (taken as it is) or in double quotes (with
    \\n, \\" and \\\\); a comment begins with `#`, after a value with a space before it. Raises ConfigError with the
    numbers of lines, never with a value.
    """
    values: dict[str, str] = {}
    problems = []
    for number, line in enumerate(as_text(read_bytes(path), str(path)).split("\n"), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        value = _unquoted(match["value"]) if match else None
        if match is None:
            problems.append(Problem("", "must look like NAME=value", number, 1))
        elif value is None:
            problems.append(Problem(match["name"], "the quotes do not close at the end of the line", number, 1))
        else:
            values[match["name"]] = value
    if problems:
        raise ConfigError(str(path), problems[:100])
    return values


def _unquoted(text: str) -> str | None:
    if text[:1] not in ("'", '"'):
        return re.split(r"(?:^|\s+)#", text, maxsplit=1)[0]
    match = _QUOTED.fullmatch(text)
    if match is None:
        return None
    if match["single"] is not None:
        return match["single"]
    return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), match["double"])
