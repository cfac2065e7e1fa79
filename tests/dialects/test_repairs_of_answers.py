"""Each repair of what an instance said, on its own: what it changes, and that it leaves everything else alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from gateway.dialects import repairs
from gateway.wire import json

FIVE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def fields(**values: Any) -> repairs.Fields:
    return json.parse(msgspec.json.encode(values))


def plain(given: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(given))


def answer(message: dict[str, Any], finish: str = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "", **message}, "finish_reason": finish}
    return msgspec.json.encode({"id": "chatcmpl-7", "model": "m", "choices": [choice], "usage": FIVE, **more})


def mended(body: bytes, *, reasoning_content: bool = False) -> Any:
    return msgspec.json.decode(repairs.answer_mended(body, "new", reasoning_content=reasoning_content))


def calls_in(body: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mended(body)["choices"][0]["message"]["tool_calls"]
    return found


@pytest.mark.parametrize("payload", [b'{"a":1}', b'{"a":1,\n"b":[2,\n3]}', '{"a":"é\u2028"}'.encode()])
def test_an_event_is_one_line_of_data_and_a_blank_one(payload: bytes) -> None:
    event = repairs.plain_event(payload)

    assert (event[:6], event[-2:], event.count(b"\n")) == (b"data: ", b"\n\n", 2)
    assert msgspec.json.decode(event[6:]) == msgspec.json.decode(payload)


def test_an_error_that_is_null_is_no_error_and_is_not_told() -> None:
    assert plain(repairs.without_error(fields(a=1, error=None))) == {"a": 1}


@pytest.mark.parametrize(
    ("usage", "after"),
    [
        (None, (0, 0, 0)),
        ({}, (0, 0, 0)),
        ("nonsense", (0, 0, 0)),
        ({"prompt_tokens": 2, "completion_tokens": 3}, (2, 3, 5)),
        ({"prompt_tokens": 2, "completion_tokens": None, "total_tokens": 2}, (2, 0, 2)),
        ({"prompt_tokens": -1, "completion_tokens": 1.5, "total_tokens": int("9" * 19)}, (0, 0, 0)),
    ],
)
def test_usage_is_three_whole_numbers(usage: Any, after: tuple[int, int, int]) -> None:
    told = plain(repairs.usage_in_three_numbers(fields(usage=usage)))["usage"]

    assert (told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]) == after


def test_what_else_usage_tells_stays() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 1}}

    assert plain(repairs.usage_in_three_numbers(fields(usage=details)))["usage"]["prompt_tokens_details"]


@pytest.mark.parametrize("delta", [{}, {"role": ""}, {"role": None}, {"role": "model"}])
def test_the_first_delta_says_that_the_assistant_speaks(delta: dict[str, Any]) -> None:
    assert plain(repairs.role_first(fields(**delta, content="a"))) == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize("role", ["assistant", "", None])
def test_no_later_delta_says_who_speaks(role: Any) -> None:
    assert plain(repairs.role_gone(fields(role=role, content="a"))) == {"content": "a"}


def test_a_role_is_cut_out_of_the_bytes_where_it_stands_first() -> None:
    quoted = b'"content":"\\"delta\\":{\\"role\\":\\"assistant\\","'

    assert repairs.role_cut_out(b'{"delta":{"role":"assistant",' + quoted + b"}}") == b'{"delta":{' + quoted + b"}}"


@pytest.mark.parametrize(
    ("said", "twice", "after"),
    [
        ({"reasoning": "a"}, True, {"reasoning": "a", "reasoning_content": "a"}),
        ({"reasoning": "a", "reasoning_content": ""}, False, {"reasoning": "a"}),
        ({"reasoning": "a", "reasoning_content": None}, True, {"reasoning": "a", "reasoning_content": "a"}),
        ({"reasoning_content": "a"}, False, {"reasoning": "a", "reasoning_content": "a"}),
        ({"reasoning": "", "reasoning_content": "a"}, True, {"reasoning": "a", "reasoning_content": "a"}),
        ({"content": "x", "reasoning": "a"}, True, {"content": "x", "reasoning": "a", "reasoning_content": "a"}),
    ],
)
def test_reasoning_has_ollamas_name_and_the_other_by_option(said: Any, twice: bool, after: Any) -> None:
    assert plain(repairs.reasoning_named(fields(**said), twice)) == after


def test_reasoning_goes_before_text_in_a_delta_of_its_own() -> None:
    first, second = repairs.reasoning_apart(fields(role="assistant", reasoning="hm", content="Hi", x=1))

    assert plain(first) == {"role": "assistant", "reasoning": "hm"}
    assert plain(second) == {"content": "Hi", "x": 1}


def test_reasoning_goes_before_a_tool_call_too() -> None:
    first, second = repairs.reasoning_apart(fields(reasoning="hm", content="", tool_calls=[{"id": "a"}]))

    assert (plain(first), plain(second)) == ({"reasoning": "hm"}, {"content": "", "tool_calls": [{"id": "a"}]})


def test_an_answer_that_stopped_for_its_tool_calls_says_so() -> None:
    assert plain(repairs.finished_by_calls(fields(finish_reason="stop"))) == {"finish_reason": "tool_calls"}


@pytest.mark.parametrize(
    ("arguments", "after"),
    [({"city": "Rome"}, '{"city":"Rome"}'), ("", "{}"), (None, "{}"), ([1], "[1]"), ('{"a":1}', '{"a":1}')],
)
def test_the_arguments_of_a_call_are_text(arguments: Any, after: str) -> None:
    (call,) = calls_in(answer({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}]}))

    assert call == {"id": "a", "index": 0, "type": "function", "function": {"name": "f", "arguments": after}}


def test_a_call_has_an_id_and_no_other_has_it() -> None:
    function = {"name": "f", "arguments": "{}"}
    given = [{"id": one, "function": function} for one in ("a", "a", "", None)] + [{"function": function}]

    calls = calls_in(answer({"tool_calls": given}))

    assert len({call["id"] for call in calls}) == 5
    assert calls[0]["id"] == "a"
    assert all(call["id"].startswith("call_") for call in calls[1:])
    assert [call["index"] for call in calls] == [0, 1, 2, 3, 4]


def test_an_invented_id_is_the_same_for_the_same_call_and_for_no_other() -> None:
    assert repairs.call_id("one", 0) == repairs.call_id("one", 0)
    assert len({bytes(repairs.call_id(answer, index)) for answer in ("one", "two") for index in (0, 1)}) == 4


def test_more_of_a_call_is_its_index_and_arguments() -> None:
    more = fields(id="a", index=7, type="function", function={"name": "f", "arguments": "x"})

    assert plain(repairs.call_continued(more, 1)) == {"index": 1, "function": {"arguments": "x"}}


def test_an_answer_that_calls_tools_finished_for_their_sake() -> None:
    called = answer({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]})

    assert mended(called)["choices"][0]["finish_reason"] == "tool_calls"
    assert mended(answer({"tool_calls": []}))["choices"][0]["finish_reason"] == "stop"


def test_an_answer_gives_its_reasoning_twice_by_option() -> None:
    told = mended(answer({"reasoning": "hm"}), reasoning_content=True)["choices"][0]["message"]

    assert (told["reasoning"], told["reasoning_content"]) == ("hm", "hm")


def test_an_answer_has_usage_and_no_error_and_the_assistant_gave_it() -> None:
    body = b'{"id":"x","error":null,"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'

    told = mended(body)

    assert "error" not in told
    assert told["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Hi"},
        {"reasoning": "hm"},
        {"tool_calls": "nonsense"},
        {"tool_calls": None, "content": None},
    ],
)
def test_an_answer_that_is_as_it_should_be_keeps_its_bytes(message: dict[str, Any]) -> None:
    body = answer(message).replace(b'"usage":', b' "usage" : ')

    assert repairs.answer_mended(body, "new") == body.replace(b"chatcmpl-7", b"new")


def test_a_call_that_is_as_it_should_be_keeps_its_bytes() -> None:
    call = {"id": "a", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = answer({"tool_calls": [call]}, "tool_calls")

    assert repairs.answer_mended(body, "new") == body.replace(b"chatcmpl-7", b"new")


@pytest.mark.parametrize(
    ("repair", "given"),
    [
        (repairs.without_error, {"a": 1}),
        (repairs.usage_in_three_numbers, {"usage": FIVE}),
        (repairs.role_first, {"role": "assistant"}),
        (repairs.role_gone, {"content": "a"}),
        (lambda said: repairs.reasoning_named(said, False), {"reasoning": "a"}),
        (lambda said: repairs.reasoning_named(said, True), {"reasoning": "a", "reasoning_content": "b"}),
        (lambda said: repairs.reasoning_named(said, True), {"reasoning": "", "reasoning_content": None}),
        (lambda said: repairs.reasoning_named(said, True), {"content": "a"}),
        (lambda said: repairs.reasoning_apart(said)[-1], {"reasoning": "a", "content": "", "tool_calls": []}),
        (lambda said: repairs.reasoning_apart(said)[-1], {"reasoning": "", "content": "a"}),
        (repairs.finished_by_calls, {"finish_reason": "length"}),
        (repairs.finished_by_calls, {"finish_reason": None}),
        (lambda call: repairs.call_continued(call, 1), {"index": 1, "function": {"arguments": "x"}}),
        (lambda said: repairs.calls_complete(said, "new"), {"tool_calls": [1]}),
    ],
)
def test_what_needs_no_repair_is_the_same_object(repair: repairs.Repair, given: dict[str, Any]) -> None:
    before = fields(**given)

    assert repair(before) is before


def test_a_value_can_be_part_of_a_value_and_keeps_its_bytes() -> None:
    assert repairs.raw({"a": Raw(b"1.0e0")}) == Raw(b'{"a":1.0e0}')
