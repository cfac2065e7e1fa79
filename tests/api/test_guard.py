"""Whatever bytes stand in a request's head: what is answered, logged and counted stays in its own line."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from gateway.api.guard import Guard
from gateway.api.relay import send_body, told
from gateway.api.routes import GET, POST, Entry, Surface
from gateway.config import Config, LogConfig
from gateway.log import configure
from gateway.metrics import Metrics
from gateway.routing import BY_TASK
from gateway.wire import response_headers
from tests.examples import tried

CONFIG = Config.model_validate({"instances": [{"name": "alpha", "url": "http://alpha"}]})
KEYED = CONFIG.model_copy(update={"auth": CONFIG.auth.model_validate({"keys": [{"name": "a", "sha256": "0" * 64}]})})

NAMES = [
    *(b"x-request-id", b"x-client-request-id", b"x-task-type", b"origin", b"sec-fetch-site", b"upgrade", b"host"),
    *(b"access-control-request-headers", b"access-control-request-private-network", b"authorization", b"x-api-key"),
    *(b"user-agent", b"content-type", b"traceparent", b"accept"),
]
VALUES = st.binary(max_size=80) | st.sampled_from(
    [
        *(b"app://x\x80\xff", b"app://a\rset-cookie: a", b"http://localhost:1", b"file://\x00", b"null", b"cross-site"),
        *(b"true", b"a\r\nx: y", b"websocket", b"h2c", b"\x1b[31m", b"\xe2\x80\xa8", b"a" * 5000, b"abc-1.2_3"),
        *(b"content-type, x-\x80", b"code_generation", b"Basic \xff", b"Bearer \x00"),
    ]
)
STRIPPED = VALUES.map(lambda value: value.strip(b" \t"))  # as every parser does
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES) | st.binary(min_size=1, max_size=8), STRIPPED), max_size=6)
PATHS = st.text(max_size=30) | st.sampled_from(["/echo", "/t/a\r\nb/echo", "/k/\udcff/echo", "/api/x", "/v1/messages"])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An endpoint whose record holds whatever a client may have named."""
    record = scope["gateway.record"]
    record.asked = record.substitution = scope["path"]
    record.task, record.route = "planning", BY_TASK
    await send_body(send, 200, b"{}", [*response_headers(), *told(record)])


SURFACE = Surface(
    [
        Entry(path="/echo", methods=GET, operation="ops", endpoint=echo),
        Entry(path="/echo", methods=POST, operation="chat", endpoint=echo),
    ]
)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)


def asked(config: Config, scope: dict[str, Any], form: str) -> tuple[list[Message], str, Metrics]:
    """What one request is answered, what it leaves in the log, and what counted it."""
    out, metrics, sent = io.StringIO(), Metrics("test"), []
    configure(LogConfig(format=form), out)

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(Guard(SURFACE, metrics, echo, lambda: config)(scope, receive, send))
    return sent, out.getvalue(), metrics


@given(
    method=st.sampled_from(["GET", "POST", "OPTIONS", "HEAD", "DELETE", "get"]) | st.text(max_size=8),
    path=PATHS,
    query=st.binary(max_size=40) | st.just(b"task=a\x1b&task=%0d%0a"),
    headers=HEADERS,
    config=st.sampled_from([CONFIG, KEYED]),
    form=st.sampled_from(["json", "text"]),
)
@example("GET", "/echo", b"", [(b"origin", b"app://x\x80\xff")], CONFIG, "json")
@example("OPTIONS", "/echo", b"", [(b"origin", b"app://x\rset-cookie: a")], CONFIG, "json")
@example("POST", "/t/a\r\nb/echo", b"task=a%1b&task=%0d%0a", [(b"x-task-type", b"\xff\x1b")], CONFIG, "text")
@tried(300)
def test_any_bytes_in_a_head_stay_in_their_line(
    method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], config: Config, form: str
) -> None:
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": headers}

    sent, text, metrics = asked(config, scope, form)

    (start,) = (message for message in sent if message["type"] == "http.response.start")
    assert 200 <= start["status"] < 500
    for name, value in start["headers"]:
        assert re.fullmatch(rb"[a-z-]+", name)
        assert re.fullmatch(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", value), (name, value)
    assert len(text.splitlines()) <= 1
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]*", text)
    text.encode()
    if form == "json" and text:
        assert json.loads(text)["id"] == dict(start["headers"])[b"x-request-id"].decode()
    assert words(metrics) <= CLOSED | {str(start["status"])}


OPERATIONS, REASONS = {"chat", "ops", "none"}, {"auth", "bad_request", "forbidden", "not_found"}
CLOSED = {*OPERATIONS, *REASONS, BY_TASK, "", "true", "false", "test"}


def words(metrics: Metrics) -> set[str]:
    """Every label value of ours but the bounds of buckets."""
    return {
        value
        for family in metrics.registry.collect()
        for sample in family.samples
        for name, value in sample.labels.items()
        if family.name.startswith("gateway_") and name != "le"
    }
