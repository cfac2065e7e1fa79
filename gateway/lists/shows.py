"""What `/api/show` says of each model: asked once for each digest, kept, and shared by all who want it now.

Clients ask for every model of a list at once (clients.md §9 D 36), so no question costs a lease or a place in line,
and none waits longer than `ATTEMPT` for each of at most `ATTEMPTS` instances. Where nobody answers, what was told of an
earlier digest serves, else what the lists tell: a listed name always has an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from msgspec import Raw

from gateway.cache import Flights
from gateway.call import model_key
from gateway.catalog import Catalog, Offer
from gateway.errors import Refused, UnknownModel, UpstreamError
from gateway.lists import entries
from gateway.wire import json

ATTEMPT = 0.9  # seconds for one instance; all attempts together stay below 2
ATTEMPTS = 2
MAX_KEPT = 4096  # models
MAX_BYTES = 32 * 2**20  # all that is kept together
MAX_ENTRY = 2**20  # bytes; a larger answer is given and not kept

Ask = Callable[[str, str, float, bool], Awaitable[bytes]]  # instance, model, seconds, verbose; raises UpstreamError


class Shown(NamedTuple):
    """One model as `/api/show` describes it. None for what is not told."""

    digest: str
    body: bytes
    capabilities: frozenset[str] | None
    context_length: int | None  # the trained maximum


class Shows:
    """`able` says whether an instance is worth asking: one that is down, or has no API of its own, is not."""

    def __init__(self, catalog: Catalog, ask: Ask, able: Callable[[str], bool]) -> None:
        self._catalog = catalog
        self._ask = ask
        self._able = able
        self._kept: OrderedDict[tuple[str, bool], Shown] = OrderedDict()
        self._flights: Flights[Shown | None] = Flights()
        self.size = 0  # bytes kept

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, model: str) -> Shown | None:
        """What was told of `model` last, without asking anyone."""
        return self._kept.get((model_key(model), False))

    async def of(self, model: str, *, verbose: bool = False) -> Shown:
        """What is said of `model`, however it is spelt. Raises UnknownModel for one that no instance lists."""
        offer = self._listed(model)
        key = (model_key(model), verbose)
        kept = self._kept.get(key)
        if kept is not None and kept.digest == offer.model.digest:
            self._kept.move_to_end(key)
            return kept
        name = f"show {verbose:d} {key[0]} {offer.model.digest}"
        shown, _ = await self._flights.join(name, lambda: self._fetch(key, offer))
        if shown is None:
            offer = self._listed(model)  # an instance may have said that the model is gone
        return shown or kept or _as_listed(offer)

    def _listed(self, model: str) -> Offer:
        offers = self._catalog.offers(model)
        if not offers:
            raise UnknownModel(model)
        return offers[0]

    async def _fetch(self, key: tuple[str, bool], wanted: Offer) -> Shown | None:
        """Ask those that have it, of the digest that is listed before others. An answer about another is not kept."""
        offers = [offer for offer in self._catalog.offers(key[0]) if self._able(offer.instance)]
        offers.sort(key=lambda offer: offer.model.digest != wanted.model.digest)
        for instance, model in offers[:ATTEMPTS]:
            try:
                shown = _read(await self._ask(instance, model.name, ATTEMPT, key[1]), Offer(instance, model))
            except UpstreamError as error:
                if isinstance(error, Refused) and error.status == 404:
                    self._catalog.missing(instance, model.name)
                continue
            except json.UNREADABLE:
                continue
            if shown.digest == wanted.model.digest:
                self._keep(key, shown)
            return shown
        return None

    def _keep(self, key: tuple[str, bool], shown: Shown) -> None:
        self._drop(key)
        if len(shown.body) > MAX_ENTRY:
            return
        self._kept[key] = shown
        self.size += len(shown.body)
        while self.size > MAX_BYTES or len(self._kept) > MAX_KEPT:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[str, bool]) -> None:
        before = self._kept.pop(key, None)
        self.size -= len(before.body) if before else 0


class _Told(msgspec.Struct):
    capabilities: list[str] | None = None
    model_info: dict[str, Raw] | None = None


_TOLD = msgspec.json.Decoder(_Told)


def _read(body: bytes, offer: Offer) -> Shown:
    """Raises what UNREADABLE holds, for an answer that describes no model."""
    whole = entries.show_complete(body, offer.model)
    told = _TOLD.decode(body)
    capabilities = None if told.capabilities is None else frozenset(told.capabilities)
    return Shown(offer.model.digest, whole, capabilities, _context_length(told.model_info or {}))


def _context_length(info: dict[str, Raw]) -> int | None:
    """`<architecture>.context_length`."""
    try:
        architecture = msgspec.json.decode(info.get("general.architecture", b'""'), type=str)
        return msgspec.json.decode(info.get(f"{architecture}.context_length", b"null"), type=int | None)
    except json.UNREADABLE:
        return None


def _as_listed(offer: Offer) -> Shown:
    model = offer.model
    body = msgspec.json.encode(entries.show_listed(model))
    return Shown(model.digest, body, model.capabilities, model.context_length)
