"""The real OpenAI SDK, pointed at the gateway by its base URL alone."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.house import House
from tests.journeys.test_chat import CODER, GENERAL, pair


def sdk(house: House, **options: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key="unused", **options)  # type: ignore[arg-type]


WAYS = [
    ("by model name", CODER, {}, "coding"),
    ("by X-Task-Type", "auto", {"X-Task-Type": "code_generation"}, "coding"),
    ("by the alias", "auto:code_generation", {}, "coding"),
    ("by nothing", "auto", {}, "general"),
]


@pytest.mark.parametrize(("model", "headers", "instance"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS])
async def test_it_gets_whole_and_streamed_answers(model: str, headers: dict[str, str], instance: str) -> None:
    async with pair() as house, sdk(house, default_headers=headers) as client:
        asked: Any = [{"role": "user", "content": "say: a fine day to you"}]
        whole = await client.chat.completions.with_raw_response.create(model=model, messages=asked)
        assert whole.headers["x-gateway-instance"] == instance
        answer = whole.parse()
        assert (answer.choices[0].message.content or "").strip() == "a fine day to you"
        assert answer.usage is not None
        stream = await client.chat.completions.create(model=model, messages=asked, stream=True)
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text.strip() == "a fine day to you"
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1


async def test_it_lists_and_finds_models() -> None:
    async with pair() as house, sdk(house) as client:
        ids = [model.id async for model in client.models.list()]
        assert GENERAL in ids
        assert (await client.models.retrieve(GENERAL)).id == GENERAL


async def test_it_raises_its_own_exceptions() -> None:
    async with pair() as house, sdk(house, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model=CODER, messages=[])
        assert bad.value.param == "messages"


async def test_a_stream_that_breaks_is_an_error_to_it_and_not_an_end() -> None:
    async with pair() as house, sdk(house) as client:
        house.simulator("coding").faults.arm("cut", path="/v1", after=3)
        stream = await client.chat.completions.create(
            model=CODER, messages=[{"role": "user", "content": "say: one two three four"}], stream=True
        )
        with pytest.raises(openai.APIError, match="cut its answer short"):
            assert [chunk async for chunk in stream]
