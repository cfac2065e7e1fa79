"""The virtual models, `auto` and `auto:<task>`: which there are, and what a client may expect of each.

A client sizes its prompts and offers its tools by what a list says, so a virtual model claims no more than routing can
keep (clients.md §9 D 35). Capabilities are those that all its candidates have; a stand-in for a missing capability does
not count, since routing leaves it out where it cannot do what a call needs. The context is the smallest of all
candidates, stand-ins too: a prompt that is too long is cut without a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from gateway.call import AUTO, Call, Candidate, Wish, model_key
from gateway.catalog import Catalog
from gateway.config import DEFAULT_TASK, Config
from gateway.dialects import openai
from gateway.dispatch import Dispatch
from gateway.errors import GatewayError, UnknownModel
from gateway.lists.entries import USUAL_CONTEXT
from gateway.lists.shows import Shows
from gateway.routing import BY_TASK, split_alias

LEAST = frozenset({"completion"})  # what a model can do of which nothing is told


class Facts(NamedTuple):
    """What a model can do, and how many tokens of context it has at most."""

    capabilities: frozenset[str]
    context_length: int


class Virtual:
    """`config` gives the configuration in force."""

    def __init__(self, config: Callable[[], Config], dispatch: Dispatch, catalog: Catalog, shows: Shows) -> None:
        self._config = config
        self._dispatch = dispatch
        self._catalog = catalog
        self._shows = shows

    def names(self) -> list[str]:
        """In the order of lists."""
        return [AUTO, *(f"{AUTO}:{task}" for task in sorted(self._config().all_tasks))]

    def named(self, model: str) -> str | None:
        """The listed name of a virtual model, however it is spelt; None for any other name."""
        rest, task = split_alias(model)
        name = f"{AUTO}:{task}" if task else AUTO
        return name if model and not rest and (not task or task in self._config().all_tasks) else None

    def facts(self, name: str) -> Facts:
        """What the virtual model `name` can do, from what is known now."""
        candidates, serving = self._candidates(name)
        told = [self._facts(one) for one in candidates]
        able = [self._facts(one).capabilities for one in serving]
        return Facts(
            frozenset.intersection(*able) if able else LEAST,
            min((one.context_length for one in told), default=USUAL_CONTEXT),
        )

    async def learn(self, name: str) -> None:
        """Ask about those candidates of `name` of which the lists do not tell all: an Ollama before 0.30."""
        models = {model_key(one.model): one.model for one in self._candidates(name)[0] if not self._told(one)}
        await asyncio.gather(*(self._ask(model) for model in models.values()))

    async def _ask(self, model: str) -> None:
        try:
            await self._shows.of(model)
        except UnknownModel:
            return

    def _candidates(self, name: str) -> tuple[list[Candidate], list[Candidate]]:
        """All that may serve a call for `name`, and of these whom it is meant for."""
        _, task = split_alias(name)
        call = Call(
            request_id="lists",
            operation=openai.CHAT,
            wish=Wish(model=name),
            body=b"",
            task=task or DEFAULT_TASK,
            task_from="alias",
        )
        try:
            drawn = self._dispatch.plan(call)
        except GatewayError:
            return [], []
        first = min((one.tier for one in drawn.candidates), default=0)
        serving = [one for one in drawn.candidates if one.tier == first or drawn.route != BY_TASK]
        return list(drawn.candidates), serving

    def _told(self, candidate: Candidate) -> bool:
        listed = self._catalog.known(candidate.instance).installed.get(model_key(candidate.model))
        return listed is not None and listed.capabilities is not None and listed.context_length is not None

    def _facts(self, candidate: Candidate) -> Facts:
        """From the instance's own list, else from what was shown of the model."""
        listed = self._catalog.known(candidate.instance).installed.get(model_key(candidate.model))
        shown = self._shows.kept(candidate.model)
        told = [one for one in (listed, shown) if one is not None]
        capabilities = next((one.capabilities for one in told if one.capabilities is not None), LEAST)
        return Facts(capabilities, next((one.context_length for one in told if one.context_length), USUAL_CONTEXT))
