"""Compressed bodies: what was compressed comes out, and nothing else ever does, at no more than the limit."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from hashlib import shake_128

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BodyTooLarge, InvalidCall, UnsupportedEncoding
from gateway.wire import encoding

LIMIT = 2**20
MiB = 2**20


def streamed(body: bytes) -> bytes:
    """As Rust's and most other encoders do it: without telling the size."""
    one = zstandard.ZstdCompressor(level=3).compressobj()
    return one.compress(body) + one.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "zstd streamed": streamed,
}
KINDS = sorted(COMPRESS)


def decoded(body: bytes, name: str, limit: int = LIMIT) -> bytes:
    coding = encoding.named(name.split(maxsplit=1)[0])
    assert coding is not None
    return encoding.inflated(body, coding, limit)


@given(body=st.binary(max_size=20_000), kind=st.sampled_from(KINDS))
def test_what_was_compressed_comes_out_again(body: bytes, kind: str) -> None:
    assert decoded(COMPRESS[kind](body), kind) == body


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_of_many_steps_comes_out_again(kind: str) -> None:
    body = shake_128(b"7").digest(300_000) + b"x" * 300_000
    assert decoded(COMPRESS[kind](body), kind) == body


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_for_what_comes_out_and_is_exact(kind: str) -> None:
    assert len(decoded(COMPRESS[kind](b"x" * 1000), kind, limit=1000)) == 1000
    with pytest.raises(BodyTooLarge, match="max_body"):
        decoded(COMPRESS[kind](b"x" * 1001), kind, limit=1000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_costs_little_more_than_the_limit(kind: str) -> None:
    bomb = COMPRESS[kind](bytes(300 * MiB))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decoded(bomb, kind)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * MiB


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_end_or_goes_on_after_its_end_is_refused(kind: str) -> None:
    whole = COMPRESS[kind](b"hello" * 1000)
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        with pytest.raises(InvalidCall):
            decoded(whole[:cut], kind)
    for more in (b"\0", whole, COMPRESS[kind](b"") * 1000):
        with pytest.raises(InvalidCall, match="after its end"):
            decoded(whole + more, kind)


@given(body=st.binary(max_size=2000), kind=st.sampled_from(["gzip", "zstd"]))
def test_any_bytes_at_all_are_decoded_or_refused(body: bytes, kind: str) -> None:
    with contextlib.suppress(InvalidCall, BodyTooLarge):
        decoded(body, kind)


def test_a_frame_that_wants_more_memory_than_its_limit_is_refused() -> None:
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compressobj()
    with pytest.raises(InvalidCall):
        decoded(wide.compress(b"hello") + wide.flush(), "zstd")


def test_a_body_without_coding_is_left_alone() -> None:
    assert encoding.named("") is None
    assert encoding.named(" Identity ") is None


@pytest.mark.parametrize("name", ["gzip", "GZIP", "x-gzip", " zstd"])
def test_a_coding_is_known_by_any_of_its_names(name: str) -> None:
    assert encoding.named(name) is not None


@pytest.mark.parametrize("name", ["br", "deflate", "gzip, zstd", "gzip, gzip", "\u00e9", "x" * 5000])
def test_an_unknown_coding_is_refused_in_few_words(name: str) -> None:
    with pytest.raises(UnsupportedEncoding) as refused:
        encoding.named(name)
    assert len(refused.value.message) < 200


def test_what_zlib_alone_would_take_is_no_gzip() -> None:
    with pytest.raises(InvalidCall):
        decoded(zlib.compress(b"hello"), "gzip")
