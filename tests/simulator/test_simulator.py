"""The simulator as a well-behaved Ollama: shapes, slots, models, departures, and what it remembers."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import openai
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulator import DEMO, Behaviour, SimulatedModel, Simulator, serve

CHAT = "/v1/chat/completions"
OLD, NEW = "0.24.0", "0.32.15"
MODELS = (
    SimulatedModel(name="llama3.1:8b"),
    SimulatedModel(name="team/thinker", capabilities=("completion", "tools", "thinking")),
    SimulatedModel(name="plain:1b", capabilities=("completion",)),
    SimulatedModel(name="nomic", capabilities=("embedding",)),
)


@pytest.fixture
async def ollama() -> AsyncIterator[Simulator]:
    async with Simulator(Behaviour(models=MODELS)) as simulator:
        yield simulator


@pytest.fixture
async def client(ollama: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=ollama.url, timeout=5) as one:
        yield one


def chat(text: str = "hello", model: str = "llama3.1:8b", **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def set_to(simulator: Simulator, **values: object) -> None:
    simulator.behaviour = simulator.behaviour.changed(values)


def events(text: str) -> list[dict[str, Any]]:
    """The JSON events of a whole SSE stream, which must end with its marker."""
    frames = text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def talk(simulator: Simulator, raw: bytes) -> bytes:
    """Send bytes, return all that comes until the simulator closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(raw)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


def post(path: str, body: object, *more: str) -> bytes:
    data = json.dumps(body).encode()
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *more])
    return head.encode() + b"\r\n\r\n" + data


async def hung_up(simulator: Simulator, raw: bytes, when: Callable[[], bool]) -> None:
    """Send a request and close the connection once `when` holds."""
    _, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
    writer.write(raw)
    await simulator.until(when)
    writer.close()


# The stream, in both generations.


async def test_a_new_ollama_sends_the_role_once_and_the_finish_in_a_chunk_of_its_own(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT, json=chat("say: one two three", stream=True))

    assert reply.headers["content-type"] == "text/event-stream"
    choices = [event["choices"][0] for event in events(reply.text)]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "one"},
        {"content": " two"},
        {"content": " three"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


async def test_an_old_ollama_sends_role_and_content_on_every_chunk(
    ollama: Simulator, client: httpx.AsyncClient
) -> None:
    set_to(ollama, version=OLD)

    choices = [e["choices"][0] for e in events((await client.post(CHAT, json=chat("say: a b", stream=True))).text)]

    assert [c["delta"] for c in choices] == [{"role": "assistant", "content": text} for text in ("a", " b", "")]
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_usage_comes_last_and_only_when_it_was_asked_for(
    ollama: Simulator, client: httpx.AsyncClient, version: str
) -> None:
    set_to(ollama, version=version)
    body = chat("say: a b", stream=True)

    without = events((await client.post(CHAT, json=body)).text)
    asked = events((await client.post(CHAT, json={**body, "stream_options": {"include_usage": True}})).text)

    assert not any("usage" in event for event in without)
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


async def test_a_native_stream_is_lines_that_end_with_the_cost(client: httpx.AsyncClient) -> None:
    reply = await client.post("/api/chat", json=chat("say: grüß dich"))

    assert reply.headers["content-type"] == "application/x-ndjson"
    *parts, last = lines(reply.text)
    assert [part["message"]["content"] for part in parts] == ["grüß", " dich"]
    assert not any(part["done"] for part in parts)
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 2)
    spent = [last["load_duration"], last["prompt_eval_duration"], last["eval_duration"]]
    assert min(spent) > 0
    assert last["total_duration"] >= sum(spent)


async def test_generate_and_completions_stream_their_own_shapes(client: httpx.AsyncClient) -> None:
    body = {"model": "llama3.1:8b", "prompt": "say: a b"}

    native = lines((await client.post("/api/generate", json=body)).text)
    legacy = events((await client.post("/v1/completions", json={**body, "stream": True})).text)

    assert [line["response"] for line in native] == ["a", " b", ""]
    assert native[-1]["context"]
    assert [event["choices"][0]["text"] for event in legacy] == ["a", " b", ""]
    assert legacy[-1]["choices"][0]["finish_reason"] == "stop"


async def test_each_token_is_an_http_chunk_of_its_own(ollama: Simulator) -> None:
    answer = await talk(ollama, post("/api/chat", chat("say: a b"), "Connection: close"))

    _, _, chunks = answer.partition(b"\r\n\r\n")
    sizes = []
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        sizes.append(int(size, 16))
        chunks = rest[int(size, 16) + 2 :]
    assert len(sizes) == 4
    assert sizes[-1] == 0


# Whole answers.


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_a_whole_answer_has_message_finish_reason_and_usage(
    ollama: Simulator, client: httpx.AsyncClient, version: str
) -> None:
    set_to(ollama, version=version)

    openai_reply = (await client.post(CHAT, json=chat("say: a b"))).json()
    native_reply = (await client.post("/api/chat", json=chat("say: a b", stream=False))).json()

    assert openai_reply["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "a b"}, "finish_reason": "stop"}
    ]
    assert openai_reply["usage"]["total_tokens"] == 5
    assert native_reply["message"] == {"role": "assistant", "content": "a b"}
    assert native_reply["done_reason"] == "stop"


async def test_the_same_prompt_has_the_same_text_streamed_or_whole(client: httpx.AsyncClient) -> None:
    async def whole(text: str) -> str:
        return str((await client.post(CHAT, json=chat(text))).json()["choices"][0]["message"]["content"])

    streamed = lines((await client.post("/api/chat", json=chat("tell me"))).text)

    assert await whole("tell me") == await whole("tell me") == "".join(p["message"]["content"] for p in streamed)
    assert await whole("tell me") != await whole("tell me more")


@pytest.mark.parametrize(
    ("path", "limit"), [(CHAT, {"max_tokens": 5}), ("/api/chat", {"options": {"num_predict": 5}, "stream": False})]
)
async def test_a_limit_sets_the_length_and_the_reason(
    client: httpx.AsyncClient, path: str, limit: dict[str, Any]
) -> None:
    reply = (await client.post(path, json=chat("hello", **limit))).json()

    text = reply["message"]["content"] if "message" in reply else reply["choices"][0]["message"]["content"]
    assert len(text.split()) == 5
    assert "length" in (reply.get("done_reason"), reply.get("choices", [{}])[0].get("finish_reason"))


async def test_max_completion_tokens_is_ignored_as_ollama_ignores_it(client: httpx.AsyncClient) -> None:
    reply = (await client.post(CHAT, json=chat("hello", max_completion_tokens=2))).json()

    assert reply["usage"]["completion_tokens"] == 12


@given(text=st.text(max_size=40).filter(lambda text: text.splitlines() == [text] and text.strip() == text))
@settings(max_examples=50)
def test_what_a_prompt_says_is_said_exactly(text: str) -> None:
    from gateway.simulator.prompt import compose, read_openai_chat

    parts, reason = compose(read_openai_chat(chat(f"please\nsay: {text}\nthank you")), 12)

    assert "".join(part.text for part in parts) == text
    assert reason == "stop"


async def test_tool_calls_have_the_shape_of_their_dialect(ollama: Simulator, client: httpx.AsyncClient) -> None:
    body = chat('call: find {"a": 1}\ncall: look', tools=[{"type": "function"}])

    streamed = events((await client.post(CHAT, json={**body, "stream": True})).text)
    calls = [call for e in streamed for call in e["choices"][0]["delta"].get("tool_calls", [])]
    native = lines((await client.post("/api/chat", json=body)).text)
    set_to(ollama, version="0.20.0")
    old = events((await client.post(CHAT, json={**body, "stream": True})).text)

    assert [(call["index"], call["function"]) for call in calls] == [
        (0, {"name": "find", "arguments": '{"a":1}'}),
        (1, {"name": "look", "arguments": "{}"}),
    ]
    assert streamed[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert native[0]["message"]["tool_calls"][0]["function"] == {"index": 0, "name": "find", "arguments": {"a": 1}}
    assert native[-1]["done_reason"] == "stop"
    assert [c["index"] for e in old for c in e["choices"][0]["delta"].get("tool_calls", [])] == [0, 0]


async def test_a_tools_result_is_answered_in_words(client: httpx.AsyncClient) -> None:
    body = chat("call: find", tools=[{"type": "function"}])
    asked = {**body, "messages": [*body["messages"], {"role": "tool", "content": "42"}]}  # type: ignore[misc]

    message = (await client.post(CHAT, json=asked)).json()["choices"][0]["message"]

    assert "tool_calls" not in message
    assert message["content"]


async def test_reasoning_is_told_apart_from_content(client: httpx.AsyncClient) -> None:
    body = chat("think: well now\nsay: yes", model="team/thinker")

    deltas = [e["choices"][0]["delta"] for e in events((await client.post(CHAT, json={**body, "stream": True})).text)]
    native = lines((await client.post("/api/chat", json={**body, "think": True})).text)
    made_up = (await client.post(CHAT, json=chat("say: x", "team/thinker", reasoning_effort="low"))).json()

    assert deltas[0] == {"role": "assistant", "content": "", "reasoning": "well"}
    assert deltas[1:3] == [{"reasoning": " now"}, {"content": "yes"}]
    assert [line["message"].get("thinking") for line in native] == ["well", " now", None, None]
    assert made_up["choices"][0]["message"]["reasoning"]


# The SDK reads it.


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_the_openai_sdk_understands_chat_tools_and_embeddings(ollama: Simulator, version: str) -> None:
    set_to(ollama, version=version)
    async with openai.AsyncOpenAI(base_url=f"{ollama.url}/v1", api_key="x", max_retries=0) as sdk:
        whole = await sdk.chat.completions.create(
            model="llama3.1:8b", messages=[{"role": "user", "content": "say: hi you"}]
        )
        stream = await sdk.chat.completions.create(
            model="llama3.1:8b",
            messages=[{"role": "user", "content": "say: hi you"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        vectors = await sdk.embeddings.create(model="nomic", input=["a", "b"])
        names = [model.id async for model in sdk.models.list()]

    assert whole.choices[0].message.content == "hi you"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hi you"
    assert chunks[-1].usage is not None
    assert [len(item.embedding) for item in vectors.data] == [8, 8]
    assert "team/thinker:latest" in names


async def test_vectors_have_length_one_and_depend_on_the_text_alone(client: httpx.AsyncClient) -> None:
    async def embed(**body: object) -> list[list[float]]:
        return list((await client.post("/api/embed", json={"model": "nomic", **body})).json()["embeddings"])

    [one], [two], [long] = await embed(input="a"), await embed(input=["b"]), await embed(input="a", dimensions=32)

    assert math.isclose(sum(x * x for x in one), 1, rel_tol=1e-6)
    assert [one] == await embed(input="a")
    assert one != two
    assert len(long) == 32


async def test_embedding_inputs_that_are_not_text_are_turned_down(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/embeddings", json={"model": "nomic", "input": [[1, 2]]})

    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "invalid input type"


# Errors and odd routes.


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", {"model": "x", "messages": []}, 404, "model 'x' not found"),
        ("/api/chat", {"messages": []}, 400, "model is required"),
        ("/api/generate", {"prompt": "a"}, 404, "model '' not found"),
        ("/api/show", {"model": "x"}, 404, "model 'x' not found"),
        ("/api/embed", {"model": "x", "input": "a"}, 404, 'model "x" not found, try pulling it first'),
        (CHAT, {"model": "x", "messages": [{"role": "user", "content": "a"}]}, 404, "model 'x' not found"),
        (CHAT, {"model": "llama3.1:8b", "messages": []}, 400, "[] is too short - 'messages'"),
        (CHAT, chat("a", "nomic"), 400, '"nomic" does not support chat'),
        ("/api/generate", {"model": "nomic", "prompt": "a"}, 400, '"nomic" does not support generate'),
        ("/api/chat", chat("a", "plain:1b", think=True), 400, '"plain:1b" does not support thinking'),
        (
            "/api/chat",
            chat("a", "plain:1b", tools=[{}]),
            400,
            "registry.ollama.ai/library/plain:1b does not support tools",
        ),
    ],
)
async def test_errors_have_ollamas_words_and_the_familys_shape(
    client: httpx.AsyncClient, path: str, body: object, status: int, message: str
) -> None:
    reply = await client.post(path, json=body)

    error = reply.json()["error"]
    assert reply.status_code == status
    assert (error["message"] if path.startswith("/v1") else error) == message


async def test_bodies_that_are_no_json_are_turned_down_and_the_content_type_is_ignored(
    client: httpx.AsyncClient,
) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}

    assert (await client.post("/api/chat")).json() == {"error": "missing request body"}
    assert (await client.post("/api/chat", content=b"{")).status_code == 400
    assert (await client.post("/api/chat", content=json.dumps(chat()), headers=form)).status_code == 200


async def test_unknown_paths_wrong_methods_and_trailing_slashes_are_plain_text(client: httpx.AsyncClient) -> None:
    missing = await client.get("/api/nothing")
    wrong = await client.get("/api/chat")
    slash = await client.post("/api/chat/", json=chat())
    slashed_id = await client.get("/v1/models/team/thinker")

    assert (missing.status_code, missing.text, missing.headers["content-type"]) == (
        404,
        "404 page not found",
        "text/plain",
    )
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert (slash.status_code, slash.headers["location"]) == (307, "/api/chat")
    assert (await client.get("/api/tags/")).status_code == 301
    assert (slashed_id.status_code, slashed_id.text) == (404, "404 page not found")


async def test_heads_of_the_liveness_routes_have_no_body(client: httpx.AsyncClient) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        reply = await client.head(path)
        assert (reply.status_code, reply.content) == (200, b"")
    assert (await client.get("/")).text == "Ollama is running"


async def test_lists_tell_capabilities_only_from_version_0_30_on(ollama: Simulator, client: httpx.AsyncClient) -> None:
    new = (await client.get("/api/tags")).json()["models"]
    shown = (await client.post("/api/show", json={"model": "TEAM/Thinker"})).json()
    set_to(ollama, version=OLD)
    old = (await client.get("/api/tags")).json()["models"]

    assert new[1]["name"] == new[1]["model"] == "team/thinker:latest"
    assert len(new[0]["digest"]) == 64
    assert new[0]["capabilities"] == ["completion", "tools"]
    assert "capabilities" not in old[0]
    assert "context_length" not in old[0]["details"]
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["model_info"]["llama.context_length"] == 32_768


async def test_v1_models_is_null_when_there_are_none(ollama: Simulator, client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models/nomic")).json()["owned_by"] == "library"
    set_to(ollama, models=[])

    assert (await client.get("/v1/models")).json() == {"object": "list", "data": None}


async def test_a_server_that_is_not_native_has_no_api(ollama: Simulator, client: httpx.AsyncClient) -> None:
    set_to(ollama, native=False)

    assert [(await client.get(path)).status_code for path in ("/", "/api/version", "/api/tags")] == [404] * 3
    assert (await client.post(CHAT, json=chat())).status_code == 200


# Slots and models.


async def test_a_second_request_waits_in_silence_until_the_first_is_done(
    ollama: Simulator, client: httpx.AsyncClient
) -> None:
    ollama.faults.arm("hang_before_first_token")
    first = asyncio.create_task(hung_up(ollama, post(CHAT, chat(stream=True)), lambda: ollama.waiting == 2), name="1")
    await ollama.until(lambda: ollama.busy == 1)
    second = asyncio.create_task(client.post(CHAT, json=chat("say: second")), name="2")
    await ollama.until(lambda: ollama.waiting == 1)
    third = asyncio.create_task(client.post(CHAT, json=chat("say: third")), name="3")
    await asyncio.gather(first, second, third)

    assert [seen.answered_at is not None for seen in ollama.requests] == [True] * 3
    answered = [seen.answered_at or 0.0 for seen in ollama.requests]
    assert answered == sorted(answered)
    assert answered[1] >= (ollama.requests[0].left_at or math.inf)
    assert ollama.peak == 1
    assert (ollama.busy, ollama.waiting) == (0, 0)


async def test_parallel_is_how_many_generate_at_once_and_may_grow(ollama: Simulator) -> None:
    set_to(ollama, parallel=2)
    ollama.faults.arm("hang_before_headers", times=None)
    request = post(CHAT, chat())
    callers = [
        asyncio.create_task(hung_up(ollama, request, lambda: ollama.peak == 3), name=f"caller {n}") for n in range(4)
    ]
    await ollama.until(lambda: ollama.waiting == 2)
    assert ollama.peak == 2

    set_to(ollama, parallel=3)
    await asyncio.gather(*callers)
    await ollama.until(lambda: ollama.busy == 0)

    assert ollama.waiting == 0


async def test_an_embedding_model_does_one_thing_at_a_time_whatever_parallel_says(ollama: Simulator) -> None:
    set_to(ollama, parallel=4)
    ollama.faults.arm("hang_before_headers", times=None)
    request = post("/api/embed", {"model": "nomic", "input": "a"})
    callers = [
        asyncio.create_task(hung_up(ollama, request, lambda: len(ollama.requests) == 2), name=f"caller {n}")
        for n in range(2)
    ]
    await asyncio.gather(*callers)
    await ollama.until(lambda: ollama.busy == 0 and ollama.waiting == 0)

    assert ollama.peak == 1


async def test_a_caller_that_leaves_the_wait_gives_its_place_to_the_next(ollama: Simulator) -> None:
    ollama.faults.arm("hang_before_headers")
    release = asyncio.Event()
    holder = asyncio.create_task(hung_up(ollama, post(CHAT, chat()), release.is_set), name="holder")
    await ollama.until(lambda: ollama.busy == 1)
    await hung_up(ollama, post(CHAT, chat("leaves")), lambda: ollama.waiting == 1)
    await ollama.until(lambda: ollama.waiting == 0)
    patient = asyncio.create_task(talk(ollama, post(CHAT, chat("say: patient"), "Connection: close")), name="patient")
    await ollama.until(lambda: ollama.waiting == 1)
    release.set()
    ollama.changed()
    await holder

    assert b"patient" in await patient
    assert [seen.left_at is not None for seen in ollama.requests] == [True, True, False]
    assert ollama.requests[1].answered_at is None


async def test_a_load_is_slow_once_and_told_as_load_duration(ollama: Simulator, client: httpx.AsyncClient) -> None:
    set_to(ollama, load_time=0.02)
    body = chat(stream=False)

    assert ollama.loaded == []
    cold, warm = [(await client.post("/api/chat", json=body)).json()["load_duration"] for _ in range(2)]

    assert cold >= 15_000_000 > warm > 0
    assert ollama.loaded == ["llama3.1:8b"]
    assert [m["name"] for m in (await client.get("/api/ps")).json()["models"]] == ["llama3.1:8b"]


async def test_an_idle_model_makes_room_and_a_busy_one_does_not(ollama: Simulator, client: httpx.AsyncClient) -> None:
    set_to(ollama, max_loaded=1)
    await client.post(CHAT, json=chat())
    await client.post(CHAT, json=chat(model="plain:1b"))
    assert ollama.loaded == ["plain:1b"]

    ollama.faults.arm("hang_before_headers", model="plain:1b")
    busy = asyncio.create_task(
        hung_up(ollama, post(CHAT, chat(model="plain:1b")), lambda: ollama.waiting == 1), name="busy"
    )
    await ollama.until(lambda: ollama.busy == 1)
    reply = await client.post(CHAT, json=chat())
    await busy

    assert reply.status_code == 200
    assert ollama.requests[-1].answered_at > ollama.requests[-2].left_at  # type: ignore[operator]
    assert ollama.loaded == ["llama3.1:8b"]


async def test_empty_requests_load_and_unload(ollama: Simulator, client: httpx.AsyncClient) -> None:
    name = {"model": "llama3.1:8b"}

    loaded = (await client.post("/api/generate", json=name)).json()
    assert (loaded["done_reason"], ollama.loaded) == ("load", ["llama3.1:8b"])
    unloaded = (await client.post("/api/chat", json={**name, "messages": [], "keep_alive": 0})).json()

    assert (unloaded["done_reason"], ollama.loaded) == ("unload", [])
    assert (await client.post("/api/embed", json={"model": "nomic"})).json()["embeddings"] == []


async def test_a_model_is_unloaded_when_its_keep_alive_has_passed(ollama: Simulator, client: httpx.AsyncClient) -> None:
    await client.post("/api/chat", json=chat(keep_alive="20ms"))

    await ollama.until(lambda: ollama.loaded == [])


async def test_a_client_that_leaves_while_its_model_loads_aborts_the_load(ollama: Simulator) -> None:
    set_to(ollama, load_time=0.05)
    await hung_up(ollama, post(CHAT, chat()), lambda: ollama.waiting == 1)
    await ollama.until(lambda: ollama.waiting == 0)

    answer = await talk(ollama, post("/api/chat", chat(stream=False), "Connection: close"))

    assert json.loads(answer.partition(b"\r\n\r\n")[2])["load_duration"] >= 40_000_000


# Departures.


async def test_a_client_that_leaves_mid_stream_is_noticed_and_frees_its_slot(ollama: Simulator) -> None:
    set_to(ollama, per_second=100.0)
    began = time.monotonic()

    await hung_up(
        ollama,
        post(CHAT, chat(stream=True, max_tokens=10_000)),
        lambda: bool(ollama.requests and ollama.requests[0].sent),
    )
    await ollama.until(lambda: ollama.requests[0].left_at is not None)

    seen = ollama.requests[0]
    assert ollama.busy == 0
    assert not seen.finished
    assert began < (seen.left_at or 0.0) <= time.monotonic()
    await ollama.until(lambda: ollama.connections == 0)


@pytest.mark.parametrize("late", [False, True])
async def test_a_departure_before_the_first_token_may_keep_the_slot_until_then(ollama: Simulator, late: bool) -> None:
    set_to(ollama, first_token=0.05, notices_late=late)

    await hung_up(ollama, post(CHAT, chat(stream=True)), lambda: ollama.busy == 1)
    await ollama.until(lambda: ollama.requests[0].left_at is not None)

    assert ollama.busy == (1 if late else 0)
    await ollama.until(lambda: ollama.busy == 0)


async def test_a_client_that_does_not_read_stops_the_tokens(ollama: Simulator) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ollama.port, limit=1024)
    writer.write(post(CHAT, chat(f"say: {'long' * 1000} " * 1, stream=True)))
    await reader.readuntil(b"\r\n")
    writer.write(post("/api/chat", chat("say: " + ("x" * 60_000 + " ") * 400)))
    await ollama.until(lambda: len(ollama.requests) == 2 and ollama.requests[1].sent > 10)
    sent = -1
    while sent != ollama.requests[1].sent:
        sent = ollama.requests[1].sent
        for _ in range(50):
            await asyncio.sleep(0)

    assert sent < 400
    assert ollama.busy == 1
    writer.close()
    await ollama.until(lambda: ollama.busy == 0)


# HTTP.


async def test_pipelined_requests_are_answered_in_order(ollama: Simulator) -> None:
    raw = b"".join(post(CHAT, chat(f"say: n{n}", stream=n == 1)) for n in range(3))

    answer = await talk(ollama, raw + b"GET /api/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    places = [answer.index(mark) for mark in (b"n0", b"n1", b"[DONE]", b"n2", b"version")]
    assert places == sorted(places)


async def test_a_request_may_arrive_byte_by_byte(ollama: Simulator) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ollama.port)
    for byte in post(CHAT, chat("say: patience"), "Connection: close"):
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert b"patience" in await reader.read()
    writer.close()


async def test_bytes_that_are_no_http_are_answered_400(ollama: Simulator) -> None:
    assert (await talk(ollama, b"\x16\x03\x01 hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_heads_and_bodies_have_a_limit(ollama: Simulator) -> None:
    huge = b"GET / HTTP/1.1\r\n" + b"X-Long: %b\r\n" % (b"x" * 1_000) * 70

    assert (await talk(ollama, huge)).startswith(b"HTTP/1.1 431 ")
    assert len(ollama.requests) == 0


async def test_a_connection_is_kept_and_closed_as_asked(ollama: Simulator, client: httpx.AsyncClient) -> None:
    for _ in range(3):
        await client.post(CHAT, json=chat())
    assert ollama.connections == 1

    old = await talk(ollama, b"GET /api/version HTTP/1.0\r\n\r\n")
    assert b"Connection: close" in old


# What it remembers, and how it ends.


async def test_requests_are_remembered_with_headers_and_body(ollama: Simulator, client: httpx.AsyncClient) -> None:
    await client.post(CHAT, json=chat("say: a b", stream=True), headers={"X-Mark": "seven"})

    seen = ollama.requests[-1]
    assert (seen.method, seen.path, seen.model, seen.stream, seen.status) == ("POST", CHAT, "llama3.1:8b", True, 200)
    assert seen.header("x-mark") == "seven"
    assert json.loads(seen.body)["stream"] is True
    assert (seen.sent, seen.finished, seen.left_at) == (4, True, None)


async def test_until_tells_the_state_when_it_gives_up(ollama: Simulator) -> None:
    with pytest.raises(TimeoutError, match="busy 0, waiting 0"):
        await ollama.until(lambda: False, timeout=0.01)


async def test_an_error_of_a_predicate_reaches_whoever_waits(ollama: Simulator, client: httpx.AsyncClient) -> None:
    waiting = asyncio.create_task(ollama.until(lambda: bool(ollama.requests) and 1 / 0 > 1), name="waits")
    await asyncio.sleep(0)
    await client.get("/")

    with pytest.raises(ZeroDivisionError):
        await waiting


async def test_steering_sets_the_pace_and_stamps_every_chunk(ollama: Simulator, client: httpx.AsyncClient) -> None:
    set_to(ollama, steer=True)
    began = time.monotonic_ns()

    streamed = events((await client.post(CHAT, json=chat(stream=True, seed=5, max_tokens=4))).text)

    stamps = [int(event["choices"][0]["delta"]["content"]) for event in streamed[:-1]]
    assert len(stamps) == 4
    assert began < stamps[0]
    assert stamps[-1] - stamps[0] >= 10_000_000


def leaves_nothing_behind() -> Coroutine[Any, Any, None]:
    async def scenario() -> None:
        async with Simulator(Behaviour(first_token=30.0, notices_late=True)) as simulator:
            await hung_up(simulator, post(CHAT, chat()), lambda: simulator.busy == 1)
            await simulator.until(lambda: simulator.connections == 0)
            _, writer = await asyncio.open_connection("127.0.0.1", simulator.port)
            writer.write(post(CHAT, chat()))
            await simulator.until(lambda: simulator.waiting == 1)
        assert (simulator.connections, simulator.busy, simulator.waiting) == (0, 0, 0)
        assert simulator.requests[-1].left_at is None
        assert len(asyncio.all_tasks()) == 1
        timers = getattr(asyncio.get_running_loop(), "_scheduled", [])  # uvloop does not tell
        assert not [timer for timer in timers if not timer.cancelled()]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", simulator.port)
        writer.close()
        await simulator.stop()

    return scenario()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_stopping_closes_everything_and_leaves_no_asyncio_task(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    run(leaves_nothing_behind())


async def test_the_demo_serves_until_it_is_told_to_stop() -> None:
    stop = asyncio.Event()
    port = Simulator()
    await port.start()
    number = port.port
    await port.stop()
    served = asyncio.create_task(serve(DEMO[0], "127.0.0.1", number, stop), name="served")
    await asyncio.sleep(0)
    async with httpx.AsyncClient() as client:
        tags = (await client.get(f"http://127.0.0.1:{number}/api/tags")).json()
    stop.set()
    await served

    assert tags["models"][0]["name"] == "huihui_ai/deepseek-r1-abliterated:8b"
    assert DEMO[1].models[0].name == "qwen3-coder:30b-a3b-q4_K_M"
