"""A call goes in, the right Ollama answers: the main job, as its users see it."""

from __future__ import annotations

import json

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from tests.house import House, ask

GENERAL = "huihui_ai/deepseek-r1-abliterated:8b"
CODER = "qwen3-coder:30b-a3b-q4_K_M"


def pair() -> House:
    """The two instances of the README."""
    return House(
        {
            "general": Behaviour(models=(SimulatedModel(name=GENERAL),)),
            "coding": Behaviour(models=(SimulatedModel(name=CODER),)),
        },
        instances={
            "general": {
                "model": GENERAL,
                "capabilities": ["general", "reasoning", "conversation"],
                "max_concurrent": 2,
            },
            "coding": {
                "model": CODER,
                "capabilities": ["coding", "code_generation", "code_analysis"],
                "max_concurrent": 1,
            },
        },
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_name_finds_its_instance(stream: bool) -> None:
    async with pair() as house:
        for model, instance in ((GENERAL, "general"), (CODER, "coding")):
            reply = await house.chat("say: good morning", model=model, stream=stream)
            assert (reply.status, reply.instance, reply.text.strip()) == (200, instance, "good morning")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_task_finds_its_instance_by_header_alias_path_and_query(stream: bool) -> None:
    async with pair() as house:
        by_header = await house.chat(model="auto", stream=stream, X_Task_Type="code_generation")
        by_alias = await house.chat(model="auto:code_generation", stream=stream)
        by_path = await house.post("/t/code_generation/v1/chat/completions", ask("hi", model="auto", stream=stream))
        by_query = await house.post("/v1/chat/completions?task=code_generation", ask("hi", model="auto", stream=stream))
        for reply in (by_header, by_alias, by_path, by_query):
            assert (reply.status, reply.instance) == (200, "coding")
            assert reply.headers["x-gateway-route"] == "by-task"
        assert (await house.chat(model="auto", stream=stream)).instance == "general"


async def test_a_stream_arrives_as_server_sent_events_and_ends_with_done() -> None:
    async with pair() as house:
        reply = await house.chat("say: one two three", model=CODER, stream=True)
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-accel-buffering"] == "no"
        assert "content-length" not in reply.headers
        assert reply.events[-1] == "[DONE]"
        assert reply.body.endswith(b"data: [DONE]\n\n")
        assert json.loads(reply.events[-2])["choices"][0]["finish_reason"] == "stop"


async def test_each_token_is_passed_on_before_the_next_is_made() -> None:
    async with pair() as house:
        coding = house.simulator("coding")
        coding.faults.arm("hang_mid_stream", path="/v1", after=2)
        async with house.asking(ask("say: one two three", model=CODER, stream=True)) as wire:
            await wire.until(b"one")
            assert b"[DONE]" not in wire.seen


async def test_usage_is_counted_but_not_shown_unless_it_was_asked_for() -> None:
    async with pair() as house:
        hidden = await house.chat("say: a b c", model=CODER, stream=True)
        shown = await house.post(
            "/v1/chat/completions", ask("say: a b c", model=CODER, stream=True, stream_options={"include_usage": True})
        )
        assert not any("usage" in json.loads(event) and json.loads(event)["usage"] for event in hidden.events[:-1])
        assert json.loads(shown.events[-2])["usage"]["completion_tokens"] == 3
        counted = await house.metric("gateway_tokens_total", route="by-model", model=CODER, type="output")
        assert counted == 6


async def test_the_gateway_tells_what_it_did() -> None:
    async with pair() as house:
        reply = await house.chat(model="gpt-4o", X_Task_Type="code_analysis", X_Request_Id="my-id.1")
        told = reply.headers
        assert told["x-request-id"] == "my-id.1"
        assert told["x-gateway-instance"] == "coding"
        assert told["x-gateway-route"] == "by-task"
        assert told["x-gateway-attempts"] == "1"
        assert told["x-gateway-model"] == CODER
        assert told["x-gateway-substituted"] == f"model {CODER} stands in for gpt-4o"
        assert told["server-timing"].startswith("line;dur=")
        await house.quiet()
        line = house.line("my-id.1")
        assert (line["instance"], line["task"], line["status"]) == ("coding", "code_analysis", 200)
        assert "hello" not in json.dumps(line)


async def test_an_id_that_cannot_be_written_everywhere_is_replaced() -> None:
    async with pair() as house:
        reply = await house.chat(model=CODER, X_Request_Id="no spaces, please")
        assert reply.headers["x-request-id"] not in ("", "no spaces, please")


async def test_one_finished_call_is_one_set_of_metrics() -> None:
    async with pair() as house:
        await house.chat(model=CODER, stream=True)
        await house.quiet()
        series = {"operation": "chat", "route": "by-model", "model": CODER, "code": "200", "stream": "true"}
        assert await house.metric("gateway_requests_total", **series) == 1
        for name in ("gateway_time_to_first_token_seconds_count", "gateway_upstream_first_token_seconds_count"):
            label = {"route": "by-model"} if "upstream" not in name else {"instance": "coding"}
            assert await house.metric(name, model=CODER, **label) == 1
        assert await house.metric("gateway_requests_in_flight", operation="chat") == 0
        assert await house.metric("gateway_upstream_requests_total", instance="coding", model=CODER, code="200") == 1


async def test_completions_and_embeddings_are_relayed() -> None:
    models = (SimulatedModel(name="llama3.1:8b"), SimulatedModel(name="embed:1b", capabilities=("embedding",)))
    async with House({"alpha": Behaviour(models=models)}) as house:
        whole = await house.post("/v1/completions", {"model": "llama3.1:8b", "prompt": "say: well met"})
        assert whole.json["choices"][0]["text"].strip() == "well met"
        streamed = await house.post(
            "/v1/completions", {"model": "llama3.1:8b", "prompt": "say: well met", "stream": True}
        )
        assert streamed.events[-1] == "[DONE]"
        vectors = await house.post("/v1/embeddings", {"model": "embed:1b", "input": ["a", "b"]})
        assert [one["index"] for one in vectors.json["data"]] == [0, 1]


async def test_the_facade_answers_with_and_without_the_trailing_slash() -> None:
    async with pair() as house:
        for path in ("/api/chat", "/api/chat/"):
            reply = await house.post(path, {"message": "say: hello there", "task_type": "code_generation"})
            assert reply.status == 200
            answer = reply.json
            assert set(answer) == {"response", "model", "task_type", "duration_ms"}
            assert answer["response"].strip() == "hello there"
            assert (answer["model"], answer["task_type"]) == (CODER, "code_generation")
            assert answer["duration_ms"] >= 0


async def test_the_facade_lists_the_instances() -> None:
    async with pair() as house:
        listed = (await house.get("/api/chat/models")).json["models"]
        assert listed[1] == {
            "model": CODER,
            "url": house.simulator("coding").url,
            "capabilities": ["coding", "code_generation", "code_analysis"],
            "max_concurrent": 1,
        }


async def test_ollamas_own_chat_is_relayed_byte_for_byte() -> None:
    async with pair() as house:
        body = {"model": CODER, "messages": [{"role": "user", "content": "say: naïve ☃ text"}]}
        reply = await house.post("/api/chat", body)
        assert reply.headers["content-type"].startswith("application/x-ndjson")
        lines = [json.loads(line) for line in reply.body.splitlines()]
        assert lines[-1]["done"] is True
        assert "".join(line["message"]["content"] for line in lines).strip() == "naïve ☃ text"


async def test_models_are_listed_once_for_the_whole_pool_and_found_by_id() -> None:
    shared = SimulatedModel(name=CODER)
    behaviours = {"a": Behaviour(models=(shared, SimulatedModel(name=GENERAL))), "b": Behaviour(models=(shared,))}
    async with House(behaviours) as house:
        listed = (await house.get("/v1/models")).json
        ids = [model["id"] for model in listed["data"]]
        assert listed["object"] == "list"
        assert ids.count(CODER) == ids.count(GENERAL) == ids.count("auto") == ids.count("auto:reasoning") == 1
        for spelling in (GENERAL, GENERAL.replace("/", "%2F"), GENERAL.upper()):
            found = await house.get(f"/v1/models/{spelling}")
            assert (found.status, found.json["id"], found.json["owned_by"]) == (200, GENERAL, "huihui_ai")
        missing = await house.get("/v1/models/nobody/has-this:1b")
        assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")


async def test_nothing_of_the_clients_headers_but_what_is_meant_to_reaches_the_instance() -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    async with pair() as house:
        await house.chat(
            model=CODER, Authorization="Bearer secret", Cookie="a=b", Origin="http://evil", User_Agent="me/1",
            Traceparent=trace,
        )  # fmt: skip
        seen = house.seen("coding")
        assert seen.header("traceparent") == trace
        assert seen.header("authorization") is None
        assert seen.header("cookie") is None
        assert seen.header("origin") is None
        assert seen.header("user-agent") == "me/1"
        assert seen.header("host") == house.simulator("coding").url.removeprefix("http://")


async def test_a_connection_to_an_instance_is_used_again() -> None:
    async with pair() as house:
        for _ in range(5):
            await house.chat(model=CODER, stream=True)
        assert house.simulator("coding").connections <= 3  # this one, and those of the probes


async def test_a_client_that_does_not_read_holds_its_instance_back_and_costs_no_memory() -> None:
    count = 60_000
    async with House({"alpha": Behaviour()}) as house:
        alpha = house.simulator("alpha")
        async with house.asking(ask("x", stream=True, max_tokens=count)) as wire:
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await alpha.until(lambda: any(seen.stream for seen in alpha.requests))
            (connection,) = house.engine._attached["alpha"].upstream._busy
            await house.until(lambda: connection.paused)
            seen = next(seen for seen in alpha.requests if seen.stream)
            assert not seen.finished
            assert seen.sent < count
            wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
            body = await wire.until(b"[DONE]")
        assert body.count(b"data: ") == seen.sent - 1  # the frame with the usage is kept from who did not ask
