"""Clients that cannot be installed here, by what their source is known to insist on (clients.md §3)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from tests.clients.stage import MODEL, SILENT, Stage
from tests.house import ask

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Strict(BaseModel):
    """No number for a string, no null for anything; unknown keys are ignored, as these clients do."""

    model_config = ConfigDict(strict=True)


class Details(Strict):
    format: str
    family: str = Field(min_length=1)
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(Strict):
    """An entry of /api/tags, as Zed, Roo Code and `llm` need it: one that does not fit empties the whole list."""

    name: str
    model: str
    modified_at: AwareDatetime = Field(strict=False)
    size: int
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    details: Details


class Show(Strict):
    """The reply of /api/show, as Zed, Roo Code, Copilot and AnythingLLM need it."""

    details: Details
    capabilities: list[str]
    template: str
    model_info: dict[str, Any]

    @property
    def context_length(self) -> object:
        return self.model_info[f"{self.model_info['general.architecture']}.context_length"]


class Listed(Strict):
    """An entry of /v1/models."""

    id: str
    object: str = Field(pattern="^model$")
    created: int
    owned_by: str


@pytest_asyncio.fixture(loop_scope="session")
async def http(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stage.url, timeout=10, trust_env=False) as client:
        yield client


async def tags(http: httpx.AsyncClient) -> list[Tag]:
    reply = await http.get("/api/tags")
    assert reply.status_code == 200, reply.text
    return TypeAdapter(list[Tag]).validate_json(json.dumps(reply.json()["models"]))


async def show(http: httpx.AsyncClient, name: str, key: str = "model") -> Show:
    reply = await http.post("/api/show", json={key: name})
    assert reply.status_code == 200, (name, reply.text)
    return Show.model_validate_json(reply.content)


async def test_zed_and_roo_accept_every_entry_of_the_list(http: httpx.AsyncClient) -> None:
    entries = await tags(http)
    names = {entry.name for entry in entries}
    assert {MODEL, "auto:code_generation", "auto:reasoning"} <= names
    assert "auto" in {name.removesuffix(":latest") for name in names}
    assert all(entry.name == entry.model for entry in entries)
    assert len({entry.digest for entry in entries}) == len(names) == len(entries), (
        "`llm` takes one digest for one model"
    )
    reply = await http.get("/v1/models")
    listed = TypeAdapter(list[Listed]).validate_json(json.dumps(reply.json()["data"]))
    assert len({entry.id for entry in listed}) == len(listed)


@pytest.mark.parametrize("key", ["model", "name"])
async def test_roo_and_continue_are_shown_every_listed_model_at_once(http: httpx.AsyncClient, key: str) -> None:
    entries = await tags(http)
    shown = await asyncio.gather(*(show(http, entry.name, key) for entry in entries))
    assert all(isinstance(each.context_length, int) for each in shown)
    assert "tools" in shown[[entry.name for entry in entries].index(MODEL)].capabilities


async def test_copilot_walks_from_the_version_to_an_answer(http: httpx.AsyncClient) -> None:
    version = (await http.get("/api/version")).json()["version"]
    assert tuple(int(part) for part in re.findall(r"\d+", version)) >= (0, 6, 4)
    walked = {entry.model: await show(http, entry.model) for entry in await tags(http)}
    usable = [name for name, shown in walked.items() if "tools" in shown.capabilities]
    assert MODEL in usable
    virtual = [shown.model_info["general.basename"] for name, shown in walked.items() if name.startswith("auto:")]
    assert len(set(virtual)) == len(virtual) > 1, "they would look the same in its picker"
    for model in (MODEL, "auto:latest"):
        asked = ask("say: hi", model=model, stream=True, stream_options={"include_usage": True})
        reply = await http.post("/v1/chat/completions", json=asked, headers={"Authorization": "Bearer"})
        lines = [line for line in reply.text.splitlines() if line]
        assert all(line.startswith(("data: ", ":")) for line in lines), "it logs an event line as an error"
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] > 0


def read_as_continue(pieces: list[bytes]) -> Iterator[dict[str, Any]]:
    """Its reader: what follows a line that begins ": ping" in the same buffer waits for the next piece."""
    buffer = ""
    for piece in pieces:
        buffer += piece.decode()
        while "\n" in buffer:
            line, _, rest = buffer.partition("\n")
            if line.startswith(": ping"):
                break
            buffer = rest
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))
    if buffer.strip():
        raise ValueError(f"Malformed JSON sent from server: {buffer}")


async def test_continue_reads_past_the_keep_alives_of_a_silent_model(http: httpx.AsyncClient) -> None:
    asked = ask("say: hi there", model=SILENT, stream=True)
    async with http.stream("POST", "/v1/chat/completions", json=asked) as reply:
        pieces = [piece async for piece in reply.aiter_raw()]
    chunks = list(read_as_continue(pieces))
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks).strip() == "hi there"
    assert re.search(rb"^:[^\n]*\n(?=[^\n])", b"".join(pieces)), "a comment, one line end, and no blank line"


async def test_the_silence_of_a_native_stream_is_filled_with_spaces_and_never_a_blank_line(
    http: httpx.AsyncClient,
) -> None:
    reply = await http.post("/api/generate", json={"model": SILENT, "prompt": "say: hi there"})
    lines = reply.content.split(b"\n")
    assert lines.pop() == b""
    read = [json.loads(line) for line in lines]
    assert lines[0].startswith(b" "), "a keep-alive"
    assert "".join(line["response"] for line in read).strip() == "hi there"
