"""A client's JSON, read strictly and cheaply; and JSON of ours, fit to stand on one line.

`parse` checks the whole body once and keeps every value as the bytes that came, so that what is not looked at passes
unchanged. What it refuses would crash, stall or mislead someone further on (faults.md §8.2): other encodings than
UTF-8, NaN and infinities, lone surrogates, deep nesting, too many values, a field given twice. Every check is linear.

One law: whoever decodes bytes of others catches UNREADABLE, not only ValueError; nesting raises RecursionError.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Raw

from gateway.offload import LARGE, give_way

MAX_DEPTH = 64
MAX_NODES = 200_000
MAX_FIELDS = 1024  # at the top level

UNREADABLE = (ValueError, RecursionError)  # all that msgspec raises for bytes it cannot read

_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_KEY = re.compile(rb'[ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_NEXT = re.compile(rb"[ \t\r\n]*+([,}])")
_PLACE = re.compile(r"(?:JSON is malformed: )?(.*?)(?: \(byte (\d+)\))?")
_HALF_A_PAIR = re.compile(rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u|\\?\Z)")
_KINDS = {"array": "a list", "str": "a string", "int": "a number", "float": "a number", "bool": "a truth value"}

_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
_OPEN, _CLOSE = b"\x01", b"\xff"  # as signed bytes: one level down, one level up
_STEPS = bytes.maketrans(b"[{]}", _OPEN * 2 + _CLOSE * 2)
_ESCAPE = re.compile(rb"\\*+.?", re.DOTALL)  # the rest of one, where a block ends within
_TEXT_BLOCK = 2**16
_BLOCK = 2**20
_NAMED = 60  # characters that are said back of a field's name
_SMALL = 2**13  # bytes of a body in which it costs little to count a mark


class JsonProblem(ValueError):
    """Why a body cannot be read, in words for the client who sent it."""


def parse(body: bytes) -> dict[str, Raw]:
    """The top-level fields of a JSON object, each value as the bytes that came. Raises JsonProblem, nothing else."""
    small = len(body) <= _SMALL
    if not body.isascii():
        _check_text(body)
    if not (small and body.count(b"[") + body.count(b"{") <= MAX_DEPTH // 2):
        _check_shape(body)
        give_way()
    try:
        fields = _OBJECT.decode(body)
    except msgspec.ValidationError as problem:
        kind = str(problem).rpartition("got ")[2].strip("`")
        raise JsonProblem(f"the body must be a JSON object, not {_KINDS.get(kind, kind)}") from None
    except RecursionError:
        raise JsonProblem(f"the body is nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as problem:
        raise JsonProblem(_why(str(problem), body)) from None
    if len(fields) > MAX_FIELDS:
        raise JsonProblem(f"the body has more than {MAX_FIELDS} fields")
    if not (small and _quotes_fit(body, fields)) and not _each_once(body, fields):
        raise JsonProblem(f"the body names the field {_twice(body, fields)[:_NAMED]!r} twice")
    return fields


def encode(value: Any) -> bytes:
    """Compact JSON that no reader breaks into lines: some split at U+0085, U+2028 and U+2029 (clients.md §9 J 98)."""
    text = msgspec.json.encode(value)
    if text.isascii():
        return text
    text = text.replace(b"\xc2\x85", b"\\u0085")
    return text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")


def encode_fields(fields: Mapping[str, Raw]) -> bytes:
    """An object of these fields, each value as the bytes that came. A large one is written in blocks: it takes longer
    to find twenty megabytes of new memory than to copy them.
    """
    if sum(len(memoryview(value)) for value in fields.values()) <= LARGE:
        return msgspec.json.encode(fields)
    out = BytesIO()
    for name, value in fields.items():
        out.write((b"," if out.tell() else b"{") + msgspec.json.encode(name) + b":")
        view = memoryview(value)
        for start in range(0, len(view), _BLOCK):
            give_way()
            out.write(view[start : start + _BLOCK])
    out.write(b"}")
    return out.getvalue()


def _why(problem: str, body: bytes) -> str:
    if not body or body.isspace():
        return "the body is empty"
    half = "surrogate" in problem or "end of hex escape" in problem  # or, near the end of the body, "truncated"
    if half or ("truncated" in problem and _HALF_A_PAIR.search(body[-16:])):
        return "the body is not valid JSON: half of a surrogate pair stands alone"
    if "truncated" in problem:
        return "the body is not valid JSON: it ends too early"
    match = _PLACE.fullmatch(problem)
    what, byte = match.groups() if match else (problem, None)
    return f"the body is not valid JSON: {what}" + (f" at byte {byte}" if byte else "")


def _check_text(body: bytes) -> None:
    """UTF-8 throughout, checked in blocks: a whole body decoded at once could take four times its size."""
    if body.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise JsonProblem("the body must be UTF-8 without a byte order mark")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(body), _TEXT_BLOCK):
            give_way()
            decoder.decode(body[start : start + _TEXT_BLOCK])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise JsonProblem("the body is not valid UTF-8") from None


def _check_shape(body: bytes) -> None:
    """Depth and number of values, looked at closely only where so many brackets or commas are there at all.

    A look without the strings costs some 4 ns a byte; finding that no look is needed costs next to nothing.
    """
    many = len(body) > 2 * MAX_NODES and _has_more(body, b",", MAX_NODES // 2)
    if not (many or _has_more(body, b"[", MAX_DEPTH // 2) or _has_more(body, b"{", MAX_DEPTH // 2)):
        return
    values = level = 0
    for structure in _structure(body):
        give_way()
        opened, closed = structure.count(_OPEN), structure.count(_CLOSE)
        values += structure.count(b",") + opened
        if values > MAX_NODES:
            raise _too_many()
        if closed > level + opened:  # so that there are no more steps than values
            raise JsonProblem("the body is not valid JSON: it closes more than it opens")
        steps = memoryview(structure.replace(b",", b"")).cast("b")
        if max(accumulate(steps, initial=level)) > MAX_DEPTH:
            raise JsonProblem(f"the body is nested more than {MAX_DEPTH} levels deep")
        level += opened - closed


def _too_many() -> JsonProblem:
    return JsonProblem(f"the body holds more than {MAX_NODES} values")


def _has_more(body: bytes, byte: bytes, count: int) -> bool:
    at = -1
    for _ in range(count + 1):
        at = body.find(byte, at + 1)
        if at < 0:
            return False
    return True


def _structure(body: bytes) -> Iterator[bytes]:
    """Commas and brackets outside strings, brackets as steps up and down; nonsense for what is no JSON.

    In blocks: a hostile body is refused at the first that is too much, and a thread that is at it lets others go on.
    """
    at, within, quotes = 0, 0, 0
    while at < len(body):
        end = at + _BLOCK
        if body[end - 1 : end] == b"\\" and (escape := _ESCAPE.match(body, end)):
            end = escape.end()
        block = body[at:end]
        at = end
        if b"\\" in block:
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
        found = block.count(b'"')
        quotes += found
        if quotes > 4 * MAX_NODES:  # a value has two strings at most, its key and itself, of two quotes each
            raise _too_many()
        yield b"".join(block.split(b'"')[within::2]).translate(_STEPS, _NOT_STRUCTURE)
        within ^= found & 1


def _quotes_fit(body: bytes, fields: dict[str, Raw]) -> bool:
    """Whether there are just the quotes of the values and two for each name: then no field came twice."""
    return body.count(b'"') == 2 * len(fields) + b"".join(fields.values()).count(b'"')


def _each_once(body: bytes, fields: dict[str, Raw]) -> bool:
    """Whether the body is just these fields in this order: the decoder keeps the last of two, so two would not fit."""
    give_way()
    at = body.index(b"{") + 1
    for raw in fields.values():
        key = _KEY.match(body, at)
        value = memoryview(raw)  # no copy: new memory for twenty megabytes takes longer than to compare them
        if key is None or not body.startswith(value, key.end()):
            return False
        after = _NEXT.match(body, key.end() + len(value))
        if after is None:
            return False
        at = after.end()
    return not fields or body[at - 1 : at] == b"}"


def _twice(body: bytes, fields: dict[str, Raw]) -> str:
    """The first field that comes again: one whose value is not the last of that name, or whose name has been."""
    at, seen = body.index(b"{") + 1, set[str]()
    while key := _KEY.match(body, at):
        name: str = msgspec.json.decode(key[1])
        value = memoryview(fields[name])
        after = _NEXT.match(body, key.end() + len(value)) if body.startswith(value, key.end()) else None
        if name in seen or after is None:
            return name
        seen.add(name)
        at = after.end()
    raise AssertionError("every field comes once")
