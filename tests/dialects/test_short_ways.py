"""What nearly every frame and answer looks like is passed on after one look: exactly as the long way would have it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Frame, Reply, Wish
from gateway.dialects import repairs
from gateway.dialects.chunks import ChunkReader
from gateway.dialects.openai import CHAT

TEXT = st.text(st.sampled_from('ab \n"\\é€\x7f\x1f{}[]:,💡')) | st.sampled_from(["", " token", "\u2028"])
UNSOUND = [b"\\q", b"\xff", b"\x01", b"a\\", b"\\u12", b"\\ud800", b"\x7f", b"\n"]
PIECES = st.lists(
    st.sampled_from(
        [
            b'{"id":"chatcmpl-7","object":"chat.completion.chunk","created":17,"model":"m"',
            b',"system_fingerprint":"fp_ollama"',
            b',"choices":[{"index":0,"delta":{"content":"',
            b'"},"finish_reason":null}]}',
            b'"},"finish_reason":"stop"}]}',
            b'","role":"assistant"},"finish_reason":null}]}',
            b'","tool_calls":[]},"finish_reason":null}]}',
            b"a token",
            b"\\u00e9",
            b"\\q",
            "é".encode(),
            b"\xff",
            b'"',
        ]
    )
)


def chunk(delta: dict[str, object], finish: str | None = None, **more: object) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    fields = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 17, "model": "m", "choices": choices}
    return json.dumps(fields | more, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


CHUNKS = st.one_of(
    st.builds(lambda text: chunk({"content": text}), TEXT),
    st.builds(lambda text: chunk({"content": text}, system_fingerprint="fp_ollama"), TEXT),
    st.builds(lambda text: chunk({"role": "assistant", "content": text}), TEXT),
    st.builds(lambda text: chunk({"content": text}, "stop"), TEXT),
    st.builds(lambda text: chunk({"content": text}, usage={"prompt_tokens": 0}), TEXT),
    st.builds(lambda text: chunk({"reasoning": text, "content": ""}), TEXT),
    st.builds(lambda text: chunk({"content": text}, model="another", created=18), TEXT),
    st.builds(b"".join, PIECES),
    st.builds(lambda text: chunk({"content": "here"}).replace(b"here", text), st.sampled_from(UNSOUND)),
)


class TheLongWay(ChunkReader):
    """Looks at every chunk."""

    def __init__(self) -> None:
        super().__init__("ours", show_usage=False)
        self._identified.plain_text = lambda event: b""  # type: ignore[method-assign]


def read(reader: ChunkReader, stream: list[bytes]) -> Iterator[Frame]:
    for payload in stream:
        yield from reader.feed(b"data: " + payload + b"\n\n")


@given(stream=st.lists(CHUNKS, max_size=8), begun=st.booleans())
def test_a_frame_is_the_same_by_the_short_way(stream: list[bytes], begun: bool) -> None:
    if begun:
        stream = [chunk({"role": "assistant", "content": "a"}), chunk({"content": "b"}), *stream]
    short = ChunkReader("ours", show_usage=False)
    assert list(read(short, stream)) == list(read(TheLongWay(), stream))


@given(stream=st.lists(CHUNKS, max_size=8), cuts=st.lists(st.integers(0, 2000), max_size=4))
def test_what_goes_on_at_a_glance_is_what_would_have_gone_on(stream: list[bytes], cuts: list[int]) -> None:
    stream = [chunk({"role": "assistant", "content": "a"}), chunk({"content": "b"}), *stream]
    short, long = ChunkReader("ours", show_usage=False), TheLongWay()
    pieces = [b"data: " + payload + b"\n\n" for payload in stream]
    whole = b"".join(pieces)
    ends = sorted({*(cut % len(whole) for cut in cuts), len(whole)}) if cuts else []
    for data in [whole[a:b] for a, b in zip([0, *ends], ends, strict=False)] or pieces:
        frames = long.feed(data)
        if plain := short.plain(data):
            assert frames == [Frame(plain, content=True)]
        else:
            assert short.feed(data) == frames


def test_the_short_way_is_taken_by_plain_text_once_the_answer_has_begun() -> None:
    reader = ChunkReader("ours", show_usage=False)
    list(read(reader, [chunk({"role": "assistant", "content": "a"}), chunk({"content": "b"})]))
    event = b"data: " + chunk({"content": " plain"}) + b"\n\n"
    reader.feed(event[:9])
    assert reader.plain(event) == b"", "the rest of another came first"
    reader.feed(event[9:])
    assert reader.plain(event) == event.replace(b"chatcmpl-7", b"ours")


def answer(text: str, **message: object) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    choices = [{"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}]
    fields = {"id": "chatcmpl-7", "object": "chat.completion", "created": 17, "model": "m", "choices": choices}
    return json.dumps({**fields, "usage": usage}, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


ANSWERS = st.one_of(
    st.builds(answer, TEXT),
    st.builds(lambda text: answer(text, reasoning="why"), TEXT),
    st.builds(lambda text: answer(text, tool_calls=[{"function": {"name": "f"}}]), TEXT),
    st.builds(lambda text: answer(text).replace(b'"total_tokens":3', b'"total_tokens":null'), TEXT),
    st.builds(lambda text: answer(text).replace(b'"role":"assistant",', b""), TEXT),
    st.builds(lambda text: answer(text).replace(b'{"id"', b'{"error":null,"id"'), TEXT),
    st.builds(lambda text: answer(text).replace(b'"created":17', b'"created":17,"created":18'), TEXT),
    st.builds(lambda text: answer(text).replace(b":1,", b":-1,"), TEXT),
    st.builds(lambda text: answer(text).replace(b":1,", b":1.0,"), TEXT),
    st.builds(lambda text: answer(text).replace(b":1,", b":1" + b"0" * 18 + b","), TEXT),
    st.builds(lambda text: answer(text).replace(b",", b" , "), TEXT),
)


def replied(body: bytes, twice: bool) -> Reply:
    call = Call(request_id="ours", operation=CHAT, wish=Wish(), body=b"", reasoning_content=twice)
    return CHAT.reply(call, "m", body, 0.0)


@given(body=ANSWERS, twice=st.booleans())
@settings(max_examples=300)
def test_a_finished_answer_is_the_same_by_the_short_way(body: bytes, twice: bool) -> None:
    short = replied(body, twice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repairs, "plain_answer", lambda _: None)
        assert short == replied(body, twice)


@pytest.mark.parametrize("text", ['some "text" and more é', ""])
def test_the_short_way_is_taken_by_an_answer_of_text(text: str) -> None:
    assert repairs.plain_answer(answer(text))


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "tool_calls", "refusal"])
def test_the_short_way_is_not_taken_by_an_answer_that_holds_anything_else(field: str) -> None:
    assert repairs.plain_answer(answer("text", **{field: None})) is None
