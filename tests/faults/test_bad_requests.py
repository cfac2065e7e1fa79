"""Rows B8, B10, B13: what a client's paths, headers and names cannot reach, break or make the gateway remember."""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Iterable
from itertools import product
from urllib.parse import quote

import pytest
from hypothesis import settings

from gateway.api.routes import CLOSED
from gateway.simulator import Behaviour, SimulatedModel, Simulator
from tests.examples import USUAL
from tests.house import MODEL, House, Wire, ask, request

CHAT = "/v1/chat/completions"
CRLF = b"\r\n"


async def answers(house: House, requests: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """The status and the head of the answer to each request; many go on one connection, one after another."""
    found: list[tuple[int, bytes]] = []
    pending = list(requests)
    while pending:
        many = next((at for at, one in enumerate(pending) if one.startswith(b"CONNECT ")), len(pending)) or 1
        async with house.wire() as wire:
            await wire.send(b"".join(pending[:many]))
            for _ in range(many):
                head = await head_of(wire, body=not pending.pop(0).startswith(b"HEAD "))
                found.append((int(head[9:12]), head))
                if b"connection: close" in head.lower():
                    break
    return found


async def head_of(wire: Wire, *, body: bool) -> bytes:
    """The head of the next answer, which is taken out of what was seen, with its body."""
    await wire.until(CRLF + CRLF)
    end = wire.seen.index(CRLF + CRLF) + 4
    head = bytes(wire.seen[:end])
    length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    size = int(length[1]) if length and body else 0
    while len(wire.seen) < end + size:
        wire.seen += await wire.reader.read(65536)
    del wire.seen[: end + size]
    return head.removesuffix(CRLF + CRLF)


def asked_by_others(simulator: Simulator) -> list[str]:
    """What the instance was asked that no probe asks."""
    ours = {("GET", "/api/version"), ("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/v1/models"), ("GET", "/")}
    return [f"{seen.method} {seen.path}" for seen in simulator.requests if (seen.method, seen.path) not in ours]


# B8: no path reaches what is closed

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "PROPFIND", "BREW")
OTHERS = ("/api/experimental/x", "/debug/pprof/", "/api/blobs/sha256:00", "/api/pull/", "/api/delete/x", "/metrics/x")
DISGUISES = (
    "{0}", "/v1/..{0}", "/v1/%2e%2e{0}", "/v1/.%2E{0}", "/v1/..%2f{1}", "/v1%2f..{0}", "//{1}", "/{0}/", "{0};x=/v1",
    "/;{0}", "{0}%00", "{0}%00/v1/models", "{0}%0d%0aX:%20y", "/%61pi{2}", "/api%2f{3}", "/API{2}", "/./{1}",
    "/x/..{0}", "{0}?{0}", "{0}#x", "/v1{0}", "/api{0}", "/v1/v1{0}", "/t/x{0}", "/k/x{0}", "/k/x/t/y{0}", "/t/..{0}",
    "/t/%2e%2e{0}", "http://alpha{0}", "http://127.0.0.1:11434{0}", "/\\..{0}", "/%5c..%5c{1}", "/v1/models/../..{0}",
    "/v1/chat/completions/..{0}", "/%c0%ae{0}", "/%ff{0}", "*", "alpha:443", "?{0}", "/%252e%252e{0}",
)  # fmt: skip


def disguised(path: str) -> list[str]:
    rest = path.removeprefix("/api")
    return [one.format(path, path[1:], rest, rest[1:]) for one in DISGUISES]


async def test_no_path_reaches_what_is_closed() -> None:
    body = json.dumps({"model": MODEL, "name": MODEL, "source": MODEL, "destination": "x"}).encode()
    async with House({"alpha": Behaviour()}) as house:
        house.simulator("alpha").forget()
        for path in (*CLOSED, *OTHERS):
            wanted = [(method, path) for method in METHODS] + list(product(("POST", "DELETE", "GET"), disguised(path)))
            said = await answers(house, (request(one, body, method=method) for method, one in wanted))
            assert len(said) == len(wanted)
            for (method, one), (status, _) in zip(wanted, said, strict=True):
                pulls = "pull" in path and method == "POST"  # of what is there: it is answered here
                harmless = method in ("GET", "HEAD") and one.startswith(("/v1/models/", "?", "*"))
                assert status in (400, 403, 404, 405, *((200,) if pulls or harmless else ())), (method, one, status)
        assert asked_by_others(house.simulator("alpha")) == []
        assert {line["path"] for line in house.lines if line["event"] == "call.done"} <= {*known(house), ""}
        assert (await house.chat()).status == 200


def known(house: House) -> set[str]:
    return {*house.app._surface.paths, "/v1/models"}


@pytest.mark.parametrize(
    "target", ["/v1/%2e%2e/v1/chat/completions", "/v1/x/../chat/completions", "/v1%2fchat/completions"]
)
async def test_a_path_is_never_resolved_and_what_it_calls_is_never_sent_on(target: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        house.simulator("alpha").forget()
        ((status, _),) = await answers(house, [request(target, json.dumps(ask("x")).encode())])
        assert status in (200, 400, 404)  # %2f is a slash by the time a path is looked at
        assert asked_by_others(house.simulator("alpha")) in ([], [f"POST {CHAT}"])


# B10: what is written stays where it belongs

HEADERS = (
    "X-Request-Id", "X-Client-Request-Id", "X-Task-Type", "X-Priority", "X-Request-Timeout", "Origin",
    "Sec-Fetch-Site", "User-Agent", "Authorization", "X-Api-Key", "Session-Id", "Traceparent", "Content-Type",
    "Content-Encoding", "Cache-Control", "Access-Control-Request-Headers", "X-Stainless-Timeout", "Accept", "Cookie",
    "Forwarded", "X-Forwarded-For", "Referer", "Expect",
)  # fmt: skip
VALUES = (
    b"a\rb", b"a\nx-evil: 1", b"a\r\nx-evil: 1", b"a\r\n x-evil: 1", b"a\x00b", b"a\x1b[2Jb", b"a\x7fb", b"a\x85b",
    b"a\xffb", "aéb".encode(), "a\u2028b".encode(), "a\u202eb".encode(), b"\x80", b"a\tb", b"%0d%0ax-evil:%201",
    b"app://x\xff", b'"\\', b"{}", b"a" * 4000, b"app://x\x1b", b"bearer \xff", b"=?utf-8?q?a?=", b"codex\xff",
)  # fmt: skip
EVIL = b"x-evil"


def with_header(name: str, value: bytes, path: str = CHAT, body: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n{name}: ".encode()
    return head + value + CRLF + CRLF + body


def decent(head: bytes) -> bool:
    """Every line is one of ours: visible ASCII, and none that somebody else made up."""
    first, *lines = head.split(CRLF)
    fine = all(re.fullmatch(rb"[A-Za-z-]+: [\x20-\x7e]*", line) for line in lines)
    return fine and first.startswith(b"HTTP/1.1 ") and EVIL not in head.lower()


async def test_no_value_of_a_header_leaves_its_line() -> None:
    body = json.dumps(ask("x")).encode()
    async with House({"alpha": Behaviour()}) as house:
        for name in HEADERS:
            for value in VALUES:
                house.lines.clear()
                ((status, head),) = await answers(house, [with_header(name, value, body=body)])
                assert status < 500, (name, value, head)
                assert decent(head), (name, value, head)
                await house.quiet()
                lines = [line for line in house.lines if line["event"] == "call.done"]
                # What is no HTTP has no line; what is has one.
                assert len(lines) == (0 if status == 400 and b"x-request-id" not in head.lower() else 1), (name, value)
        for seen in house.simulator("alpha").requests:
            assert all(EVIL not in name.lower() for name, _ in seen.headers)
            assert all(re.fullmatch(rb"[\x20-\x7e]*", value) for _, value in seen.headers), seen.headers
        assert "evil" not in (await house.get("/metrics")).body.decode()


TEXTS = (
    "a\rb",
    "a\nx-evil: 1",
    "a\r\nx-evil: 1",
    "a\x00b",
    "a\x1b[2Jb",
    "a\x85b",
    "é",
    "a\u2028b",
    "a\u202eb",
    "\U0001f600",
    "%0d%0a",
)


async def test_no_text_in_a_path_query_or_body_leaves_its_line() -> None:
    async with House({"alpha": Behaviour()}) as house:
        for text in TEXTS:
            told = quote(text, safe="")
            body = json.dumps(ask("x", model=text)).encode()
            task = json.dumps(ask("x", model="auto", task_type=text)).encode()
            alias = json.dumps(ask("x", model=f"auto:{text}")).encode()
            sent = [
                request(f"/t/{told}{CHAT}", body), request(f"/k/{told}{CHAT}", body),
                request(f"{CHAT}?task={told}", task), request(f"/{told}", b"", method="GET"),
                request(f"/v1/models/{told}", b"", method="GET"),
                request(f"/gateway/explain?model={told}&task={told}&needs={told}", b"", method="GET"),
                request(CHAT, body), request(CHAT, task), request(CHAT, alias), request("/v1/messages", body),
                request("/api/chat", body), request("/api/show", body), request("/api/pull", body),
                request("/api/chat", json.dumps({"message": "x", "model": text, "task_type": text}).encode()),
            ]  # fmt: skip
            house.lines.clear()
            for status, head in await answers(house, sent):
                assert 400 <= status < 500 or status == 200, (text, head)
                assert decent(head), (text, head)
            await house.quiet()
            assert len([line for line in house.lines if line["event"] == "call.done"]) == len(sent)
        assert asked_by_others(house.simulator("alpha")).count("POST /api/pull") == 0


@pytest.mark.parametrize(
    "name", ["a\r\nx-evil: 1", "a\x1b[2J", "a\u2028b", 'a"} 1\nx_evil 1', "é", "%0d%0ax-evil:%201", "a b"]
)
async def test_a_name_that_no_ollama_gives_a_model_is_no_models(name: str) -> None:
    models = (SimulatedModel(name=name), SimulatedModel(name=MODEL))
    async with House({"alpha": Behaviour(models=models)}) as house:
        ((status, head),) = await answers(house, [request(CHAT, json.dumps(ask("x", model="auto")).encode())])
        assert status == 200
        assert decent(head)
        for path in ("/v1/models", "/api/tags", "/metrics", "/gateway/status", "/gateway/explain?model=auto"):
            said = (await house.get(path)).body.decode()
            assert not re.search(r"^x.evil", said, re.MULTILINE)
            assert json.dumps(f"{name}:latest", ensure_ascii=False)[:-1] not in said


@pytest.mark.parametrize("version", ['0.32"} 1\nx_evil 1', "0.32\r\nx-evil: 1", "0.32\x1b[2J", "0.32\u2028é", "\x00"])
async def test_what_an_instance_says_its_version_is_stays_in_its_place(version: str) -> None:
    async with House({"alpha": Behaviour(version=version)}) as house:
        for target in ("/api/version", "/gateway/status", "/metrics", "/v1/models"):
            ((_, head),) = await answers(house, [request(target, b"", method="GET")])
            assert decent(head), head
            said = (await house.get(target)).body.decode()
            assert not re.search(r"^x.evil", said, re.MULTILINE)
            assert not re.search(r"[\x00-\x09\x0b-\x1f]", said)


# B13: a client may say what it likes, and nothing of it is remembered

WARM = 8000  # the spelling of 4,096 names is kept for the sake of speed: until then what is remembered may grow
MEASURED = 2000 * max(1, settings().max_examples // USUAL)  # and then it must not; forty thousand in a long run


def made_up(at: int) -> list[bytes]:
    body, other = (json.dumps(ask("x", model=f"model-{number}")).encode() for number in (at, at + 1))
    return [
        request(CHAT, body, f"X-Request-Id: id-{at}", f"X-Task-Type: task-{at}", f"Session-Id: {at}"),
        request(f"/k/key-{at}/t/task-{at}/api/show", other, f"Origin: app://{at}", method="POST"),
        request(f"/v1/models/model-{at + 2}", b"", f"Authorization: Bearer key-{at}", method="GET"),
        request(f"/path-{at}", b"", f"User-Agent: agent-{at}", method="GET"),
    ]


async def make_up(house: House, begin: int, count: int) -> None:
    for start in range(begin, begin + count, 500):
        sent = [one for at in range(start, start + 500, 4) for one in made_up(at)]
        assert {status for status, _ in await answers(house, sent)} == {400, 404}
        house.lines.clear()


def blocks() -> int:
    for _ in range(3):
        gc.collect()
    return sys.getallocatedblocks()


async def series(house: House) -> set[str]:
    text = (await house.get("/metrics")).body.decode()
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


async def test_made_up_names_are_no_series_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.metrics.FRESH", 0.0)
    async with House({"alpha": Behaviour()}) as house:
        for begin in (0, WARM // 2):
            await make_up(house, begin, WARM // 2)
            await series(house)  # which makes some of its own
        before, known_before = blocks(), await series(house)
        await make_up(house, WARM, MEASURED)
        after = blocks()
        assert await series(house) == known_before
        assert not [name for name in known_before if re.search(r"(model|task|key|path|agent|id)-\d", name)]
        assert after - before < 1000, f"{after - before} more objects after {MEASURED} more requests"
