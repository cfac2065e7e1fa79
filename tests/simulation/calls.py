"""One simulated call as those see it who watch: its client's side, the pool's, and what must hold at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from gateway.call import Record
from gateway.config import Timeouts
from gateway.errors import (
    BadAnswer,
    CallTimeout,
    CapacityError,
    ConnectionLost,
    GatewayError,
    LineTimeout,
    StreamBroken,
    UnknownModel,
    UpstreamError,
)
from gateway.instances import Waiter
from gateway.upstream.upstream import GLANCE
from tests.simulation.ollama import Work
from tests.simulation.schedule import Ask

INFINITY = float("inf")
NEAR = 1e-6  # seconds, for what floats lose
SETTLES = 0.1  # seconds a finished answer may take to close its message: no time of the client's
OURS = (CapacityError, UpstreamError, UnknownModel)


class Broken(AssertionError):
    """A law that did not hold."""

    def __init__(self, law: str, words: str, now: float) -> None:
        self.law = law
        super().__init__(f"{law}: {words} (at {now:.6f} s)")


class End(Enum):
    ANSWERED = "answered"
    FAILED = "failed"
    LEFT = "left"


@dataclass(eq=False)
class Client:
    """One call as its client sees it."""

    ask: Ask
    record: Record
    limits: Timeouts
    deadline: float | None
    task: asyncio.Task[None] | None = None
    left_at: float | None = None
    heard: list[str] = field(default_factory=list)  # tokens
    ends: list[End] = field(default_factory=list)
    error: GatewayError | None = None
    dallied: float = 0.0  # seconds it took between reads
    silence: float = 0.0  # the longest it waited for the next frames, in seconds

    def __str__(self) -> str:
        return f"call {self.ask.number}"


@dataclass(eq=False)
class Carried:
    """The asyncio task that carries a call through the pool: the client's own, or that of a flight of several."""

    client: Client | None
    grants: int = 0
    waiter: Waiter | None = None  # of the last of them
    sent: bool = False  # the last attempt reached an instance


def wrongs(client: Client, work: Work | None, now: float) -> Iterator[tuple[str, str]]:
    """The laws that a call broke which is over now, each with what it did; `work` is its last request."""
    if len(client.ends) != 1:
        yield "a call ends in one way", f"in {client.ends}"
    if client.left_at is not None and (client.ends != [End.LEFT] or now > client.left_at + NEAR):
        yield "whoever leaves is gone at once", f"{client.ends}"
    if client.error is not None and not isinstance(client.error, OURS):
        yield "errors are ours", repr(client.error)
    yield from _out_of_time(client, now - client.record.arrived)
    if client.ask.stream:
        yield from _misheard(client, *((work.said, work.whole) if work else ([], False)))


def _out_of_time(client: Client, took: float) -> Iterator[tuple[str, str]]:
    """A limit was passed, or somebody was given up before one."""
    record, limits = client.record, client.limits
    if took - client.dallied > limits.total + SETTLES + NEAR:
        yield "no call outlasts its limit", f"took {took:.3f} s"
    if record.waited > limits.line + NEAR:
        yield "nobody waits beyond the limit", f"waited {record.waited:.3f} s"
    if client.silence > limits.idle + GLANCE + NEAR:
        yield "no silence outlasts its limit", f"heard nothing for {client.silence:.3f} s"
    hurry = INFINITY if client.deadline is None else max(0.0, client.deadline - record.arrived)
    if record.attempts <= 1 and record.waited > hurry + NEAR:
        yield "nobody waits beyond the deadline", f"waited {record.waited:.3f} s of {hurry:.3f}"
    if not record.attempts and not record.waited:
        return  # what it was told may be another's, whose flight it shared
    early = isinstance(client.error, LineTimeout) and record.waited < limits.line - NEAR and took < hurry - NEAR
    if early or (isinstance(client.error, CallTimeout) and took < limits.total - NEAR):
        yield "nobody is given up early", f"after {took:.3f} s: {client.error}"


def _misheard(client: Client, said: list[str], whole: bool) -> Iterator[tuple[str, str]]:
    heard, words = client.heard, f"heard {client.heard} of {said}"
    if heard != said[: len(heard)]:
        yield "a client hears what was said", words
    if client.ends == [End.ANSWERED] and not (whole and heard == said):
        yield "an answer is whole or an error", words
    if heard and isinstance(client.error, StreamBroken | ConnectionLost | BadAnswer) and heard != said:
        yield "what came before an error is handed out", words
