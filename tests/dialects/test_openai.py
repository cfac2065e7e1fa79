"""The OpenAI operations: what a body asks for, what goes upstream, and what counts as a whole answer."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.call import Call, Operation, Priority, Usage
from gateway.dialects import openai
from gateway.errors import InvalidCall

HELLO = {"role": "user", "content": "hello"}
CHAT: dict[str, Any] = {"model": "m", "messages": [HELLO]}
ANSWER = (
    b'{"id":"chatcmpl-7","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n'
)


def encoded(fields: dict[str, Any], **more: Any) -> bytes:
    return msgspec.json.encode({**fields, **more})


def call(operation: Operation, body: bytes) -> Call:
    return Call(request_id="r-1", operation=operation, wish=operation.read(body), body=body)


def sent(operation: Operation, body: bytes, model: str = "m") -> Any:
    return msgspec.json.decode(operation.write(call(operation, body), model))


def image(url: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": url}]}


def test_a_plain_chat_needs_nothing_and_is_not_streamed() -> None:
    wish = openai.CHAT.read(encoded(CHAT))

    assert (wish.model, wish.stream, wish.needs, wish.deterministic) == ("m", False, frozenset(), False)


@pytest.mark.parametrize(("field", "value"), [("temperature", 0), ("temperature", 0.0), ("seed", 0), ("seed", -7)])
def test_a_call_with_temperature_zero_or_a_seed_is_deterministic(field: str, value: float) -> None:
    assert openai.CHAT.read(encoded(CHAT, **{field: value})).deterministic


def test_tools_are_a_need_only_where_there_are_any() -> None:
    assert openai.CHAT.read(encoded(CHAT, tools=[{"type": "function"}])).needs == {"tools"}
    assert openai.CHAT.read(encoded(CHAT, tools=[])).needs == frozenset()


@pytest.mark.parametrize("url", [{"url": "data:image/png;base64,AAAA"}, "data:image/png;base64,AAAA"])
def test_an_image_needs_eyes_in_whichever_message_it_is(url: Any) -> None:
    assert openai.CHAT.read(encoded(CHAT, messages=[image(url), HELLO])).needs == {"vision"}


@pytest.mark.parametrize(
    "url", ["http://host/a.png", " HTTPS://host", "http:host", "file:///a", "ftp://host/a", "//host/a", "a", ""]
)
@pytest.mark.parametrize("shape", [lambda url: url, lambda url: {"url": url, "detail": "low"}])
def test_images_are_not_fetched(url: str, shape: Any) -> None:
    with pytest.raises(InvalidCall, match="must be data: URLs") as refusal:
        openai.CHAT.read(encoded(CHAT, messages=[HELLO, image(shape(url))]))

    assert refusal.value.param == "messages[1].content"


@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url"])
@pytest.mark.parametrize("type_", ["same", "text", "input_image"])
def test_no_part_names_anything_to_be_fetched_whatever_it_calls_itself(kind: str, type_: str) -> None:
    part = {"type": kind if type_ == "same" else type_, "text": "x", kind: {"url": "http://host/a"}}
    with pytest.raises(InvalidCall, match="fetches none"):
        openai.CHAT.read(encoded(CHAT, messages=[{"role": "user", "content": [part]}]))


def test_a_part_of_text_may_say_that_it_has_no_image() -> None:
    part = {"type": "text", "text": "x", "image_url": None}
    assert openai.CHAT.read(encoded(CHAT, messages=[{"role": "user", "content": [part]}])).needs == frozenset()


@pytest.mark.parametrize("url", [None, {}, 1, [], {"url": None}])
def test_an_image_has_a_url(url: Any) -> None:
    with pytest.raises(InvalidCall, match="image_url must be") as refusal:
        openai.CHAT.read(encoded(CHAT, messages=[image(url)]))

    assert refusal.value.param == "messages[0].content"


def test_an_image_that_is_written_with_escapes_is_seen_all_the_same() -> None:
    body = encoded(CHAT, messages=[image("https://host/a.png")]).replace(b'"https', rb'"\u0068ttps')

    with pytest.raises(InvalidCall, match="must be data: URLs"):
        openai.CHAT.read(body)


@pytest.mark.parametrize("prompt", [["a"], [1, 2], [[1]], None, 1, {}])
def test_a_prompt_is_one_string(prompt: Any) -> None:
    with pytest.raises(InvalidCall, match="one string") as refusal:
        openai.COMPLETIONS.read(encoded({"model": "m", "prompt": prompt}))

    assert refusal.value.param == "prompt"


@pytest.mark.parametrize("given", ["text", ["a", "b"], [""]])
def test_embeddings_take_texts_and_are_deterministic(given: Any) -> None:
    wish = openai.EMBEDDINGS.read(encoded({"model": "m", "input": given}))

    assert wish.needs == {"embedding"}
    assert (wish.deterministic, wish.stream) == (True, False)


@pytest.mark.parametrize("given", [[1, 2], [[1, 2], [3]], ["a", 1]])
def test_token_numbers_get_the_hint_their_senders_need(given: Any) -> None:
    with pytest.raises(InvalidCall, match="check_embedding_ctx_length=False") as refusal:
        openai.EMBEDDINGS.read(encoded({"model": "m", "input": given}))

    assert refusal.value.param == "input"


@pytest.mark.parametrize("given", [[], None, ["x"] * 2049])
def test_embeddings_of_nothing_or_of_too_much_are_refused(given: Any) -> None:
    with pytest.raises(InvalidCall) as refusal:
        openai.EMBEDDINGS.read(encoded({"model": "m", "input": given}))

    assert refusal.value.param == "input"


@pytest.mark.parametrize(
    ("given", "priority"), [("text", Priority.NORMAL), (["x"] * 8, Priority.NORMAL), (["x"] * 9, Priority.BATCH)]
)
def test_embeddings_of_many_texts_are_nobodys_conversation(given: Any, priority: Priority) -> None:
    assert openai.EMBEDDINGS.read(encoded({"model": "m", "input": given})).priority is priority


@pytest.mark.parametrize(
    ("suffix", "priority"),
    [("return x", Priority.INTERACTIVE), ("", Priority.NORMAL), (None, Priority.NORMAL)],
)
def test_an_editor_that_completes_between_two_texts_goes_first(suffix: str | None, priority: Priority) -> None:
    body = encoded({"model": "m", "prompt": "def f(x):", "suffix": suffix})

    assert openai.COMPLETIONS.read(body).priority is priority
    assert openai.CHAT.read(encoded(CHAT)).priority is Priority.NORMAL


def test_a_body_that_needs_no_change_goes_upstream_as_it_came() -> None:
    body = b'{ "messages" : [ {"role":"user","content":"\\u00e9 \xc3\xa9"} ] ,\n "x":1.0e0, "model":"m" }'

    assert openai.CHAT.write(call(openai.CHAT, body), "m") == body


def test_only_the_model_is_replaced_and_only_at_the_top() -> None:
    body = b'{"messages":[{"role":"user","content":"\\"model\\":\\"auto\\"","model":"auto"}],"model":"auto","x":1.0e0}'

    written = openai.CHAT.write(call(openai.CHAT, body), 'qw"en')

    assert written == body.replace(b'],"model":"auto"', b'],"model":"qw\\"en"')


def test_a_stream_is_asked_to_count_its_tokens() -> None:
    assert sent(openai.CHAT, encoded(CHAT, stream=True))["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent(openai.CHAT, encoded(CHAT))


def test_the_task_stays_with_the_gateway() -> None:
    assert "task_type" not in sent(openai.CHAT, encoded(CHAT, task_type="reasoning"))
    assert "task_type" not in sent(openai.EMBEDDINGS, encoded({"model": "m", "input": "a", "task_type": "x"}))


def test_a_chat_is_mended_on_its_way() -> None:
    messages = [{"role": "developer", "content": "be brief"}, {"role": "assistant", "content": None}, HELLO]

    upstream = sent(openai.CHAT, encoded(CHAT, messages=messages, max_completion_tokens=5))

    assert [message["role"] for message in upstream["messages"]] == ["system", "assistant", "user"]
    assert upstream["messages"][1]["content"] == ""
    assert upstream["max_tokens"] == 5


def test_a_finished_answer_passes_but_for_its_id() -> None:
    reply = openai.CHAT.reply(call(openai.CHAT, encoded(CHAT)), "m", ANSWER, 0.1)

    assert reply.body == ANSWER.replace(b"chatcmpl-7", b"chatcmpl-r-1")
    assert reply.usage == Usage(3, 4)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not a reply"),
        (b"[]", "not a reply"),
        (b"<html>", "not a reply"),
        (b"[" * 100_000, "not a reply"),
        (b'{"choices":' + b"[" * 100_000, "not a reply"),
        (b'{"error":"out of memory"}', "out of memory"),
        (b'{"error":{"message":"no\\nluck","type":"api_error"}}', "no luck"),
        (b"{}", "without finishing"),
        (b'{"choices":[]}', "without finishing"),
        (b'{"choices":[{"message":{"content":"Hi"},"finish_reason":null}]}', "without finishing"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_an_answer_that_is_not_whole_is_an_error(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        openai.CHAT.reply(call(openai.CHAT, encoded(CHAT)), "m", body, 0.1)


def test_embeddings_pass_as_they_came() -> None:
    asked = call(openai.EMBEDDINGS, encoded({"model": "m", "input": "a"}))
    body = b'{"object":"list","data":[{"object":"embedding","embedding":"AAAA","index":0}],"usage":{"prompt_tokens":2}}'

    reply = openai.EMBEDDINGS.reply(asked, "m", body, 0.1)

    assert (reply.body, reply.usage) == (body, Usage(2, 0))


@pytest.mark.parametrize("body", [b"{}", b'{"data":[]}', b'{"data":null}', b'{"error":"x","data":[1]}'])
def test_embeddings_without_vectors_are_an_error(body: bytes) -> None:
    with pytest.raises(ValueError):
        openai.EMBEDDINGS.reply(call(openai.EMBEDDINGS, encoded({"model": "m", "input": "a"})), "m", body, 0.1)
