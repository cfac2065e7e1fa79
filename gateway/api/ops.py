"""For operators: is it alive, is it ready, what does it measure, what does it see, why would it go there?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import yaml
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gateway import __version__
from gateway.api.presence import Crowd
from gateway.call import Call, Plan, Wish
from gateway.dialects import openai, reading
from gateway.engine import Engine
from gateway.instances import Resident
from gateway.metrics import CONTENT_TYPE, BreakerReading, InstanceReading
from gateway.routing import split_alias

MAX_CONFLICTS = 100  # names shown by /gateway/status
MAX_LISTED = 100  # of a kind shown by /gateway/line


class Ops:
    """GET /, /livez, /readyz, /metrics, /openapi.json, /gateway/status, /gateway/line and /gateway/explain."""

    def __init__(self, engine: Engine, crowd: Crowd) -> None:
        self._engine = engine
        self._crowd = crowd
        self._started = time.time()

    async def hello(self, request: Request) -> Response:
        """What Ollama says at its root; clients look for these very words."""
        return PlainTextResponse("Ollama is running")

    async def live(self, request: Request) -> Response:
        return PlainTextResponse("alive")

    async def ready(self, request: Request) -> Response:
        """200 while some instance may be given calls and the gateway is not shutting down."""
        problem = self._engine.reading().unready
        return PlainTextResponse(problem, 503) if problem else PlainTextResponse("ready")

    async def metrics(self, request: Request) -> Response:
        text = await self._engine.metrics.exposition(asyncio.get_running_loop().time())
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def description(self, request: Request) -> Response:
        """What can be called, as OpenAPI."""
        return Response(await asyncio.to_thread(_description), media_type="application/json")

    async def status(self, request: Request) -> Response:
        """The gateway now, as JSON."""
        return Response(msgspec.json.encode(self.state()), media_type="application/json")

    def state(self) -> dict[str, Any]:
        engine = self._engine
        reading = engine.reading()
        return {
            "version": __version__,
            "uptime_seconds": round(time.time() - self._started, 1),
            "draining": engine.draining,
            "config": {"source": engine.loaded.source, "digest": reading.config, "reload_ok": reading.reload_ok},
            "calls": len(self._crowd),
            "line": {"depth": reading.line_depth, "bytes": reading.line_bytes, "oldest": round(reading.line_oldest, 3)},
            "cache": {"entries": reading.cache_entries, "bytes": reading.cache_bytes},
            "instances": [self._instance(one) for one in reading.instances],
            "digest_conflicts": dict(islice(engine.catalog.conflicts().items(), MAX_CONFLICTS)),
        }

    def _instance(self, reading: InstanceReading) -> dict[str, Any]:
        known = self._engine.catalog.known(reading.name)
        health = self._engine.health(reading.name)
        return {
            "name": reading.name,
            "state": reading.state,
            "version": known.version or None,
            "models": [model.name for model in known.installed.values()],
            "loaded": [name for name, _ in reading.loaded],
            "in_flight": reading.in_flight,
            "draining": reading.draining,
            "limit": reading.limit,
            "allowed": reading.allowed,
            "breaker": next((_breaker(one) for one in reading.breakers if not one.model), None),
            "cooling": {one.model: _breaker(one) for one in islice(reading.breakers, MAX_LISTED) if one.model},
            "round_trip_ms": round(known.seconds * 1000, 2) if known.version or known.listed else None,
            "problem": health.problem if health and not health.ok else None,
        }

    async def line(self, request: Request) -> Response:
        """Who waits for what, since when, for how long yet, and why, as JSON."""
        return Response(msgspec.json.encode(self._line()), media_type="application/json")

    def _line(self) -> dict[str, Any]:
        pool = self._engine.pool
        demands = sorted(pool.demands(), key=lambda one: -one.waiting)[:MAX_LISTED]
        return {
            "depth": pool.depth,
            "bytes": pool.held_bytes,
            "oldest": round(pool.oldest, 3),
            "models": [
                {
                    "model": one.model,
                    "waiting": one.waiting,
                    "oldest": round(one.oldest, 3),
                    "expected_wait": round(one.seconds, 1),
                    "loaded_on": one.loaded_on[:MAX_LISTED],
                    "promised_by": one.promised_by or None,
                    "reason": one.why,
                }
                for one in demands
            ],
            "callers": [
                {"caller": one.name, "running": one.running, "waiting": one.waiting, "weight": one.weight}
                for one in pool.busiest_callers(MAX_LISTED)
            ],
            "instances": [
                {
                    "name": one.name,
                    "in_use": one.in_use,
                    "limit": one.limit,
                    "holds": {name: _resident(held) for name, held in islice(one.memory.residents.items(), MAX_LISTED)},
                    "gives_up": sorted(one.gives_up),
                    "loads_next": one.owes or None,
                }
                for one in pool.instances.values()
            ],
        }

    async def explain(self, request: Request) -> Response:
        """Where a call with this `model`, `task` and `needs` would go, and why. Raises what routing raises."""
        query = request.query_params
        model = reading.possible_model(query.get("model", ""))
        call = hypothetical(model, query.get("task", ""), query.get("needs", ""))
        drawn = self._engine.dispatch.plan(call)
        told = explained(drawn, self._engine.left_out(drawn))
        return Response(msgspec.json.encode(told), media_type="application/json")


def _breaker(one: BreakerReading) -> dict[str, Any]:
    return {"state": one.state, "why": one.why, "seconds": round(one.seconds, 1)}


@cache
def _description() -> bytes:
    """gateway/openapi.yaml as JSON, under our own version."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (Path(__file__).parent.parent / "openapi.yaml").read_text("utf-8")
    told: dict[str, Any] = yaml.load(text, loader)  # noqa: S506 - a safe loader either way
    told["info"]["version"] = __version__
    return msgspec.json.encode(told)


def _resident(resident: Resident) -> dict[str, Any]:
    return {"running": resident.running, "loading": resident.loading, "bytes": resident.size}


def hypothetical(model: str, task: str, needs: str) -> Call:
    """A chat call that asks for `model` and `task`; `needs` is a comma-separated list of capabilities."""
    name, alias_task = split_alias(model)
    wish = Wish(model=model, needs=frozenset(word for word in needs.split(",") if word))
    source = "header" if task else "alias" if alias_task else ""
    return Call(
        request_id="explain",
        operation=openai.CHAT,
        wish=wish,
        body=b"",
        task=task or alias_task,
        task_from=source,
        model=name,
    )


def explained(plan: Plan, left_out: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """A plan as JSON: the route, the reasons, and each candidate with its own; `left_out` for now, too."""
    return {
        "route": plan.route,
        "task": plan.task or None,
        "reasons": plan.reasons,
        "candidates": [
            {
                "instance": one.instance,
                "model": one.model,
                "tier": one.tier,
                "reason": one.reason,
                **({"substitution": one.substitution} if one.substitution else {}),
            }
            for one in sorted(plan.candidates, key=lambda one: (one.tier, one.rank))
        ],
        "left_out": [{"instance": name, "reason": why} for name, why in (*plan.left_out, *left_out)],
    }
