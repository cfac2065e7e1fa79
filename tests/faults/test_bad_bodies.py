"""Rows B6 and B7: a body that cannot be read, or holds the wrong thing, is 400 in its family's words.

No instance hears of it, one line is logged for it, and the gateway serves on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.simulator import Behaviour
from tests.house import MODEL, House, Reply, ask

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
NATIVE, GENERATE, EMBED, OLD_EMBED = "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"
SHOW, PULL = "/api/show", "/api/pull"
SAID = [{"role": "user", "content": "x"}]

SOUND: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": SAID},
    COMPLETIONS: {"model": MODEL, "prompt": "x"},
    EMBEDDINGS: {"model": MODEL, "input": "x"},
    RESPONSES: {"model": MODEL, "input": "x"},
    MESSAGES: {"model": MODEL, "messages": SAID, "max_tokens": 5},
    COUNT: {"model": MODEL, "messages": SAID},
    NATIVE: {"model": MODEL, "messages": SAID},
    GENERATE: {"model": MODEL, "prompt": "x"},
    EMBED: {"model": MODEL, "input": "x"},
    OLD_EMBED: {"model": MODEL, "prompt": "x"},
    SHOW: {"model": MODEL},
    PULL: {"model": MODEL},
}
PATHS = pytest.mark.parametrize("path", SOUND)
FACADE = {"message": "x"}


@dataclass(frozen=True)
class Raw:
    """JSON as it is written, where Python could not write it."""

    text: bytes


def written(fields: dict[str, Any]) -> bytes:
    parts = [
        json.dumps(name).encode() + b":" + (value.text if isinstance(value, Raw) else json.dumps(value).encode())
        for name, value in fields.items()
    ]
    return b"{" + b",".join(parts) + b"}"


def told(path: str, reply: Reply) -> tuple[str, str | None]:
    """The message of a refusal, in the shape of its family, and the field it names (where the family can)."""
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-should-retry"] == "false"
    body = reply.json
    if path.startswith("/api"):
        assert set(body) == {"error"}
        return body["error"], None
    if path.startswith("/v1/messages"):
        assert (body["type"], set(body)) == ("error", {"type", "error", "request_id"})
        assert (body["error"]["type"], set(body["error"])) == ("invalid_request_error", {"type", "message"})
        assert body["request_id"] == reply.headers["x-request-id"]
        return body["error"]["message"], None
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == "invalid_request"
    return body["error"]["message"], body["error"]["param"]


async def refused(house: House, path: str, body: bytes) -> tuple[str, str | None]:
    """Send a body that is to be 400 before anybody else has heard of it, with a line in the log."""
    house.lines.clear()
    house.simulator("alpha").forget()
    reply = await house.post(path, body)
    assert reply.status == 400, (path, body[:80], reply.status, reply.body[:300])
    assert not [seen for seen in house.simulator("alpha").requests if seen.method == "POST"]
    assert len(reply.body) < 1000
    (line,) = (one for one in house.lines if one["event"] == "call.done")
    assert (line["id"], line["status"], line["reason"]) == (reply.headers["x-request-id"], 400, "bad_request")
    return told(path, reply)


def with_field(path: str, name: str, value: Any) -> bytes:
    return written(SOUND[path] | {name: value})


UNREADABLE: dict[str, bytes] = {
    "nothing": b"",
    "spaces": b" \n\t\r " * 1000,
    "a hundred thousand lists": b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a hundred thousand objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lists that never end": b'{"model":' + b"[" * 1_000_000,
    "seven hundred thousand keys": b"{" + b",".join(b'"k%d":1' % n for n in range(700_000)) + b"}",
    "two thousand fields": b"{" + b",".join(b'"k%d":1' % n for n in range(2000)) + b"}",
    "NaN": b'{"model":NaN}',
    "Infinity": b'{"x":[Infinity]}',
    "-Infinity": b'{"x":-Infinity}',
    "a field twice": b'{"model":"a","model":"b"}',
    "a field twice in another spelling": rb'{"model":"a","mod\u0065l":"b"}',
    "a lone surrogate": rb'{"model":"\ud800"}',
    "a lone surrogate in a text": rb'{"model":"m","messages":[{"role":"user","content":"a\udc00"}]}',
    "a zero byte": b'{"model":"a\x00"}',
    "a zero byte outside": b'\x00{"model":"a"}',
    "UTF-16": json.dumps(ask("x")).encode("utf-16"),
    "UTF-16 without a mark": json.dumps(ask("x")).encode("utf-16-le"),
    "UTF-32": json.dumps(ask("x")).encode("utf-32"),
    "UTF-32 without a mark": json.dumps(ask("x")).encode("utf-32-be"),
    "a byte order mark": json.dumps(ask("x")).encode("utf-8-sig"),
    "no UTF-8": b'{"model":"\xff"}',
    "UTF-8 too long": b'{"model":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"model":"\xed\xa0\x80"}',
    "something after": b'{"model":"a"}{"model":"b"}',
    "a zero byte after": b'{"model":"a"}\x00',
    "a comment": b'{"model":"a"}//',
    "a trailing comma": b'{"model":"a",}',
    "a leading zero": b'{"seed":01}',
    "hexadecimal": b'{"seed":0x1}',
    "single quotes": b"{'model':'a'}",
    **{f"a bare {kind}": text for kind, text in [("list", b"[{}]"), ("text", b'"x"'), ("number", b"1")]},
    **{f"a bare {kind}": kind.encode() for kind in ("null", "true")},
}


@PATHS
async def test_what_cannot_be_read_is_400_in_the_words_of_the_path(path: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        for name, body in UNREADABLE.items():
            message, _ = await refused(house, path, body)
            assert message.startswith("the body "), (name, message)
        assert (await house.post(path, SOUND[path])).status in (200, 404)  # alpha's model makes no vectors


async def test_a_field_in_other_letters_is_refused_since_ollama_would_take_it_for_the_same() -> None:
    async with House({"alpha": Behaviour()}) as house:
        for path in SOUND:
            for other in ("Model", "MODEL", "model".replace("l", "L")):
                message, _ = await refused(house, path, with_field(path, other, "b") if path != COUNT else b"{}")
                assert "lower case" in message or path == COUNT


async def test_deeper_down_the_last_of_two_counts_for_us_as_for_ollama() -> None:
    async with House({"alpha": Behaviour()}) as house:
        twice = Raw(b'[{"role":"user","content":"say: first","content":"say: second"}]')
        reply = await house.post(CHAT, with_field(CHAT, "messages", twice))
        assert (reply.status, reply.text.strip()) == (200, "second")
        options = Raw(b'{"temperature":0,"temperature":1}')  # by its last the answer is not bound to be the same
        assert "cache-status" not in (await house.post(NATIVE, with_field(NATIVE, "options", options))).headers


# Numbers that nothing can hold

ENDLESS = [Raw(b"9" * 5000), Raw(b"-" + b"9" * 5000), Raw(b"1e999"), Raw(b"-1e999"), Raw(b"9" * 100_000)]
NUMBERS = {
    CHAT: "temperature top_p seed n max_tokens max_completion_tokens",
    COMPLETIONS: "temperature top_p seed n max_tokens",
    RESPONSES: "temperature top_p max_output_tokens",
    MESSAGES: "temperature top_p top_k max_tokens",
}


@pytest.mark.parametrize("path", NUMBERS)
async def test_a_number_without_end_is_told_with_its_field(path: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        for field in NUMBERS[path].split():
            for number in ENDLESS:
                message, param = await refused(house, path, with_field(path, field, number))
                assert param == field if path != MESSAGES else message.startswith(f"{field}: ")


async def test_a_number_without_end_in_ollamas_options_is_told_with_its_field() -> None:
    async with House({"alpha": Behaviour()}) as house:
        for path in (NATIVE, GENERATE):
            for number in ENDLESS:
                options = Raw(b'{"seed":' + number.text + b"}")
                message, _ = await refused(house, path, with_field(path, "options", options))
                assert message.startswith("options.seed: ")


async def test_where_nobody_looks_any_number_passes_as_it_came_and_is_the_instances_to_judge() -> None:
    async with House({"alpha": Behaviour()}) as house:
        for number in ENDLESS:
            body = written(ask("x", temperature=0) | {"unknown": number})
            reply = await house.post(CHAT, body)
            assert house.seen("alpha").body == body
            assert reply.status in (200, 400)


# B7: the wrong thing in every field that is looked at

BOOL: list[Any] = ["yes", "true", 0, 1, 1.5, [], {}, [True]]
TEXT: list[Any] = [True, 0, -1, 1.5, 2**70, [], ["x"], {}]
NUMBER: list[Any] = [True, False, "1", "", [], [1], {}]
WHOLE: list[Any] = [*NUMBER, 1.5, -0.5, 2**70, -(2**70)]
COUNT_UP: list[Any] = [*WHOLE, 0, -1]
LIST: list[Any] = [True, 0, "x", {}, {"0": {}}]
OBJECT: list[Any] = [True, 0, "x", [], [{}]]
THINGS: list[Any] = [*LIST, [None], [1], ["x"], [[]], [{}, 1], [{}] * 257]
TURNS: list[Any] = [*LIST, None, [], [None], [1], ["x"], [[]], [{"role": 1}], [{"role": []}]]
CONTENTS: list[Any] = [True, 1, {}, [1], [[]], [{}], [{"type": 1}]]
PICTURES: list[Any] = [
    7,
    True,
    [],
    {"url": 7},
    {"url": []},
    "http://127.0.0.1/x",
    {"url": "HTTPS://x"},
    {"url": " http://x"},
]
SPOKEN: list[Any] = [[{}], [{"content": "x"}], [{"role": None}], SAID * 2049]
SPOKEN += [[{"role": "user", "content": content}] for content in CONTENTS]
IMAGES: list[Any] = [
    [{"role": "user", "content": [{"type": "image_url", "image_url": picture}]}] for picture in PICTURES
]
MODELS: list[Any] = [*TEXT, "", " ", "x" * 257, "a\x00", "a\nb", "a\r\nx: y", "a\x1b[31m", "a\u2028", "a\u202e"]
NAMED: list[Any] = [None, *MODELS]
TASK: list[Any] = [*TEXT, "x" * 65]
STOP: list[Any] = [True, 1, {}, [1], [None], ["x"] * 17]
PROMPT: list[Any] = [None, True, 1, {}, [], ["a"], [1, 2], [[1]]]
INPUT: list[Any] = [True, 1, {}, [1], [[1]], [None], [{}]]

WRONG: dict[str, dict[str, list[Any]]] = {
    CHAT: {
        "model": NAMED, "task_type": TASK, "stream": BOOL, "stream_options": [*OBJECT, {"include_usage": 1}],
        "temperature": NUMBER, "top_p": NUMBER, "seed": WHOLE, "n": [*WHOLE, 0, 2, -1], "stop": STOP,
        "max_tokens": COUNT_UP, "max_completion_tokens": COUNT_UP, "tools": THINGS,
        "messages": [*TURNS, *SPOKEN, *IMAGES],
    },
    COMPLETIONS: {
        "model": NAMED, "task_type": TASK, "stream": BOOL, "stream_options": OBJECT, "temperature": NUMBER,
        "top_p": NUMBER, "seed": WHOLE, "n": [*WHOLE, 2], "stop": STOP, "max_tokens": COUNT_UP, "prompt": PROMPT,
        "suffix": TEXT,
    },
    EMBEDDINGS: {"model": NAMED, "task_type": TASK, "input": [*INPUT, None, [], ["x"] * 2049]},
    RESPONSES: {
        "model": NAMED, "task_type": TASK, "stream": BOOL, "temperature": NUMBER, "top_p": NUMBER,
        "max_output_tokens": COUNT_UP, "tools": THINGS, "input": [True, 1, {}, [1], ["x"], [[]]],
        "previous_response_id": ["r", 1, [], {}], "conversation": ["c", 1, [], {}],
    },
    MESSAGES: {
        "model": NAMED, "task_type": TASK, "stream": BOOL, "temperature": NUMBER, "top_p": NUMBER, "top_k": WHOLE,
        "max_tokens": COUNT_UP, "tools": THINGS, "messages": [*TURNS, *SPOKEN],
    },
    COUNT: {"messages": [*TURNS, *SPOKEN], "system": [True, 1, {}, [1]]},
    NATIVE: {
        "model": NAMED, "task_type": TASK, "stream": BOOL, "tools": [*LIST, [1], [None]],
        "messages": [*LIST, [1], [{"role": 1}], [{"images": "x"}], [{"images": {}}]],
        "options": [*OBJECT, {"temperature": "0"}, {"temperature": True}, {"seed": 1.5}, {"seed": "1"}],
    },
    GENERATE: {
        "model": NAMED, "task_type": TASK, "stream": BOOL, "prompt": TEXT, "suffix": TEXT, "images": LIST,
        "options": [*OBJECT, {"temperature": []}, {"seed": 2**70}],
    },
    EMBED: {"model": NAMED, "task_type": TASK, "input": INPUT, "options": OBJECT},
    OLD_EMBED: {"model": NAMED, "task_type": TASK, "prompt": TEXT, "options": OBJECT},
    SHOW: {"model": NAMED, "verbose": BOOL},
    PULL: {"model": NAMED, "stream": BOOL},
}  # fmt: skip


@pytest.mark.parametrize("path", WRONG)
async def test_the_wrong_thing_in_a_field_is_told_with_the_field(path: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        for field, values in WRONG[path].items():
            for value in values:
                message, param = await refused(house, path, with_field(path, field, value))
                where = param if param is not None or path.startswith(("/api", "/v1/messages")) else ""
                assert (where or message).startswith(field), (field, value, message, param)


async def test_the_facade_tells_the_field_too() -> None:
    wrong: dict[str, list[Any]] = {
        "message": [*TEXT, ""], "task_type": TASK, "temperature": NUMBER,
        "model": [*TEXT, "x" * 257, "a\nb"],
    }  # fmt: skip
    async with House({"alpha": Behaviour()}) as house:
        for field, values in wrong.items():
            for value in values:
                message, _ = await refused(house, NATIVE, written(FACADE | {field: value}))
                assert message.startswith(field), (field, value, message)
