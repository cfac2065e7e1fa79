"""The client hangs up: what that means for others. Each window by itself: tests/faults/test_clients_leaving.py."""

from __future__ import annotations

import pytest

from gateway.simulator import Behaviour, Simulator
from tests.house import MODEL, House, ask

PROMPT = "x"


def one(**behaviour: float) -> House:
    return House({"alpha": Behaviour(**behaviour)}, instances={"alpha": {"max_concurrent": 1}})  # type: ignore[arg-type]


def generating(simulator: Simulator) -> int:
    return len([seen for seen in simulator.requests if seen.method == "POST"])


async def told(house: House, simulator: Simulator) -> None:
    """The simulator has seen its client leave, and the log says that nobody was to blame."""
    await simulator.until(lambda: house.seen("alpha").left_at is not None)
    await house.quiet()
    line = house.last_line()
    assert (line["status"], line["reason"]) == (499, "client_cancelled")
    assert await house.metric("gateway_upstream_errors_total", instance="alpha", reason="upstream_reset") == 0
    assert (await house.chat(PROMPT)).status == 200


async def test_while_it_waits_in_line_its_place_goes_to_the_next() -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("hang_mid_stream", path="/v1", after=1)
        async with (
            house.asking(ask(PROMPT, stream=True)) as holder,
            house.asking(ask("say: never", stream=True)) as second,
            house.asking(ask("say: at last", stream=True)) as third,
        ):
            await holder.until(b"data: ")
            await house.until(lambda: house.engine.pool.depth == 2)
            second.leave()
            await house.until(lambda: house.engine.pool.depth == 1)
            holder.leave()
            await third.until(b"[DONE]")
            assert generating(alpha) == 2


async def test_before_its_body_was_complete() -> None:
    async with one() as house:
        async with house.wire() as wire:
            await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await house.until(lambda: len(house.server.server_state.tasks) == 1)
            wire.leave()
            await house.quiet()
        assert house.last_line()["status"] == 499


async def test_right_after_the_last_frame_which_is_a_success() -> None:
    async with one() as house:
        async with house.asking(ask("say: bye", stream=True)) as wire:
            await wire.until(b"[DONE]")
            wire.leave()
            await house.quiet()
        assert house.last_line()["status"] == 200


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize("keep_alive", [0, "1h"])
async def test_while_an_instance_is_told_to_load_or_unload(path: str, keep_alive: object) -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        house.engine.catalog.answered("alpha", MODEL)
        alpha.faults.arm("hang_before_headers", path=path)
        async with house.asking({"model": MODEL, "keep_alive": keep_alive}, path) as wire:
            await alpha.until(lambda: generating(alpha) == 1)
            wire.leave()
            await told(house, alpha)
