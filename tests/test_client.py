"""The Python library on real sockets, in front of simulators: what a program that imports it relies on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import yaml

from gateway.client import Answer, OllamaClient, TextStream, get_ollama_client
from gateway.errors import (
    CallTimeout,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    GatewayError,
    InvalidCall,
    StreamBroken,
    UnknownModel,
)
from gateway.simulator import Behaviour, SimulatedModel, Simulator

MODEL = "llama3.1:8b"
CODER = "qwen3-coder:30b"
LIMIT = 10.0  # seconds; guards against a hang, never a measurement


@pytest.fixture(autouse=True)
def events_as_before() -> Iterator[None]:
    configured, before = structlog.is_configured(), structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if configured:
        structlog.configure(**before)


@asynccontextmanager
async def running(*behaviours: Behaviour) -> AsyncIterator[list[Simulator]]:
    """Simulators; afterwards every asyncio task that began inside is gone, at once."""
    before = asyncio.all_tasks()
    async with asyncio.timeout(LIMIT), AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Simulator(one)) for one in behaviours or (Behaviour(),)]
        left = asyncio.all_tasks() - before
        assert not left, f"asyncio tasks are left over: {left}"


def posts(simulator: Simulator) -> list[dict[str, object]]:
    """The bodies of the generations it was asked for."""
    return [json.loads(seen.body) for seen in simulator.requests if seen.path == "/v1/chat/completions"]


async def load(simulator: Simulator) -> None:
    """Have its models in memory."""
    async with httpx.AsyncClient(trust_env=False) as client:
        for model in simulator.behaviour.models:
            (await client.post(f"{simulator.url}/api/generate", json={"model": model.name})).raise_for_status()


async def until_left(simulator: Simulator) -> None:
    """Wait until it has seen the client of its last generation leave, and works on nothing."""
    last = [seen for seen in simulator.requests if seen.path == "/v1/chat/completions"][-1]
    await simulator.until(lambda: last.left_at is not None and simulator.busy == 0)


def in_use(client: OllamaClient) -> int:
    """Leases held, calls in line and flights under way."""
    engine = client._engine
    return sum(one.held for one in engine.pool.instances.values()) + engine.pool.depth + engine.cache.flights


def failures(client: OllamaClient) -> float:
    """Failed calls its one instance was blamed for."""
    return sum(
        sample.value
        for family in client._engine.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "gateway_upstream_errors_total"
    )


async def listen(stream: TextStream, got: list[str]) -> None:
    async with stream as pieces:
        async for piece in pieces:
            got.append(piece)  # noqa: PERF401 - what came before a failure counts


def written(path: Path, **config: object) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


# a finished answer


async def test_a_prompt_is_answered_with_text() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        answer = await client.generate("say: blue light scatters most")
        assert str(answer) == answer.text == "blue light scatters most"
        assert (answer.model, answer.instance, answer.cached) == (MODEL, "127.0.0.1", False)
        assert answer.usage is not None
        assert answer.usage.output > 0


async def test_what_is_asked_for_reaches_the_instance_and_what_is_not_does_not() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        await client.generate("hello", system="be brief", temperature=0.5, max_tokens=3)
        await client.generate("hello")
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
        assert posts(alpha) == [
            {"model": MODEL, "messages": messages, "temperature": 0.5, "max_tokens": 3},
            {"model": MODEL, "messages": messages[1:]},
        ]


async def test_reasoning_is_no_part_of_the_text() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        assert (await client.generate("think: hmm, well\nsay: four")).text == "four"
        async with client.generate_stream("think: hmm, well\nsay: four") as pieces:
            assert "".join([piece async for piece in pieces]) == "four"


@pytest.mark.parametrize("named", [{"task": "code_generation"}, {"model": "auto:code_generation"}, {"model": CODER}])
async def test_a_task_or_a_model_decides_which_instance_answers(named: dict[str, Any]) -> None:
    coder = Behaviour(models=(SimulatedModel(name=CODER),))
    async with running(Behaviour(), coder) as [alpha, beta]:
        env = {
            "OLLAMA_URL_1": alpha.url,
            "OLLAMA_URL_2": beta.url,
            "OLLAMA_CAPABILITIES_2": "coding",
            "OLLAMA_NAME_2": "coder",
        }
        async with get_ollama_client(env=env) as client:
            assert (await client.generate("hello")).instance == "ollama-1"
            answer = await client.generate("hello", **named)
            assert (answer.instance, answer.model) == ("coder", CODER)
            async with client.generate_stream("hello", **named) as pieces:
                assert (pieces.instance, pieces.model) == ("coder", CODER)


async def test_an_instance_that_stands_in_for_a_capability_nobody_has_says_so() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        answer = await client.generate("hello", task="code_generation")
        assert "stands in" in answer.substitution
        async with client.generate_stream("hello", task="code_generation") as pieces:
            assert pieces.substitution == answer.substitution


@pytest.mark.parametrize("stream", [False, True])
async def test_the_other_instance_answers_when_one_fails_before_it_has_spoken(stream: bool) -> None:
    async with running(Behaviour(), Behaviour()) as [alpha, beta]:
        for simulator in (alpha, beta):  # so that either may be chosen
            await load(simulator)
        alpha.faults.arm("status", path="/v1", times=None, status=500, text="boom")
        async with get_ollama_client(alpha.url, beta.url) as client:
            number = 0
            while not posts(alpha):  # until it was tried, and in vain
                number += 1
                prompt = f"say: number {number}"
                if stream:
                    async with client.generate_stream(prompt) as pieces:
                        text = "".join([piece async for piece in pieces])
                else:
                    text = (await client.generate(prompt)).text
                assert text == f"number {number}"


# the cache


async def test_the_same_prompt_is_answered_from_the_cache_the_second_time() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        first, second = [await client.generate("hello", temperature=0.9) for _ in range(2)]
        assert (first.cached, second.cached, second.instance) == (False, True, "")
        assert (second.text, second.model, second.usage) == (first.text, first.model, first.usage)
        assert len(posts(alpha)) == 1
        for other in (
            {"temperature": 0.8},
            {"temperature": 0.9, "system": "be brief"},
            {"temperature": 0.9, "max_tokens": 2},
        ):
            assert not (await client.generate("hello", **other)).cached


async def test_nothing_is_kept_where_the_cache_is_off() -> None:
    async with running() as [alpha]:
        async with get_ollama_client(env={"OLLAMA_URL_1": alpha.url, "ENABLE_CACHING": "false"}) as client:
            answers = [await client.generate("hello") for _ in range(2)]
        assert not any(answer.cached for answer in answers)
        assert len(posts(alpha)) == 2


async def test_equal_prompts_at_the_same_time_are_asked_once() -> None:
    async with running(Behaviour(first_token=0.1)) as [alpha], get_ollama_client(alpha.url) as client:
        answers = await asyncio.gather(*(client.generate("hello") for _ in range(5)))
        assert len({answer.text for answer in answers}) == 1
        assert len(posts(alpha)) == 1


# a stream


async def test_pieces_come_while_the_instance_still_speaks() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        alpha.faults.arm("hang_mid_stream", path="/v1", after=4)
        got = []
        async with client.generate_stream("say: one two three four five six") as pieces:
            async for piece in pieces:
                got.append(piece)
                if "three" in piece:
                    break
            assert alpha.busy == 1
        assert got == ["one", " two", " three"]


async def test_the_pieces_are_the_whole_text_and_the_usage_is_known_after_them() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        async with client.generate_stream("say: one two  three ünï") as pieces:
            got = [piece async for piece in pieces]
            assert in_use(client) == 0, "the answer is whole, so the instance is free"
            assert pieces.usage is not None
            assert [piece async for piece in pieces] == []
        assert "".join(got) == "one two  three ünï"
        assert pieces.usage.output == len(got)


async def test_a_stream_is_never_kept() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        for _ in range(2):
            async with client.generate_stream("hello") as pieces:
                assert "".join([piece async for piece in pieces])
        assert len(posts(alpha)) == 2


@pytest.mark.parametrize("how", ["break", "error", "cancel"])
async def test_leaving_a_stream_early_frees_its_instance_at_once(how: str) -> None:
    async with running(Behaviour(per_second=50)) as [alpha], get_ollama_client(alpha.url) as client:
        spoke = asyncio.Event()

        async def leave() -> None:
            async with client.generate_stream("hello", max_tokens=10_000) as pieces:
                async for _ in pieces:
                    spoke.set()
                    if how == "break":
                        break
                    if how == "error":
                        raise LookupError

        leaver = asyncio.create_task(leave(), name="leaver")
        await spoke.wait()
        if how == "cancel":
            leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        assert in_use(client) == 0
        await until_left(alpha)
        assert (await client.generate("say: yes")).text == "yes"


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_the_first_word_is_awaited_leaves_nothing(stream: bool) -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        alpha.faults.arm("hang_before_first_token", path="/v1")
        got: list[str] = []
        asks = listen(client.generate_stream("hello"), got) if stream else client.generate("hello")
        asking = asyncio.ensure_future(asks)
        await alpha.until(lambda: alpha.busy == 1)
        asking.cancel()
        await asyncio.wait([asking])
        await until_left(alpha)
        assert in_use(client) == 0


async def test_a_stream_that_was_not_entered_holds_nothing_and_says_what_to_do() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        stream = client.generate_stream("hello")
        with pytest.raises(RuntimeError, match=r"async with client\.generate_stream"):
            async for _ in stream:
                pass
        assert not posts(alpha)


async def test_a_stream_that_was_left_early_does_not_pass_for_a_whole_one() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        async with client.generate_stream("hello") as pieces:
            await anext(pieces)
            await alpha.until(lambda: alpha.busy == 0)
            await anext(pieces)  # and the rest with it, which nobody takes
        with pytest.raises(RuntimeError, match="async with"):
            await anext(pieces)
        with pytest.raises(RuntimeError, match="entered once"):
            await pieces.__aenter__()


async def test_a_stream_cut_short_gives_what_came_and_then_raises() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        alpha.faults.arm("cut", path="/v1", after=3)
        got: list[str] = []
        with pytest.raises((ConnectionLost, StreamBroken)) as raised:
            await listen(client.generate_stream("say: one two three four five"), got)
        assert "".join(got).startswith("one")
        assert raised.value.instance == "127.0.0.1"
        assert in_use(client) == 0


async def test_a_failure_caught_inside_the_block_counts_against_the_instance() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        alpha.faults.arm("cut", path="/v1", after=3)
        async with client.generate_stream("hello") as pieces:
            with pytest.raises((ConnectionLost, StreamBroken)):
                assert [piece async for piece in pieces]
            assert in_use(client) == 0
            assert failures(client) == 1
            with pytest.raises(RuntimeError, match="async with"):
                await anext(pieces)


async def test_another_calls_failure_inside_the_block_does_not() -> None:
    async with running(Behaviour(per_second=50)) as [alpha], get_ollama_client(alpha.url) as client:
        stream = client.generate_stream("hello", max_tokens=10_000)
        await anext(await stream.__aenter__())
        error = ConnectFailed("elsewhere", "cannot be reached")
        await stream.__aexit__(type(error), error, None)
        assert failures(client) == in_use(client) == 0


# what goes wrong


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": b"bytes"}, "prompt"),
        ({"prompt": "\ud800"}, None),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "temperature": "hot"}, "temperature"),
        ({"prompt": "x", "task": "sing"}, "task_type"),
        ({"prompt": "x", "model": "  "}, "model"),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused_and_nobody_is_asked(asked: dict[str, Any], param: str) -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        with pytest.raises(InvalidCall) as raised:
            await client.generate(**asked)
        assert raised.value.param == param
        with pytest.raises(InvalidCall):
            async with client.generate_stream(**asked):
                pass
        assert not posts(alpha)


async def test_a_model_nobody_has_is_unknown() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        with pytest.raises(UnknownModel):
            await client.generate("hello", model="mistral")
        with pytest.raises(UnknownModel):
            async with client.generate_stream("hello", model="mistral"):
                pass
        assert (await client.generate("hello", model="mistral", task="reasoning")).model == MODEL


async def test_a_failure_of_every_instance_is_raised_and_not_kept() -> None:
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        alpha.faults.arm("status", path="/v1", times=3, status=500, text="boom")
        with pytest.raises(GatewayError) as raised:
            await client.generate("say: fine")
        assert raised.value.status == 500
        assert (await client.generate("say: fine")).text == "fine"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_outlasts_its_limit_is_ended(stream: bool, tmp_path: Path) -> None:
    async with running() as [alpha]:
        alpha.faults.arm("hang_mid_stream", path="/v1", after=3)
        instances = [{"name": "alpha", "url": alpha.url}]
        file = written(tmp_path / "quick.yaml", instances=instances, timeouts={"total": 0.3})
        async with get_ollama_client(config=file, env={}) as client:
            got: list[str] = []
            with pytest.raises(CallTimeout):
                await (listen(client.generate_stream("hello"), got) if stream else client.generate("hello"))
            assert bool(got) == stream
            assert in_use(client) == 0


# health, life and configuration


async def test_health_tells_who_takes_calls_and_what_is_wrong_with_who_does_not() -> None:
    async with running(Behaviour(), Behaviour()) as [alpha, beta]:
        beta.faults.arm("refuse")
        env = {"OLLAMA_URL_1": alpha.url, "OLLAMA_URL_2": beta.url, "OLLAMA_NAME_1": "up", "OLLAMA_NAME_2": "gone"}
        async with get_ollama_client(env=env) as client:
            health = await client.health_check()
        assert list(health) == ["up", "gone"]
        assert health["up"]
        assert health["up"].problem == ""
        assert not health["gone"]
        assert health["gone"].problem


async def test_nothing_is_left_over_when_an_instance_never_answers() -> None:
    async with running() as [alpha]:
        alpha.faults.arm("hang_before_headers", times=None)
        async with get_ollama_client(alpha.url) as client:
            assert list(await client.health_check()) == ["127.0.0.1"]


async def test_nothing_is_left_over_when_entering_is_cancelled() -> None:
    async with running() as [alpha]:
        alpha.faults.arm("hang_before_headers", times=None)
        entering = asyncio.ensure_future(get_ollama_client(alpha.url).__aenter__())
        await alpha.until(lambda: bool(alpha.requests))
        entering.cancel()
        await asyncio.wait([entering])


async def test_the_programs_own_output_is_left_alone(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running() as [alpha], get_ollama_client(alpha.url) as client:
        await client.generate("hello")
    assert capsys.readouterr().out == ""
    assert "event=instance.up instance=127.0.0.1" in caplog.text


async def test_a_client_outside_its_block_says_what_to_do() -> None:
    async with running() as [alpha]:
        client = get_ollama_client(alpha.url)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="async with get_ollama_client"):
                await client.generate("hello")
            with pytest.raises(RuntimeError, match="async with get_ollama_client"):
                client.generate_stream("hello")
            async with client:
                with pytest.raises(RuntimeError, match="in use"):
                    await client.__aenter__()
                assert isinstance(await client.generate("hello"), Answer)


async def test_the_configuration_comes_from_where_the_command_line_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "http://127.0.0.1:1"

    async def names(*urls: str, **given: object) -> list[str]:
        client = get_ollama_client(*urls, **given)  # type: ignore[arg-type]
        async with client:
            return list(await client.health_check())

    assert await names(env={}) == ["ollama"]
    other = written(tmp_path / "other.yaml", instances=[{"name": "other", "url": url}])
    written(tmp_path / "routes.yaml", instances=[{"name": "here", "url": url}])
    assert await names() == ["here"]
    assert await names(config=other, env={}) == await names(config=str(other), env={}) == ["other"]
    assert await names(url) == ["127.0.0.1"]
    assert await names(env={"OLLAMA_URL_1": url}) == ["ollama-1"]


def test_a_bad_configuration_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError):
        get_ollama_client("not a url", env={})
    with pytest.raises(ConfigError):
        get_ollama_client("http://127.0.0.1:1", config="routes.yaml", env={})
