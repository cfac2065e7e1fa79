"""What only some clients ask for: each in its own words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.simulator import Simulator
from tests.clients.clients import (
    AI_SDK,
    ANTHROPIC,
    LANGCHAIN_OLLAMA,
    LLAMA_INDEX,
    OLLAMA,
    OLLAMA_NODE,
    OPENAI,
    OPENAI_NODE,
    Client,
)
from tests.clients.stage import MODEL, Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")
SAID = "a fine day to you"


def of(*clients: Client) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("client", clients, ids=[client.name for client in clients])


async def told(stage: Stage, client: Client, scenario: str) -> dict[str, Any]:
    finding = await stage.ask(client, scenario)
    assert "told" in finding, finding
    result: dict[str, Any] = finding["told"]
    return result


@of(OPENAI, OPENAI_NODE)
async def test_the_responses_api_answers_whole_and_streamed(stage: Stage, client: Client) -> None:
    answer = await told(stage, client, "responses")
    assert (answer["text"].strip(), answer["streamed"].strip()) == (SAID, SAID)
    assert answer["kinds"] == ["response.created", "response.completed"]


async def test_plain_completions_answer_whole_and_streamed(stage: Stage) -> None:
    answer = await told(stage, OPENAI, "completions")
    assert (answer["text"].strip(), answer["streamed"].strip()) == (SAID, SAID)


async def test_generate_answers_whole_and_streamed(stage: Stage) -> None:
    answer = await told(stage, OLLAMA, "generate")
    assert (answer["text"].strip(), answer["streamed"].strip()) == (SAID, SAID)


@of(OPENAI, ANTHROPIC)
async def test_a_name_of_somebody_elses_model_stands_for_one_of_ours(stage: Stage, client: Client) -> None:
    assert (await told(stage, client, "alias"))["text"].strip() == SAID


async def test_tokens_are_counted_or_the_client_is_told_plainly_that_they_are_not(stage: Stage) -> None:
    finding = await stage.ask(ANTHROPIC, "count")
    if "raised" in finding:
        assert (finding["raised"]["type"], finding["raised"]["status"]) == ("NotFoundError", 404)
    else:
        assert finding["told"]["tokens"] > 0


@of(OLLAMA, OLLAMA_NODE)
async def test_show_tells_what_a_model_can_do_and_how_much_it_reads(stage: Stage, client: Client) -> None:
    shown = await told(stage, client, "show")
    assert shown["context"] == 32_768
    assert set(shown["capabilities"]) >= {"completion", "tools"}
    assert "completion" in shown["virtual"]


@of(OLLAMA, OLLAMA_NODE)
async def test_what_is_loaded_is_listed_with_the_time_it_ends(stage: Stage, client: Client) -> None:
    loaded = await told(stage, client, "loaded")
    assert set(loaded["names"]) <= set((await told(stage, client, "models"))["names"])
    assert loaded["dated"]


async def test_the_version_is_numbers_and_dots(stage: Stage) -> None:
    version = await told(stage, OLLAMA_NODE, "version")
    assert all(part.isdecimal() for part in str(version).split("."))


async def test_a_model_that_is_not_listed_is_refused_by_the_client_itself(stage: Stage) -> None:
    finding = await stage.ask(LANGCHAIN_OLLAMA, "unlisted")
    assert "nobody:1b" in finding["raised"]["text"]
    assert (await stage.ask(LANGCHAIN_OLLAMA, "whole"))["told"]  # which looked for its own, and found it


async def test_the_context_length_it_will_ask_for_is_the_models(stage: Stage) -> None:
    assert (await told(stage, LLAMA_INDEX, "context"))["length"] == 32_768


@of(OPENAI_NODE, AI_SDK)
async def test_a_fetch_that_bears_a_second_of_silence_bears_two_through_the_gateway(
    stage: Stage, client: Client
) -> None:
    assert (await told(stage, client, "impatient"))["text"].strip() == SAID
    alone: Simulator = stage.simulators["silent"]
    (finding,) = await stage.run(client, ["impatient"], GATEWAY=alone.url)
    assert re.search("timed out|timeout", finding["raised"]["text"], re.IGNORECASE), "the proof that it is impatient"


async def test_a_list_is_there_in_time_while_an_instance_hangs(stage: Stage) -> None:
    hanging = stage.simulators["hanging"]
    hanging.faults.arm("hang_before_headers", times=None)
    try:
        await hanging.until(lambda: hanging.requests[-1].status == 0, timeout=10)
        (finding,) = await stage.run(OLLAMA, ["hurry"])
        assert MODEL in finding["told"]["names"]
    finally:
        hanging.faults.clear()


async def test_a_header_set_in_the_environment_says_the_task(stage: Stage) -> None:
    (finding,) = await stage.run(OPENAI, ["whole"], OPENAI_CUSTOM_HEADERS="X-Task-Type: code_generation", MODEL="auto")
    assert finding["told"]["end"] == "stop"
    assert stage.lines()[-1]["task"] == "code_generation"


@of(OPENAI, OPENAI_NODE, AI_SDK, OLLAMA, OLLAMA_NODE, LLAMA_INDEX, ANTHROPIC)
async def test_a_path_before_all_paths_says_the_task(stage: Stage, client: Client) -> None:
    (finding,) = await stage.run(client, ["stream"], GATEWAY=f"{stage.url}/t/reasoning", MODEL="auto")
    assert finding["told"]["text"].strip()
    assert stage.lines()[-1]["task"] == "reasoning"
