"""A client's body: what is refused, in which words, and at what cost."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.offload import LARGE
from gateway.wire import json

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)

NAMES = st.sampled_from(["a", "b", "", 'a"', "\\", "é"])


def short(value: bytes | str) -> str:
    return repr(value[:24])


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return b'{"a":' + opening * (depth - 1) + closing * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (b" \r\n\t", "the body is empty"),
        (b"[1]", "must be a JSON object, not a list"),
        (b'"x"', "must be a JSON object, not a string"),
        (b"12", "must be a JSON object, not a number"),
        (b"null", "must be a JSON object, not null"),
        (b'{"a":1', "the body is not valid JSON: it ends too early"),
        (b'{"a":1}x', "the body is not valid JSON: trailing characters at byte"),
        (b'{"a":NaN}', "not valid JSON: invalid character at byte 5"),
        (b'{"a":-Infinity}', "not valid JSON"),
        (b'{"a":1,}', "not valid JSON"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":"\x00"}', "not valid JSON"),
        (rb'{"a":"\ud800"}', "not valid JSON: half of a surrogate pair"),
        (rb'{"a":"\uDBFFx" }', "not valid JSON: half of a surrogate pair"),
        (rb'{"\ud800":1}', "not valid JSON: half of a surrogate pair"),
        (rb'{"a":"\ud800 and more text"}', "not valid JSON: half of a surrogate pair"),
        (rb'{"a":["\udc00"]}', "not valid JSON: half of a surrogate pair"),
        (rb'{"a":"\u12 and more text"}', "not valid JSON: invalid character in unicode escape"),
        (rb'{"a":"\ud83d', "it ends too early"),
        (rb'{"a":"\ud83d\ude0', "it ends too early"),
        (rb'{"a":"\\ud800"', "it ends too early"),
        (b'{"a":"\xff"}', "not valid UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not valid UTF-8"),
        (b'{"a":"' + b"x" * 2**17 + b'\xc3"}', "not valid UTF-8"),
        (b'{"\xff":1}', "not valid UTF-8"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"a":1}'.encode("utf-16"), "byte order mark"),
        ('{"a":1}'.encode("utf-16-le"), "not valid JSON"),
        (b'{"a":1,"a":1}', "names the field 'a' twice"),
        (b'{"a":1, "b":2, "a":12}', "names the field 'a' twice"),
        (b'{"a":12,"a":1}', "names the field 'a' twice"),
        (b'{"a":1,"a":1,"b":1}', "names the field 'a' twice"),
        (b'{"a":1,"b":{"c":3} , "c":[1,2], "b":{"c":3}, "a":2}', "names the field 'a' twice"),
        (b'{"a":1,"b":{"c":3} , "c":[1,2], "b":{"c":3}}', "names the field 'b' twice"),
        (rb'{"model":"x","mod\u0065l":"y"}', "names the field 'model' twice"),
        (rb'{"a\n\u0000":"x","a\n\u0000":"y"}', r"names the field 'a\n\x00' twice"),
        (b'{"' + b"x" * 1000 + b'":1,"' + b"x" * 1000 + b'":1}', f"names the field '{'x' * 60}' twice"),
        (nested(65), "more than 64 levels"),
        (nested(100_000), "more than 64 levels"),
        (nested(100_000, b'[{"a":', b"}]").replace(b":}", b":1}"), "more than 64 levels"),
        (b'{"a":' + b"[" * 100_000, "more than 64 levels"),
        (b'{"a":' + b"[" * 33 + b"]" * 34 + b"}", "it closes more than it opens"),
        (b'{"a":' + b'[{"x":' * 90_000, "more than 64 levels"),
        (b'{"a":[' + b"1," * 200_000 + b"1]}", "more than 200000 values"),
        (b'{"a":[' + b"[]," * 100_001 + b"[]]}", "more than 200000 values"),
        (b"{" + b",".join(b'"k%d":1' % number for number in range(700_000)) + b"}", "more than 200000 values"),
        (b"{" + b",".join(b'"k%d":1' % number for number in range(2000)) + b"}", "more than 1024 fields"),
    ],
    ids=short,
)
def test_what_cannot_be_read_is_refused_in_plain_words(body: bytes, words: str) -> None:
    with pytest.raises(json.JsonProblem) as problem:
        json.parse(body)

    assert words in str(problem.value)


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b" { } \n",
        b'{"a":1}',
        b'{ "a" : 1 ,\n\t"b" : [ 2 , {} ] }\r\n',
        rb'{"a":"\ud83d\ude00","b\u0065":2}',
        rb'{"a\"b\\":"\\\"","c":"]]]}}}"}',
        nested(64),
        nested(33, b'[{"a":', b"}]").replace(b":}", b":1}").replace(b'[{"a":1}]', b"1", 1),
        b'{"a":"' + b"[" * 1000 + b'"}',
        b'{"a":"' + b'\\"[\\\\' * 1000 + b'"}',
        b'{"a":[' + b",".join([b"[]"] * 1000) + b"]}",
        b'{"a":"' + b"," * 500_000 + b'"}',
    ],
    ids=short,
)
def test_what_is_fine_passes(body: bytes) -> None:
    assert set(json.parse(body)) == set(msgspec.json.decode(body))


@given(value=st.dictionaries(st.text(), ANY_JSON, max_size=8), spaced=st.booleans())
def test_every_value_is_kept_as_the_bytes_that_came(value: dict[str, Any], spaced: bool) -> None:
    body = msgspec.json.encode(value)
    if spaced:
        body = msgspec.json.format(body)

    fields = json.parse(body)

    assert {name: msgspec.json.decode(raw) for name, raw in fields.items()} == msgspec.json.decode(body)
    assert all(bytes(raw) in body for raw in fields.values())


@given(pairs=st.lists(st.tuples(NAMES, ANY_JSON), max_size=5), gap=st.text(" \n"))
def test_fields_are_told_to_come_once_by_the_short_way_just_where_the_long_way_says_so(
    pairs: list[tuple[str, Any]], gap: str
) -> None:
    space = gap.encode()
    written = [msgspec.json.encode(name) + space + b":" + msgspec.json.encode(value) for name, value in pairs]
    body = b"{" + (space + b",").join(written) + space + b"}"
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    once = len(fields) == len(pairs)

    assert json._each_once(body, fields) == once
    assert json._quotes_fit(body, fields) == (once and not any('"' in name for name in fields))


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@given(value=st.dictionaries(st.text(alphabet='a"\\\\[]{},'), st.text(alphabet='a"\\\\[]{},'), max_size=8))
def test_where_a_large_body_is_cut_to_be_looked_at_changes_nothing(block: int, value: dict[str, str]) -> None:
    body = b'{"a":' + b"[" * 62 + b"]" * 62 + b',"b":' + msgspec.json.encode(value) + b"}"
    deep = body.replace(b"[]", b"[[[]]]", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "_BLOCK", block)
        assert list(json.parse(body)) == ["a", "b"]
        with pytest.raises(json.JsonProblem, match="nested"):
            json.parse(deep)


@given(body=st.binary() | st.text(alphabet='{}[]":,\\ud8001aeEN. \n').map(str.encode))
@example(body=b'{"a":"\\')
@example(body=b'{"":,"')
def test_whatever_is_sent_only_a_json_problem_comes_out(body: bytes) -> None:
    with contextlib.suppress(json.JsonProblem):
        assert set(json.parse(body)) == set(msgspec.json.decode(body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"' + b"\\" * 4_000_000,
        b'{"' + b'\\"' * 2_000_000 + b'":1,"' + b'\\"' * 2_000_000,
        b'{"a":[' + b"[[[[[[[[]]]]]]]]," * 22_000 + b"1]}",
        b"[" * 4_000_000,
        b'{"' * 2_000_000,
        b'"' * 4_000_000,
        b" " * 4_000_000 + b"{",
        b'{"a":' + b"[" * 33 + b"]" * 8_000_000,
        b"{" + b'"k":"' + b"k" * 4_000_000 + b'","k":1}',
    ],
    ids=short,
)
def test_a_hostile_body_costs_no_more_than_its_size(body: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(json.JsonProblem):
        json.parse(body)

    assert time.process_time() - began < 5


def test_what_we_write_stands_on_one_line_for_every_reader() -> None:
    text = "a\nb\u2028c\u2029d\u0085e\x0b\x1c"

    line = json.encode({"text": text})

    assert len(line.decode().splitlines()) == 1
    assert msgspec.json.decode(line) == {"text": text}


@pytest.mark.parametrize("size", [0, 10, LARGE, 3 * 2**20 + 7])
def test_fields_are_written_as_one_object_however_large(size: int) -> None:
    body = b'{ "a" : 1 , "text\\n":"' + b"x" * size + b'","last":[ 1, 2 ]}'
    fields = json.parse(body)
    assert json.encode_fields(fields) == b'{"a":1,"text\\n":"' + b"x" * size + b'","last":[ 1, 2 ]}'
    assert json.encode_fields({}) == b"{}"
