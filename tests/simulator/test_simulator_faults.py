"""Every way the simulator can be told to misbehave, and the control endpoint that tells it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import pytest
import uvloop

from gateway.simulator import PRESETS, Behaviour, Fault, Kind, SimulatedModel, Simulator

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say: a b c d"}]}
STREAM = {**BODY, "stream": True}
MODELS = (SimulatedModel(name="m"), SimulatedModel(name="other"))


@pytest.fixture
async def ollama() -> AsyncIterator[Simulator]:
    async with Simulator(Behaviour(models=MODELS)) as simulator:
        yield simulator


@pytest.fixture
async def client(ollama: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=ollama.url, timeout=5) as one:
        yield one


class Line:
    """A raw connection with one request sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.got = b""

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(5):
            while mark not in self.got:
                data = await self.reader.read(65_536)
                assert data, f"closed after {self.got!r}"
                self.got += data
        return self.got

    async def end(self) -> bytes:
        async with asyncio.timeout(5):
            self.got += await self.reader.read()
        self.writer.close()
        return self.got


async def ask(simulator: Simulator, body: object = STREAM, path: str = CHAT) -> Line:
    line = Line(*await asyncio.open_connection("127.0.0.1", simulator.port))
    data = json.dumps(body).encode()
    line.writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(data), data))
    return line


async def silent(simulator: Simulator, line: Line) -> None:
    """Nothing more comes, and the client's leaving is recorded and frees the slot."""
    for _ in range(20):
        await asyncio.sleep(0)
    line.writer.close()
    await simulator.until(lambda: simulator.requests[-1].left_at is not None and simulator.busy == 0)
    assert not simulator.requests[-1].finished


# The door.


def refuses_then_accepts() -> Coroutine[Any, Any, None]:
    async def scenario() -> None:
        async with Simulator() as simulator, httpx.AsyncClient(base_url=simulator.url) as client:
            await client.get("/")
            simulator.faults.arm("refuse")
            await simulator.until(lambda: simulator.connections == 0)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", simulator.port)
            simulator.faults.clear()
            assert (await client.get("/api/version")).status_code == 200
            simulator.faults.arm("refuse", seconds=0.01)
            await simulator.until(lambda: not simulator.faults.armed)
            assert (await client.get("/api/version")).status_code == 200

    return scenario()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_refuse_refuses_connects_until_cleared_or_for_a_while(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    run(refuses_then_accepts())


async def test_refuse_lets_answers_under_way_go_on(ollama: Simulator) -> None:
    ollama.behaviour = ollama.behaviour.changed({"per_second": 200.0})
    line = await ask(ollama)
    await line.until(b'"a"')

    ollama.faults.arm("refuse")

    await line.until(b"[DONE]")
    line.writer.close()


async def test_drop_closes_a_new_connection_before_any_byte(ollama: Simulator, client: httpx.AsyncClient) -> None:
    ollama.faults.arm("drop")

    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await client.get("/")
    assert (await client.get("/")).status_code == 200
    assert [seen.path for seen in ollama.requests] == ["/"]


async def test_drop_with_a_path_closes_a_kept_connection_at_the_moment_of_use(
    ollama: Simulator, client: httpx.AsyncClient
) -> None:
    await client.get("/")
    ollama.faults.arm("drop", path="/api")

    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/api/tags")
    assert ollama.requests[-1].answered_at is None


# Instead of an answer.


@pytest.mark.parametrize("name", sorted(PRESETS))
async def test_presets_answer_with_ollamas_own_status_and_words(
    ollama: Simulator, client: httpx.AsyncClient, name: str
) -> None:
    fault = ollama.faults.arm(name, times=2)

    openai, native = await client.post(CHAT, json=BODY), await client.post("/api/chat", json=BODY)

    assert openai.status_code == native.status_code == fault.status
    if fault.text:
        assert openai.json()["error"]["message"] == native.json()["error"] == fault.text
    else:
        assert openai.content == native.content == b""
    assert openai.headers.get("retry-after") == ("2" if name == "rate_limited" else None)
    assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_redirect_and_garbage(ollama: Simulator, client: httpx.AsyncClient) -> None:
    ollama.faults.arm("redirect", text="http://10.0.0.1/")
    ollama.faults.arm("garbage")
    ollama.faults.arm("garbage", text="HTTP/1.1 101 Switching\r\n\r\n")

    moved = await client.post(CHAT, json=BODY)
    assert (moved.status_code, moved.headers["location"]) == (302, "http://10.0.0.1/")
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post(CHAT, json=BODY)
    assert await (await ask(ollama)).end() == b"HTTP/1.1 101 Switching\r\n\r\n"


async def test_endless_headers_go_on_as_long_as_they_are_read(ollama: Simulator) -> None:
    ollama.faults.arm("endless_headers")
    line = await ask(ollama)
    async with asyncio.timeout(5):
        while len(line.got) < 300_000:
            line.got += await line.reader.read(65_536)

    assert b"\r\n\r\n" not in line.got
    line.writer.close()
    await ollama.until(lambda: ollama.connections == 0)


# At a point of the answer.


async def test_hangs_are_silent_from_their_point_on_and_hold_their_slot(ollama: Simulator) -> None:
    ollama.faults.arm("hang_before_headers")
    ollama.faults.arm("hang_before_first_token")
    ollama.faults.arm("hang_mid_stream", after=2)

    mute = await ask(ollama)
    await ollama.until(lambda: ollama.busy == 1)
    await silent(ollama, mute)
    opened = await ask(ollama)
    text = await opened.until(b'"delta":{"role":"assistant","content":""}')
    assert text.startswith(b"HTTP/1.1 200 ")
    await silent(ollama, opened)
    stuck = await ask(ollama)
    text = await stuck.until(b'" b"')
    await silent(ollama, stuck)

    assert b'" c"' not in stuck.got
    assert [seen.sent for seen in ollama.requests] == [0, 1, 2]
    assert ollama.requests[0].answered_at is None


async def test_a_probe_can_hang_while_everything_else_works(ollama: Simulator, client: httpx.AsyncClient) -> None:
    ollama.faults.arm("hang_before_headers", path="/api/version", times=None)
    probe = Line(*await asyncio.open_connection("127.0.0.1", ollama.port))
    probe.writer.write(b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n")
    await ollama.until(lambda: len(ollama.requests) == 1)

    assert (await client.post(CHAT, json=BODY)).status_code == 200
    assert ollama.requests[0].answered_at is None
    probe.writer.close()
    await ollama.until(lambda: ollama.requests[0].left_at is not None)


@pytest.mark.parametrize("after", [0, 1, 4, 1_000])
async def test_cut_ends_the_connection_without_an_end_marker(ollama: Simulator, after: int) -> None:
    ollama.faults.arm("cut", after=after)

    answer = await (await ask(ollama)).end()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"data: ") == min(after, 4)
    assert b"[DONE]" not in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert ollama.requests[0].sent == min(after, 4)
    assert ollama.requests[0].left_at is None
    assert ollama.busy == 0


async def received(simulator: Simulator, body: object = STREAM) -> tuple[bytes, bool]:
    """What a plain socket gets, and whether a RST ended it. (A StreamReader loses data to a RST.)"""
    loop = asyncio.get_running_loop()
    got = b""
    data = json.dumps(body).encode()
    with socket.socket() as plain:
        plain.setblocking(False)
        await loop.sock_connect(plain, ("127.0.0.1", simulator.port))
        await loop.sock_sendall(plain, b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(data)))
        await loop.sock_sendall(plain, data)
        try:
            async with asyncio.timeout(5):
                while data := await loop.sock_recv(plain, 65_536):
                    got += data
        except ConnectionResetError:
            return got, True
    return got, False


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("after", [0, 3])
def test_reset_is_a_real_reset_after_its_frames(run: Callable[[Coroutine[Any, Any, None]], None], after: int) -> None:
    async def scenario() -> None:
        async with Simulator(Behaviour(models=MODELS)) as simulator:
            simulator.faults.arm("reset", after=after)
            got, was_reset = await received(simulator)
            assert was_reset
            assert got.count(b"data: ") == after
            assert bool(got) == bool(after)
            assert simulator.requests[0].left_at is None

    run(scenario())


async def test_errors_in_band_are_told_in_the_dialects_words_then_the_stream_ends(
    ollama: Simulator, client: httpx.AsyncClient
) -> None:
    ollama.faults.arm("error_in_band", after=1, times=3, text="boom")

    openai = (await client.post(CHAT, json=STREAM)).text
    native = (await client.post("/api/chat", json=BODY)).text
    whole = await client.post(CHAT, json=BODY)

    *_, last = openai.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "boom"
    assert openai.count("data: ") == 2
    assert json.loads(native.splitlines()[-1]) == {"error": "boom"}
    assert (whole.status_code, whole.json()["error"]["message"]) == (500, "boom")


async def test_a_swallowed_error_ends_with_an_empty_model_and_no_marker(
    ollama: Simulator, client: httpx.AsyncClient
) -> None:
    ollama.faults.arm("swallowed_error", after=2, times=4)

    openai = (await client.post(CHAT, json=STREAM)).text.strip().split("\n\n")
    native = (await client.post("/api/chat", json=BODY)).text.splitlines()
    whole = (await client.post("/api/chat", json={**BODY, "stream": False})).json()
    whole_openai = (await client.post(CHAT, json=BODY)).json()

    last = json.loads(openai[-1].removeprefix("data: "))
    assert (len(openai), last["model"], last["choices"][0]["finish_reason"]) == (3, "", None)
    assert (len(native), json.loads(native[-1])["done"]) == (2, False)
    assert whole["done"] is False
    assert whole_openai["choices"][0]["finish_reason"] is None


async def test_a_bad_frame_comes_between_good_ones(ollama: Simulator, client: httpx.AsyncClient) -> None:
    ollama.faults.arm("bad_frame", after=1)

    frames = (await client.post(CHAT, json=STREAM)).text.strip().split("\n\n")

    assert frames[1] == "data: {]"
    assert frames[-1] == "data: [DONE]"
    assert len(frames) == 7


async def test_an_endless_frame_never_ends(ollama: Simulator) -> None:
    ollama.faults.arm("endless_frame", after=1)
    line = await ask(ollama)
    async with asyncio.timeout(5):
        while len(line.got) < 500_000:
            line.got += await line.reader.read(65_536)

    assert line.got.count(b"\n\n") == 1
    line.writer.close()
    await ollama.until(lambda: ollama.busy == 0)


@pytest.mark.parametrize("kind", ["cut", "reset"])
async def test_a_whole_answer_breaks_off_in_the_middle(ollama: Simulator, kind: str) -> None:
    ollama.faults.arm(kind, after=1)

    got, was_reset = await received(ollama, BODY)

    head, _, body = got.partition(b"\r\n\r\n")
    assert 0 < len(body) < int(head.rpartition(b": ")[2])
    assert was_reset is (kind == "reset")
    assert ollama.busy == 0


async def test_a_whole_answer_falls_silent_in_the_middle(ollama: Simulator) -> None:
    ollama.faults.arm("hang_mid_stream")
    line = await ask(ollama, BODY)

    await line.until(b'"object"')

    await silent(ollama, line)


# Around a whole answer.


async def test_the_end_may_come_twice(ollama: Simulator, client: httpx.AsyncClient) -> None:
    ollama.faults.arm("extra_frames")

    text = (await client.post(CHAT, json=STREAM)).text

    assert text.count("[DONE]") == 2


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_surplus_bytes_follow_a_complete_answer(ollama: Simulator, body: object) -> None:
    ollama.faults.arm("extra_bytes", text="HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    line = await ask(ollama, body)

    await line.until(b"evil")
    line.writer.close()
    await ollama.until(lambda: ollama.connections == 0)
    assert ollama.requests[0].finished
    assert ollama.requests[0].left_at is None


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_short_length_promises_more_than_it_sends(
    ollama: Simulator, client: httpx.AsyncClient, body: object
) -> None:
    ollama.faults.arm("short_length")

    with pytest.raises(httpx.RemoteProtocolError):
        await client.post(CHAT, json=body)


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_slow_answers_are_the_same_bytes_one_at_a_time(
    ollama: Simulator, client: httpx.AsyncClient, body: object
) -> None:
    ollama.faults.arm("slow")
    line = await ask(ollama, body)
    await ollama.until(lambda: bool(ollama.requests) and ollama.requests[0].answered_at is not None)
    assert not ollama.requests[0].finished
    await ollama.until(lambda: ollama.requests[0].finished)
    line.writer.close()

    ollama.faults.arm("slow")
    slow = await client.post(CHAT, json=body)
    again = await client.post(CHAT, json=body)

    varying = re.compile(r'"id":"[^"]*"|"created":\d+')
    assert varying.sub("", slow.text) == varying.sub("", again.text)


async def test_a_client_that_leaves_a_slow_answer_is_recorded(ollama: Simulator) -> None:
    ollama.faults.arm("slow", seconds=0.01)
    line = await ask(ollama, BODY)
    await line.until(b"HTTP")
    line.writer.close()

    await ollama.until(lambda: ollama.requests[0].left_at is not None)


async def test_close_idle_closes_a_connection_it_promised_to_keep(ollama: Simulator) -> None:
    ollama.faults.arm("close_idle")

    answer = await (await ask(ollama, BODY)).end()

    assert answer.endswith(b"}")
    assert b"Connection: close" not in answer


# Which requests a fault applies to.


async def test_faults_match_by_path_and_model_and_are_used_up_in_order(
    ollama: Simulator, client: httpx.AsyncClient
) -> None:
    ollama.faults.arm("status", status=501, path="/api")
    ollama.faults.arm("status", status=502, model="other:latest")
    ollama.faults.arm("status", status=503)
    ollama.faults.arm("status", status=504)

    async def status(path: str, model: str) -> int:
        return (await client.post(path, json={**BODY, "model": model})).status_code

    got = [
        await status(CHAT, "m"),
        await status(CHAT, "OTHER"),
        await status(CHAT, "m"),
        await status("/api/chat", "m"),
    ]

    assert got == [503, 502, 504, 501]
    assert ollama.faults.armed == ()


async def test_a_fault_may_hit_every_second_request_and_stay(ollama: Simulator, client: httpx.AsyncClient) -> None:
    ollama.faults.add(Fault(kind=Kind.STATUS, status=500, times=None, every=2))

    assert [(await client.get("/api/version")).status_code for _ in range(4)] == [200, 500, 200, 500]
    ollama.faults.clear()
    assert [(await client.get("/api/version")).status_code for _ in range(2)] == [200, 200]


def test_every_kind_acts_in_exactly_one_place() -> None:
    from gateway.simulator.faults import DURING, INSTEAD

    around = {Kind.EXTRA_FRAMES, Kind.EXTRA_BYTES, Kind.SHORT_LENGTH, Kind.SLOW, Kind.CLOSE_IDLE}
    places = [{Kind.REFUSE}, set(INSTEAD), set(DURING), around]
    assert sum(len(place) for place in places) == len(Kind)
    assert set().union(*places) == set(Kind)


@pytest.mark.parametrize(
    ("what", "details"),
    [
        ("nonsense", {}),
        ("cut", {"afterwards": 1}),
        ("cut", {"after": "x"}),
        ("status", {"status": 99}),
        ("cut", {"times": 0}),
    ],
)
async def test_faults_that_make_no_sense_are_turned_down(ollama: Simulator, what: str, details: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ollama.faults.arm(what, **details)
    assert ollama.faults.armed == ()


# The control endpoint.


async def test_faults_are_armed_and_cleared_over_http(ollama: Simulator, client: httpx.AsyncClient) -> None:
    armed = await client.post("/simulator/faults", json={"kind": "busy", "times": None})
    busy = await client.post(CHAT, json=BODY)
    cleared = await client.delete("/simulator/faults")

    assert (armed.status_code, armed.json()["status"]) == (201, 503)
    assert busy.json()["error"]["message"] == PRESETS["busy"]["text"]
    assert cleared.status_code == 200
    assert (await client.post(CHAT, json=BODY)).status_code == 200
    assert len(ollama.requests) == 2


async def test_behaviour_is_changed_over_http_field_by_field(ollama: Simulator, client: httpx.AsyncClient) -> None:
    reply = await client.post("/simulator/behaviour", json={"version": "0.24.0", "parallel": 3})

    assert reply.json()["parallel"] == 3
    assert (await client.get("/api/version")).json() == {"version": "0.24.0"}
    assert ollama.behaviour.models == MODELS


async def test_the_state_shows_no_prompts_and_no_headers(ollama: Simulator, client: httpx.AsyncClient) -> None:
    await client.post(CHAT, json=BODY, headers={"Authorization": "Bearer hidden"})

    state = (await client.get("/simulator")).json()
    await client.delete("/simulator/requests")

    assert not {"body", "headers"} & set(state["requests"][0])
    assert (state["busy"], state["peak"], state["loaded"], state["connections"]) == (0, 1, ["m:latest"], 1)
    assert [seen["path"] for seen in state["requests"]] == [CHAT]
    assert (len(ollama.requests), ollama.peak) == (0, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/simulator/faults", {"kind": "nonsense"}),
        ("/simulator/faults", {"kind": "cut", "self": 1}),
        ("/simulator/behaviour", {"parallel": 0}),
        ("/simulator/behaviour", {"parallel": "many"}),
        ("/simulator/behaviour", {"speed": 1}),
        ("/simulator/behaviour", [1]),
    ],
)
async def test_bad_orders_get_400_and_a_reason(client: httpx.AsyncClient, path: str, body: object) -> None:
    reply = await client.post(path, json=body)

    assert reply.status_code == 400
    assert reply.json()["error"]


async def test_unknown_orders_are_told_what_there_is(client: httpx.AsyncClient) -> None:
    reply = await client.get("/simulator/nothing")

    assert reply.status_code == 404
    assert "POST /simulator/faults" in reply.json()["error"]
