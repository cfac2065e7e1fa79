"""An OpenAI stream, frame by frame: when the model spoke, when it ended, and the four ways in which it fails."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Frame, Usage
from gateway.dialects import chunks
from gateway.dialects.chunks import ChunkReader, OneIdentity
from gateway.simulator.prompt import Ask, Part
from gateway.simulator.shapes import Numbers, OpenAIChat, OpenAICompletion
from gateway.wire import sse

HEAD = b'data: {"id":"chatcmpl-417","object":"chat.completion.chunk","created":1755770000,"model":"qwen3"'
DONE = b"data: [DONE]\n\n"
USAGE = HEAD + b',"choices":[],"usage":{"prompt_tokens":26,"completion_tokens":298,"total_tokens":324}}\n\n'


def delta(inner: bytes, finish: bytes = b"null") -> bytes:
    return HEAD + b',"choices":[{"index":0,"delta":{' + inner + b'},"finish_reason":' + finish + b"}]}\n\n"


ROLE = delta(b'"role":"assistant","content":""')
CALL = b'"tool_calls":[{"id":"a","index":0,"type":"function","function":{"name":"f","arguments":"{}"}}]'
TEXT = delta('"content":"é\u2028👋"'.encode())
STOP = delta(b"", b'"stop"')
STREAM = ROLE + TEXT + b": upstream says hi\n\n" + delta(b'"reasoning":"hm"') + STOP + USAGE + DONE


CLEAN = STREAM.replace(b": upstream says hi\n\n", b"").replace(b"chatcmpl-417", b"chatcmpl-r")
OLD, NEW = "0.20.0", "0.32.15"


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
    assert b"".join(frame.raw for frame in found) == CLEAN
    assert cut.complete
    assert cut.usage == Usage(26, 298)


def test_a_stream_dripping_in_byte_by_byte_is_the_same_stream() -> None:
    dripped = reader()

    found = [frame for start in range(len(STREAM)) for frame in dripped.feed(STREAM[start : start + 1])]

    assert found == frames(STREAM)


@pytest.mark.parametrize(
    ("event", "content"),
    [
        (TEXT, True),
        (STOP, True),
        (delta(b'"reasoning":"hm"'), True),
        (delta(b'"reasoning":"hm","reasoning_content":"hm"'), True),
        (delta(CALL), True),
        (delta(b'"content":null,"tool_calls":[]'), False),
        (HEAD + b',"choices":[{"index":0,"text":"Hi","finish_reason":null}]}\n\n', True),
        (HEAD + b',"choices":[{"index":0,"text":"","finish_reason":null}]}\n\n', False),
        (HEAD + b',"choices":null}\n\n', False),
    ],
)
def test_content_is_what_the_model_said(event: bytes, content: bool) -> None:
    _, frame = frames(ROLE + event)

    assert frame == Frame(event.replace(b"chatcmpl-417", b"chatcmpl-r"), content=content)


@pytest.mark.parametrize("event", [b": comment\n\n", b"data:\n\n", b"data\n\n", b"id: 1\n\n", b"\n\n", b"event: x\r\r"])
def test_an_event_that_says_nothing_is_not_passed_on(event: bytes) -> None:
    assert frames(event) == []


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

    _, frame = frames(ROLE + event)

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
    spoken = reader()
    spoken.feed(ROLE)  # the first is looked at closely
    monkeypatch.setattr(chunks, "_CHUNK", counting)
    monkeypatch.setattr("gateway.dialects.repairs._FIELDS", Never())

    spoken.feed(TEXT * 10 + delta(b'"role":"assistant","content":"as before 0.32.6"') + STOP + USAGE + DONE)

    assert counting.count == 13
    assert len([event for event in sse.Splitter().feed(STREAM) if sse.data(event)]) == 6


def spoken_by(version: str, *parts: Part, voice: type[OpenAIChat | OpenAICompletion] = OpenAIChat) -> bytes:
    """A whole stream as an Ollama of that version writes it."""
    says = voice(Ask(model="qwen3:8b", stream=True, wants_usage=True), 417, version)
    return b"".join([*map(says.part, parts), *says.closing(Numbers(3, 4, "stop"))])


def told(stream: bytes, *, show_usage: bool = False, reasoning_content: bool = False) -> list[Any]:
    """What the client reads of a stream, without its end marker."""
    spoken = ChunkReader("chatcmpl-r", show_usage=show_usage, reasoning_content=reasoning_content)
    sent = b"".join(frame.raw for frame in spoken.feed(stream))
    assert spoken.complete
    assert sent.endswith(b"\n\ndata: [DONE]\n\n")
    return [msgspec.json.decode(event.removeprefix(b"data: ")) for event in sent.split(b"\n\n")[:-2]]


def deltas(stream: bytes, **options: bool) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in told(stream, **options)]


WORDS = (Part(thinking="hm "), Part(thinking="\u2028"), Part("é👋"), Part(" two\r\nlines\x85"))
CALLS = (Part(call=("f", {"city": "Zürich"})), Part(call=("g", {})), Part(call=("f", {})))


@pytest.mark.parametrize("version", [OLD, NEW])
def test_whatever_the_version_the_role_comes_first_and_once(version: str) -> None:
    assert [delta.get("role") for delta in deltas(spoken_by(version, *WORDS))] == ["assistant", *[None] * 4]
    assert all("role" not in delta for delta in deltas(spoken_by(version, *WORDS))[1:])


@pytest.mark.parametrize("role", [b'"role":"",', b'"role":null,', b'"role": "assistant" ,', b""])
def test_no_role_is_ever_empty_or_late(role: bytes) -> None:
    found = deltas(delta(role + b'"content":"a"') + delta(role + b'"content":"b"') + STOP + DONE)

    assert found == [{"role": "assistant", "content": "a"}, {"content": "b"}, {}]


@pytest.mark.parametrize("version", [OLD, NEW])
def test_whatever_the_version_tool_calls_are_numbered_and_end_the_answer(version: str) -> None:
    found = told(spoken_by(version, *CALLS))

    calls = [call for chunk in found for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1, 2]
    assert len({call["id"] for call in calls}) == 3
    assert [msgspec.json.decode(call["function"]["arguments"]) for call in calls] == [{"city": "Zürich"}, {}, {}]
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_several_calls_in_one_delta_are_numbered_too() -> None:
    calls = b'"tool_calls":[{"id":"a","index":0,"function":{"name":"f"}},{"id":"b","index":0}]'

    (first, *_) = deltas(delta(calls) + delta(b"", b'"stop"') + DONE)

    assert [(call["id"], call["index"], call["type"]) for call in first["tool_calls"]] == [
        ("a", 0, "function"),
        ("b", 1, "function"),
    ]


@pytest.mark.parametrize("identity", [b"", b'"id":"a","type":"function",'])
def test_a_call_told_in_pieces_has_its_id_type_and_name_once(identity: bytes) -> None:
    piece = b'"tool_calls":[{%b"index":%d,"function":{%b"arguments":"%b"}}]'
    name = b'"name":"f",'
    begun = delta(piece % (b'"id":"a","type":"function",', 3, name, b"{"))
    other = delta(b'"tool_calls":[{"id":"b","index":5,"function":{"name":"g","arguments":"{}"}}]')
    more = delta(piece % (identity, 3, name if identity else b"", b"}"))

    found = [one["tool_calls"][0] for one in deltas(begun + other + more + STOP + DONE)[:-1]]

    assert [call["index"] for call in found] == [0, 1, 0]
    assert found[0]["function"] == {"name": "f", "arguments": "{"}
    assert found[2] == {"index": 0, "function": {"arguments": "}"}}


def test_an_answer_with_tool_calls_that_says_it_just_stopped_is_corrected() -> None:
    called = delta(CALL)

    assert told(called + STOP + DONE)[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert told(called + delta(b"", b'"length"') + DONE)[-1]["choices"][0]["finish_reason"] == "length"


def test_no_answer_calls_tools_without_end() -> None:
    spoken = reader()

    with pytest.raises(ValueError, match="more than 1024 times"):
        spoken.feed(b"".join(delta(b'"tool_calls":[{"id":"%d"}]' % number) for number in range(1025)))


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("twice", [False, True])
def test_reasoning_is_told_under_both_names_only_where_that_is_wanted(version: str, twice: bool) -> None:
    found = deltas(spoken_by(version, *WORDS), reasoning_content=twice)

    assert [delta.get("reasoning") for delta in found] == ["hm ", "\u2028", None, None, None]
    assert [delta.get("reasoning_content") for delta in found] == (["hm ", "\u2028"] if twice else [None] * 2) + [
        None
    ] * 3


def test_reasoning_and_text_come_in_chunks_of_their_own() -> None:
    mixed = spoken_by(OLD, Part("Hi", "hm"), Part(" you", " so"))

    assert deltas(mixed)[:4] == [
        {"role": "assistant", "reasoning": "hm"},
        {"content": "Hi"},
        {"reasoning": " so"},
        {"content": " you"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told(mixed)] == [None] * 4 + ["stop"]


def test_what_ends_a_mixed_chunk_ends_its_last_part() -> None:
    found = told(delta(b'"reasoning":"hm","content":"Hi"', b'"stop"') + DONE)

    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None, "stop"]


@pytest.mark.parametrize("error", [b"null", b'""', b"{}"])
def test_a_chunk_that_did_not_fail_has_no_error(error: bytes) -> None:
    event = TEXT.replace(b',"choices"', b',"error":' + error + b',"choices"')

    (_, chunk, _) = told(ROLE + event + STOP + DONE)

    assert "error" not in chunk


def test_what_clients_trip_over_stays_behind() -> None:
    named = b": hi\nid: 7\nevent: message\nretry: 1\nunknown: x\n" + TEXT

    assert frames(ROLE + named) == frames(ROLE + TEXT)


def test_a_payload_of_several_lines_becomes_one() -> None:
    split = TEXT.replace(b',"choices"', b'\ndata: ,"choices"')

    assert [frame.content for frame in frames(ROLE + split)] == [False, True]
    assert frames(ROLE + split)[1].raw.count(b"\n") == 2


@pytest.mark.parametrize("usage", [b'{"prompt_tokens":26,"completion_tokens":298}', b'{"prompt_tokens":26}'])
def test_usage_that_is_shown_has_three_numbers(usage: bytes) -> None:
    counts = told(ROLE + STOP + HEAD + b',"choices":[],"usage":' + usage + b"}\n\n" + DONE, show_usage=True)[-1][
        "usage"
    ]

    assert counts["total_tokens"] == 26 + counts["completion_tokens"]


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("show", [False, True])
def test_usage_is_the_last_chunk_for_who_asked_and_nowhere_else(version: str, show: bool) -> None:
    for voice in (OpenAIChat, OpenAICompletion):
        found = told(spoken_by(version, *WORDS, voice=voice), show_usage=show)
        last = [chunk for chunk in found if not chunk["choices"]]
        assert [chunk["usage"]["total_tokens"] for chunk in last] == ([7] if show else [])
        assert show or not any("usage" in chunk for chunk in found)
        assert found.index(last[0]) == len(found) - 1 if show else not last


@pytest.mark.parametrize("stream", [DONE, ROLE + TEXT + DONE, ROLE + TEXT + USAGE + DONE])
def test_an_end_marker_without_a_reason_to_finish_is_a_quiet_death(stream: bytes) -> None:
    spoken = reader()

    assert spoken.feed(stream)[-1].error == chunks.UNFINISHED
    assert not spoken.complete


def test_all_chunks_of_a_stream_get_one_id_one_time_and_one_model() -> None:
    identified = OneIdentity("new")
    chunk = b'data: {"id":"%b","object":"chat.completion.chunk","created":%d,"model":"%b","x":1}\n\n'
    heads = ((b"c-1", 1756, b"m"), (b"c-1", 1756, b"m"), (b"c-2", 1757, b"M:latest"), (b"c-20", 1775, b""))

    assert [identified(chunk % head) for head in heads] == [chunk % (b"new", 1756, b"m")] * 4


@pytest.mark.parametrize(
    ("event", "after"),
    [
        (b'data: {"object":"o","id":"x","created": 9,"t":"\xe2\x80\xa8"}\n\n',
         b'data: {"object":"o","id":"new","created":9,"t":"\\u2028"}\n\n'),
        (b'data:{"id":"x"}\r\n\r\n', b'data: {"id":"new"}\n\n'),
        (b'data: {"object":"o"}\n\n', b'data: {"object":"o","id":"new"}\n\n'),
        (b'data: {"\xff":1,"id":"x"}\n\n', b'data: {"\xff":1,"id":"x"}\n\n'),
    ],
)  # fmt: skip
def test_a_chunk_laid_out_otherwise_gets_its_id_too(event: bytes, after: bytes) -> None:
    assert OneIdentity("new")(event) == after


def test_a_chunk_laid_out_otherwise_keeps_the_time_and_model_of_the_first() -> None:
    identified = OneIdentity("new")
    identified(b'data: {"id":"x","object":"o","created":5,"model":"m"}\n\n')

    assert identified(b'data: {"model":"n","created":6,"id":"y"}\n\n') == (
        b'data: {"model":"m","created":5,"id":"new"}\n\n'
    )


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("voice", [OpenAIChat, OpenAICompletion])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_a_stream_cut_anywhere_is_to_the_client_the_same_bytes(
    version: str, voice: type[OpenAIChat | OpenAICompletion], ending: bytes
) -> None:
    parts = (*WORDS, Part("and", "both"), *(CALLS if voice is OpenAIChat else ()))
    stream = spoken_by(version, *parts, voice=voice)
    stream = b": hello\n\n" + stream.replace(b"\n\ndata", b"\n\nid: 1\ndata", 3)
    wanted = b"".join(frame.raw for frame in frames(stream, show_usage=True))
    ended = stream.replace(b"\n", ending)

    for cut in range(len(ended) + 1):
        spoken = reader(show_usage=True)
        found = spoken.feed(ended[:cut]) + spoken.feed(ended[cut:])
        assert b"".join(frame.raw for frame in found) == wanted
        assert spoken.complete
