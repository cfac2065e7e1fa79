"""Questions asked of an instance: are you there, what are you, which models have you, what is this one?

What comes back is somebody else's JSON: it is capped, decoded into known shapes, and an entry that does not fit is
skipped. A probe says what is wrong and what would likely put it right, in one sentence, since it is read by whoever
set the instance up.

Neither `/api/version` nor `/api/ps` proves that a model can run, and a slow `/api/ps` proves nothing (ollama.md §6.5).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from gateway.errors import BadAnswer, ConnectionLost, Exhausted, FirstTokenTimeout, Refused, UpstreamError
from gateway.upstream.transport import HTTPError, client
from gateway.upstream.upstream import Upstream

MAX_REPLY = 8 * 2**20  # bytes
MAX_MODELS = 4096  # per instance
MAX_NAME = 256
MAX_BRACKETS = 256  # in one entry of a list; Ollama's have about five
AT_A_TURN = 64  # entries of a list that are read in one turn of the loop, which takes half a millisecond
MAX_POSTS = 8  # questions with a body under way at one instance; more wait their turn, inside their own time limit

_JSON = {"content-type": "application/json"}
_NAME = re.compile(r"[A-Za-z0-9._:/@+~=-]+")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_FIXES = {
    "connection refused": "Is Ollama running there, and is OLLAMA_HOST=0.0.0.0 set?",
    "no route to it": "Is the machine up, and is this its address?",
    "its name does not resolve": "Is it spelt right, and known to the DNS the gateway uses?",
    "not an HTTP answer": "Is this the port of Ollama, and is it http rather than https?",
    "closed the connection without an answer": "Is this the port of Ollama, and is it http rather than https?",
    "timed out": "Is the address right, is the machine awake, and does a firewall let the gateway through?",
    "does not speak TLS": "Should the address begin with http:// instead?",
    "its certificate is not valid": "Is its authority among those the gateway trusts?",
}
_STATUSES = {
    401: "asks for credentials (401). The gateway sends none: is there a proxy in front of it?",
    403: "Ollama refuses this Host (403). Set OLLAMA_HOST=0.0.0.0 there, or use an address it knows itself by.",
}


@dataclass(frozen=True, slots=True)
class Health:
    """The answer to one probe."""

    ok: bool
    version: str = ""  # of Ollama; "" where it is none
    native: bool = True  # has Ollama's own API
    seconds: float = 0.0  # from the question to the answer
    problem: str = ""  # what is wrong and the likely fix; "" where nothing is


class InstalledModel(msgspec.Struct, frozen=True, gc=False):
    """One entry of `/api/tags`, or of `/v1/models`, which tells little but the name.

    There are thousands of them, for as long as their instance tells the same: the collector has nothing to look at.
    """

    name: str
    digest: str = ""  # the same on two instances: the same model (ollama.md §2.6)
    size: int = 0  # bytes on disk
    capabilities: frozenset[str] | None = None  # None: not told (before v0.30.0)
    context_length: int | None = None  # the trained maximum
    family: str = ""
    told: msgspec.Raw | bytes = b"{}"  # the whole entry

    @property
    def raw(self) -> dict[str, Any]:
        """The whole entry, for lists."""
        return _read_any(self.told)


class LoadedModel(msgspec.Struct, frozen=True, gc=False):
    """One entry of `/api/ps`."""

    name: str
    size_vram: int = 0  # bytes
    context_length: int | None = None  # per request, as allocated
    expires_at: str = ""  # RFC 3339; may be in the past (ollama.md §6.5)
    size: int = 0  # bytes, its part outside the GPU included
    told: msgspec.Raw | bytes = b"{}"  # the whole entry

    @property
    def raw(self) -> dict[str, Any]:
        """The whole entry, for lists."""
        return _read_any(self.told)


@dataclass(frozen=True, slots=True)
class Listing:
    """What is told as it was before is the very same tuple."""

    installed: tuple[InstalledModel, ...]
    loaded: tuple[LoadedModel, ...] | None  # None: not told, which is not the same as none


class _Version(msgspec.Struct):
    version: str


class _Details(msgspec.Struct, gc=False):
    family: str | None = None
    context_length: int | None = None


class _Model(msgspec.Struct, gc=False):
    """What we look at in an entry of any of the three lists; Go writes null for what is empty."""

    name: str = ""
    id: str = ""
    digest: str | None = None
    size: int | None = None
    size_vram: int | None = None
    capabilities: list[str] | None = None
    context_length: int | None = None
    expires_at: str | None = None
    details: _Details | None = None


class _Show(msgspec.Struct):
    """An answer that has neither is some other server's."""

    details: dict[str, msgspec.Raw] | None = None
    model_info: dict[str, msgspec.Raw] | None = None


class _Models(msgspec.Struct):
    models: list[msgspec.Raw] | None  # required: a reply without it is some other server's


class _Data(msgspec.Struct):
    data: list[msgspec.Raw] | None


_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_read_version = msgspec.json.Decoder(_Version).decode
_read_model = msgspec.json.Decoder(_Model).decode
_read_models = msgspec.json.Decoder(_Models).decode
_read_data = msgspec.json.Decoder(_Data).decode
_read_show = msgspec.json.Decoder(_Show).decode
_read_any = msgspec.json.Decoder(dict[str, Any]).decode


Models = TypeVar("Models", InstalledModel, LoadedModel)


class Told(NamedTuple, Generic[Models]):
    """A list as it came, and what it says."""

    body: bytes | None = None  # until there was one
    models: tuple[Models, ...] = ()


class Prober:
    """Asks one instance. Cancel it at any moment; nothing is left behind.

    `reading` is held while a list is read, a few entries in each turn of the loop. Share it among probers, so that a
    turn does not have some of fifty lists to read.
    """

    def __init__(self, upstream: Upstream, reading: asyncio.Lock | None = None) -> None:
        self._name = upstream.name
        self._client = client(upstream)
        self._posts = asyncio.Semaphore(MAX_POSTS)
        self._reading = reading or asyncio.Lock()
        self._installed = Told[InstalledModel]()  # the last of them
        self._loaded = Told[LoadedModel]()

    async def health(self, timeout: float) -> Health:
        """Whether it answers, within `timeout` seconds in all. Raises Exhausted where it could not be asked."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(timeout):
                ok, version, native, problem = await self._what_is_it()
        except TimeoutError:
            ok, version, native, problem = False, "", True, _advice(f"timed out: no answer within {timeout:g} s")
        except Exhausted:
            raise
        except UpstreamError as error:
            words = error.message.removeprefix(f"instance {self._name}: ")
            ok, version, native, problem = False, "", True, _advice(words)
        return Health(ok, version, native, time.perf_counter() - began, problem)

    async def listing(self, timeout: float, native: bool) -> Listing:
        """Its models; `timeout` seconds for each of the two questions. Raises UpstreamError.

        Only `/api/tags` can fail it: what is loaded is worth knowing, and not worth losing the rest for.
        """
        path = "/api/tags" if native else "/v1/models"
        self._installed = await self._read(path, await self._list(path, timeout), self._installed, _installed)
        if not native:
            return Listing(self._installed.models, None)
        path = "/api/ps"
        try:
            self._loaded = await self._read(path, await self._list(path, timeout), self._loaded, _loaded)
        except UpstreamError:
            return Listing(self._installed.models, None)
        return Listing(self._installed.models, self._loaded.models)

    async def show(self, model: str, timeout: float, *, verbose: bool = False) -> bytes:
        """What `/api/show` says of `model`: a JSON object, as it came. `timeout` seconds. Raises UpstreamError.

        Asked in our own name: Ollama answers one client differently (ollama.md §2.6), and this answer is for all.
        """
        question = {"model": model, **({"verbose": True} if verbose else {})}
        body = await self.post("/api/show", msgspec.json.encode(question), timeout)
        try:
            told = _read_show(body)
        except _UNREADABLE:
            told = _Show()
        if told.details is None and told.model_info is None:
            raise BadAnswer(self._name, "its answer to /api/show describes no model")
        return body

    async def post(self, path: str, body: bytes, timeout: float) -> bytes:
        """What it answers to JSON at `path`, within `timeout` seconds. Raises UpstreamError, Refused for a status."""
        try:
            async with asyncio.timeout(timeout), self._posts:
                status, answer = await self._ask("POST", path, body)
        except TimeoutError:
            raise FirstTokenTimeout(self._name, f"no answer to {path} within {timeout:g} s") from None
        if status >= 400:
            raise Refused(self._name, status, f"answered {status} to {path}")
        if status != 200:
            raise BadAnswer(self._name, f"answered {status} to {path}")
        return answer

    async def close(self) -> None:
        """The upstream stays open: it belongs to whoever made it."""
        await self._client.aclose()

    async def _what_is_it(self) -> tuple[bool, str, bool, str]:
        """ok, version, native, problem."""
        status, body = await self._get("/api/version")
        version = _version(body) if status == 200 else None
        if version is not None:
            return True, version, True, ""
        if status not in (200, 404):
            return False, "", True, _STATUSES.get(status, f"answers {status} to /api/version.")
        # Servers that know only /v1 answer 404, or 200 with an error or a page of their own (D4).
        status, body = await self._get("/v1/models")
        try:
            _read_data(body)
        except _UNREADABLE:
            status = 0 if status == 200 else status
        if status == 200:
            return True, "", False, ""
        problem = "answers, but is no Ollama and has no /v1/models. Is this the right port?"
        return False, "", True, _STATUSES.get(status, problem)

    async def _list(self, path: str, timeout: float) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                status, body = await self._get(path)
        except TimeoutError:
            raise FirstTokenTimeout(self._name, f"no answer to {path} within {timeout:g} s") from None
        if status != 200:
            raise BadAnswer(self._name, f"answered {status} to {path}")
        return body

    async def _read(
        self, path: str, body: bytes, last: Told[Models], model: Callable[[msgspec.Raw], Models | None]
    ) -> Told[Models]:
        """What a list says. Most say what they said the last time: then there is nothing to do."""
        async with self._reading:
            if body == last.body:
                return last
            try:
                listed = _read_data(body).data if path == "/v1/models" else _read_models(body).models
            except _UNREADABLE:
                raise BadAnswer(self._name, f"its answer to {path} is not a list of models") from None
            found: list[Models] = []
            for number, raw in enumerate((listed or [])[:MAX_MODELS], 1):
                if (one := model(raw)) is not None:
                    found.append(one)
                if not number % AT_A_TURN:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)  # the next list is not to be read in this turn
            return Told(body, tuple(found))

    async def _get(self, path: str) -> tuple[int, bytes]:
        return await self._ask("GET", path)

    async def _ask(self, method: str, path: str, content: bytes | None = None) -> tuple[int, bytes]:
        """Status and body. Whoever asks limits the time."""
        body = bytearray()
        try:
            async with self._client.stream(method, path, content=content, headers=_JSON, timeout=None) as response:
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > MAX_REPLY:
                        raise BadAnswer(self._name, f"its answer to {path} is larger than {MAX_REPLY} bytes")
        except HTTPError as error:
            if isinstance(error.__cause__, UpstreamError):
                raise error.__cause__ from None
            raise ConnectionLost(self._name, "no answer") from error
        return response.status_code, bytes(body)


def _advice(words: str) -> str:
    """The problem, and what would likely put it right."""
    fix = next((fix for known, fix in _FIXES.items() if words.startswith(known)), "")
    return f"{words}. {fix}".strip()


def _version(body: bytes) -> str | None:
    """The version Ollama gives; "" for one that is no plain word; None where the reply is not Ollama's."""
    try:
        version = _read_version(body).version
    except _UNREADABLE:
        return None
    return version if _WORD.fullmatch(version) else ""


def _entry(raw: msgspec.Raw) -> tuple[str, _Model] | None:
    """An entry that can be understood, under a name that is safe to show and to compare."""
    text = bytes(memoryview(raw))
    if text.count(b"{") + text.count(b"[") > MAX_BRACKETS:
        return None  # so deep or so long that it could not be relayed
    try:
        model = _read_model(raw)
        _read_any(raw)  # as lists will do
    except _UNREADABLE:
        return None
    name = model.name or model.id
    return (name, model) if len(name) <= MAX_NAME and _NAME.fullmatch(name) else None


def _installed(raw: msgspec.Raw) -> InstalledModel | None:
    if (entry := _entry(raw)) is None:
        return None
    name, model = entry
    details = model.details or _Details()
    return InstalledModel(
        name=name,
        digest=(model.digest or "")[:128],
        size=model.size or 0,
        capabilities=None if model.capabilities is None else _capabilities(tuple(model.capabilities[:32])),
        context_length=details.context_length,
        family=(details.family or "")[:64],
        told=raw,
    )


def _loaded(raw: msgspec.Raw) -> LoadedModel | None:
    if (entry := _entry(raw)) is None:
        return None
    name, model = entry
    return LoadedModel(
        name, model.size_vram or 0, model.context_length, (model.expires_at or "")[:64], max(0, model.size or 0), raw
    )


@lru_cache(maxsize=1024)
def _capabilities(told: tuple[str, ...]) -> frozenset[str]:
    """One object for all that have the same."""
    return frozenset(word for word in told if _WORD.fullmatch(word))
