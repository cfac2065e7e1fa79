"""Carries one call: cache, plan, lease, attempts, and an open or a finished answer.

It holds nothing of a call: a `Journey` does while it runs. The configuration is one reference, swapped on reload; a
call keeps the one it began with.
"""

from __future__ import annotations

from gateway.cache import Cache, key_for
from gateway.call import Call, Plan, Record, Reply
from gateway.exchange import Exchange
from gateway.journey import Journey, Means, RetryBudget, Setting
from gateway.routing import plan, unaliased


class Dispatch:
    """The one door through which calls go to instances, for the API and for the Python library alike."""

    def __init__(self, means: Means, cache: Cache) -> None:
        self._means = means
        self._cache = cache

    def apply(self, setting: Setting) -> None:
        """Use `setting` for calls that come from now on."""
        self._means.setting = setting
        self._means.budget = RetryBudget(setting.config.retry.budget, setting.config.retry.reserve)
        self._cache.apply(setting.config.cache)

    def plan(self, call: Call) -> Plan:
        """Where `call` may go, each candidate with its reason. Raises InvalidCall, UnknownModel, NoInstance."""
        return self._plan(unaliased(call, self._means.setting.config.aliases))

    def exchange(self, call: Call, record: Record) -> Exchange:
        """An open answer, to be entered with `async with`. Raises what `plan` raises."""
        journey = self._journey(call, record)
        record.cache = "bypass" if self._means.setting.config.cache.enabled else ""
        return Exchange(journey)

    async def answer(self, call: Call, record: Record) -> Reply:
        """A finished answer, from the cache where it may come from there. Raises GatewayError."""
        journey = self._journey(call, record)
        call, setting = journey.call, journey.setting
        if not setting.cacheable(call, record.route):
            record.cache = "bypass" if setting.config.cache.enabled else ""
            return await journey.fetch()
        key = key_for(call, record.route, [setting.digest, *self._means.catalog.weights(call.model)])
        reply, record.cache = await self._cache.through(key, journey.fetch)
        return reply

    def _plan(self, call: Call) -> Plan:
        means = self._means
        return plan(call, means.setting.config, means.catalog.view(means.pool.instances, means.now()))

    def _journey(self, call: Call, record: Record) -> Journey:
        call = unaliased(call, self._means.setting.config.aliases)  # once: an alias does not stand for another
        drawn = self._plan(call)
        record.route, record.task = drawn.route, drawn.task
        return Journey(self._means, call, record, drawn, self._means.setting)
