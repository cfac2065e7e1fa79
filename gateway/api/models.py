"""Lists merged over the pool: answered from what is known, at once, while any instance hangs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.call import AUTO, model_key
from gateway.engine import Engine
from gateway.errors import UnknownModel
from gateway.upstream import InstalledModel

VIRTUAL_CREATED = 0  # unix time; a virtual model was never made


class Models:
    """GET /v1/models, /v1/models/{id} and /api/chat/models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def listed(self, request: Request) -> Response:
        """The OpenAI list: every model of the pool once, by name, and the virtual ones first."""
        return _json({"object": "list", "data": list(self._entries())})

    async def one(self, request: Request) -> Response:
        """One entry of the list. Raises UnknownModel. Ids may hold `/` and `:`."""
        wanted: str = request.scope["gateway.rest"]
        for entry in self._entries():
            if model_key(entry["id"]) == model_key(wanted):
                return _json(entry)
        raise UnknownModel(wanted[:256])

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
        for name in (AUTO, *(f"{AUTO}:{task}" for task in sorted(self._engine.config.all_tasks))):
            yield {"id": name, "object": "model", "created": VIRTUAL_CREATED, "owned_by": "ollama-gateway"}
        for model in self._installed():
            yield {
                "id": model.name,
                "object": "model",
                "created": _created(model),
                "owned_by": model.name.split("/")[0] if "/" in model.name else "library",
            }

    def _installed(self) -> list[InstalledModel]:
        """Every model some instance offers, once, in the order of names; of several, the first instance's."""
        found: dict[str, InstalledModel] = {}
        for instance in self._engine.config.instances:
            offered = None if instance.models is None else {model_key(name) for name in instance.models}
            for key, model in self._engine.catalog.known(instance.name).installed.items():
                if offered is None or key in offered:
                    found.setdefault(key, model)
        return [found[key] for key in sorted(found)]

    def _names(self, instance: str) -> list[str]:
        known = self._engine.catalog.known(instance)
        loaded = [model.name for model in known.loaded.values()]
        return loaded + [model.name for model in known.installed.values()]


def _created(model: InstalledModel) -> int:
    """Unix time, whichever of the two APIs told it; 0 where neither did."""
    told = model.raw.get("modified_at", model.raw.get("created", 0))
    if isinstance(told, int):
        return max(0, told)
    try:
        return max(0, int(datetime.fromisoformat(str(told)).timestamp()))
    except (ValueError, OverflowError):
        return 0


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
