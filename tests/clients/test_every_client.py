"""What every client must get from the gateway, and what each tells its user when something is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.clients import CLIENTS, Client
from tests.clients.stage import CUT, EMBEDDER, MODEL, Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")
SAID = "a fine day to you"


def able(scenario: str) -> pytest.MarkDecorator:
    """The clients that have words for a scenario."""
    fit = [client for client in CLIENTS if scenario not in client.lacks]
    return pytest.mark.parametrize("client", fit, ids=[client.name for client in fit])


async def told(stage: Stage, client: Client, scenario: str) -> dict[str, Any]:
    finding = await stage.ask(client, scenario)
    assert "told" in finding, finding
    result: dict[str, Any] = finding["told"]
    return result


def raised(finding: dict[str, Any], expected: tuple[str, int | None, str]) -> None:
    assert "raised" in finding, f"it took this for a success: {finding}"
    error = finding["raised"]
    assert (error["type"], error["status"]) == expected[:2], error
    assert expected[2] in error["text"], error


@able("whole")
async def test_a_whole_answer_arrives(stage: Stage, client: Client) -> None:
    answer = await told(stage, client, "whole")
    assert answer["text"].strip() == SAID
    assert answer["end"] in {"stop", "end_turn"}


@able("stream")
async def test_a_streamed_answer_arrives_in_pieces_and_ends(stage: Stage, client: Client) -> None:
    answer = await told(stage, client, "stream")
    assert answer["text"].strip() == SAID
    assert answer["pieces"] > 1
    assert answer["end"] in {"stop", "end_turn"}


@able("tools")
async def test_a_call_of_a_tool_arrives_with_its_arguments(stage: Stage, client: Client) -> None:
    call = await told(stage, client, "tools")
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Oslo"})
    assert call.get("role", "assistant") == "assistant"


@able("embed")
async def test_vectors_arrive_whole(stage: Stage, client: Client) -> None:
    vectors = await told(stage, client, "embed")
    assert vectors["vectors"] in {1, 2}
    assert vectors["length"] == 8


@able("models")
async def test_the_list_has_the_models_of_all_instances_and_the_virtual_ones(stage: Stage, client: Client) -> None:
    names = {name.removesuffix(":latest") for name in (await told(stage, client, "models"))["names"]}
    assert {MODEL, CUT, "auto", "auto:code_generation"} <= names
    if client.name != "llm":  # which keeps what only embeds in another list
        assert EMBEDDER.removesuffix(":latest") in names


@able("missing")
async def test_an_unknown_model_is_the_clients_own_not_found(stage: Stage, client: Client) -> None:
    raised(await stage.ask(client, "missing"), client.missing)


@able("cut")
async def test_an_answer_cut_short_is_never_taken_for_a_whole_one(stage: Stage, client: Client) -> None:
    raised(await stage.ask(client, "cut"), client.cut)


@able("silence")
async def test_a_silence_before_the_first_token_is_waited_out(stage: Stage, client: Client) -> None:
    answer = await told(stage, client, "silence")
    assert answer["text"].strip() == SAID
    assert answer["end"] in {"stop", "end_turn"}


@able("busy")
async def test_no_room_is_told_as_such_and_is_no_storm(stage: Stage, client: Client) -> None:
    before = len(stage.lines())
    (finding,) = await stage.run(client, ["busy"])
    raised(finding, client.busy)
    assert [line["status"] for line in stage.lines()[before:]].count(429) == client.posts
