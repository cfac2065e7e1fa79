"""Carries one call: cache, plan, lease, attempts, and an open or a finished answer.

It holds nothing of a call: a `Journey` does while it runs. The configuration is one reference, swapped on reload; a
call keeps the one it began with.
"""

from __future__ import annotations

from gateway.cache import Cache, key_for
from gateway.call import Call, Plan, Record, Reply
from gateway.exchange import Exchange
from gateway.journey import Journey, Means, RetryBudget, Setting
from gateway.offload import sized
from gateway.routing import plan, unaliased

MAX_PLANS = 1024


class Dispatch:
    """The one door through which calls go to instances, for the API and for the Python library alike."""

    def __init__(self, means: Means, cache: Cache) -> None:
        self._means = means
        self._cache = cache
        self._drawn: dict[tuple[object, ...], Plan] = {}
        self._drawn_at = (0, 0)

    def apply(self, setting: Setting) -> None:
        """Use `setting` for calls that come from now on."""
        self._means.setting = setting
        self._drawn.clear()
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
        if not journey.planned or not setting.cacheable(call, record.route):
            record.cache = "bypass" if setting.config.cache.enabled else ""
            return await journey.fetch()
        weights = [setting.digest, *self._means.catalog.weights(call.model)]
        key = await sized(len(call.body), key_for, call, record.route, weights)
        hurried = call.deadline is not None and call.deadline < call.arrived + journey.limits.line
        asked = self._cache.alone if hurried else self._cache.through
        reply, record.cache = await asked(key, journey.fetch)
        return reply

    def _plan(self, call: Call) -> Plan:
        """The plan for `call`, kept while nothing changes that it was drawn from: equal calls get the very same one."""
        means, config = self._means, self._means.setting.config
        at = (means.catalog.changes, means.pool.changes)
        if at != self._drawn_at or len(self._drawn) >= MAX_PLANS:
            self._drawn.clear()
            self._drawn_at = at
        wish = call.wish
        headers = tuple(sorted(call.headers.items())) if call.headers else ()
        key = (call.model, call.task, call.task_from, wish.model, wish.needs, call.operation.native, headers)
        drawn = self._drawn.get(key)
        if drawn is None:
            drawn = plan(call, config, means.catalog.view(means.pool.instances, means.now()))
            self._drawn[key] = drawn
        return drawn

    def _journey(self, call: Call, record: Record) -> Journey:
        call = unaliased(call, self._means.setting.config.aliases)  # once: an alias does not stand for another
        return Journey(self._means, call, record, self._means.setting, self._plan)
