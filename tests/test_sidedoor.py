"""Row L8: probes and metrics are answered while the gateway's own event loop is not."""

from __future__ import annotations

import asyncio
import threading
from http.client import HTTPConnection

import pytest

from gateway.simulator import Behaviour
from tests.house import House


def house(**more: object) -> House:
    return House({"alpha": Behaviour()}, {"server": {"ops_port": 0}, **more})


def fetched(one: House, path: str) -> tuple[int, str]:
    assert one.server.side_door is not None
    connection = HTTPConnection(*one.server.side_door.address, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


async def test_probes_and_metrics_are_answered_and_nothing_else() -> None:
    async with house() as one:
        assert await asyncio.to_thread(fetched, one, "/livez") == (200, "alive")
        assert await asyncio.to_thread(fetched, one, "/readyz") == (200, "ready")
        status, text = await asyncio.to_thread(fetched, one, "/metrics")
        assert status == 200
        assert 'gateway_upstream_up{instance="alpha"} 1.0' in text
        assert (await asyncio.to_thread(fetched, one, "/v1/models"))[0] == 404


async def test_while_the_event_loop_is_stuck_it_is_alive_not_ready_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sidedoor.PATIENCE", 0.6)
    monkeypatch.setattr("gateway.metrics.FRESH", 0.3)
    answers: dict[str, tuple[int, str]] = {}
    async with house() as one:
        await asyncio.to_thread(fetched, one, "/metrics")

        def ask() -> None:
            for path in ("/readyz", "/livez", "/metrics"):
                answers[path] = fetched(one, path)

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join()  # this is the gateway's event loop: it does not turn
    assert answers["/livez"] == (200, "alive")
    assert answers["/readyz"] == (503, "the event loop does not answer")
    status, text = answers["/metrics"]
    assert status == 200
    assert 'gateway_upstream_up{instance="alpha"} 1.0' in text  # as it was last seen
    (stall,) = [line.split()[1] for line in text.splitlines() if line.startswith("gateway_event_loop_stall_seconds ")]
    assert float(stall) > 0


async def test_an_event_loop_that_has_been_stuck_for_long_is_not_expected_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sidedoor.DEAD", 0.0)
    async with house() as one:
        one.engine._beat -= 60
        assert (await asyncio.to_thread(fetched, one, "/livez"))[0] == 503


async def test_without_instances_that_take_calls_it_is_not_ready() -> None:
    async with House({"alpha": Behaviour()}, {"server": {"ops_port": 0}}, {"alpha": {"drain": True}}) as one:
        assert await asyncio.to_thread(fetched, one, "/readyz") == (503, "no instance takes calls")


async def test_it_needs_no_key_where_the_gateway_does() -> None:
    keys = [{"name": "amy", "sha256": "0" * 64}]
    async with house(auth={"keys": keys}) as one:
        assert (await one.get("/metrics")).status == 401
        assert (await asyncio.to_thread(fetched, one, "/metrics"))[0] == 200
