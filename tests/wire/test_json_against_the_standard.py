"""Our reading of a body against a slow and strict one, written with the standard library alone: one verdict, one value.

The reference knows RFC 8259 and the gateway's own bounds, a rule at a time. What either refuses the other must refuse.
"""

from __future__ import annotations

import json as standard
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.wire import json
from tests.examples import tried

MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


class Number(str):
    """A number as it was written: no reading of it could lose anything."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object with all its fields in order, those given twice too."""


def constant(word: str) -> Any:
    raise ValueError(word)  # NaN and the infinities


def read(text: str) -> Any:
    return standard.loads(text, parse_constant=constant, parse_int=Number, parse_float=Number, object_pairs_hook=Pairs)


def containers(value: Any, depth: int = 1) -> Iterator[tuple[int, int]]:
    """The depth and the length of every list and object."""
    if isinstance(value, list):
        yield depth, len(value)
        for inner in value:
            yield from containers(inner[1] if isinstance(value, Pairs) else inner, depth + 1)


def strictly(body: bytes) -> dict[str, Any]:
    """The fields of a body. Raises ValueError or RecursionError."""
    if body.startswith(MARKS):
        raise ValueError("a byte order mark")
    value = read(body.decode("utf-8"))
    standard.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded
    found = list(containers(value))
    if not isinstance(value, Pairs) or len(value) > json.MAX_FIELDS:
        raise ValueError("no object, or one with too many fields")
    if max(depth for depth, _ in found) > json.MAX_DEPTH:
        raise ValueError("too deep")
    if sum(max(0, length - 1) for _, length in found) + len(found) > json.MAX_NODES:
        raise ValueError("too many values")
    if len(dict(value)) < len(value):
        raise ValueError("a field twice")
    return dict(value)


def agrees(body: bytes) -> None:
    """Both refuse the body, or both read the same from it."""
    try:
        meant = strictly(body)
    except (ValueError, RecursionError):
        with pytest.raises(json.JsonProblem):
            json.parse(body)
        return
    fields = json.parse(body)
    assert {name: read(bytes(raw).decode()) for name, raw in fields.items()} == meant
    assert list(fields) == list(meant)


TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\r", b"\t", b"\x0b", b"\x0c", b"\x00", b"\x1f", b"\x7f"),
    *(b'"', b"\\", b"/", b"'", b'"a"', b'"b"', b'""', rb'"\u0061"', rb'"\""', rb'"\\"', rb'"\/"', rb'"\x"', rb'"\u12"'),
    *(rb'"\ud800"', rb'"\udc00\ud800"', rb'"\ud83d\ude00"', rb'"\u0000"', rb'"\uD800a"', b'"\x00"', b'"\n"', b'"\x7f"'),
    *(b"0", b"-0", b"00", b"01", b"-", b"+1", b"1.", b".5", b"1e", b"1e999", b"-1E-999", b"1.5e+3", b"9" * 5000),
    *(b"0x10", b"1_0", b"NaN", b"Infinity", b"-Infinity", b"nan", b"true", b"false", b"null", b"nul", b"True"),
    *("é".encode(), "\u2028".encode(), "\U0001f600".encode(), "\ufeff".encode(), "\u0661".encode()),
    *(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80", b"//", b"/**/", b'{"a":1}', b"[1,2]"),
]
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=4), one, max_size=4), max_leaves=12
)
OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=6)
CODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-7", "utf-8-sig", "latin-1"]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Sound JSON, dressed in one of several ways, with a few pieces of it replaced."""
    ascii_only, indent = draw(st.booleans()), draw(st.sampled_from([None, 0, "\t"]))
    text = standard.dumps(draw(OBJECTS), ensure_ascii=ascii_only, indent=indent)
    body = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 6)))
        body = body[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=2)) + body[end:]
    return body


@given(body=bodies())
@tried(400)
@example(b'{"a":1,"a":1}')
@example(rb'{"a":1,"\u0061":1}')
@example(rb'{"\ud800":1}')
@example(b'{"a":{"b":1,"b":2}}')
def test_a_body_changed_at_random_is_read_as_the_standard_reads_it(body: bytes) -> None:
    agrees(body)


@given(body=st.lists(st.sampled_from(TOKENS), max_size=12).map(b"".join))
@tried(400)
def test_tokens_in_any_order_are_read_as_the_standard_reads_them(body: bytes) -> None:
    agrees(body)
    agrees(b'{"a":' + body + b"}")


@given(value=OBJECTS, coding=st.sampled_from(CODINGS), ascii=st.booleans())
def test_no_other_encoding_is_taken_for_utf_8(value: dict[str, Any], coding: str, ascii: bool) -> None:  # noqa: A002
    agrees(standard.dumps(value, ensure_ascii=ascii).encode(coding, "replace"))


@given(opened=st.lists(st.sampled_from([(b"[", b"]"), (b'{"k":', b"}"), (b"[1,", b"]")]), min_size=56, max_size=72))
def test_depth_is_counted_as_it_is(opened: list[tuple[bytes, bytes]]) -> None:
    inside = b"".join(one for one, _ in opened) + b"0" + b"".join(one for _, one in reversed(opened))
    agrees(b'{"a":' + inside + b"}")


ITEMS = [b"1", b"[]", b'"a,[{"', rb'"\","', rb'"\\"', rb'"\\\"[,"', b'{"k":1}', b'[1,"x"]']


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("item", ITEMS, ids=repr)
def test_values_are_counted_as_they_are(item: bytes, more: int) -> None:
    each = 1 + item.count(b"[") + item.count(b"{") + item.count(b",") if item[:1] in b"[{" else 1
    agrees(b'{"a":[' + b",".join([item] * ((json.MAX_NODES - 1) // each + more)) + b"]}")


@pytest.mark.parametrize("count", [json.MAX_FIELDS, json.MAX_FIELDS + 1])
def test_fields_are_counted_as_they_are(count: int) -> None:
    agrees(standard.dumps({f"k{number}": number for number in range(count)}).encode())


@given(value=OBJECTS)
def test_what_is_read_means_what_it_says(value: dict[str, Any]) -> None:
    fields = json.parse(standard.dumps(value).encode())
    assert {name: msgspec.json.decode(raw) for name, raw in fields.items()} == value


def test_of_a_field_given_twice_deeper_down_the_last_counts_here_as_it_does_at_an_instance() -> None:
    fields = json.parse(b'{"options":{"seed":1,"seed":2}}')
    assert bytes(fields["options"]) == b'{"seed":1,"seed":2}'
    assert msgspec.json.decode(fields["options"]) == {"seed": 2}


@pytest.mark.parametrize("number", [b"9" * 5000, b"1e999", b"-1e999", b"1e-999", b"0." + b"9" * 5000])
def test_a_number_that_nothing_can_hold_passes_as_it_came_where_nobody_looks_at_it(number: bytes) -> None:
    assert bytes(json.parse(b'{"a":' + number + b"}")["a"]) == number
