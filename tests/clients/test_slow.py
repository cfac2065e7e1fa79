"""Minutes of silence, for real: Node's own fetch gives up after 300 s without a head, or between two pieces."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.simulator import Behaviour
from tests.clients.clients import AI_SDK, OLLAMA_NODE, OPENAI_NODE
from tests.clients.stage import MODEL, staged

SILENCE = 320.0  # seconds; loading, which may take longer than thinking of a first token


@pytest.mark.slow
async def test_the_clients_of_node_wait_out_a_model_that_takes_five_minutes_to_load(tmp_path: Path) -> None:
    clients = (OPENAI_NODE, AI_SDK, OLLAMA_NODE)
    async with staged(tmp_path, {"slow": Behaviour(load_time=SILENCE, parallel=8)}, {}) as stage:
        asking = [stage.run(client, ["silence"], limit=SILENCE + 60, MODEL_SILENT=MODEL) for client in clients]
        found = [finding for (finding,) in await asyncio.gather(*asking)]
        posts = [seen for seen in stage.simulators["slow"].requests if seen.model and seen.method == "POST"]
    assert all("told" in finding for finding in found), found
    assert {finding["told"]["text"].strip() for finding in found} == {"a fine day to you"}
    assert len(posts) == len(clients), "nobody had to ask again"
