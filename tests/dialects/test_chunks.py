"""An OpenAI stream, frame by frame: when the model spoke, when it ended, and the four ways in which it fails."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Frame, Usage
from gateway.dialects import chunks
from gateway.dialects.chunks import ChunkReader
from gateway.wire import sse

HEAD = b'data: {"id":"chatcmpl-417","object":"chat.completion.chunk","created":1755770000,"model":"qwen3"'
DONE = b"data: [DONE]\n\n"
USAGE = HEAD + b',"choices":[],"usage":{"prompt_tokens":26,"completion_tokens":298,"total_tokens":324}}\n\n'


def delta(inner: bytes, finish: bytes = b"null") -> bytes:
    return HEAD + b',"choices":[{"index":0,"delta":{' + inner + b'},"finish_reason":' + finish + b"}]}\n\n"


ROLE = delta(b'"role":"assistant","content":""')
TEXT = delta('"content":"é\u2028👋"'.encode())
STOP = delta(b"", b'"stop"')
STREAM = ROLE + TEXT + b": upstream says hi\n\n" + delta(b'"reasoning":"hm"') + STOP + USAGE + DONE


def reader(*, show_usage: bool = False) -> ChunkReader:
    return ChunkReader("chatcmpl-r", show_usage=show_usage)


def frames(stream: bytes, *, show_usage: bool = False) -> list[Frame]:
    return reader(show_usage=show_usage).feed(stream)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=20), ending=st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_frames_do_not_depend_on_where_the_bytes_were_cut(cuts: list[int], ending: bytes) -> None:
    stream = STREAM.replace(b"\n", ending)
    bounds = [0, *sorted(cuts), len(stream)]
    cut = reader(show_usage=True)

    found = [frame for start, end in pairwise(bounds) for frame in cut.feed(stream[start:end])]

    assert found == frames(stream, show_usage=True)
    assert b"".join(frame.raw for frame in found) == stream.replace(b"chatcmpl-417", b"chatcmpl-r")
    assert cut.complete
    assert cut.usage == Usage(26, 298)


def test_a_stream_dripping_in_byte_by_byte_is_the_same_stream() -> None:
    dripped = reader()

    found = [frame for start in range(len(STREAM)) for frame in dripped.feed(STREAM[start : start + 1])]

    assert found == frames(STREAM)


@pytest.mark.parametrize(
    ("event", "content"),
    [
        (ROLE, False),
        (TEXT, True),
        (STOP, True),
        (delta(b'"reasoning":"hm"'), True),
        (delta(b'"reasoning_content":"hm"'), True),
        (delta(b'"tool_calls":[{"index":0}]'), True),
        (delta(b'"content":null,"tool_calls":[]'), False),
        (HEAD + b',"choices":[{"index":0,"text":"Hi","finish_reason":null}]}\n\n', True),
        (HEAD + b',"choices":[{"index":0,"text":"","finish_reason":null}]}\n\n', False),
        (HEAD + b',"choices":null}\n\n', False),
        (b": comment\n\n", False),
        (b"data:\n\n", False),
    ],
)
def test_content_is_what_the_model_said(event: bytes, content: bool) -> None:
    (frame,) = frames(event)

    assert frame == Frame(event.replace(b"chatcmpl-417", b"chatcmpl-r"), content=content)


def test_the_end_marker_ends_it_and_the_rest_is_dropped() -> None:
    spoken = reader()

    assert not spoken.complete
    assert spoken.feed(STOP + DONE + TEXT + DONE)[1:] == [Frame(DONE, last=True)]
    assert spoken.complete
    assert spoken.feed(TEXT) == []


def test_counts_are_hidden_from_who_did_not_ask_and_kept_all_the_same() -> None:
    hidden, shown = reader(), reader(show_usage=True)

    assert hidden.feed(USAGE) == [Frame(b"")]
    assert shown.feed(USAGE) == [Frame(USAGE.replace(b"chatcmpl-417", b"chatcmpl-r"))]
    assert hidden.usage == shown.usage == Usage(26, 298)


def test_zero_counts_on_a_chunk_with_text_mean_nothing_yet() -> None:
    zero = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
    event = HEAD + b',"choices":[{"index":0,"text":"Hi","finish_reason":null}]' + zero + b"}\n\n"
    ours = event.replace(b"chatcmpl-417", b"chatcmpl-r")
    spoken, shown = reader(), reader(show_usage=True)

    assert spoken.feed(event) == [Frame(ours.replace(zero, b""), content=True)]
    assert shown.feed(event) == [Frame(ours, content=True)]
    assert spoken.usage is None


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (b'data: {"error":"out of\\nmemory"}\n\n', "out of memory"),
        (b'data: {"error":{"message":"boom","type":"api_error"}}\n\n', "boom"),
        (b'data: {"error":{"message":"{\\"error\\":{\\"message\\":\\"too long\\"}}"}}\n\n', "too long"),
        (b'data: {"error":true}\n\n', "no reason"),
        (TEXT.replace(b'"qwen3"', b'""').replace("é\u2028👋".encode(), b""), chunks.SWALLOWED),
        (b'data: {"model":"","choices":[{"text":"","finish_reason":null}]}\n\n', chunks.SWALLOWED),
        (b"data: {nonsense\n\n", chunks.NOT_A_CHUNK),
        (b"data: [1]\n\n", chunks.NOT_A_CHUNK),
        (b'data: {"choices":"x"}\n\n', chunks.NOT_A_CHUNK),
        (b'data: {"usage":' + b"[" * 100_000 + b"\n\n", chunks.NOT_A_CHUNK),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_a_failure_is_told_in_words_and_is_no_end(event: bytes, words: str) -> None:
    spoken = reader()

    (frame,) = spoken.feed(event)

    assert words in frame.error
    assert not frame.last
    assert not spoken.complete


def test_a_chunk_without_a_model_that_says_something_is_no_failure() -> None:
    (frame,) = frames(TEXT.replace(b'"qwen3"', b'""'))

    assert (frame.content, frame.error) == (True, "")


@given(stream=st.binary() | st.lists(st.sampled_from([b"data: ", b"\n", b"\r", b"{", b'"id":', b"\xff", b"1", b"}"]))
       .map(b"".join))  # fmt: skip
def test_nothing_an_instance_sends_makes_reading_fail(stream: bytes) -> None:
    spoken = reader()

    spoken.feed(b"data: " + stream)
    spoken.feed(b"\n\n")


def test_an_event_of_a_megabyte_passes() -> None:
    event = delta(b'"content":"' + b"x" * 2**20 + b'"')

    (frame,) = frames(event)

    assert frame.raw == event.replace(b"chatcmpl-417", b"chatcmpl-r")


def test_an_event_without_end_is_given_up_on() -> None:
    spoken = reader()
    spoken.feed(b"x" * 2**23)

    with pytest.raises(ValueError, match="longer than the limit"):
        spoken.feed(b"x")


def test_a_frame_costs_one_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        def __init__(self, decoder: msgspec.json.Decoder[chunks.Chunk]) -> None:
            self.count, self._decoder = 0, decoder

        def decode(self, data: bytes) -> chunks.Chunk:
            self.count += 1
            return self._decoder.decode(data)

    class Never:
        def decode(self, data: bytes) -> object:
            raise AssertionError(data)

    counting = Counting(chunks._CHUNK)
    monkeypatch.setattr(chunks, "_CHUNK", counting)
    monkeypatch.setattr("gateway.dialects.repairs._FIELDS", Never())

    frames(ROLE + TEXT * 10 + STOP + USAGE + DONE)

    assert counting.count == 13
    assert len([event for event in sse.Splitter().feed(STREAM) if sse.data(event)]) == 6
