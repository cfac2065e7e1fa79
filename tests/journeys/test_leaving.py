"""The client hangs up: in every window the instance is told at once, and everything held comes back."""

from __future__ import annotations

import contextlib
import socket

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


@pytest.mark.parametrize("stream", [False, True])
async def test_while_the_instance_has_not_answered(stream: bool) -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("hang_before_headers", path="/v1")
        async with house.asking(ask(PROMPT, stream=stream)) as wire:
            await alpha.until(lambda: generating(alpha) == 1)
            wire.leave()
            await told(house, alpha)


async def test_while_the_first_token_is_awaited() -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("hang_before_first_token", path="/v1")
        async with house.asking(ask(PROMPT, stream=True)) as wire:
            await alpha.until(lambda: generating(alpha) == 1)
            wire.leave()
            await told(house, alpha)


async def test_in_the_middle_of_a_stream() -> None:
    async with one(per_second=50) as house:
        alpha = house.simulator("alpha")
        async with house.asking(ask(PROMPT, stream=True, max_tokens=10_000)) as wire:
            await wire.until(b"data: ")
            wire.leave()
            await told(house, alpha)


async def test_in_the_middle_of_a_whole_answer() -> None:
    async with one(per_second=50) as house:
        alpha = house.simulator("alpha")
        async with house.asking(ask(PROMPT, max_tokens=10_000)) as wire:
            await alpha.until(lambda: alpha.busy == 1)
            wire.leave()
            await told(house, alpha)


async def test_by_closing_its_side_only() -> None:
    async with one(per_second=50) as house:
        alpha = house.simulator("alpha")
        async with house.asking(ask(PROMPT, stream=True, max_tokens=10_000)) as wire:
            await wire.until(b"data: ")
            wire.writer.write_eof()
            await told(house, alpha)


async def test_while_the_connection_is_being_made_and_then_nothing_counts_as_begun() -> None:
    """A listener whose backlog is full: the kernel lets further connections wait."""
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        async with House({}, {"instances": [deaf(full)], "timeouts": {"connect": 30}}) as house:
            instance = house.engine.pool.instances["deaf"]
            async with house.asking(ask(PROMPT, stream=True)) as wire:
                await house.until(lambda: house.engine._attached["deaf"].upstream.busy >= 1 and instance.held == 1)
                wire.leave()
                await house.until(lambda: instance.held == 0)
                assert instance.draining == 0
            await house.quiet()
            assert house.last_line()["status"] == 499


def deaf(listener: socket.socket) -> dict[str, object]:
    return {"name": "deaf", "url": f"http://127.0.0.1:{listener.getsockname()[1]}", "model": MODEL}


async def test_while_it_waits_in_line_and_then_no_instance_hears_of_it() -> None:
    async with one() as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm("hang_mid_stream", path="/v1", after=1)
        async with house.asking(ask(PROMPT, stream=True)) as holder, house.asking(ask(PROMPT)) as waiting:
            await holder.until(b"data: ")
            await house.until(lambda: house.engine.pool.depth == 1)
            waiting.leave()
            await house.until(lambda: house.engine.pool.depth == 0)
            assert generating(alpha) == 1
            holder.leave()
        await house.quiet()
        assert [line["status"] for line in house.lines if line["event"] == "call.done"] == [499, 499]


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


async def test_a_call_that_left_before_its_first_token_counts_as_busy_until_the_instance_noticed() -> None:
    async with one() as house:
        alpha, pool = house.simulator("alpha"), house.engine.pool
        alpha.faults.arm("hang_before_headers", path="/v1")
        async with house.asking(ask(PROMPT)) as wire:
            await alpha.until(lambda: generating(alpha) == 1)
            wire.leave()
        await house.until(lambda: pool.instances["alpha"].draining == 1)
        assert pool.instances["alpha"].held == 0
        await house.until(lambda: pool.instances["alpha"].draining == 0)


async def test_a_hundred_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    async with House(
        {"alpha": Behaviour(first_token=0.01, per_second=500), "beta": Behaviour(per_second=500)}, warm=True
    ) as house:
        for count in range(100):
            async with house.asking(ask(f"{PROMPT} {count}", model=MODEL, stream=True, max_tokens=20)) as wire:
                if count % 3 == 1:
                    await wire.until(b"HTTP/1.1 200")
                elif count % 3 == 2:
                    await wire.until(b"content")
                wire.leave()
        await house.quiet()
        for simulator in house.simulators.values():
            assert generating(simulator)
            assert simulator.peak <= 4
