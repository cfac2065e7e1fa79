"""Each repair on its own: what it changes, and that it leaves everything else alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from gateway.dialects import repairs
from gateway.wire import json


def fields(**values: Any) -> repairs.Fields:
    return json.parse(msgspec.json.encode(values))


def plain(given: repairs.Fields) -> Any:
    return msgspec.json.decode(msgspec.json.encode(given))


def test_the_task_type_is_taken_out() -> None:
    assert plain(repairs.without_task_type(fields(a=1, task_type="x"))) == {"a": 1}


def test_max_completion_tokens_gets_its_old_name() -> None:
    assert plain(repairs.max_tokens_by_its_old_name(fields(max_completion_tokens=5))) == {"max_tokens": 5}
    assert plain(repairs.max_tokens_by_its_old_name(fields(max_tokens=None, max_completion_tokens=5))) == {
        "max_tokens": 5
    }


def test_a_developer_speaks_as_the_system() -> None:
    mended = repairs.developer_as_system(fields(role="developer", content="x"))

    assert plain(mended) == {"role": "system", "content": "x"}


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": None, "tool_calls": []}])
def test_an_assistant_without_content_said_nothing(message: dict[str, Any]) -> None:
    mended = repairs.content_never_missing(fields(role="assistant", **message))

    assert plain(mended)["content"] == ""


def test_a_tool_call_without_arguments_has_no_arguments() -> None:
    calls = [{"id": "1", "function": {"name": "f", "arguments": ""}}, {"function": {"name": "g", "arguments": "[]"}}]

    mended = repairs.arguments_never_empty(fields(role="assistant", tool_calls=calls))

    assert [one["function"]["arguments"] for one in plain(mended)["tool_calls"]] == ["{}", "[]"]
    assert plain(mended)["tool_calls"][0]["id"] == "1"


def test_messages_are_mended_where_they_need_it_and_others_keep_their_bytes() -> None:
    untouched = b'{ "role":"user", "content":"\\u00e9 developer \\"arguments\\":\\"\\"" }'
    body = (
        b'{"messages":[' + untouched + b',{"role":"developer"},{"role":"assistant","content":null},'
        b'{"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f","arguments" : ""}}]}]}'
    )

    mended = bytes(repairs.messages_mended(json.parse(body))["messages"])

    roles = [message["role"] for message in msgspec.json.decode(mended)]
    assert roles == ["user", "system", "assistant", "assistant"]
    assert msgspec.json.decode(mended)[2]["content"] == ""
    assert msgspec.json.decode(mended)[3]["content"] is None
    assert msgspec.json.decode(mended)[3]["tool_calls"][0]["function"]["arguments"] == "{}"
    assert b'"content":"\\u00e9 developer \\"arguments\\":\\"\\""' in mended


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False, "x": 1}, {"include_usage": True, "x": 1}),
    ],
)
def test_usage_is_asked_for_beside_whatever_else_is(before: Any, after: Any) -> None:
    assert plain(repairs.usage_asked_for(fields(stream_options=before)))["stream_options"] == after


@pytest.mark.parametrize(
    ("repair", "given"),
    [
        (repairs.without_task_type, {"a": 1}),
        (repairs.max_tokens_by_its_old_name, {"max_tokens": 1, "max_completion_tokens": 2}),
        (repairs.max_tokens_by_its_old_name, {"max_completion_tokens": None}),
        (repairs.messages_mended, {"messages": [{"role": "user", "content": "developer"}]}),
        (repairs.messages_mended, {"messages": [{"role": "user", "content": None}]}),
        (repairs.messages_mended, {"messages": [{"role": "assistant", "content": '"arguments":""'}]}),
        (repairs.developer_as_system, {"role": "system"}),
        (repairs.content_never_missing, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}),
        (repairs.content_never_missing, {"role": "user", "content": None}),
        (repairs.arguments_never_empty, {"role": "assistant"}),
        (repairs.arguments_never_empty, {"role": "assistant", "tool_calls": "nonsense"}),
        (repairs.arguments_never_empty, {"role": "assistant", "tool_calls": [{"function": "nonsense"}]}),
        (repairs.arguments_never_empty, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}),
        (repairs.usage_asked_for, {"stream_options": {"include_usage": True}}),
    ],
)
def test_what_needs_no_repair_is_the_same_object(repair: repairs.Repair, given: dict[str, Any]) -> None:
    before = fields(**given)

    assert repair(before) is before


def test_zero_usage_is_cut_out_and_nothing_that_looks_like_it() -> None:
    zero = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
    text = b'"text":"' + zero.replace(b'"', b'\\"') + b'"'

    assert repairs.without_zero_usage(b"data: {" + text + zero + b"}\n\n") == b"data: {" + text + b"}\n\n"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b'{"id":"chatcmpl-1","x": 1}\n', b'{"id":"new","x": 1}\n'),
        (b' { "id" : "chatcmpl-1", "x": 1}', b'{"id":"new", "x": 1}'),
        (b'{"x": 1, "id":"chatcmpl-1"}', b'{"x":1,"id":"new"}'),
        (b'{"id":"a\\"b"}', b'{"id":"new"}'),
        (b'{"x": 1}', b'{"x":1,"id":"new"}'),
        (b'{"\xff": 1, "id":"a"}', b'{"\xff": 1, "id":"a"}'),
    ],
)
def test_a_finished_answer_gets_an_id_of_its_own(body: bytes, after: bytes) -> None:
    assert repairs.identified(body, "new") == after


def test_raw_values_compare_by_their_bytes() -> None:
    """What the repairs rely on."""
    assert fields(a=None)["a"] == Raw(b"null")
