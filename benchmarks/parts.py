"""The pure parts, each by itself, and how they grow. `make bench-parts`

Microseconds differ from machine to machine; growth does not. Ten times as much may take fifteen times as long, no more.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from benchmarks.decisions import Bench
from gateway.cache import key_for
from gateway.call import Call, Wish, model_key
from gateway.config import Config
from gateway.dialects import openai
from gateway.routing import InstanceView, ModelView, PoolView, plan
from gateway.wire import ndjson, sse

GROWTH = 15.0  # at most, for ten times as much
EVENT = b'data: {"id":"chatcmpl-417","choices":[{"index":0,"delta":{"content":" calm"},"finish_reason":null}]}\n\n'
LINE = b'{"model":"llama3.1:8b","message":{"role":"assistant","content":" calm"},"done":false}\n'

Benchmark = Any  # pytest-benchmark's fixture; it comes without types
Splitter = type[sse.Splitter] | type[ndjson.Splitter]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as found:
        yield found


def grows(part: Callable[[int], Callable[[], object]], small: int) -> float:
    """How many times longer the part takes with ten times as much; of the best of some tries of each.

    In processor time: the longer ones are hardly ever left alone by the rest of the machine.
    """
    few, many = part(small), part(10 * small)
    took: dict[int, float] = {1: 1e9, 10: 1e9}
    for _ in range(15):
        for size, work in ((1, few), (10, many)):
            began = time.thread_time()
            work()
            took[size] = min(took[size], time.thread_time() - began)
    return took[10] / took[1]


# where a call may go


def planning(instances: int) -> Callable[[], object]:
    models = [f"m{number}:latest" for number in range(20)]
    offered = {model_key(name): ModelView(name=name, loaded=name == models[0]) for name in models}
    names = [f"i{number}" for number in range(instances)]
    view = PoolView(tuple(InstanceView(name=name, models=offered, known=True) for name in names))
    config = Config.model_validate({"instances": [{"name": name, "url": f"http://{name}:1"} for name in names]})
    return partial(plan, called(b"{}", model=models[3]), config, view)


def called(body: bytes, model: str = "m") -> Call:
    return Call(request_id="r", operation=openai.CHAT, wish=Wish(model=model), body=body, model=model)


@pytest.mark.parametrize("instances", [2, 100])
def test_plan(benchmark: Benchmark, instances: int) -> None:
    benchmark(planning(instances))


def test_a_plan_grows_as_the_instances() -> None:
    assert grows(planning, 100) <= GROWTH


# whose turn it is


async def waiting(calls: int) -> Bench:
    bench = Bench(10)
    while bench.pool.depth < calls:
        await bench.arrive()
    return bench


async def left(bench: Bench) -> None:
    for task in bench.tasks:
        task.cancel()
    await asyncio.gather(*bench.tasks, return_exceptions=True)
    bench.pool.close()


@pytest.mark.parametrize("calls", [100, 10_000])
def test_line_match(benchmark: Benchmark, runner: asyncio.Runner, calls: int) -> None:
    bench = runner.run(waiting(calls))
    benchmark(bench.pool.match)
    runner.run(left(bench))


@pytest.mark.parametrize("calls", [100, 10_000])
def test_line_release(benchmark: Benchmark, runner: asyncio.Runner, calls: int) -> None:
    """The room goes to the call whose turn it is."""
    bench = runner.run(waiting(calls))

    def hand_on() -> None:
        bench.held.pop().release()

    benchmark.pedantic(hand_on, setup=lambda: runner.run(bench.arrive()), rounds=200)
    runner.run(left(bench))


def test_a_look_at_the_whole_line_grows_as_the_line(runner: asyncio.Runner) -> None:
    benches = []

    def part(calls: int) -> Callable[[], object]:
        benches.append(runner.run(waiting(calls)))
        return benches[-1].pool.match

    assert grows(part, 1_000) <= GROWTH
    for bench in benches:
        runner.run(left(bench))


# frames


def splitting(kind: Splitter, frame: bytes, frames: int) -> Callable[[], object]:
    """Many frames in one piece."""
    data = frame * frames
    return lambda: kind().feed(data)


def piecing(kind: Splitter, frame: bytes, pieces: int) -> Callable[[], object]:
    """One frame in many pieces; not of so many bytes that the processor's caches decide."""
    end = frame[-2:] if frame.endswith(b"\n\n") else frame[-1:]

    def work() -> None:
        splitter = kind()
        for _ in range(pieces):
            assert not splitter.feed(b"x" * 100)
        assert splitter.feed(end)

    return work


SPLITTERS = [pytest.param(sse.Splitter, EVENT, id="sse"), pytest.param(ndjson.Splitter, LINE, id="ndjson")]


@pytest.mark.parametrize(("kind", "frame"), SPLITTERS)
@pytest.mark.parametrize("frames", [1, 500])
def test_split(benchmark: Benchmark, kind: Splitter, frame: bytes, frames: int) -> None:
    benchmark(splitting(kind, frame, frames))


@pytest.mark.parametrize(("kind", "frame"), SPLITTERS)
@pytest.mark.parametrize(("part", "small"), [(splitting, 500), (piecing, 500)])
def test_splitting_grows_as_the_bytes(kind: Splitter, frame: bytes, part: Any, small: int) -> None:
    assert grows(partial(part, kind, frame), small) <= GROWTH


# the key of the cache


def keying(turns: int) -> Callable[[], object]:
    words = "a calm river under old stone bridges. " * 20
    said = [{"role": "user", "content": f"{number}: {words}"} for number in range(turns)]
    body = json.dumps({"model": "m", "messages": said, "temperature": 0, "seed": 1}).encode()
    return partial(key_for, called(body), "by-model", ("digest",))


@pytest.mark.parametrize("turns", [1, 50])
def test_cache_key(benchmark: Benchmark, turns: int) -> None:
    benchmark(keying(turns))


def test_a_cache_key_grows_as_the_body() -> None:
    assert grows(keying, 50) <= GROWTH
