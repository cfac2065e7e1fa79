"""One gateway for all clients. Run with `make clients`: the clients have an environment of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.clients.stage import BEHAVIOURS, CONFIG, CUT, Stage, no_room, staged


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: minutes of silence on purpose; `make clients-slow`")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("stage"), BEHAVIOURS, CONFIG) as built:
        built.simulators["cutting"].faults.arm("cut", model=CUT, after=3, times=None)
        async with no_room(built):
            yield built
