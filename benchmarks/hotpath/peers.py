"""Other gateways at the same work, in turns with ours and nginx. `make bench-peers`

LiteLLM comes from PyPI, in an environment of its own; any other by its command line: --peer "name=program --port {port}
--upstream {url}". The work is light enough for all of them, or it would be their overload that is measured.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import uvloop

from benchmarks.hotpath import kernel, page
from benchmarks.hotpath.contenders import (
    Contender,
    Kind,
    free_port,
    gateway,
    listening,
    nginx,
    nginx_program,
    process,
    url,
    version,
    written,
)
from benchmarks.hotpath.load import Address, Load
from benchmarks.hotpath.outcome import OURS, Outcome, report
from benchmarks.hotpath.turns import rounds
from benchmarks.hotpath.upstream import MODEL
from benchmarks.hotpath.work import Work

WORKS = (
    Work("calls-16", "Whole answers, 16 connections", Load(callers=16, seconds=3.0, warm_up=2.0), ("CPU us/call",)),
    Work(
        "streams-25",
        "25 streams, 20 frames/s each",
        Load(callers=25, frames=40, interval=50, seconds=3.0, warm_up=2.0),
        ("CPU us/frame", "TTFT p50 us", "TTFT p99 us", "delay p50 us", "delay p99 us"),
    ),
)
_LITELLM = """
model_list:
- {{model_name: "{model}", litellm_params: {{model: "openai/{model}", api_base: "{url}/v1", api_key: none}}}}
general_settings: {{master_key: sk-bench}}
litellm_settings: {{num_retries: 0, telemetry: false}}
"""  # as its own pages advise for production: no debugging, no retries, one worker a core
_QUIET = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@asynccontextmanager
async def peer(name: str, command: Sequence[str], home: Path, upstream: Address) -> AsyncIterator[Contender]:
    """Any gateway; {port}, {url} and {home} in its command line are put in."""
    address = ("127.0.0.1", free_port())
    put_in = {"port": address[1], "url": url(upstream), "home": home}
    filled = [part.format(**put_in) for part in command]
    env = {**_QUIET, "PYTHONPATH": ""}
    async with process(filled, kernel.CONTENDER, env=env) as running:
        await listening(address)
        yield Contender(name, address, tuple(kernel.tree(running.pid)))


def litellm(program: Path, home: Path, upstream: Address) -> AbstractAsyncContextManager[Contender]:
    config = written(home, "litellm.yaml", _LITELLM.format(model=MODEL, url=url(upstream)))
    command = (str(program), "--config", str(config), "--host", "127.0.0.1", "--port", "{port}", "--num_workers", "1")
    return peer("LiteLLM", command, home, upstream)


def comparison(outcome: Outcome) -> str:
    """Each peer's processor time, in ours."""
    lines = ["| CPU, times the gateway's | a call | a frame |", "|---|---|---|"]
    calls, streams = WORKS
    for name in outcome.names(calls):
        if name in (OURS, "direct"):
            continue
        each = (outcome.times(calls, name, "CPU us/call"), outcome.times(streams, name, "CPU us/frame"))
        lines.append(f"| {name} | {' | '.join('-' if one is None else f'{one:.2g}' for one in each)} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(prog="make bench-peers ARGS=")
    options.add_argument("--litellm", type=Path, help="its program")
    options.add_argument("--peer", action="append", default=[], help="name=command line with {port} and {url}")
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--alone", action="store_true", help="nothing else may run meanwhile; needs root")
    options.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    given = options.parse_args()
    kinds: dict[str, Kind] = {"gateway": gateway}
    if nginx_program():
        kinds["nginx"] = nginx
    told: dict[str, str] = {}
    if given.litellm:
        kinds["LiteLLM"] = partial(litellm, given.litellm.absolute())
        asked = "import importlib.metadata as m; print(m.version('litellm'))"
        told["LiteLLM"] = version((str(given.litellm.absolute().with_name("python")), "-c", asked))
    for one in given.peer:
        name, _, command = one.partition("=")
        kinds[name] = partial(peer, name, shlex.split(command))
    kernel.many_files()
    kernel.pin(kernel.REST)
    with kernel.first(), tempfile.TemporaryDirectory(prefix="bench-") as home:
        outcome = uvloop.run(rounds(WORKS, given.rounds, kinds, Path(home), alone=given.alone))
    text = f"{page.environment(**told)}\n\n{comparison(outcome)}\n\n{report(outcome)}"
    print(text)
    if given.write:
        page.write("peers", text)
    sys.exit(any(outcome.errors(work, OURS) for work in WORKS))


if __name__ == "__main__":
    main()
