"""Which instance has which model, installed and loaded: learned by probing, corrected by traffic.

It holds the last that each instance told, also while the instance is away, and builds from it the frozen view that
routing reads. One asyncio task per instance asks (`Catalog.watch`); nothing here decides who is healthy.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.call import model_key
from gateway.config import Config, InstanceConfig
from gateway.errors import UpstreamError
from gateway.instances import Contents, Instance
from gateway.routing import InstanceView, ModelView, PoolView
from gateway.upstream import Health, InstalledModel, Listing, LoadedModel, Prober


@dataclass(slots=True)
class Known:
    """The last that one instance told."""

    version: str = ""
    native: bool = True
    seconds: float = 0.0  # round trip of its last probe
    listed: bool = False  # its models were read at least once
    installed: dict[str, InstalledModel] = field(default_factory=dict)  # by model_key
    loaded: dict[str, LoadedModel] = field(default_factory=dict)
    refresh: asyncio.Event = field(default_factory=asyncio.Event)
    offered: dict[str, ModelView] | None = None  # as routing sees them; None until asked for after a change
    in_memory: tuple[tuple[str, int], ...] | None = None  # (model, bytes in VRAM), the same
    listing: Listing | None = None  # the last, where nothing was learned otherwise since


_ONE_AT_A_TIME = ("mllama", "qwen3vl", "qwen35", "qwen3next", "lfm2", "nemotron_h")  # families, by their beginning


Told = Callable[[str, Contents, float], None]


class Offer(NamedTuple):
    """A model as one instance lists it."""

    instance: str
    model: InstalledModel


class Catalog:
    """What is known of every instance's models, by instance name.

    `told(instance, contents, asked)` hears what each listing says of memory, and the loop time it was asked for.
    """

    def __init__(self, config: Config, told: Told | None = None) -> None:
        self._config = config
        self._told = told
        self._known: dict[str, Known] = {}
        self._conflicts: dict[str, dict[str, str]] | None = None  # None until asked for after a change
        self.changes = 0  # goes up with whatever a plan could read here
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Forget instances that left or moved to another address; keep what the others told."""
        before = {instance.name: instance for instance in self._config.instances}
        self._config = config
        stay, self._known = self._known, {}
        for one in config.instances:
            was = before.get(one.name)
            same = was is not None and one.name in stay and was.url == one.url
            known = self._known[one.name] = stay[one.name] if same else Known()
            if was is None or not same or (was.models, was.model) != (one.models, one.model):
                known.offered = None
        self._conflicts = None
        self.changes += 1

    def known(self, instance: str) -> Known:
        """What `instance` told last; empty for one that has not, or is not there."""
        return self._known.get(instance) or Known()

    def saw(self, instance: str, health: Health) -> None:
        """Note a probe's answer. An instance that came back with another version is asked for its models at once."""
        known = self._known.get(instance)
        if known is None or not health.ok:
            return
        if known.version != health.version or known.native != health.native:
            known.refresh.set()
            self.changes += 1
        known.version, known.native, known.seconds = health.version, health.native, health.seconds

    def learned(self, instance: str, listing: Listing) -> None:
        """Note the models it has. A listing that does not tell what is loaded leaves that as it was."""
        known = self._known.get(instance)
        if known is None or (known.listing is not None and _same(known.listing, listing)):
            return
        known.listed = True
        self._forget(known)
        self._conflicts, known.listing = None, listing
        known.installed = {model_key(model.name): model for model in listing.installed}
        if listing.loaded is not None:
            known.loaded = {model_key(model.name): model for model in listing.loaded}

    def missing(self, instance: str, model: str) -> None:
        """A call was told that `instance` does not have `model`: believe it, and ask for the list anew."""
        known = self._known.get(instance)
        if known is not None:
            known.installed.pop(model_key(model), None)
            known.loaded.pop(model_key(model), None)
            self._forget(known)
            self._conflicts = None
            known.refresh.set()

    def answered(self, instance: str, model: str) -> None:
        """A model that has just answered is loaded, whatever the last listing said."""
        known = self._known.get(instance)
        if known is not None and model_key(model) not in known.loaded:
            known.loaded[model_key(model)] = LoadedModel(name=model, size_vram=0, context_length=None, expires_at="")
            self._forget(known)

    def _forget(self, known: Known) -> None:
        """What routing saw of it is out of date, and a listing is news though it be as the last one was."""
        known.offered = known.in_memory = known.listing = None
        self.changes += 1

    def ask_anew(self, instance: str) -> None:
        """What `instance` holds may be another thing by now."""
        known = self._known.get(instance)
        if known is not None:
            known.refresh.set()

    def unloaded(self, instance: str, model: str) -> None:
        """A call has just taken `model` out of memory, or set when that is to be: ask what is loaded anew."""
        known = self._known.get(instance)
        if known is not None:
            known.loaded.pop(model_key(model), None)
            self._forget(known)
            known.refresh.set()

    def has(self, instance: str, model: str) -> bool:
        return model_key(model) in self.known(instance).installed

    def is_loaded(self, instance: str, model: str) -> bool:
        return model_key(model) in self.known(instance).loaded

    def offers(self, model: str) -> list[Offer]:
        """Who lists `model` and may offer it: those with Ollama's own API first, then in configured order."""
        key = model_key(model)
        found = [
            Offer(config.name, listed)
            for config in self._config.instances
            if (listed := self.known(config.name).installed.get(key)) is not None and _may_offer(config, key)
        ]
        return sorted(found, key=lambda offer: not self.known(offer.instance).native)

    def merged(self) -> dict[str, Offer]:
        """Every model some instance offers, once, by `model_key` in the order of names.

        Of several that list it, the one that `offers` puts first speaks for it: neither age nor health counts, so
        that a list stays the same while instances come and go.
        """
        found: dict[str, Offer] = {}
        for config in sorted(self._config.instances, key=lambda one: not self.known(one.name).native):
            for key, model in self.known(config.name).installed.items():
                if key not in found and _may_offer(config, key):
                    found[key] = Offer(config.name, model)
        return dict(sorted(found.items()))

    def conflicts(self) -> dict[str, dict[str, str]]:
        """Names that are not the same model everywhere: name -> {instance: digest}, in the order of names."""
        if self._conflicts is not None:
            return self._conflicts
        digests: dict[str, dict[str, str]] = {}
        for config in self._config.instances:
            for key, model in self.known(config.name).installed.items():
                if model.digest and _may_offer(config, key):
                    digests.setdefault(key, {})[config.name] = model.digest
        self._conflicts = {key: found for key, found in sorted(digests.items()) if len(set(found.values())) > 1}
        return self._conflicts

    def in_memory(self, instance: str) -> tuple[tuple[str, int], ...]:
        """The models that `instance` has loaded, and their bytes in VRAM."""
        known = self.known(instance)
        if known.in_memory is None:
            known.in_memory = tuple((model.name, model.size_vram) for model in known.loaded.values())
        return known.in_memory

    def view(self, instances: Mapping[str, Instance], now: float) -> PoolView:
        """The pool as routing reads it, at loop time `now`."""
        return PoolView(
            tuple(
                self._view(config, instances[config.name], now)
                for config in self._config.instances
                if config.name in instances
            )
        )

    def _view(self, config: InstanceConfig, instance: Instance, now: float) -> InstanceView:
        known = self.known(config.name)
        fit = instance.fit(now)
        return InstanceView(
            name=config.name,
            capabilities=config.capabilities,
            default_model=config.model,
            models=self._offered(config, known),
            known=known.listed,
            awaited=not known.listed and instance.untold(now),
            healthy=fit,
            native=known.native,
            why_not="" if fit else f"{config.name} is {instance.state(now)}",
        )

    def _offered(self, config: InstanceConfig, known: Known) -> dict[str, ModelView]:
        """What it has, or of that what the configuration names; where it never told, the configuration is believed."""
        if known.offered is not None:
            return known.offered
        offered = None if config.models is None else {model_key(name): name for name in config.models}
        models = {
            key: ModelView(name=model.name, loaded=key in known.loaded, capabilities=model.capabilities)
            for key, model in known.installed.items()
            if offered is None or key in offered
        }
        if not known.listed:
            declared = [*(config.models or ()), *([config.model] if config.model else ())]
            models |= {model_key(name): ModelView(name=name) for name in declared}
        known.offered = models
        return models

    def weights(self, model: str) -> list[str]:
        """The digests that could answer for `model`, or for any where it is "": part of a cache key."""
        key = model_key(model) if model else ""
        found = {
            f"{name} {one.digest}"
            for known in self._known.values()
            for name, one in known.installed.items()
            if not key or name == key
        }
        return [hashlib.sha256(" ".join(sorted(found)).encode()).hexdigest()] if found else []

    async def watch(
        self,
        instance: str,
        prober: Prober,
        timeout: float,
        interval: float,
        *,
        random: Callable[[], float],
        after: float = 0.0,
    ) -> None:
        """Keep asking `instance` for its models, at `interval` seconds, 20 % more or less, or when told to, for ever.

        `random` gives numbers in [0, 1): many are not to be asked in step, nor begun with at once, but so long `after`.
        """
        if after:
            await asyncio.sleep(after)
        while True:
            await self.ask(instance, prober, timeout)
            known = self._known.get(instance)
            if known is None:
                return
            try:
                async with asyncio.timeout(interval * (0.8 + 0.4 * random())):
                    await known.refresh.wait()
            except TimeoutError:
                continue

    async def ask(self, instance: str, prober: Prober, timeout: float) -> None:
        """Ask once. An instance that does not answer keeps what it told before: that is health's business."""
        known = self._known.get(instance)
        if known is None:
            return
        known.refresh.clear()
        asked = asyncio.get_running_loop().time()
        try:
            listing = await prober.listing(timeout, known.native)
        except UpstreamError:
            return
        self.learned(instance, listing)
        if self._told and instance in self._known:
            self._told(instance, _contents(listing), asked)


def _contents(listing: Listing) -> Contents:
    return Contents(
        installed={model_key(model.name): model.size for model in listing.installed},
        loaded=None
        if listing.loaded is None
        else {model_key(one.name): one.size or one.size_vram for one in listing.loaded},
        one_at_a_time=frozenset(_one_at_a_time(listing)),
    )


def _same(last: Listing, listing: Listing) -> bool:
    return listing.installed is last.installed and (listing.loaded is None or listing.loaded is last.loaded)


def _one_at_a_time(listing: Listing) -> Iterator[str]:
    """Models that Ollama serves one at a time whatever its OLLAMA_NUM_PARALLEL (ollama.md §6.6)."""
    for model in listing.installed:
        embeds = model.capabilities is not None and "embedding" in model.capabilities
        if embeds or model.family.startswith(_ONE_AT_A_TIME):
            yield model_key(model.name)


def _may_offer(config: InstanceConfig, key: str) -> bool:
    return config.models is None or any(model_key(name) == key for name in config.models)
