"""curl, as the documentation of Ollama uses it: no content type, and no word about streaming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.stage import CUT, MODEL, Stage

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def curl(stage: Stage, path: str, *arguments: str) -> tuple[str, int]:
    """The body and the status."""
    printed = await stage.printed("curl", "-sS", "-N", "-w", "\n%{http_code}", *arguments, f"{stage.url}{path}")
    body, _, status = printed.rpartition("\n")
    return body, int(status)


async def test_generate_streams_unless_told_otherwise(stage: Stage) -> None:
    body, status = await curl(stage, "/api/generate", "-d", json.dumps({"model": MODEL, "prompt": "say: hi there"}))
    lines = [json.loads(line) for line in body.splitlines()]
    assert status == 200
    assert "".join(line["response"] for line in lines).strip() == "hi there"
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


async def test_chat_answers_whole_unless_told_otherwise(stage: Stage) -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "say: hi there"}]}
    body, status = await curl(stage, "/v1/chat/completions", "-d", json.dumps(asked))
    assert (status, json.loads(body)["choices"][0]["message"]["content"].strip()) == (200, "hi there")


@pytest.mark.parametrize(("path", "error"), [("/api/generate", str), ("/v1/completions", dict)])
async def test_an_unknown_model_is_404_in_the_words_of_the_path(stage: Stage, path: str, error: type) -> None:
    body, status = await curl(stage, path, "-d", '{"model": "nobody:1b", "prompt": "hi"}')
    assert status == 404
    assert isinstance(json.loads(body)["error"], error)


async def test_an_answer_cut_short_ends_with_the_error_as_its_last_line(stage: Stage) -> None:
    body, _ = await curl(stage, "/api/generate", "-d", json.dumps({"model": CUT, "prompt": "say: one two three four"}))
    lines = [json.loads(line) for line in body.splitlines()]
    assert isinstance(lines[-1]["error"], str)
    assert not any(line.get("done") for line in lines)


async def test_a_large_body_is_asked_for_before_it_is_sent(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"model": MODEL, "prompt": "x" * 3_000_000 + "\nsay: hi", "stream": False}))
    body, status = await curl(stage, "/api/generate", "-d", f"@{file}", "-H", "Expect: 100-continue")
    assert (status, json.loads(body)["response"].strip()) == (200, "hi")


async def test_the_root_says_that_ollama_is_running(stage: Stage) -> None:
    assert await curl(stage, "/") == ("Ollama is running", 200)
    assert (await curl(stage, "/", "--head"))[1] == 200
