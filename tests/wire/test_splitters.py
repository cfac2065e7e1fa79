"""Both splitters: frames are byte-exact and do not depend on where the bytes were cut."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import FrameTooLong, ndjson, sse
from gateway.wire.splitter import Splitter
from tests.examples import tried

PIECES = [b"\r", b"\n", b"\r\n", b"\n\n", b"data: x", b": c", b"data:", b"\xef\xbb\xbf", "é\u2028\u0085".encode()]
STREAMS = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
CUTS = st.lists(st.integers(0, 120), max_size=12)
MAKERS = pytest.mark.parametrize("make", [sse.Splitter, ndjson.Splitter])


def fed(splitter: Splitter, stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [frame for start, end in pairwise(bounds) for frame in splitter.feed(stream[start:end])]


@MAKERS
@given(stream=STREAMS, cuts=CUTS)
def test_frames_do_not_depend_on_where_the_bytes_were_cut(
    make: Callable[[], Splitter], stream: bytes, cuts: list[int]
) -> None:
    whole, cut, dripped = make(), make(), make()

    frames = fed(whole, stream, [])

    assert fed(cut, stream, cuts) == frames
    assert fed(dripped, stream, list(range(len(stream)))) == frames
    assert whole.pending == cut.pending == dripped.pending
    assert b"".join(frames) + whole.pending == stream


@MAKERS
@given(stream=STREAMS | st.binary(max_size=200), cuts=CUTS, limit=st.integers(1, 40))
@tried(300)
def test_whatever_comes_a_limit_is_passed_or_kept_wherever_it_was_cut(
    make: Callable[[int], Splitter], stream: bytes, cuts: list[int], limit: int
) -> None:
    whole, cut, dripped = make(limit), make(limit), make(limit)
    try:
        frames = fed(whole, stream, [])
    except FrameTooLong:
        for splitter, at in ((cut, cuts), (dripped, list(range(len(stream))))):
            with pytest.raises(FrameTooLong):
                fed(splitter, stream, at)
        return
    assert fed(cut, stream, cuts) == fed(dripped, stream, list(range(len(stream)))) == frames
    assert all(len(frame) <= limit for frame in frames)
    assert len(whole.pending) <= limit


@MAKERS
@given(stream=STREAMS | st.binary(max_size=300), cuts=CUTS)
def test_each_byte_is_looked_at_once(make: type[Splitter], stream: bytes, cuts: list[int]) -> None:
    looked = 0

    class Counted(make):  # type: ignore[valid-type, misc]
        def _end(self, source: bytes | bytearray, start: int, searched: int) -> int:
            nonlocal looked
            end: int = super()._end(source, start, searched)
            looked += (end or len(source)) - max(start, searched)
            return end

    fed(Counted(), stream, cuts)
    fed(Counted(), stream, list(range(len(stream))))

    again = 3 * (len(cuts) + 2 + len(stream) + 2)  # of what came before, three bytes each time that something comes
    assert looked <= 2 * len(stream) + again


@given(event=st.binary(max_size=60) | STREAMS)
def test_any_bytes_at_all_have_a_payload_or_none(event: bytes) -> None:
    payload = sse.data(event)

    assert payload is None or len(payload) <= len(event)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\r", b"\r\n\r"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_event_of_any_line_ending_comes_out_on_its_own(end: bytes, count: int) -> None:
    events = [b"data: %d" % number + end for number in range(count)]

    frames = sse.Splitter().feed(b"".join(events) + b": after")

    assert [payload for frame in frames if (payload := sse.data(frame))] == [b"%d" % n for n in range(count)]


def payloads_by_the_standard(stream: bytes) -> list[bytes]:
    """The event stream interpretation, line by line, as the HTML standard writes it."""
    found, lines = [], []
    for line in re.split(rb"\r\n|\n|\r", stream)[:-1]:
        if line:
            lines.append(line)
            continue
        values = [one[5:].removeprefix(b" ") for one in lines if one == b"data" or one.startswith(b"data:")]
        if values:
            found.append(b"\n".join(values))
        lines = []
    return found


@given(lines=st.lists(st.tuples(st.sampled_from([b"data: x", b"data:y", b"data", b": c", b"", b""]),
                                st.sampled_from([b"\n", b"\r\n", b"\r"]))))  # fmt: skip
def test_mixed_line_endings_mean_what_the_standard_says(lines: list[tuple[bytes, bytes]]) -> None:
    stream = b"".join(line + end for line, end in lines) + b"\n.\n\n"

    frames = sse.Splitter().feed(stream)

    assert [payload for frame in frames if (payload := sse.data(frame)) is not None] == payloads_by_the_standard(stream)


def test_an_event_in_crlf_waits_for_the_second_half_of_its_end() -> None:
    splitter = sse.Splitter()

    assert splitter.feed(b"data: 1\r\n\r") == []
    assert splitter.feed(b"\n") == [b"data: 1\r\n\r\n"]


def test_an_event_in_cr_alone_waits_for_nothing() -> None:
    assert sse.Splitter().feed(b"data: 1\r\r") == [b"data: 1\r\r"]


def test_only_a_line_feed_ends_a_line_of_json() -> None:
    line = '{"response":"a\u2028b\u2029c\u0085d\r"}\n'.encode()

    assert ndjson.Splitter().feed(line + line) == [line, line]


@MAKERS
@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_frame_beyond_the_limit_is_refused_however_it_arrives(make: Callable[[int], Splitter], size: int) -> None:
    splitter = make(50)
    stream = b"x" * 60 + b"\n\n"

    with pytest.raises(FrameTooLong, match="50 bytes"):
        fed(splitter, stream, list(range(0, len(stream), size)))


@MAKERS
def test_a_frame_of_the_limit_passes(make: Callable[[int], Splitter]) -> None:
    assert b"".join(make(50).feed(b"x" * 48 + b"\n\n"))[:49] == b"x" * 48 + b"\n"


@MAKERS
@pytest.mark.parametrize("first", [b"", b": \r\n\r\n"])
def test_a_huge_frame_that_drips_is_searched_once(make: Callable[[], Splitter], first: bytes) -> None:
    splitter, block = make(), b"x" * 64
    splitter.feed(first)

    began = time.process_time()
    for _ in range(2**16):
        splitter.feed(block)

    assert len(splitter.feed(b"\n\n")[0]) > 2**22
    assert time.process_time() - began < 10  # searched again each time it would take minutes


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b'data:{"a":1}\n\n', b'{"a":1}'),
        (b'data: {"a":1}\r\n\r\n', b'{"a":1}'),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"data: a\ndata:  b\n\n", b"a\n b"),
        (b"event: x\nid: 1\ndata: a\n\n", b"a"),
        (b": ping\n\n", None),
        (b": keep-alive\ndata: a\n\n", b"a"),
        (b"\ndata: a\r\r", b"a"),
        (b"event: ping\n\n", None),
        (b"\n\n", None),
        (b"data\n\n", b""),
        (b"database: no\n\n", None),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        ("data: é\u2028\u0085\n\n".encode(), "é\u2028\u0085".encode()),
    ],
)
def test_the_payload_is_the_data_lines_and_nothing_else(event: bytes, payload: bytes | None) -> None:
    assert sse.data(event) == payload
