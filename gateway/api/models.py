"""Lists merged over the pool, in OpenAI's words and in Ollama's: answered from what is known, at once, while any
instance hangs; and what loads or unloads a model, told to the instances that have it.

None of it takes a lease or a place in line: clients look for models while every instance is busy (clients.md §9 K 109).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Raw, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.inference import Intake
from gateway.api.presence import Crowd, Presence, client_of
from gateway.api.relay import send_body, told
from gateway.call import Record, model_key
from gateway.catalog import Offer
from gateway.dialects import reading
from gateway.engine import Engine
from gateway.errors import Forbidden, Refused, UnknownModel, UpstreamError
from gateway.lists import entries
from gateway.offload import sized
from gateway.routing import stands_for
from gateway.upstream import InstalledModel, LoadedModel
from gateway.wire import json, response_headers

VIRTUAL_CREATED = 0  # unix time; a virtual model was never made
USUAL_VERSION = "0.32.15"  # said while no instance ever told its own: the release whose shapes we speak (ollama.md §1)
USUAL_KEEP = timedelta(minutes=5)  # how long an Ollama keeps a model that nobody said anything about
COPILOT = "GitHubCopilotChat/"  # the client for which Ollama renames what it shows (ollama.md §2.6)
MAX_MEMORY_BODY = 4096  # bytes; a body that only loads or unloads is a few fields
MEMORY_LIMIT = 10.0  # seconds for an instance to take note of it

_SUCCESS = {"status": "success"}
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?![\d.])")


class Models:
    """GET /v1/models, /v1/models/{id} and /api/chat/models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def listed(self, request: Request) -> Response:
        """The OpenAI list: every model of the pool once, by name, and the virtual ones first. All on one page."""
        data = list(self._entries())
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return _json({"object": "list", "data": data, "has_more": False, **ends})

    async def one(self, request: Request) -> Response:
        """One entry of the list, under the id that was asked for. Raises UnknownModel. Ids may hold `/` and `:`."""
        asked: str = request.scope["gateway.rest"]
        if len(asked) > reading.MODEL_LENGTH:  # before anything keeps it
            raise UnknownModel(asked[: reading.MODEL_LENGTH])
        wanted = stands_for(asked, self._engine.config.aliases)
        if (name := self._engine.virtual.named(wanted)) is not None:
            return _json(_virtual(name))
        offers = self._engine.catalog.offers(wanted)
        if not offers:
            raise UnknownModel(asked)
        entry = _openai(offers[0].model)
        return _json(entry if wanted == asked else {**entry, "id": asked})

    async def instances(self, request: Request) -> Response:
        """The facade's list: one entry for each instance (D5)."""
        entries = [
            {
                "model": one.model or next(iter(self._names(one.name)), None),
                "url": one.url,
                "capabilities": one.capabilities,
                "max_concurrent": one.max_concurrent,
            }
            for one in self._engine.config.instances
        ]
        return _json({"models": entries})

    def _entries(self) -> Iterator[dict[str, Any]]:
        yield from map(_virtual, self._engine.virtual.names())
        yield from (_openai(offer.model) for offer in self._engine.catalog.merged().values())

    def _names(self, instance: str) -> list[str]:
        known = self._engine.catalog.known(instance)
        loaded = [model.name for model in known.loaded.values()]
        return loaded + [model.name for model in known.installed.values()]


def _virtual(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": VIRTUAL_CREATED, "owned_by": "ollama-gateway"}


def _openai(model: InstalledModel) -> dict[str, Any]:
    owner = model.name.split("/")[0] if "/" in model.name else "library"
    return {"id": model.name, "object": "model", "created": _created(model), "owned_by": owner}


def _created(model: InstalledModel) -> int:
    """Unix time, whichever of the two APIs told it; 0 where neither did."""
    raw = model.raw
    told = raw.get("modified_at", raw.get("created", 0))
    if isinstance(told, int):
        return max(0, told)
    try:
        return max(0, int(datetime.fromisoformat(str(told)).timestamp()))
    except (ValueError, OverflowError):
        return 0


class Named(Struct, gc=False):
    """A body that names a model; `name` is the old word for it."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
    verbose: bool | None = None


_NAMED = reading.Form(Named)


class Native:
    """GET /api/tags, /api/ps and /api/version; POST /api/show and /api/pull."""

    def __init__(self, engine: Engine, intake: Intake) -> None:
        self._engine = engine
        self._intake = intake

    async def tags(self, request: Request) -> Response:
        """Every model once, the virtual ones first, then by name; which instance speaks for one: `Catalog.merged`."""
        virtual = [entries.virtual(name, *self._engine.virtual.facts(name)) for name in self._engine.virtual.names()]
        installed = [entries.installed(offer.model) for offer in self._engine.catalog.merged().values()]
        return _json({"models": virtual + installed})

    async def ps(self, request: Request) -> Response:
        """Every model that a reachable instance has in memory, once.

        Of several that have it the first in configured order speaks, and the latest `expires_at` counts: until then it
        is in the memory of some.
        """
        found: dict[str, list[tuple[str, LoadedModel]]] = {}
        for name, instance in self._engine.pool.instances.items():
            for key, model in self._engine.catalog.known(name).loaded.items() if instance.healthy else ():
                if any(offer.instance == name for offer in self._engine.catalog.offers(key)):
                    found.setdefault(key, []).append((name, model))
        return _json({"models": [self._loaded(key, found[key]) for key in sorted(found)]})

    def _loaded(self, key: str, copies: Sequence[tuple[str, LoadedModel]]) -> dict[str, Any]:
        instance, model = copies[0]
        usual = datetime.now(UTC) + USUAL_KEEP
        ends = [entries.moment(copy.expires_at) or usual for _, copy in copies]
        installed = self._engine.catalog.known(instance).installed.get(key)
        name = installed.name if installed else model.name
        return entries.loaded(model.raw, name, installed, max(ends).isoformat())

    async def version(self, request: Request) -> Response:
        """The lowest of the healthy instances, so that a client asks for nothing one of them lacks; never a brand."""
        known = self._engine.catalog.known
        healthy = {name for name, one in self._engine.pool.instances.items() if one.healthy}
        for names in (healthy, self._engine.pool.instances):
            found = [_VERSION.match(known(name).version) for name in names]
            told = [tuple(map(int, match.groups())) for match in found if match]
            if real := [one for one in told if any(one)]:  # 0.0.0 is a build of nobody knows when
                return _json({"version": ".".join(map(str, min(real)))})
        return _json({"version": USUAL_VERSION})

    async def show(self, request: Request) -> Response:
        """What a model is. Raises UnknownModel, InvalidCall."""
        asked, body = await self._read(request)
        wanted = stands_for(asked, self._engine.config.aliases)
        if (name := self._engine.virtual.named(wanted)) is not None:
            await self._engine.virtual.learn(name)
            shown = entries.show_virtual(name, *self._engine.virtual.facts(name))
        else:
            try:
                shown = (await self._engine.shows.of(wanted, verbose=bool(body.verbose))).body
            except UnknownModel:
                raise UnknownModel(asked) from None
            if request.headers.get("user-agent", "").startswith(COPILOT):
                shown = entries.show_named(shown, asked)
        return Response(shown, media_type="application/json")

    async def pull(self, request: Request) -> Response:
        """What is listed is there already; nothing else is fetched. Raises Forbidden, InvalidCall."""
        asked, body = await self._read(request)
        wanted = stands_for(asked, self._engine.config.aliases)
        if self._engine.virtual.named(wanted) is None and not self._engine.catalog.offers(wanted):
            raise Forbidden(
                f"no instance has the model '{asked}', and the gateway keeps pulling closed: "
                f"run `ollama pull {asked}` on an instance"
            )
        if body.stream is False:
            return _json(_SUCCESS)
        lines = [{"status": "pulling manifest"}, _SUCCESS]
        return Response(b"".join(msgspec.json.encode(one) + b"\n" for one in lines), media_type="application/x-ndjson")

    async def _read(self, request: Request) -> tuple[str, Named]:
        """The model as the client spelt it, and its whole body. Raises InvalidCall."""
        body = _NAMED.read(await self._intake.read(request.scope, request.receive))
        asked = reading.required_model(body.model or body.name)
        record: Record = request.scope["gateway.record"]
        record.asked = asked
        return asked, body


class Asked(Struct, gc=False):
    """A native question, as far as it takes to see that there is none in it."""

    model: str = ""
    prompt: str | None = None
    messages: list[Raw] | None = None
    message: Raw = reading.NULL  # the facade's
    options: dict[str, Raw] | None = None
    keep_alive: float | str | None = None

    @property
    def unloads(self) -> bool:
        """`keep_alive` is no time at all, in one of Go's spellings."""
        if isinstance(self.keep_alive, str):
            return _NO_TIME.fullmatch(self.keep_alive) is not None
        return self.keep_alive == 0


# Possessive throughout: a client writes it, and a run of noughts could else be divided in ever more ways.
_NO_TIME = re.compile(r"[+-]?(?:0++(?:\.0*+)?+(?:ns|us|µs|ms|s|m|h)?+)++")
_ASKED = msgspec.json.Decoder(Asked)


class Memory:
    """POST /api/chat and /api/generate: a body without a question is about memory, all others go on to `endpoint`.

    It is told to every instance that has the model loaded, since the client sees one Ollama: after an unload no copy is
    left. Where none has it loaded, an unload goes to all that have it installed, and a load to the line like any call;
    so does one that brings options, for which an Ollama may load anew (ollama.md §2.4).
    """

    def __init__(self, engine: Engine, crowd: Crowd, intake: Intake, endpoint: ASGIApp) -> None:
        self._engine = engine
        self._crowd = crowd
        self._intake = intake
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._intake.read(scope, receive)
        prompted = scope["gateway.record"].path == "/api/generate"
        asked = await sized(len(body), _without_question, body, prompted=prompted)
        offers = self._meant(asked) if asked is not None else []
        if asked is None or not offers or not await self._tell(asked, offers, body, scope, send):
            await self._endpoint(scope, receive, send)

    def _meant(self, asked: Asked) -> list[Offer]:
        """Whom to tell."""
        catalog, instances = self._engine.catalog, self._engine.pool.instances
        able = [
            offer
            for offer in catalog.offers(stands_for(asked.model, self._engine.config.aliases))
            if instances[offer.instance].healthy and catalog.known(offer.instance).native
        ]
        loaded = [offer for offer in able if catalog.is_loaded(offer.instance, offer.model.name)]
        if asked.unloads:
            return loaded or able
        return [] if asked.options else loaded

    async def _tell(self, asked: Asked, offers: Sequence[Offer], body: bytes, scope: Scope, send: Send) -> bool:
        """Tell them all, and answer as the first did; False where none did and a call may do better."""
        record: Record = scope["gateway.record"]
        with Presence(client_of(scope), self._crowd):
            answers = await asyncio.gather(*(self._told(one, asked, body, record.path) for one in offers))
        answered = [(one, said) for one, said in zip(offers, answers, strict=True) if isinstance(said, bytes)]
        if not answered:
            if asked.unloads and isinstance(failure := answers[0], UpstreamError):
                raise failure
            return False
        offer, said = answered[0]
        record.asked, record.instance, record.model = asked.model, offer.instance, offer.model.name
        await send_body(send, 200, said, [*response_headers(), *told(record)])
        return True

    async def _told(self, offer: Offer, asked: Asked, body: bytes, path: str) -> bytes | UpstreamError:
        same = model_key(asked.model) == model_key(offer.model.name)
        sent = body if same else json.encode({**json.parse(body), "model": offer.model.name})
        try:
            said = await self._engine.prober(offer.instance).post(path, sent, MEMORY_LIMIT)
        except UpstreamError as error:
            if isinstance(error, Refused) and error.status == 404:
                self._engine.catalog.missing(offer.instance, offer.model.name)
            return error
        if asked.unloads:
            self._engine.catalog.unloaded(offer.instance, offer.model.name)
        return said


def _without_question(body: bytes, *, prompted: bool) -> Asked | None:
    """The body, if it has neither prompt nor messages and can be read; else whoever it goes to says what is wrong."""
    if len(body) > MAX_MEMORY_BODY:
        return None
    try:
        json.parse(body)
        asked = _ASKED.decode(body)
    except json.UNREADABLE:
        return None
    if asked.message != reading.NULL:
        return None
    return None if (asked.prompt if prompted else asked.messages) else asked


def _json(value: Any) -> Response:
    return Response(json.encode(value), media_type="application/json")
