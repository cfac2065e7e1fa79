"""Row B6, its cost: no body keeps the event loop from its other work for more than 50 ms.

Counted is the processor time of the loop's own thread, which no other work on the machine adds to; the client and the
instance of a test run in that thread too. What is too much for it must be done beside it.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.offload import LARGE
from gateway.simulator import Behaviour
from tests.faults.test_bad_bodies import CHAT, ENDLESS, MESSAGES, NATIVE, UNREADABLE, refused, with_field
from tests.house import House

MOST = 0.05  # seconds of one step
JUST_SMALL = LARGE - 10  # bytes that are still read in place, of each kind that costs much for its size
FULL = {
    "lists in lists": b'{"a":' + b"[" * JUST_SMALL,
    "lists beside lists": b'{"a":[' + b"[]," * (JUST_SMALL // 3),
    "more closed than opened": b'{"a":' + b"[" * 33 + b"]" * (JUST_SMALL - 40),
    "quotes": b'{"' * (JUST_SMALL // 2),
    "escaped quotes": b'{"a":"' + b'\\"[' * (JUST_SMALL // 3),
    "backslashes": b'{"a":"' + b"\\" * JUST_SMALL,
    "spaces": b" " * JUST_SMALL,
    "fields": b"{" + b",".join(b'"%x":1' % n for n in range(JUST_SMALL // 9)) + b"}",
    "many fields": b"{" + b",".join(b'"field_%d":"%b"' % (n, b"x" * 40) for n in range(1000)) + b"}",
    "a field again and again": b"{" + b",".join([b'"a":1'] * (JUST_SMALL // 6)) + b"}",
    "letters beyond ASCII": b'{"a":"' + "é".encode() * (JUST_SMALL // 2),
    "half surrogates": b'{"a":"' + rb"\ud800" * (JUST_SMALL // 6) + b'"}',
    "a number": b'{"a":' + b"9" * JUST_SMALL,
}
LARGER = {  # each takes a thread many times as long
    "escaped quotes without end": b'{"a":"' + b'\\"[' * 5_000_000,
    "letters beyond ASCII without end": b'{"a":"' + "é".encode() * 10_000_000,
    "values without end": b'{"a":[' + b"[]," * 5_000_000,
}


class Steps:
    longest = 0.0


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """How much processor time the longest step of the loop takes, a collection of garbage not counted."""
    steps, run = Steps(), asyncio.Handle._run  # all that a loop does is run these

    def timed(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        steps.longest = max(steps.longest, time.thread_time() - began)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    gc.collect()
    gc.disable()
    try:
        yield steps
    finally:
        gc.enable()


@pytest.mark.parametrize("path", [CHAT, MESSAGES, NATIVE])
async def test_b6_no_hostile_body_holds_up_the_loop(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {f"a number of {len(one.text)} digits": with_field(path, "stream", one) for one in ENDLESS}
    async with House({"alpha": Behaviour()}) as house:
        for name, body in (UNREADABLE | FULL | LARGER | numbers).items():
            with watched(monkeypatch) as steps:
                await refused(house, path, body)
            assert steps.longest < MOST, name
