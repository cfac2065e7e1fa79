"""A gateway with keys: a client with one is served, one without is told so in its own words."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.clients.clients import AI_SDK, ANTHROPIC, LANGCHAIN_OPENAI, LLAMA_INDEX, OLLAMA, OLLAMA_NODE, OPENAI, Client
from tests.clients.clients import OPENAI_NODE as NODE
from tests.clients.stage import BEHAVIOURS, CONFIG, Stage, staged

pytestmark = pytest.mark.asyncio(loop_scope="session")
KEY = "sk-only-for-this-test"
AUTH = {"auth": {"keys": [{"name": "alice", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}}
REFUSED = {
    OPENAI: "AuthenticationError",
    NODE: "AuthenticationError",
    AI_SDK: "APICallError",
    OLLAMA: "ResponseError",
    OLLAMA_NODE: "ResponseError",
    ANTHROPIC: "AuthenticationError",
    LANGCHAIN_OPENAI: "OpenAIAuthenticationError",
}
every = pytest.mark.parametrize("client", REFUSED, ids=[client.name for client in REFUSED])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("guarded"), {"plain": BEHAVIOURS["plain"]}, CONFIG | AUTH) as built:
        yield built
        assert KEY not in built.log.read_text()


@every
async def test_a_client_with_the_key_is_served_and_one_with_another_is_told_so(guarded: Stage, client: Client) -> None:
    (served,) = await guarded.run(client, ["stream"], KEY=KEY, OLLAMA_API_KEY=KEY)
    assert served["told"]["text"].strip() == "a fine day to you"
    (refused,) = await guarded.run(client, ["stream"], KEY="sk-wrong", OLLAMA_API_KEY="sk-wrong")
    assert (refused["raised"]["type"], refused["raised"]["status"]) == (REFUSED[client], 401)


async def test_a_client_that_can_send_no_header_has_its_key_in_the_path(guarded: Stage) -> None:
    (served,) = await guarded.run(LLAMA_INDEX, ["stream"], GATEWAY=f"{guarded.url}/k/{KEY}")
    assert served["told"]["text"].strip() == "a fine day to you"
    (refused,) = await guarded.run(LLAMA_INDEX, ["stream"])
    assert refused["raised"]["status"] == 401
