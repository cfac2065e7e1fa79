"""F. POST /v1/completions and fill-in-the-middle: statements 70 to 73 of clients.md §9."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conformance.asking import chunks, each_generation, one, understood
from tests.house import MODEL, ask

COMPLETIONS = "/v1/completions"


@each_generation
@pytest.mark.parametrize("stream", [False, True])
async def test_070_a_prompt_with_a_suffix_is_completed(version: str, stream: bool) -> None:
    async with one(version=version) as house:
        asked = {"model": MODEL, "prompt": "say: return a + b", "suffix": "\n\nprint(add(1, 2))", "stream": stream}
        reply = await house.post(COMPLETIONS, asked)
        found = chunks(reply) if stream else [reply.json]
        assert {chunk["object"] for chunk in found} == {"text_completion"}
        choices = [choice for chunk in found for choice in chunk["choices"]]
        assert "".join(choice["text"] for choice in choices).strip() == "return a + b"
        assert choices[-1]["finish_reason"] == "stop"
        assert understood(house)["suffix"] == asked["suffix"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [["a", "b"], ["a"], [1, 2, 3], [[1, 2], [3]], []])
async def test_071_a_prompt_that_is_a_list_is_400_and_says_why(prompt: list[Any], stream: bool) -> None:
    async with one() as house:
        reply = await house.post(COMPLETIONS, {"model": MODEL, "prompt": prompt, "stream": stream})
        error = reply.json["error"]
        assert (reply.status, error["param"]) == (400, "prompt")
        assert "one string" in error["message"]


@pytest.mark.parametrize("path", ["/v1/fim/completions", f"/v1/engines/{MODEL}/completions"])
async def test_072_other_vendors_ways_to_complete_are_a_404_object(path: str) -> None:
    async with one() as house:
        reply = await house.post(path, {"model": MODEL, "prompt": "a", "suffix": "b"})
        assert (reply.status, reply.json["error"]["code"]) == (404, "unknown_path")


@pytest.mark.parametrize("path", ["/v1/completions", "/api/generate"])
async def test_073_an_editor_that_asks_anew_at_every_key_leaves_no_work_behind(path: str) -> None:
    """Twenty a second, each given up after 50 ms, by an instance that notices only at its first token."""
    async with one(first_token=0.12, per_second=50.0, notices_late=True) as house:
        alpha = house.simulator("alpha")
        for count in range(20):
            async with house.asking({"model": MODEL, "prompt": f"{count}", "stream": True}, path) as wire:
                await asyncio.sleep(0.05)  # the pace of the keys, not a wait
                wire.leave()
        await alpha.until(lambda: not alpha.busy and not alpha.waiting, timeout=2.0)
        assert alpha.peak <= 4
        assert (await house.post("/v1/chat/completions", ask("hi"))).status == 200
