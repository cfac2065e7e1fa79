"""YAML text as plain values, each with the place it was written at and `${VARIABLES}` filled in.

It reads a small, safe YAML: no tags of one's own, no key twice, one document, and bounds on size, depth and what
aliases unfold to, so that no file takes more than a moment. Only numbers and null have a type of their own; `true`,
`yes` and dates stay text, and become what the model wants: an instance may be called `no`.

Read the events, never `yaml.load`: the bounds hold because nothing is built before it was counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import yaml

from gateway.errors import ConfigError, Problem

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml: slower, otherwise the same
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

MAX_BYTES = 2**20
_MAX_NODES = 32_000  # 1,024 instances with every key are 20,000
_MAX_ALIASED = 1_000  # nodes that aliases and merge keys may add
_MAX_DEPTH = 32
_MAX_FILLED = 2**20  # characters that variables may add

Steps = tuple[str | int, ...]  # the way to a value: ("instances", 1, "url")

_TAGS = {"!", *(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))}
_INT = re.compile(r"[-+]?[0-9]{1,18}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,5})?")
_NULL = ("", "~", "null", "Null", "NULL")
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<inside>[^{}]*)\}|(?P<open>\{))")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<kind>[-?])(?P<rest>.*))?", re.DOTALL)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)


class Spot(NamedTuple):
    """A place in a file, counted from 1; 0 is no place."""

    line: int = 0
    column: int = 0


class Missing:
    """Stands where a value could not be read. No field accepts it; the reason is already among the problems."""


@dataclass(slots=True)
class Written:
    """Plain values, and how a person finds them again."""

    data: Any
    values: dict[Steps, Spot] = field(default_factory=dict)
    keys: dict[Steps, Spot] = field(default_factory=dict)
    labels: dict[Steps, str] = field(default_factory=dict)  # where no file was read: the variable or argument
    variables: dict[str, str] = field(default_factory=dict)  # used, with their values
    sources: dict[Steps, str] = field(default_factory=dict)  # as written, for values that hold a secret
    problems: list[Problem] = field(default_factory=list)

    def spot(self, steps: Steps, *, key: bool = False) -> Spot:
        """The place of a value, or of its key; of the nearest thing around it where it has none."""
        for end in range(len(steps), -1, -1):
            found = (self.keys if key else self.values).get(steps[:end]) or self.values.get(steps[:end])
            if found:
                return found
        return Spot()

    def where(self, steps: Steps) -> str:
        """What a problem calls it: `instances[1].url`, or the variable it came from."""
        for end in range(len(steps), 0, -1):
            if steps[:end] in self.labels:
                return self.labels[steps[:end]]
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{printable(step)}" for step in steps)
        return text.removeprefix(".")

    def redacted(self, text: str) -> str:
        """`text` without the value of any variable whose name looks like a secret's."""
        for name, value in self.variables.items():
            if value and looks_secret(name):
                text = text.replace(value, "(hidden)")
        return text


def looks_secret(name: str) -> bool:
    """True for a variable whose value is never shown."""
    return _SECRET.search(name) is not None


def printable(text: str, limit: int = 60) -> str:
    """`text` on one line, cut to `limit` characters, safe for a terminal."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut)


def read(text: str, env: Mapping[str, str], *, source: str) -> Written:
    """The values of one YAML document that is a mapping.

    What is wrong with single values is in `problems`; a text that cannot be read at all raises ConfigError.
    """
    try:
        root = _Composer(text, source).document()
    except yaml.YAMLError as error:
        raise ConfigError(source, [_syntax(error)]) from None
    filler = _Builder(env, source, root)
    written = filler.written
    written.data = filler.value(root, (), 0)
    return written


def typed(text: str) -> Any:
    """A plain scalar as what it means: a number, None, or text."""
    if text in _NULL:
        return None
    if _INT.fullmatch(text):
        return int(text, 16 if text.startswith("0x") else 10)
    return float(text) if _FLOAT.fullmatch(text) else text


@dataclass(slots=True)
class _Node:
    kind: str  # "text", "list", "mapping"
    spot: Spot
    text: str = ""
    plain: bool = False  # neither quoted nor tagged as text
    tag: str = ""  # only where it is one we refuse
    items: list[_Node] = field(default_factory=list)  # of a mapping: key, value, key, value …
    nodes: int = 0  # of the root: how many the text itself holds


class _Composer:
    """Events -> nodes. Aliases share the node they name, so nothing is unfolded yet."""

    def __init__(self, text: str, source: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))
        self._source = source
        self._anchors: dict[str, _Node | None] = {}  # None while it is being read
        self._count = 0

    def document(self) -> _Node:
        next(self._events)  # the start of the stream
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            self._refuse(Spot(1, 1), "is empty: give at least one instance")
        root = self._node(next(self._events), 0)
        next(self._events)  # the end of the document
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            self._refuse(_spot(following.start_mark), "must hold one document: a second one begins here")
        if root.tag:
            self._refuse(root.spot, f"the tag {printable(root.tag)} is not allowed")
        if root.kind == "text" and root.plain and root.text in _NULL:
            self._refuse(root.spot, "is empty: give at least one instance")
        if root.kind != "mapping":
            self._refuse(root.spot, 'must be a mapping, with keys such as "instances:" at its left edge')
        root.nodes = self._count
        return root

    def _node(self, event: Any, depth: int) -> _Node:
        spot = _spot(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, spot)
        self._count += 1
        if self._count > _MAX_NODES:
            self._refuse(spot, f"holds more than {_MAX_NODES:,} values")
        if depth > _MAX_DEPTH:
            self._refuse(spot, f"is nested more than {_MAX_DEPTH} deep")
        node = _Node("text", spot, tag="" if event.tag is None or event.tag in _TAGS else event.tag)
        if event.anchor:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node.text = event.value
            node.plain = event.implicit[0] or (event.tag or "").rpartition(":")[2] in ("int", "float", "null")
        else:
            node.kind = "list" if isinstance(event, yaml.SequenceStartEvent) else "mapping"
            while not isinstance(inner := next(self._events), yaml.CollectionEndEvent):
                node.items.append(self._node(inner, depth + 1))
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: yaml.AliasEvent, spot: Spot) -> _Node:
        name = printable(str(event.anchor))
        if event.anchor not in self._anchors:
            self._refuse(spot, f"the alias *{name} has no anchor &{name} before it")
        node = self._anchors[event.anchor]
        if node is None:
            self._refuse(spot, f"the alias *{name} contains itself")
        return node

    def _refuse(self, spot: Spot, message: str) -> NoReturn:
        raise ConfigError(self._source, [Problem("", message, *spot)])


class _Builder:
    """Nodes -> values and places. Here aliases unfold, so here they are counted."""

    def __init__(self, env: Mapping[str, str], source: str, root: _Node) -> None:
        self.written = Written({})
        self._env = env
        self._source = source
        self._left = root.nodes + _MAX_ALIASED
        self._fill = _MAX_FILLED

    def value(self, node: _Node, steps: Steps, depth: int) -> Any:
        self._count(node, depth)
        self.written.values[steps] = node.spot
        if node.tag:
            return self._problem(node, steps, f"the tag {printable(node.tag)} is not allowed")
        if node.kind == "list":
            return [self.value(item, (*steps, index), depth + 1) for index, item in enumerate(node.items)]
        if node.kind == "mapping":
            result = {}
            for name, (key, value) in self._pairs(node, steps, depth).items():
                self.written.keys[*steps, name] = key.spot
                result[name] = self.value(value, (*steps, name), depth + 1)
            return result
        return self._scalar(node, steps)

    def _pairs(self, node: _Node, steps: Steps, depth: int) -> dict[str, tuple[_Node, _Node]]:
        """The keys of a mapping, then those that `<<` brings in and it does not have itself."""
        pairs: dict[str, tuple[_Node, _Node]] = {}
        merged: list[_Node] = []
        for key, value in zip(node.items[::2], node.items[1::2], strict=True):
            self._count(key, depth)
            if key.kind != "text" or key.tag:
                self._problem(key, steps, "a key must be text")
            elif key.plain and key.text == "<<":
                merged += value.items if value.kind == "list" else [value]
            elif key.text in pairs:
                first = pairs[key.text][0].spot.line
                self._problem(key, (*steps, key.text), f"appears twice, first on line {first}. Keep one")
            else:
                pairs[key.text] = (key, value)
        for other in merged:
            self._count(other, depth + 1)
            if other.kind == "mapping":
                for name, pair in self._pairs(other, steps, depth + 1).items():
                    pairs.setdefault(name, pair)
            else:
                self._problem(other, steps, "a merge key << takes a mapping, or a list of them")
        return pairs

    def _count(self, node: _Node, depth: int) -> None:
        self._left -= 1
        if self._left < 0:
            problem = f"aliases unfold to more than {_MAX_ALIASED:,} further values"
            raise ConfigError(self._source, [Problem("", problem, *node.spot)])
        if depth > _MAX_DEPTH:
            raise ConfigError(self._source, [Problem("", f"is nested more than {_MAX_DEPTH} deep", *node.spot)])

    def _scalar(self, node: _Node, steps: Steps) -> Any:
        if "$" not in node.text:
            return typed(node.text) if node.plain else node.text
        pieces, end, whole = [], 0, False
        for match in _VARIABLE.finditer(node.text):
            try:
                piece = "$" if match["dollar"] else self._variable(match, node, steps)
            except _Unfilled as reason:
                return self._problem(node, steps, str(reason))
            pieces += [node.text[end : match.start()], piece]
            end = match.end()
            whole = match.span() == (0, len(node.text)) and not match["dollar"]
        text = "".join([*pieces, node.text[end:]])
        return typed(text) if node.plain and whole else text

    def _variable(self, match: re.Match[str], node: _Node, steps: Steps) -> str:
        inside = _INSIDE.fullmatch(match["inside"] or "")
        if inside is None:
            raise _Unfilled("write ${NAME}, ${NAME:-default} or ${NAME:?message}; a dollar sign alone is $$")
        name, kind, rest = inside["name"], inside["kind"], inside["rest"] or ""
        value = self._env.get(name)
        if value is None or (not value and kind):
            if kind != "-":
                raise _Unfilled(f"the variable {name} is not set" + (f": {printable(rest)}" if rest else ""))
            return rest
        self.written.variables[name] = value
        if looks_secret(name):
            self.written.sources[steps] = node.text
        self._fill -= len(value)
        if self._fill < 0:
            raise ConfigError(self._source, [Problem("", f"the variable {name} makes it too large", *node.spot)])
        return value

    def _problem(self, node: _Node, steps: Steps, message: str) -> Missing:
        self.written.problems.append(Problem(self.written.where(steps), message, *node.spot))
        return Missing()


class _Unfilled(Exception):
    """Why a `${…}` could not be filled in."""


def _spot(mark: Any) -> Spot:
    return Spot(mark.line + 1, mark.column + 1)


def _syntax(error: yaml.YAMLError) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        words = " ".join(part for part in (error.problem, error.context) if part)
        return Problem("", f"is not YAML: {printable(words, 160)}", *(_spot(mark) if mark else Spot(1, 1)))
    reason = getattr(error, "reason", None) or error
    return Problem("", f"is not YAML: {printable(str(reason), 160)}", 1, 1)
