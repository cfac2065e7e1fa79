"""Which headers cross the gateway, and how texts of others become values of ours."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import ascii_value, request_headers, response_headers, retry_after, sane_request_id

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def test_an_instance_hears_of_the_client_only_its_agent_its_trace_and_our_id() -> None:
    headers = dict(request_headers("r-1", "GitHubCopilotChat/1.0", TRACE))

    assert set(headers) == {b"content-type", b"accept", b"user-agent", b"x-request-id", b"traceparent"}
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"user-agent"] == b"GitHubCopilotChat/1.0"
    assert headers[b"x-request-id"] == b"r-1"
    assert headers[b"traceparent"] == TRACE.encode()


@pytest.mark.parametrize("trace", ["", "x", TRACE + "-00", TRACE + "\r\nhost: evil", TRACE.upper()])
def test_a_trace_that_is_none_stays_behind(trace: str) -> None:
    assert b"traceparent" not in dict(request_headers("r-1", "a", trace))


def test_a_client_without_an_agent_is_called_by_our_name() -> None:
    assert dict(request_headers("r-1"))[b"user-agent"] == b"ollama-gateway"


def test_a_stream_is_neither_held_back_nor_changed_on_its_way() -> None:
    headers = dict(response_headers(b"text/event-stream"))

    assert headers[b"content-type"] == b"text/event-stream"
    assert headers[b"cache-control"] == b"no-cache, no-transform"
    assert headers[b"x-accel-buffering"] == b"no"


def test_a_finished_answer_is_json() -> None:
    assert response_headers() == [(b"content-type", b"application/json")]


@pytest.mark.parametrize("value", ["a", "A-z_0.9", "x" * 64, b"bytes-1"])
def test_a_request_id_of_plain_characters_is_kept(value: str | bytes) -> None:
    kept = sane_request_id(value)

    assert kept == (value if isinstance(value, str) else value.decode())


@pytest.mark.parametrize("value", ["", "x" * 65, "a b", "a\n", "é", b"\xff", "a/b", "a\r\nx: y"])
def test_any_other_request_id_is_refused(value: str | bytes) -> None:
    assert sane_request_id(value) is None


def test_a_plain_text_is_its_own_header_value() -> None:
    assert ascii_value('llama3.1:8b "q4" ü%\n') == b'llama3.1:8b "q4" %C3%BC%25'


@given(text=st.text(alphabet=st.characters(), max_size=600))
def test_no_text_can_leave_its_header_line(text: str) -> None:
    value = ascii_value(text)

    assert re.fullmatch(rb"[\x20-\x7e]{0,256}", value)
    assert value == value.strip()


ANY_BYTES = st.binary(max_size=300).map(lambda value: value.decode("latin-1"))  # as a client's headers reach us


@given(request_id=ANY_BYTES, agent=ANY_BYTES | st.text(alphabet=st.characters()), trace=ANY_BYTES | st.just(TRACE))
def test_no_bytes_of_a_client_make_a_header_of_their_own(request_id: str, agent: str, trace: str) -> None:
    for name, value in request_headers(request_id, agent, trace):
        assert name.islower()
        assert re.fullmatch(rb"[\x20-\x7e]*", value)
        assert value == value.strip()


@given(value=st.binary(max_size=80) | st.text(alphabet=st.characters(), max_size=80))
def test_a_request_id_is_kept_whole_or_not_at_all(value: str | bytes) -> None:
    kept = sane_request_id(value)

    assert kept is None or (kept == (value if isinstance(value, str) else value.decode()) and kept.isascii())


@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=28).map(str.strip))
def test_a_header_value_can_be_read_back(text: str) -> None:
    assert unquote(ascii_value(text).decode()) == text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"2", 2.0),
        (b"0", 0.0),
        (b"9" * 400, 86400.0),
        (b"", None),
        (b"-1", None),
        (b"1.5", None),
        (b"nan", None),
        ("٣".encode(), None),
        (b"Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_an_instance_may_ask_to_be_left_alone_for_a_plain_number_of_seconds(
    value: bytes, seconds: float | None
) -> None:
    assert retry_after([(b"date", b"1"), (b"retry-after", value)]) == seconds
    assert retry_after([(b"date", b"1")]) is None
