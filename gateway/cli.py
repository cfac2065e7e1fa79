"""The command line: serve · check · explain · models · simulate · demo · healthcheck.

Exit status: 0 done; 1 what was asked for is not so (unhealthy, nowhere to go); 2 wrong usage or configuration;
3 the address cannot be listened on. Each command imports what it needs, so that `--help` and `healthcheck` are quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gateway import __version__
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.config import Loaded
    from gateway.engine import Engine
    from gateway.server import Server

DEFAULT_FILE = Path("routes.yaml")
NOT_SO, WRONG, NO_PORT = 1, 2, 3
SWITCH = 0.0005  # seconds for which a thread that computes may keep the event loop waiting, at each of its callbacks

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Where the configuration comes from, as the command line says; it is read anew at each reload."""

    urls: tuple[str, ...] = ()
    file: Path | None = None
    env_file: Path | None = None
    host: str | None = None
    port: int | None = None

    def load(self) -> Loaded:
        """Read it. Raises ConfigError."""
        from gateway.config import load, read_env_file

        env = dict(os.environ)
        if self.env_file is not None:
            env |= read_env_file(self.env_file)
        loaded = load(file=self.file, urls=self.urls, env=env)
        server = {"host": self.host, "port": self.port}
        given = {name: value for name, value in server.items() if value is not None}
        config = loaded.config.model_copy(update={"server": loaded.config.server.model_copy(update=given)})
        return replace(loaded, config=config)

    def fingerprint(self) -> str:
        """The files' contents; their age says nothing where a link is swapped."""
        return "".join(_content(path) for path in (self.file, self.env_file) if path is not None)


def _content(path: Path) -> str:
    import hashlib

    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "missing"


def configured(command: Command) -> Command:
    """The options that say where the configuration is."""
    for option in (
        click.option("--env-file", type=click.Path(dir_okay=False, path_type=Path), help="Read variables from FILE."),
        click.option(
            "--config",
            "file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="The routing table. Default: ./routes.yaml where there is one.",
        ),
        click.argument("urls", nargs=-1, metavar="[URL]..."),
    ):
        command = option(command)
    return command


def given(urls: tuple[str, ...], file: Path | None, env_file: Path | None, **server: Any) -> Given:
    """What the options mean: without URLs and without --config, ./routes.yaml is read if it is there."""
    if file is None and not urls and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    return Given(urls=urls, file=file, env_file=env_file, **server)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ollama-gateway")
def main() -> None:
    """One OpenAI-compatible address in front of all your Ollamas."""


@main.command()
@configured
@click.option("--host", help="Address to listen on. Default: 127.0.0.1, or the file's.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on. Default: 8080, or the file's.")
def serve(urls: tuple[str, ...], file: Path | None, env_file: Path | None, host: str | None, port: int | None) -> None:
    """Serve the API in front of the instances at URL..., or of those the configuration names."""
    source = given(urls, file, env_file, host=host, port=port)
    loaded = _loaded(source)
    _run(_serve(loaded, source))


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--env-file", type=click.Path(dir_okay=False, path_type=Path), help="Read variables from FILE.")
@click.option("--probe", is_flag=True, help="Look at the instances, too: are they there, do they have what is named?")
def check(file: Path | None, env_file: Path | None, *, probe: bool) -> None:
    """Say whether a configuration is sound, and list every problem if it is not."""
    loaded = _loaded(given((), file, env_file))
    config = loaded.config
    click.echo(
        f"{loaded.source} is sound: {len(config.instances)} instance(s), {len(config.routes)} route(s), "
        f"{len(config.all_tasks)} tasks, configuration {loaded.digest}"
    )
    if probe:
        sys.exit(_run(_with_engine(loaded, _look)))


async def _look(engine: Engine) -> int:
    """The instances as a table, and what is wrong with them or among them."""
    from gateway import report

    click.echo(report.instances(engine))
    problems = report.problems(engine)
    for problem in problems:
        click.echo(f"! {problem}", err=True)
    return NOT_SO if problems else 0


@main.command()
@configured
@click.option("--model", default="auto", show_default=True, help="The model a call would name.")
@click.option("--task", default="", help="The task it would name.")
@click.option("--needs", default="", help="Capabilities it needs, with commas: tools, vision.")
def explain(urls: tuple[str, ...], file: Path | None, env_file: Path | None, model: str, task: str, needs: str) -> None:
    """Say where a call would go, and why."""
    from gateway import report
    from gateway.api.ops import explained, hypothetical
    from gateway.errors import GatewayError

    async def work(engine: Engine) -> int:
        try:
            drawn = engine.dispatch.plan(hypothetical(model, task, needs))
        except GatewayError as error:
            click.echo(error.message, err=True)
            return NOT_SO
        click.echo(report.plan(explained(drawn)))
        return 0

    sys.exit(_run(_with_engine(_loaded(given(urls, file, env_file)), work)))


@main.command()
@configured
def models(urls: tuple[str, ...], file: Path | None, env_file: Path | None) -> None:
    """List the models of every instance."""
    from gateway import report

    async def work(engine: Engine) -> int:
        click.echo(report.models(engine))
        for problem in report.problems(engine):
            click.echo(f"! {problem}", err=True)
        return NOT_SO if all(not one.up for one in engine.reading().instances) else 0

    sys.exit(_run(_with_engine(_loaded(given(urls, file, env_file)), work)))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=11434, show_default=True, type=click.IntRange(0, 65535))
@click.option("--model", "names", multiple=True, help="A model it has; may be given several times.")
@click.option("--version", "release", default="0.32.15", show_default=True, help="The Ollama release it imitates.")
@click.option("--first-token", default=0.3, show_default=True, help="Seconds to the first token.")
@click.option("--per-second", default=30.0, show_default=True, help="Tokens per second; 0 for as fast as it can.")
@click.option("--load-time", default=0.0, show_default=True, help="Seconds to load a model.")
@click.option("--parallel", default=1, show_default=True, help="Generations at once for each loaded model.")
@click.option("--steer", is_flag=True, help="For benchmarks: seed is the milliseconds between chunks.")
def simulate(host: str, port: int, names: tuple[str, ...], release: str, **pace: Any) -> None:
    """Run an Ollama that holds no model: real shapes, made-up text, faults on request."""
    from gateway.simulator import Behaviour, SimulatedModel

    behaviour = Behaviour(
        version=release,
        models=tuple(SimulatedModel(name=name) for name in names or ("llama3.1:8b",)),
        **pace,
    )
    _run(_simulate(behaviour, host, port))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
def demo(host: str, port: int) -> None:
    """Serve in front of two simulated instances, a general and a coding one: no GPU, no model."""
    _run(_demo(host, port))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--path", default="/livez", show_default=True)
@click.option("--timeout", default=2.0, show_default=True, help="Seconds.")
def healthcheck(host: str, port: int, path: str, timeout: float) -> None:
    """Exit 0 if a gateway answers 200 at this address; for containers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except OSError as error:
        click.echo(f"no answer from {host}:{port}: {error}", err=True)
        sys.exit(NOT_SO)
    finally:
        connection.close()
    sys.exit(0 if status == 200 else NOT_SO)


def _loaded(source: Given) -> Loaded:
    try:
        return source.load()
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(WRONG)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run `work` on the quickest event loop there is."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner, contextlib.suppress(KeyboardInterrupt):
        return runner.run(work)


async def _serve(loaded: Loaded, source: Given | None) -> None:
    from gateway import log
    from gateway.app import App
    from gateway.engine import Engine
    from gateway.server import Server

    log.configure(loaded.config.log)
    sys.setswitchinterval(SWITCH)
    await asyncio.to_thread(lambda: None)  # one thread is there from now on, also when none can be started any more
    async with Engine(loaded, source) as engine:
        server = Server(App(engine), loaded.config.server)
        announcing = asyncio.create_task(_announce(engine, server), name="announce")
        try:
            await server.serve()
        except OSError as error:
            click.echo(f"cannot listen at server.ops_port: {error.strerror or error}", err=True)
            sys.exit(NO_PORT)
        finally:
            announcing.cancel()


def _settle() -> None:
    """What is there by now stays for good: the collector need not look at it again, which would hold up all calls.

    What a call leaves behind holds no circles, but what a probe does (httpx) has some: the young are looked at often,
    and few of them at a time: four thousand take three milliseconds. To look at all takes a fifth of a second while
    ten thousand calls wait, so that is done after one and a half million more that stayed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000, 3, 500)


async def _announce(engine: Engine, server: Server) -> None:
    """Once it listens, print what a person wants to see."""
    from gateway import report

    await server.listening.wait()
    _settle()
    host, port = server.address
    click.echo(report.start(engine, f"http://{f'[{host}]' if ':' in host else host}:{port}"))


async def _with_engine(loaded: Loaded, work: Callable[[Engine], Awaitable[int]]) -> int:
    from gateway import log
    from gateway.engine import Engine

    log.configure(loaded.config.log.model_copy(update={"level": "error"}))  # problems are part of the answer here
    async with Engine(loaded) as engine:
        return await work(engine)


async def _simulate(behaviour: Any, host: str, port: int) -> None:
    from gateway.simulator import Simulator

    async with Simulator(behaviour, host=host, port=port) as simulator:
        click.echo(f"a simulated Ollama answers at {simulator.url}; its controls are at {simulator.url}/simulator")
        await asyncio.get_running_loop().create_future()


async def _demo(host: str, port: int) -> None:
    from gateway.config import load
    from gateway.simulator import DEMO, Simulator

    async with Simulator(DEMO[0]) as general, Simulator(DEMO[1]) as coding:
        env = {
            "OLLAMA_NAME_1": "general",
            "OLLAMA_URL_1": f"{general.url}/v1",
            "OLLAMA_MODEL_1": DEMO[0].models[0].name,
            "OLLAMA_CAPABILITIES_1": "general,reasoning,conversation",
            "OLLAMA_MAX_CONCURRENT_1": "2",
            "OLLAMA_NAME_2": "coding",
            "OLLAMA_URL_2": f"{coding.url}/v1",
            "OLLAMA_MODEL_2": DEMO[1].models[0].name,
            "OLLAMA_CAPABILITIES_2": "coding,code_generation,code_analysis",
            "OLLAMA_MAX_CONCURRENT_2": "1",
        }
        loaded = load(env=env)
        server = loaded.config.server.model_copy(update={"host": host, "port": port})
        await _serve(replace(loaded, config=loaded.config.model_copy(update={"server": server})), None)
