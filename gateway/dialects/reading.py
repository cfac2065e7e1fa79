"""Reading a client's body: strictly as JSON, typed where we look, and every complaint names the field to blame.

A `Form` lists the fields one operation looks at. All others pass unread. Booleans are not numbers here, null is the
same as absent, and no text of the client's is repeated in a complaint.
"""

from __future__ import annotations

import re
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.errors import InvalidCall
from gateway.wire import json

Shape = TypeVar("Shape", bound=Struct)

TaskName = Annotated[str, Meta(max_length=64)]
Positive = Annotated[int, Meta(ge=1)]

NULL = Raw(b"null")

MODEL_LENGTH = 256
_PROBLEM = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<where>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_KINDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


class Thing(Struct, gc=False):
    """Any object at all."""


class Form(Generic[Shape]):
    """The shape of one operation's body, as far as we look at it."""

    def __init__(self, shape: type[Shape]) -> None:
        self._decoder = msgspec.json.Decoder(shape)
        self._names = frozenset(field.encode_name for field in msgspec.structs.fields(shape))

    def read(self, body: bytes) -> Shape:
        """The fields we look at. Raises InvalidCall."""
        try:
            fields = json.parse(body)
        except json.JsonProblem as problem:
            raise InvalidCall(str(problem)) from None
        for name in fields:
            self._check_spelling(name)
        try:
            return self._decoder.decode(body)
        except json.UNREADABLE as problem:
            raise complaint(str(problem)) from None

    def _check_spelling(self, name: str) -> None:
        """Ollama folds the case of field names: `Model` beside `model` would be a second, unseen model name."""
        if name not in self._names and (folded := name.casefold()) in self._names:
            raise InvalidCall(f"write the field '{folded}' in lower case", param=folded)


def complaint(problem: str, within: str = "") -> InvalidCall:
    """The decoder's words in ours; `within` is the path of the value that was decoded."""
    match = _PROBLEM.fullmatch(problem)
    what, where = match.group("what", "where") if match else (problem, None)
    path = ".".join(part for part in (within, where) if part).replace(".[", "[")
    if missing := _MISSING.fullmatch(what):
        path = ".".join(part for part in (path, missing[1]) if part)
        return InvalidCall(f"{path} is required", param=path)
    words = re.sub(r"`([^`]*)`", _in_words, what)
    words = words[:1].lower() + words[1:]
    return InvalidCall(f"{path}: {words}" if path else words, param=path or None)


def _in_words(match: re.Match[str]) -> str:
    return " or ".join(_KINDS.get(kind, kind) for kind in match[1].split(" | "))


def required_model(name: str | None) -> str:
    """A model name as the client spelt it. Raises InvalidCall where there is none, or none that could be one."""
    if not name or name.isspace():
        raise InvalidCall("model is required", param="model")
    return possible_model(name)


def possible_model(name: str) -> str:
    """A name that may stand in logs and headers: printable, at most 256 characters."""
    if len(name) > MODEL_LENGTH or not name.isprintable():
        raise InvalidCall(f"model must be at most {MODEL_LENGTH} printable characters", param="model")
    return name


def first_byte(raw: Raw) -> bytes:
    """What kind of value it is, without copying it: `"`, `[`, `{`, a digit, or the first letter of a word like null."""
    return bytes(memoryview(raw)[:1])


def texts(raw: Raw) -> int:
    """How many texts `input` holds: a string or a list of strings; null is none. Raises InvalidCall.

    Lists of token numbers get the hint that their senders need: it is a default of one client (clients.md §9 G 75).
    """
    if first_byte(raw) == b"n":
        return 0
    try:
        found = _TEXTS.decode(raw)
    except json.UNREADABLE:
        raise InvalidCall(
            "input must be a string or a list of strings. Ollama takes no lists of tokens: "
            "with LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False",
            param="input",
        ) from None
    return 1 if isinstance(found, str) else len(found)


_TEXTS: msgspec.json.Decoder[str | list[str]] = msgspec.json.Decoder(str | list[str])
