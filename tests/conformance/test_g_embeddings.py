"""G. POST /v1/embeddings, /api/embed and /api/embeddings: statements 74 to 78 of clients.md §9."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from tests.conformance.asking import EMBED, each_generation, one, understood

WORDS = ["one", "two", "three"]
OPENAI, NATIVE, OLD = "/v1/embeddings", "/api/embed", "/api/embeddings"


def asked(given: Any, field: str = "input", **more: Any) -> dict[str, Any]:
    return {"model": EMBED.name, field: given, **more}


def unpacked(text: str) -> list[float]:
    """Base64 of little-endian float32."""
    data = base64.b64decode(text, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


@each_generation
async def test_074_vectors_come_as_base64_or_as_numbers_in_the_order_of_their_texts(version: str) -> None:
    async with one(version=version) as house:
        packed = (await house.post(OPENAI, asked(WORDS, encoding_format="base64"))).json["data"]
        plain = (await house.post(OPENAI, asked(WORDS, encoding_format="float"))).json["data"]
        alone = [(await house.post(OPENAI, asked(word))).json["data"][0]["embedding"] for word in WORDS]
        assert [entry["index"] for entry in packed] == [entry["index"] for entry in plain] == [0, 1, 2]
        assert [entry["embedding"] for entry in plain] == alone
        assert [unpacked(entry["embedding"]) for entry in packed] == alone


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
async def test_075_token_numbers_are_400_and_name_the_option_that_sends_them(tokens: list[Any]) -> None:
    async with one() as house:
        reply = await house.post(OPENAI, asked(tokens))
        assert (reply.status, reply.json["error"]["param"]) == (400, "input")
        assert "check_embedding_ctx_length=False" in reply.json["error"]["message"]


@each_generation
async def test_076_ollamas_own_two_ways_to_embed_answer_as_they_do_there(version: str) -> None:
    async with one(version=version) as house:
        assert len((await house.post(NATIVE, asked("one"))).json["embeddings"]) == 1
        assert len((await house.post(NATIVE, asked(WORDS))).json["embeddings"]) == 3
        (only,) = (await house.post(OLD, asked("one", "prompt"))).json.values()
        assert all(isinstance(value, float) for value in only)


@each_generation
async def test_077_tokens_are_counted(version: str) -> None:
    async with one(version=version) as house:
        usage = (await house.post(OPENAI, asked(WORDS))).json["usage"]
        assert usage["prompt_tokens"] == usage["total_tokens"] == 3


async def test_078_an_empty_list_is_400() -> None:
    async with one() as house:
        reply = await house.post(OPENAI, asked([]))
        assert (reply.status, reply.json["error"]["param"]) == (400, "input")


@pytest.mark.parametrize(("path", "field"), [(OPENAI, "input"), (NATIVE, "input"), (OLD, "prompt")])
async def test_078_settings_of_an_embedding_are_passed_on(path: str, field: str) -> None:
    settings = {"dimensions": 4, "truncate": False, "options": {"num_ctx": 2048}}
    async with one() as house:
        reply = await house.post(path, asked("one", field, **settings))
        assert reply.status == 200
        assert {name: understood(house)[name] for name in settings} == settings
