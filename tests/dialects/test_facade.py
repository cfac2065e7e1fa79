"""The facade: one message in, one text out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.call import Call, Usage
from gateway.dialects import facade, facade_or_ollama, ollama
from gateway.errors import InvalidCall


def encoded(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


def call(body: bytes, task: str = "") -> Call:
    return Call(request_id="r-1", operation=facade.CHAT, wish=facade.CHAT.read(body), body=body, task=task)


def answer(content: Any = "Hi", finish: str | None = "stop", **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, "reasoning": "hm"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    return encoded(id="x", choices=[{"message": message, "finish_reason": finish}], usage=usage, **more)


def test_a_message_is_all_it_takes() -> None:
    wish = facade.CHAT.read(encoded(message="hello"))

    assert (wish.model, wish.task, wish.stream, wish.deterministic) == ("", "", False, False)


def test_task_and_model_are_read() -> None:
    wish = facade.CHAT.read(encoded(message="hello", task_type="reasoning", model="qwen3", temperature=0))

    assert (wish.model, wish.task, wish.deterministic) == ("qwen3", "reasoning", True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "message"),
        ({"message": ""}, "message"),
        ({"message": None}, "message"),
        ({"message": ["x"]}, "message"),
        ({"message": "x", "task_type": 1}, "task_type"),
        ({"message": "x", "temperature": True}, "temperature"),
        ({"message": "x", "model": 1}, "model"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidCall) as refusal:
        facade.CHAT.read(encoded(**fields))

    assert refusal.value.param == param


def test_an_instance_is_asked_for_a_chat_completion() -> None:
    body = encoded(message='say "é"', task_type="reasoning", model="auto", temperature=0.5, stream=True)

    assert msgspec.json.decode(facade.CHAT.write(call(body), "qwen3")) == {
        "model": "qwen3",
        "messages": [{"role": "user", "content": 'say "é"'}],
        "temperature": 0.5,
        "stream": False,
    }
    assert b"temperature" not in facade.CHAT.write(call(encoded(message="x")), "qwen3")


def test_the_answer_is_the_text_with_who_gave_it_for_which_task_and_how_fast() -> None:
    reply = facade.CHAT.reply(call(encoded(message="x", task_type="planning")), "qwen3", answer(), 1.2345)

    assert reply.body == b'{"response":"Hi","model":"qwen3","task_type":"planning","duration_ms":1234}'
    assert reply.usage == Usage(3, 4)


@pytest.mark.parametrize(("outside", "told"), [("reasoning", "reasoning"), ("", "general_chat")])
def test_the_task_told_is_the_one_that_counted(outside: str, told: str) -> None:
    reply = facade.CHAT.reply(call(encoded(message="x"), task=outside), "m", answer(), 0.1)

    assert msgspec.json.decode(reply.body)["task_type"] == told


@pytest.mark.parametrize(
    "body", [answer(finish=None), answer(content=None), answer(error="boom"), b"", b"{}", encoded(choices=[])]
)
def test_an_answer_that_is_not_whole_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        facade.CHAT.reply(call(encoded(message="x")), "m", body, 0.1)


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (encoded(message="x"), facade.CHAT),
        (encoded(message=1), facade.CHAT),
        (encoded(message="x", messages=None), facade.CHAT),
        (encoded(message="x", messages=[]), ollama.CHAT),
        (encoded(messages=[{"role": "user", "message": "x"}]), ollama.CHAT),
        (encoded(model="m"), ollama.CHAT),
        (b'"message"', ollama.CHAT),
        (b"", ollama.CHAT),
    ],
)
def test_one_path_means_two_things(body: bytes, operation: object) -> None:
    assert facade_or_ollama(body) is operation
