"""Reading a client's body: strictly as JSON, typed where we look, and every complaint names the field to blame.

A `Form` lists the fields one operation looks at. All others pass unread. Booleans are not numbers here, null is the
same as absent, and no text of the client's is repeated in a complaint.

What tells one conversation from another is found here for all dialects. Its next turn should go where the last one
went: that instance has read the beginning already (ollama.md §7).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Generic, Protocol, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.call import Priority
from gateway.errors import InvalidCall
from gateway.offload import give_way
from gateway.wire import json

Shape = TypeVar("Shape", bound=Struct)

TaskName = Annotated[str, Meta(max_length=64)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # what an instance can hold; it refuses any other
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]

NULL = Raw(b"null")

MODEL_LENGTH = 256
FEW_INPUTS = 8  # somebody may wait for the vectors of so many texts; more are the work of a program
NAME_LENGTH = 256  # of a conversation, as its client names it
PART_LENGTH = 64 * 1024  # bytes of one part of a conversation that tell it from others
PROMPT_LENGTH = 1024  # the same of a bare prompt, which holds all turns at once and grows
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
        return self.read_both(body)[0]

    def read_both(self, body: bytes) -> tuple[Shape, dict[str, Raw]]:
        """The fields we look at, and beside them every field as the bytes that came. Raises InvalidCall."""
        try:
            fields = json.parse(body)
        except json.JsonProblem as problem:
            raise InvalidCall(str(problem)) from None
        for name in fields:
            if name not in self._names:
                self._check_spelling(name)
        give_way()
        try:
            return self._decoder.decode(body), fields
        except json.UNREADABLE as problem:
            raise complaint(str(problem)) from None

    def _check_spelling(self, name: str) -> None:
        """Ollama folds the case of field names: `Model` beside `model` would be a second, unseen model name."""
        if (folded := name.casefold()) in self._names:
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


def class_by_inputs(count: int) -> Priority:
    """The class in line of a call for this many vectors: a search is one text, the indexing of documents is many."""
    return Priority.BATCH if count > FEW_INPUTS else Priority.NORMAL


def class_by_suffix(suffix: str | None) -> Priority:
    """The class in line of a completion: an editor that has text behind the cursor, too, wants it while one types."""
    return Priority.INTERACTIVE if suffix else Priority.NORMAL


class Turn(Protocol):
    """A message in a conversation."""

    @property
    def role(self) -> str | None:
        """Who says it."""


SomeTurn = TypeVar("SomeTurn", bound=Turn)
Part = tuple[str, Raw | memoryview]  # one thing said, by what it is: a text, an image


def opening(turns: Iterable[SomeTurn]) -> list[SomeTurn]:
    """What every turn has before it: the leading system prompts and the first message of a user; else nothing."""
    found: list[SomeTurn] = []
    leading = True
    for turn in turns:
        role = (turn.role or "").lower()  # as Ollama reads it
        if role == "user":
            return [*found, turn]
        leading = leading and role in _SYSTEM
        if leading:
            found.append(turn)
    return []


def conversation_named(fields: Mapping[str, Raw]) -> str:
    """What the body itself calls its conversation, `prompt_cache_key`, cut to 256 characters; "" where it does not.

    `user` and `safety_identifier` are not looked at. They name a person, who has many conversations; and two persons
    whose conversations begin with the same bytes are best served by the same instance.
    """
    return text(fields["prompt_cache_key"])[:NAME_LENGTH] if "prompt_cache_key" in fields else ""


def conversation_begun(fields: Mapping[str, Raw], names: Sequence[str], said: Sequence[Part]) -> str:
    """A digest of what a conversation begins with: the fields of these names, then what was said; "" if nothing was.

    Of a part beyond 64 KiB only its first 64 KiB and its length count. In a smaller one no marks of `cache_control` do:
    clients that set them move them on from turn to turn.
    """
    if not said:
        return ""
    digest = blake2b(digest_size=12)
    for name in names:
        digest.update(_told(name, fields.get(name, NULL)))
    for name, part in said:
        digest.update(_told(name, part))
    return digest.hexdigest()


def _told(name: str, part: Raw | memoryview) -> bytes:
    """A part as the bytes that came, under its name and with its length, so that no two run together."""
    if len(part) > PART_LENGTH:
        return b"%b %d\n%b" % (name.encode(), len(part), bytes(memoryview(part)[:PART_LENGTH]))
    whole = bytes(part)
    if whole.find(_MARK) >= 0:  # `in` costs ten times as much (CPython)
        whole = _without_marks(whole)
    return b"%b %d\n%b" % (name.encode(), len(whole), whole)


def _without_marks(part: bytes) -> bytes:
    """Without the marks at the end of blocks. A quote inside a string is escaped, so these are fields."""
    *pieces, last = _MARKS.split(part)
    return b"".join(piece.rstrip(b", \t\r\n") for piece in pieces) + last


def text(raw: Raw) -> str:
    """The text that a value of a body is; "" for a value of any other kind."""
    return _TEXT.decode(raw) if first_byte(raw) == b'"' else ""


_SYSTEM = ("system", "developer")
_MARK = b'"cache_control"'
_MARKS = re.compile(_MARK + rb"[ \t\r\n]*+:[ \t\r\n]*+\{[^{}]*+\}")
_TEXT = msgspec.json.Decoder(str)
_TEXTS: msgspec.json.Decoder[str | list[str]] = msgspec.json.Decoder(str | list[str])
