"""A form, looked at: its fields are found whatever the file holds, and one is replaced without touching the rest."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.multipart import MAX_PARTS, Form, FormProblem

EDGE = "----WebKitFormBoundary7MA4YWxk"


def part(head: str, content: bytes) -> bytes:
    return f"--{EDGE}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"


def field(name: str, text: str) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', text.encode())


def file(content: bytes, name: str = "file") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"; filename="a.wav"\r\nContent-Type: audio/wav', content)


END = f"--{EDGE}--\r\n".encode()


@given(sound=st.binary(max_size=500), model=st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1))
def test_fields_are_found_and_replaced_whatever_the_file_holds(sound: bytes, model: str) -> None:
    body = file(sound) + field("model", model) + field("prompt", "") + END
    form = Form(body)
    assert form.field("model") == model
    assert form.field("prompt") == form.field("language") == ""
    assert form.has_file("file")
    assert form.with_field("model", "other:7b") == file(sound) + field("model", "other:7b") + field("prompt", "") + END


@pytest.mark.parametrize(
    "sound",
    [
        b"\r\n--other\r\n",
        b"\r\n--" + EDGE.encode() + b"x\r\n",
        b"\r\n--" + EDGE.encode() + b"x\r\nContent-Disposition: form-data; name=model\r\n\r\nhidden",
        b"--" + EDGE.encode() + b"-",
        b"\n--" + EDGE.encode() + b"\n",
    ],
)
def test_only_a_line_that_is_the_boundary_ends_a_part(sound: bytes) -> None:
    assert Form(file(b"x" + sound) + field("model", "m") + END).field("model") == "m"


@pytest.mark.parametrize(
    "head", ['content-disposition:form-data;name="model"', "Content-Disposition: form-data; name=model"]
)
def test_headers_are_read_as_loosely_as_clients_write_them(head: str) -> None:
    assert Form(part(head, b" m ") + END).field("model") == "m"


def test_the_instance_is_told_the_boundary_that_was_read() -> None:
    assert Form(field("model", "m") + END).content_type == f'multipart/form-data; boundary="{EDGE}"'.encode()


def test_an_end_without_a_line_end_is_an_end() -> None:
    assert Form(field("model", "m") + END.rstrip()).field("model") == "m"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "multipart"),
        (b'{"model":"m"}', "multipart"),
        (b"--\r\n", "multipart"),
        (b"--" + b"x" * 71 + b"\r\n", "multipart"),
        (b'--"\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--"--', "multipart"),
        (field("model", "m"), "too early"),
        (field("model", "m") + END.rstrip()[:-1], "too early"),
        (f"--{EDGE}\r\nContent-Disposition: form-data; name=a".encode(), "no end to its headers"),
        (part("Content-Type: text/plain", b"x") + END, "no plain name"),
        (part("Content-Disposition: form-data; name*=utf-8''model", b"x") + END, "no plain name"),
        (part("Content-Disposition: form-data; name=a; name*=utf-8''model", b"x") + END, "no plain name"),
        (part("Content-Disposition: form-data;\r\n name=model", b"x") + END, "no plain name"),
        (field("a", "b") * (MAX_PARTS + 1) + END, "parts"),
    ],
)
def test_what_is_no_such_form_is_refused_in_words(body: bytes, words: str) -> None:
    with pytest.raises(FormProblem, match=words):
        Form(body)


@pytest.mark.parametrize(
    "body",
    [
        field("model", "m") + field("model", "n"),
        file(b"m", name="model"),
        field("model", "m" * 70_000),
        part('Content-Disposition: form-data; name="model"', b"\xff"),
    ],
)
def test_a_field_that_could_be_read_two_ways_or_is_no_text_is_refused(body: bytes) -> None:
    with pytest.raises(FormProblem, match="model"):
        Form(body + END).field("model")


@given(body=st.binary(max_size=300), cut=st.integers(0, 300))
def test_any_bytes_at_all_are_read_or_refused(body: bytes, cut: int) -> None:
    whole = file(body) + field("model", "m") + END
    for one in (body, whole[:cut], whole[:cut] + body + whole[cut:]):
        with contextlib.suppress(FormProblem):
            Form(one).field("model")
