"""Row L8 of the fault matrix: scrapes hold no call up, however many; a gateway that was stopped blames no instance.

Told by counts and by processor time, which no other work on the machine adds to.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.metrics import Metrics
from gateway.simulator import Behaviour, Simulator
from tests.faults.test_reload import until
from tests.faults.test_shutdown import connected, fetched, said, words
from tests.house import House, ask, request
from tests.test_cli import ended, serving

CHAT = "/v1/chat/completions"

SERIES = 2_000  # of one family: as many as it may have
PACE = 1 / 50  # seconds between two scrapes
WINDOW = 1.0  # seconds; in each there is one rendering
DOORS = pytest.mark.parametrize("door", ["the gateway's own", "ops_port"])


class Renderings(Collector):
    """Sees each rendering, and in which thread it was done."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def collect(self) -> Iterator[Metric]:
        self.threads.append(threading.current_thread())
        yield from ()


@contextmanager
def renderings(metrics: Metrics) -> Iterator[Renderings]:
    seen = Renderings()
    metrics.registry.register(seen)
    try:
        yield seen
    finally:
        metrics.registry.unregister(seen)


def fill(metrics: Metrics) -> None:
    for number in range(SERIES):
        metrics.requests("chat", "r", f"m{number}", "200", "false").inc()
        metrics.tokens("r", f"m{number}", "input").inc()
        metrics.attempts("alpha", f"m{number}", "200").inc()


@DOORS
async def test_l8_fifty_scrapes_a_second_of_many_series_are_one_rendering_and_none_in_the_loop(
    door: str,
) -> None:
    async with House({"alpha": Behaviour(parallel=8)}, {"server": {"ops_port": 0}}, warm=True) as house:
        assert house.server.side_door is not None
        fill(house.engine.metrics)
        loop = asyncio.get_running_loop()
        address = house.server.side_door.address if door == "ops_port" else house.address
        place = "http://{}:{}".format(*address)
        finished = asyncio.Event()

        async def calls() -> int:
            count = 0
            while not finished.is_set():
                reply = await house.chat(f"say: {count}", stream=True)
                assert (reply.status, reply.text, reply.events[-1]) == (200, str(count), "[DONE]")
                count += 1
            return count

        async def scrape() -> None:
            assert (await fetched(place, "/metrics")).count(b"gateway_tokens_total{") >= SERIES

        calling = [asyncio.create_task(calls(), name=f"client {number}") for number in range(2)]
        with renderings(house.engine.metrics) as seen:
            began, scrapes = loop.time(), list[asyncio.Task[None]]()
            while len(seen.threads) < 3:
                scrapes.append(asyncio.create_task(scrape(), name="scrape"))
                await asyncio.sleep(PACE)  # the load itself: so many a second at most
            await asyncio.gather(*scrapes)
            passed = loop.time() - began
        finished.set()
        assert min(await asyncio.gather(*calling)) > 3
        assert len(seen.threads) <= passed / WINDOW + 1
        assert len(scrapes) > 2 * len(seen.threads), "so few scrapes would be one rendering each"
        assert threading.main_thread() not in seen.threads


async def test_l8_a_gateway_that_was_stopped_beyond_a_limit_blames_nobody_and_serves_on(
    tmp_path: Path,
) -> None:
    """What came meanwhile had come in time; only the gateway had not looked."""
    async with Simulator(Behaviour(parallel=8, per_second=50)) as simulator, AsyncExitStack() as stack:
        config = {
            "instances": [{"name": "alpha", "url": simulator.url, "max_concurrent": 4}],
            "timeouts": {"idle": 0.3, "connect": 0.3},
            "health": {"interval": 0.1, "timeout": 0.3},
            "server": {"drain_delay": 0},
        }
        (tmp_path / "routes.yaml").write_text(json.dumps(config))
        process, url, _ = await asyncio.to_thread(stack.enter_context, serving("serve", cwd=tmp_path))
        wire = await stack.enter_async_context(connected(url))
        await wire.send(request(CHAT, json.dumps(ask(words(40), stream=True)).encode()))
        await wire.until(b"data: ")
        await until(lambda: sleeps(process.pid))  # it waits for what comes next
        process.send_signal(signal.SIGSTOP)
        try:
            (asked,) = (seen for seen in simulator.requests if seen.path == CHAT)
            await simulator.until(lambda: asked.finished)  # 0.8 s of words wait to be read
        finally:
            process.send_signal(signal.SIGCONT)
        whole = await wire.until(b"0\r\n\r\n")
        assert b"error" not in whole, whole[-400:]
        assert (said(whole), whole.count(b"data: [DONE]")) == (words(40).removeprefix("say: "), 1)
        assert b'"state":"healthy"' in await fetched(url, "/gateway/status")
        assert (await fetched(url, "/readyz")).startswith(b"HTTP/1.1 200 ")
        told = (await fetched(url, "/metrics")).decode()
        (within, count) = (value(told, one) for one in ('lag_seconds_bucket{le="0.1"}', "lag_seconds_count"))
        assert count - within >= 1, "how late a timer was is told"
        status, logged = await asyncio.to_thread(ended, process, signal.SIGTERM)
        assert status == 0
        for event in ("breaker.change", "instance.down", "call.defect", "Traceback"):
            assert event not in logged


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("S")


def value(text: str, series: str) -> float:
    (found,) = (line for line in text.splitlines() if line.startswith(f"gateway_event_loop_{series} "))
    return float(found.split()[-1])
