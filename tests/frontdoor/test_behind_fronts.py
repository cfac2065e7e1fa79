"""Row B2 of the fault matrix: behind nginx and haproxy nothing reaches us that they did not account for.

A message that front and gateway read differently lets a client hide one request in another: the hidden one comes with
no id of the front's, and its answer goes to whoever asks next. So each attack is followed by somebody who asks
something else over the same front, and at the end every request of ours must have an id that the front gave it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from gateway.simulator import Behaviour
from tests.frontdoor.fronts import Front, found, running
from tests.frontdoor.messages import CODINGS, LENGTHS, NAMES, Draft, Field, Message, chunks
from tests.frontdoor.test_verdicts import MALFORMED, OTHERWISE
from tests.house import LIMIT, House, ask, request

COUNT = int(os.environ.get("FRONTDOOR_PAIRS", "240"))  # by hand 2000: all of them, in a quarter of a minute
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: gateway\r\nX-Request-Id: hidden\r\n\r\n"
LAST, ONE = b"0\r\n\r\n", b"%x\r\n" % len(HIDDEN)
IN_A_CHUNK = ONE + HIDDEN + b"\r\n" + LAST
LENGTH, CODING = b"Content-Length", b"Transfer-Encoding"
CODED = [Field(CODING, coding) for coding in CODINGS] + [Field(name, b"chunked") for name in NAMES if b"od" in name]
TOLD = [Field(name, b"%d" % len(HIDDEN)) for name in NAMES if b"ength" in name] + [
    Field(LENGTH, length) for length in LENGTHS
]
TARGETS = ((b"POST", b"/v1/chat/completions"), (b"GET", b"/livez"), (b"OPTIONS", b"/v1/models"), (b"HEAD", b"/"))
FRONTS = [
    pytest.param(kind, lax, marks=pytest.mark.skipif(found(kind) is None, reason=f"{kind} is not installed"))
    for kind, lax in product(("nginx", "haproxy"), (False, True))
]


def length(size: int) -> Field:
    return Field(LENGTH, b"%d" % size)


def pairs() -> Iterator[Message]:
    """Two ways to tell where a body ends, of which each of two readers may believe another."""
    for coded in CODED:
        for kind, size, body in (
            ("CL.TE", len(LAST + HIDDEN), LAST + HIDDEN),
            ("TE.CL", len(ONE), IN_A_CHUNK),
            ("TE.0", None, IN_A_CHUNK),
        ):
            plain = Draft(body=body)
            both = [plain.having(coded)] if size is None else [
                plain.having(length(size), coded), plain.having(coded, length(size)),
                replace(plain, version=b"HTTP/1.0").having(length(size), coded),
            ]  # fmt: skip
            yield from (Message(kind, bytes(draft)) for draft in both)
    for told, (method, target) in product([*TOLD, length(len(HIDDEN))], TARGETS):
        yield Message("CL.0", bytes(Draft(method, target=target, body=HIDDEN).having(told)))
    for told, other in product(TOLD, (length(0), length(len(HIDDEN)))):
        yield Message("CL.CL", bytes(Draft(body=HIDDEN).having(told, other)))
        yield Message("CL.CL", bytes(Draft(body=HIDDEN).having(other, told)))
    yield from unusual()


def unusual() -> Iterator[Message]:
    """What hides the length from the next reader, or has the body wait for a word; odd chunks; all of row B1."""
    for (method, target), named in product(TARGETS, (LENGTH, CODING, b"Host", b"close, Content-Length")):
        hop = Field(b"Connection", named)
        yield Message("hop by hop", bytes(Draft(method, target=target, body=HIDDEN).having(hop, length(len(HIDDEN)))))
        yield Message("hop by hop", bytes(Draft(method, target=target, body=IN_A_CHUNK).having(hop, CODED[0])))
    for (method, target), word in product(TARGETS, (b"100-continue", b"y 100-continue", b"100-continue, x", b"x")):
        waits = Field(b"Expect", word)
        yield Message("expect", bytes(Draft(method, target=target, body=HIDDEN).having(waits, length(len(HIDDEN)))))
        yield Message("expect", bytes(Draft(method, target=target, body=IN_A_CHUNK).having(waits, CODED[0])))
    for (method, target), offer in product(TARGETS, (b"h2c", b"websocket", b"x")):
        upgrade = (Field(b"Connection", b"Upgrade"), Field(b"Upgrade", offer), length(len(HIDDEN)))
        yield Message("upgrade", bytes(Draft(method, target=target, body=HIDDEN).having(*upgrade)))
    yield from (message for message in chunks() if not message.kind.startswith("a byte"))
    yield from (Message(name, data) for name, data in MALFORMED.items())
    yield from (Message(name, data) for name, (_, data) in OTHERWISE.items() if len(data) < 20_000)


def chosen() -> list[Message]:
    """Some of them, the same each time, of each kind in its measure."""
    known = list(pairs())
    return known if len(known) <= COUNT else random.Random(5).sample(known, COUNT)  # noqa: S311 - not for secrets


async def asks(front: Front, prompt: str) -> str:
    """What somebody else is told, on a connection of their own to the front."""
    body = json.dumps(ask(f"say: {prompt}")).encode()
    answer = await front.said(request("/v1/chat/completions", body, "Connection: close"))
    head, _, told = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), (prompt, answer)
    said: str = json.loads(told[told.index(b"{") : told.rindex(b"}") + 1])["choices"][0]["message"]["content"]
    return said.strip()


@pytest.mark.parametrize(("kind", "lax"), FRONTS)
async def test_b2_nothing_reaches_us_that_a_front_did_not_account_for(kind: str, lax: bool, tmp_path: Path) -> None:
    async with House({"alpha": Behaviour()}) as house, running(kind, house.address[1], tmp_path, lax=lax) as front:
        sent = chosen()
        for number, message in enumerate(sent):
            await front.said(message.data + HIDDEN)
            assert await asks(front, f"n{number}") == f"n{number}", message
        await house.quiet()
        served = {line["id"]: line["status"] for line in house.lines if line["event"] == "call.done"}
        told = await told_of(front, set(served))
        assert {len(statuses) for statuses in told.values()} == {1}
        # Of a request that did not come whole, or not soon, the front may say something else than we do.
        assert [one for one, status in served.items() if (status == 200) != (told[one] == ["200"])] == []
        assert len(served) > len(sent) * 11 // 10, "nothing but the others came through: so nothing was tried"
        said = [json.loads(seen.body)["messages"][0]["content"] for seen in house.simulator("alpha").requests
                if seen.method == "POST"]  # fmt: skip
        assert said == [f"say: n{number}" for number in range(len(sent))]


async def told_of(front: Front, served: set[str]) -> dict[str, list[str]]:
    """Every status that the front relayed under each of these ids. It writes a request down once its answer is sent."""
    async with asyncio.timeout(LIMIT):
        while unknown := served - {one for one, _ in front.told()}:
            assert not {"hidden"} & unknown, "a request was hidden in another"
            await asyncio.sleep(0.01)
    found: dict[str, list[str]] = {}
    for one, status in front.told():
        if one in served:
            found.setdefault(one, []).append(status)
    return found


async def test_who_sends_nonsense_and_has_left_before_it_is_told_so_is_no_defect_of_ours() -> None:
    """haproxy does: it gives up on a server with whose request it can not go on."""
    async with House({"alpha": Behaviour()}) as house:
        with socket.create_connection(house.address) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n")
            await house.until(lambda: len(house.app.crowd) == 1)
            client.sendall(b"nonsense\r\n")
        await house.quiet()
        assert house.last_line()["status"] == 400
