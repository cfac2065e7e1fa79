"""What the tests of this room ask in each dialect, how they read the answer, and which counters of failure moved."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from gateway.simulator import Behaviour, Simulator
from tests.house import ALPHA_FIRST, MODEL, House, Reply


@dataclass(frozen=True, eq=False)
class Dialect:
    """One way to ask for text."""

    path: str
    end: bytes  # stands in a stream that came to its end, and in no other
    body: dict[str, Any] = field(default_factory=dict)

    def ask(self, text: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
        spoken = {"messages": [{"role": "user", "content": text}], "prompt": text, "input": text}
        asked = {name: spoken[name] for name in _ASKED[self.path]}
        return {"model": MODEL, "stream": stream, **asked, **self.body, **more}

    def frames(self, reply: Reply) -> list[Any]:
        """The decoded frames of a stream, in order; all that is no JSON is left out."""
        lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n")]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, reply: Reply) -> list[str]:
        """The text of each frame that has some."""
        return [text for frame in self.frames(reply) if (text := _text(frame))]

    def before_error(self, reply: Reply) -> bytes:
        """The bytes of a broken stream up to its error, which is the last frame, or the last two."""
        between = b"\n" if self.path.startswith("/api") else b"\n\n"
        frames = reply.body.split(between)
        assert frames.pop() == b"", "a frame has no end"
        told = 2 if self.path == "/v1/responses" else 1
        return between.join([*frames[:-told], b""])

    def failure(self, reply: Reply) -> tuple[str, str]:
        """The word and the message of an error, whole or at the end of a stream, which must be in the family's shape.

        The word is a code, or what the family has in its place; "" where it has none. Raises AssertionError.
        """
        found = self.frames(reply)[-1]
        assert "127.0.0.1" not in reply.body.decode(), "an address is told"
        if found.get("type") == "response.failed":
            return found["response"]["error"]["code"], found["response"]["error"]["message"]
        error = found["error"]
        if self.path.startswith("/api"):
            assert set(found) == {"error"}
            return "", error
        if self.path == "/v1/messages":
            assert found["type"] == "error"
            return error["type"], error["message"]
        assert set(error) == {"message", "type", "param", "code"}
        return error["code"], error["message"]


_ASKED = {
    "/v1/chat/completions": ("messages",),
    "/v1/completions": ("prompt",),
    "/v1/responses": ("input",),
    "/v1/messages": ("messages",),
    "/api/chat": ("messages",),
    "/api/generate": ("prompt",),
}
CHAT = Dialect("/v1/chat/completions", b"[DONE]")
COMPLETIONS = Dialect("/v1/completions", b"[DONE]")
RESPONSES = Dialect("/v1/responses", b"response.completed")
MESSAGES = Dialect("/v1/messages", b"message_stop", {"max_tokens": 100_000})
NATIVE = Dialect("/api/chat", b'"done":true')
GENERATE = Dialect("/api/generate", b'"done":true')
DIALECTS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, NATIVE, GENERATE)

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.path)
each_family = pytest.mark.parametrize("dialect", [CHAT, MESSAGES, NATIVE], ids=lambda one: one.path)
streamed_or_whole = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


def refused(dialect: Dialect, reply: Reply, status: int, code: str) -> str:
    """Hold an error with a status to its family's form, and to telling the request's id; its message."""
    word, message = dialect.failure(reply)
    anthropic = {503: "overloaded_error", 504: "timeout_error"}.get(status, "api_error")
    expected = {"/v1/messages": anthropic, "/api/chat": "", "/api/generate": ""}.get(dialect.path, code)
    assert (reply.status, word) == (status, expected), reply.body
    assert message
    assert reply.headers["x-request-id"]
    return message


def _text(frame: Any) -> str:
    if "choices" in frame:
        return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in frame["choices"])
    if frame.get("type") == "response.output_text.delta":
        return str(frame["delta"])
    if frame.get("type") == "content_block_delta":
        return str(frame["delta"]["text"])
    if isinstance(frame.get("message"), dict):
        return str(frame["message"].get("content") or "")
    return frame["response"] if isinstance(frame.get("response"), str) else ""


def words(count: int) -> str:
    """A prompt that is answered with so many tokens, none like another, each of them a few bytes."""
    return "say: " + " ".join(f"n{number}é" for number in range(count))


_OF_ITS_OWN = re.compile(
    rb'"(?:id|item_id|created|created_at|completed_at|total_duration|load_duration|prompt_eval_duration|eval_duration)"'
    rb':(?:"[^"]*"|\d+|null)'
)


def alike(body: bytes) -> bytes:
    """A body without what differs between two answers to the same call: ids and times."""
    return _OF_ITS_OWN.sub(b"", body)


def one(config: dict[str, Any] | None = None, **behaviour: Any) -> AbstractAsyncContextManager[House]:
    """One instance, alpha, behind a proxy. It is asked only once, so that its failure is what the client hears."""
    return _rested({"alpha": Behaviour(**behaviour)}, {"retry": {"attempts": 1}} | (config or {}))


def two(**config: Any) -> AbstractAsyncContextManager[House]:
    """Alpha, which is asked first, behind a proxy; and beta, which has the model as well."""
    return _rested({"alpha": Behaviour(), "beta": Behaviour()}, {"routes": [ALPHA_FIRST], **config})


@asynccontextmanager
async def _rested(behaviours: dict[str, Behaviour], config: dict[str, Any]) -> AsyncIterator[House]:
    """The models are loaded, the first probes are over and none is due for some seconds: only calls pass."""
    async with House(behaviours, config, warm=True, proxied=("alpha",)) as house:
        for simulator in house.simulators.values():
            await simulator.until(partial(_was_looked_at_twice, simulator))
        await house.quiet()
        yield house


def _was_looked_at_twice(simulator: Simulator) -> bool:
    return [seen.path for seen in simulator.requests].count("/api/ps") >= 2


def asked(house: House, name: str = "alpha") -> int:
    """How many calls an instance was given."""
    return len([seen for seen in house.simulator(name).requests if seen.method == "POST"])


async def failures(house: House) -> dict[str, float]:
    """Every counter of failures that has moved, by name and labels; nothing else may have."""
    await house.quiet()
    found = {}
    for family in house.engine.metrics.registry.collect():
        for sample in family.samples:
            if sample.name in _COUNTERS and sample.value:
                key = " ".join([_COUNTERS[sample.name], *(sample.labels[label] for label in _LABELS[sample.name])])
                found[key] = sample.value
    return found


_LABELS = {
    "gateway_upstream_errors_total": ("instance", "reason"),
    "gateway_upstream_retries_total": ("reason", "result"),
    "gateway_upstream_breaker_transitions_total": ("instance", "to"),
    "gateway_stream_interruptions_total": ("reason",),
    "gateway_request_errors_total": ("reason",),
}
_COUNTERS = dict(zip(_LABELS, ("error", "retry", "breaker", "interrupted", "failed"), strict=True))
