"""Transcriptions: the model is read out of the form, and is all that is ever changed in it."""

from __future__ import annotations

import pytest

from gateway.call import Call
from gateway.dialects import openai
from gateway.errors import InvalidCall
from tests.forms import BOUNDARY, form


def call(body: bytes) -> Call:
    operation = openai.TRANSCRIPTIONS
    return Call(request_id="r-1", operation=operation, wish=operation.read(body), body=body)


def test_the_form_tells_the_model_and_its_own_boundary() -> None:
    wish = openai.TRANSCRIPTIONS.read(form(model="whisper", task_type="general_chat"))
    assert (wish.model, wish.task, wish.stream, set(wish.needs)) == ("whisper", "general_chat", False, {"audio"})
    assert wish.content_type == f'multipart/form-data; boundary="{BOUNDARY}"'.encode()


def test_the_form_goes_on_as_the_bytes_that_came() -> None:
    body = form(model="whisper", language="en")
    assert openai.TRANSCRIPTIONS.write(call(body), "whisper") is body


def test_only_the_model_is_replaced() -> None:
    body = form(model="auto", prompt="auto")
    assert openai.TRANSCRIPTIONS.write(call(body), "gemma4:e2b") == form(model="gemma4:e2b", prompt="auto")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"m"}', None),
        (form(), "model"),
        (form(model=" "), "model"),
        (form(model="m\nn"), "model"),
        (form(model="m", stream="true"), "stream"),
        (form(None, model="m"), "file"),
        (form(model="m")[:-8], None),
    ],
)
def test_a_form_that_cannot_be_served_is_refused(body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidCall) as refused:
        openai.TRANSCRIPTIONS.read(body)
    assert refused.value.param == param


@pytest.mark.parametrize("wanted", ["json", "verbose_json", "text", "srt"])
def test_json_is_json_whatever_was_asked_for(wanted: str) -> None:
    reply = openai.TRANSCRIPTIONS.reply(call(form(model="m", response_format=wanted)), "m", b'{"text":"hi"}', 0.1)
    assert (reply.body, reply.content_type) == (b'{"text":"hi"}', b"application/json")


@pytest.mark.parametrize("wanted", ["text", "srt", "vtt"])
def test_what_was_asked_for_as_text_may_be_text(wanted: str) -> None:
    reply = openai.TRANSCRIPTIONS.reply(call(form(model="m", response_format=wanted)), "m", b"hi there", 0.1)
    assert (reply.body, reply.content_type) == (b"hi there", b"text/plain; charset=utf-8")


@pytest.mark.parametrize("body", [b"", b"hi there", b"{}", b'{"text":null}', b'{"error":"out of memory"}'])
def test_what_is_no_transcription_is_a_failure(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"reply|transcription|out of memory"):
        openai.TRANSCRIPTIONS.reply(call(form(model="m")), "m", body, 0.1)
