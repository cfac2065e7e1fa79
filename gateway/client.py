"""The Python library: the engine without a server.

    async with get_ollama_client("http://gpu1:11434", "http://gpu2:11434") as client:
        print(await client.generate("Why is the sky blue?"))
        async with client.generate_stream("Write a poem.", task="text_generation") as pieces:
            async for piece in pieces:
                print(piece, end="", flush=True)

Routing, the line, failover and the cache are those of the gateway. Finished answers are kept whatever their
temperature, as the facade's are (D11); streams never. What goes wrong is raised as a `gateway.errors.GatewayError`.

Events go to the logger `gateway` of the standard library, unless the program has configured structlog.

One law: what a stream holds is let go by leaving its block, never by forgetting it. So it has to be entered.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import deque
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from msgspec import Struct

from gateway.call import AUTO, Call, Record, Reply, Usage
from gateway.config import Loaded, load
from gateway.dialects import openai
from gateway.dispatch import Dispatch
from gateway.engine import Engine
from gateway.errors import InvalidCall, UpstreamError
from gateway.exchange import Exchange
from gateway.routing import split_alias
from gateway.wire import sse

DEFAULT_FILE = Path("routes.yaml")
OUTSIDE = "use the client inside its block: async with get_ollama_client(...) as client"
NOT_OPEN = "iterate a stream inside its block: async with client.generate_stream(...) as pieces"


def get_ollama_client(
    *urls: str, config: Path | str | None = None, env: Mapping[str, str] | None = None
) -> OllamaClient:
    """A client in front of the instances at `urls`, of the file `config`, or of the numbered variables in `env`.

    As on the command line: without any of the three, ./routes.yaml is read if it is there, else the environment, else
    one Ollama on this machine. It is read now, once. Raises ConfigError with every problem.
    """
    if config is None and not urls and env is None and DEFAULT_FILE.is_file():
        config = DEFAULT_FILE
    file = None if config is None else Path(config)
    return OllamaClient(load(file=file, urls=urls, env=os.environ if env is None else env))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer; as a string it is its text."""

    text: str  # without the model's reasoning
    model: str
    instance: str = ""  # "" where this call asked none: the answer was kept, or another call's under way
    substitution: str = ""  # what was not asked for, in words; "" where it is just that
    usage: Usage | None = None
    cached: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHealth:
    """One instance as the gateway sees it; true where it is given calls."""

    healthy: bool
    state: str  # the word /gateway/status has for it
    problem: str = ""  # what the last probe found wrong, and the likely fix; "" where nothing

    def __bool__(self) -> bool:
        return self.healthy


class OllamaClient:
    """Enter it once, with `async with`; calls must have ended before the block is left."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._running: Engine | None = None

    async def __aenter__(self) -> Self:
        """Look at every instance, for a moment. Never fails for one that does not answer."""
        if self._running is not None:
            raise RuntimeError("the client is in use: make another one for another block")
        _leave_the_output_alone()
        engine = Engine(self._loaded)
        try:
            await engine.start()
        except BaseException:
            await engine.stop()
            raise
        self._running = engine
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        engine, self._running = self._engine, None
        await engine.stop()

    async def generate(
        self,
        prompt: str,
        *,
        task: str = "",
        model: str = "",
        system: str = "",
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Answer:
        """A finished answer, from the cache where it was given before.

        A `model` the pool has is asked wherever it is; else the `task` decides; neither means general_chat.
        Raises GatewayError: InvalidCall, UnknownModel, a CapacityError or an UpstreamError.
        """
        body = _body(prompt, model, system, temperature=temperature, max_tokens=max_tokens)
        call = _call(body, task)
        record = _record(call)
        reply = await self._engine.dispatch.answer(call, record)
        kept = _KEPT.decode(reply.body)
        return Answer(
            text=kept.text,
            model=kept.model,
            instance=record.instance,
            substitution=record.substitution,
            usage=reply.usage,
            cached=record.cache == "hit",
        )

    def generate_stream(
        self,
        prompt: str,
        *,
        task: str = "",
        model: str = "",
        system: str = "",
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> TextStream:
        """The answer's text in pieces as they come; see `TextStream`, which raises what `generate` does."""
        body = _body(prompt, model, system, temperature=temperature, max_tokens=max_tokens, stream=True)
        return TextStream(self._engine.dispatch, _call(body, task))

    async def health_check(self) -> dict[str, InstanceHealth]:
        """Every instance by name, as probes and calls have found it by now: asks none, so none can hold it up."""
        engine = self._engine
        return {
            one.name: InstanceHealth(healthy=one.up, state=one.state, problem=_problem(engine, one.name))
            for one in engine.reading().instances
        }

    @property
    def _engine(self) -> Engine:
        if self._running is None:
            raise RuntimeError(OUTSIDE)
        return self._running


class TextStream:
    """One answer in pieces: `async with` it, which waits for the first piece, then `async for` over it.

    Leaving the block, however and whenever, ends the call at once. Iteration ends only after the whole answer, and then
    the instance is free even before the block is left. Raises what `generate` raises: on entering while no instance
    has spoken, while iterating after that, and CallTimeout from the block when the call outlasts its limit.
    """

    def __init__(self, dispatch: Dispatch, call: Call) -> None:
        self._dispatch = dispatch
        self._call = call
        self._record = _record(call)
        self._held = AsyncExitStack()
        self._exchange: Exchange | None = None  # while it is open
        self._pieces: deque[str] = deque()
        self._entered = self._whole = False

    @property
    def model(self) -> str:
        """The model that answers."""
        return self._record.model

    @property
    def instance(self) -> str:
        return self._record.instance

    @property
    def substitution(self) -> str:
        """What was not asked for, in words; "" where it is just that."""
        return self._record.substitution

    @property
    def usage(self) -> Usage | None:
        """Known after the last piece."""
        return self._record.usage

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a stream is entered once: ask again for another answer")
        self._entered = True
        self._exchange = await self._held.enter_async_context(self._dispatch.exchange(self._call, self._record))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # This answer's own failure ended it in _read; another call's is nothing its instance should answer for.
        await self._end(None if isinstance(error, UpstreamError) else error)

    def __aiter__(self) -> Self:
        if not self._whole:
            self._open()
        return self

    async def __anext__(self) -> str:
        while not self._pieces:
            if self._whole:
                raise StopAsyncIteration
            await self._read(self._open())
        return self._pieces.popleft()

    def _open(self) -> Exchange:
        if self._exchange is None:
            raise RuntimeError(NOT_OPEN)
        return self._exchange

    async def _read(self, exchange: Exchange) -> None:
        try:
            frames = await exchange.frames()
        except UpstreamError as error:
            await self._end(error)
            raise
        self._pieces.extend(text for frame in frames if frame.content and (text := _text(frame.raw)))
        if not frames:
            await exchange.settle()
            self._whole = True
            await self._end(None)

    async def _end(self, error: BaseException | None) -> None:
        """Let everything go. Doing it again does nothing."""
        self._exchange = None
        self._pieces.clear()
        await self._held.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)


class _Kept(Struct, gc=False):
    """What the cache keeps of an answer."""

    text: str
    model: str


class _Delta(Struct, gc=False):
    content: Any = None


class _Choice(Struct, gc=False):
    delta: _Delta | None = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None


_KEPT = msgspec.json.Decoder(_Kept)
_CHUNK = msgspec.json.Decoder(_Chunk)


class _Library(openai.Chat):
    """A chat as the instances know it, in the facade's family: any finished answer may be kept (D11)."""

    dialect = "facade"

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        whole = super().reply(call, model, body, seconds)
        kept = _Kept(text=openai.text_of(openai.decoded(body)), model=model)
        return Reply(msgspec.json.encode(kept), whole.usage)


_LIBRARY = _Library()


def _body(prompt: str, model: str, system: str, **options: Any) -> bytes:
    """A chat completion. Raises InvalidCall."""
    if not isinstance(prompt, str) or not prompt:
        raise InvalidCall("prompt must be a text, and not empty", param="prompt")
    messages = [{"role": "system", "content": system}] if system else []
    fields = {"model": model or AUTO, "messages": [*messages, {"role": "user", "content": prompt}]}
    fields |= {name: value for name, value in options.items() if value is not None}
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        raise InvalidCall("prompt and system must be text that UTF-8 can hold") from None


def _call(body: bytes, task: str) -> Call:
    """Raises InvalidCall. A task named as such goes before one named as the model `auto:<task>`."""
    wish = _LIBRARY.read(body)
    model, alias_task = split_alias(wish.model)
    return Call(
        request_id=secrets.token_hex(8),
        operation=_LIBRARY,
        wish=wish,
        body=body,
        arrived=asyncio.get_running_loop().time(),
        task=task or alias_task,
        task_from="body" if task else "alias" if alias_task else "",
        model=model,
    )


def _record(call: Call) -> Record:
    operation = call.operation
    return Record(
        request_id=call.request_id,
        arrived=call.arrived,
        dialect=operation.dialect,
        operation=operation.name,
        stream=call.wish.stream,
        asked=call.wish.model,
    )


def _text(event: bytes) -> str:
    """What one event adds to the text; its reasoning is none."""
    chunk = _CHUNK.decode(sse.data(event) or b"{}")
    said = [choice.delta.content for choice in chunk.choices or () if choice.delta is not None]
    return "".join(text for text in said if isinstance(text, str))


def _problem(engine: Engine, instance: str) -> str:
    found = engine.health(instance)
    return "" if found is None else found.problem


def _leave_the_output_alone() -> None:
    """Standard output is the program's, and structlog writes there unless somebody said otherwise."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[structlog.processors.LogfmtRenderer(key_order=["event"])],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
