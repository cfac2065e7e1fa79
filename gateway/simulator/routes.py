"""The public surface as one table: Ollama's routes with its errors and lists, and the control endpoint.

Errors before a generation are `Refusal`s, rendered by the caller in the shape of the path's family (ollama.md §3.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.simulator import dialects, prompt, shapes
from gateway.simulator.behaviour import Behaviour, SimulatedModel, version_of
from gateway.simulator.connection import Exchange, Seen
from gateway.simulator.prompt import Ask, Refusal, decode
from gateway.simulator.shapes import JSON, TEXT, Numbers, Voice

if TYPE_CHECKING:
    from gateway.simulator.server import Simulator

Handler = Callable[["Simulator", Exchange, bytes], None]
_NEWEST = datetime(2026, 8, 1, 12, 0, 0, 123456, timezone(timedelta(hours=2)))
_TAIL = 100  # requests shown by the control endpoint


def answer(simulator: Simulator, exchange: Exchange, body: bytes) -> None:
    """Find the handler and let it answer. Raises Refusal."""
    path, method = exchange.seen.path, exchange.seen.method
    methods = _methods(simulator, path)
    if methods is not None and (handler := methods.get(method)):
        handler(simulator, exchange, body)
    elif methods is not None:
        allow = b"Allow: %b\r\n" % ", ".join(methods).encode()
        exchange.reply(405, b"405 method not allowed", TEXT, allow)
    elif path.endswith("/") and _methods(simulator, path[:-1]) is not None:
        location = b"Location: %b\r\n" % path[:-1].encode("latin-1")
        exchange.reply(301 if method == "GET" else 307, b"", TEXT, location)
    else:
        exchange.reply(404, b"404 page not found", TEXT)


def _methods(simulator: Simulator, path: str) -> dict[str, Handler] | None:
    if not simulator.behaviour.native and not path.startswith("/v1/"):
        return None
    if path.startswith("/v1/models/") and path.count("/") == 3 and "%2f" not in path.lower() and path[11:]:
        return {"GET": _v1_model}  # one segment: an id with a slash has no route (ollama.md §1)
    return _ROUTES.get(path)


def _root(_: Simulator, exchange: Exchange, _body: bytes) -> None:
    exchange.reply(200, b"Ollama is running", b"text/plain; charset=utf-8")


def _version(simulator: Simulator, exchange: Exchange, _body: bytes) -> None:
    exchange.reply(200, b'{"version":"%b"}' % simulator.behaviour.version.encode())


def _tags(simulator: Simulator, exchange: Exchange, _body: bytes) -> None:
    exchange.reply(200, _tags_body(simulator.behaviour))


def _ps(simulator: Simulator, exchange: Exchange, _body: bytes) -> None:
    exchange.reply(200, _ps_body(simulator.behaviour, simulator.expiries()))


def _show(simulator: Simulator, exchange: Exchange, body: bytes) -> None:
    data = decode(body)
    name = str(data.get("model") or data.get("name") or "")
    exchange.reply(200, _show_body(simulator.behaviour, _model(simulator, name)))


def _v1_models(simulator: Simulator, exchange: Exchange, _body: bytes) -> None:
    exchange.reply(200, _v1_models_body(simulator.behaviour), b"application/json")


def _v1_model(simulator: Simulator, exchange: Exchange, _body: bytes) -> None:
    name = exchange.seen.path.removeprefix("/v1/models/")
    shown = _v1_entry(simulator.behaviour, _model(simulator, name), name)
    exchange.reply(200, msgspec.json.encode(shown), b"application/json")


def _generate(
    simulator: Simulator,
    exchange: Exchange,
    body: bytes,
    *,
    read: Callable[[dict[str, Any]], Ask],
    voice: Callable[[Ask, int, str], Voice],
    verb: str,
) -> None:
    """Everything that needs a model: chat, generate and embed, in every dialect."""
    _answer(simulator, exchange, read(decode(body)), voice=voice, verb=verb)


def _transcribe(simulator: Simulator, exchange: Exchange, body: bytes) -> None:
    ask = dialects.read_transcription(body, exchange.seen.header("content-type") or "")
    _answer(simulator, exchange, ask, voice=dialects.Transcription, verb="chat")


def _answer(
    simulator: Simulator, exchange: Exchange, ask: Ask, *, voice: Callable[[Ask, int, str], Voice], verb: str
) -> None:
    exchange.seen.model, exchange.seen.stream = ask.model, ask.stream
    if verb == "chat" and not ask.model:
        raise Refusal(400, "model is required")
    model = _model(simulator, ask.model, embed=verb == "embed")
    _check(model, ask, verb)
    speaks = voice(ask, exchange.seen.id, simulator.behaviour.version)
    if not ask.empty:
        simulator.generate(exchange, model, ask, speaks)
        return
    unload = ask.keep_alive == 0
    if simulator.keep(model, ask.keep_alive) or unload:
        exchange.reply(200, speaks.whole([], Numbers(0, 0, "unload" if unload else "load")))
    else:
        simulator.generate(exchange, model, msgspec.structs.replace(ask, stream=False), speaks)


def _model(simulator: Simulator, name: str, *, embed: bool = False) -> SimulatedModel:
    model = simulator.model(name)
    if model is None:
        raise Refusal(404, f'model "{name}" not found, try pulling it first' if embed else f"model '{name}' not found")
    return model


def _check(model: SimulatedModel, ask: Ask, verb: str) -> None:
    """What the model cannot do (ollama.md §4.1). Whatever the model, Ollama embeds with it."""
    if verb != "embed" and "completion" not in model.capabilities:
        raise Refusal(400, f'"{ask.model}" does not support {verb}')
    if ask.tools and "tools" not in model.capabilities:
        namespace = "" if "/" in model.name else "library/"
        raise Refusal(400, f"registry.ollama.ai/{namespace}{model.full_name} does not support tools")
    if ask.think and "thinking" not in model.capabilities:
        raise Refusal(400, f'"{ask.model}" does not support thinking')


def _reads(handler: Handler) -> dict[str, Handler]:
    return {"GET": handler, "HEAD": handler}


def _embeds(style: str) -> dict[str, Handler]:
    read = partial(prompt.read_embed, style=style)
    return {"POST": partial(_generate, read=read, voice=shapes.Vectors, verb="embed")}


_ROUTES: dict[str, dict[str, Handler]] = {
    "/": _reads(_root),
    "/api/version": _reads(_version),
    "/api/tags": _reads(_tags),
    "/api/ps": {"GET": _ps},
    "/api/show": {"POST": _show},
    "/api/chat": {"POST": partial(_generate, read=prompt.read_native_chat, voice=shapes.NativeChat, verb="chat")},
    "/api/generate": {
        "POST": partial(_generate, read=prompt.read_generate, voice=shapes.NativeGenerate, verb="generate")
    },
    "/api/embed": _embeds("embed"),
    "/api/embeddings": _embeds("embeddings"),
    "/v1/chat/completions": {
        "POST": partial(_generate, read=prompt.read_openai_chat, voice=shapes.OpenAIChat, verb="chat")
    },
    "/v1/completions": {
        "POST": partial(_generate, read=prompt.read_completion, voice=shapes.OpenAICompletion, verb="generate")
    },
    "/v1/embeddings": _embeds("openai"),
    "/v1/responses": {"POST": partial(_generate, read=dialects.read_responses, voice=dialects.Responses, verb="chat")},
    "/v1/messages": {"POST": partial(_generate, read=dialects.read_messages, voice=dialects.Messages, verb="chat")},
    "/v1/audio/transcriptions": {"POST": _transcribe},
    "/v1/models": {"GET": _v1_models},
}


# What the lists say, by version. The newest model comes first.


def _modified(position: int) -> datetime:
    return _NEWEST - timedelta(days=position)


def _details(model: SimulatedModel, behaviour: Behaviour) -> dict[str, Any]:
    details: dict[str, Any] = {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
    }
    if version_of(behaviour.version) >= (0, 30):
        details["context_length"] = model.context_length
    return details


def _entry(model: SimulatedModel, behaviour: Behaviour) -> dict[str, Any]:
    return {
        "name": model.full_name,
        "model": model.full_name,
        "size": model.size,
        "digest": model.digest,
        "details": _details(model, behaviour),
    }


def _tags_body(behaviour: Behaviour) -> bytes:
    """GET /api/tags: what is installed, newest first."""
    entries = []
    for position, model in enumerate(behaviour.models):
        entry = {**_entry(model, behaviour), "modified_at": _modified(position).isoformat()}
        if version_of(behaviour.version) >= (0, 30):
            entry["capabilities"] = list(model.capabilities)
        entries.append(entry)
    return msgspec.json.encode({"models": entries})


def _ps_body(behaviour: Behaviour, loaded: Iterable[tuple[SimulatedModel, float]]) -> bytes:
    """GET /api/ps: what is in memory, and until when (Unix seconds, infinity = for ever: the year 2318)."""
    entries = []
    for model, until in loaded:
        expires = datetime.fromtimestamp(until, UTC) if until < 1e10 else datetime(2318, 1, 1, tzinfo=UTC)
        more: dict[str, Any] = {"expires_at": expires.isoformat(), "size_vram": model.size}
        if version_of(behaviour.version) >= (0, 10):
            more["context_length"] = min(model.context_length, 4_096)
        entries.append({**_entry(model, behaviour), **more})
    return msgspec.json.encode({"models": entries})


def _show_body(behaviour: Behaviour, model: SimulatedModel) -> bytes:
    """POST /api/show."""
    position = behaviour.models.index(model)
    return msgspec.json.encode(
        {
            "license": "simulated",
            "modelfile": f"FROM {model.full_name}\n",
            "parameters": 'stop                           "<|end|>"',
            "template": "{{ .Prompt }}",
            "details": _details(model, behaviour),
            "model_info": {
                "general.architecture": model.family,
                "general.basename": model.name.partition(":")[0],
                f"{model.family}.context_length": model.context_length,
                f"{model.family}.embedding_length": 8,
            },
            "capabilities": list(model.capabilities),
            "modified_at": _modified(position).isoformat(),
        }
    )


def _v1_entry(behaviour: Behaviour, model: SimulatedModel, name: str) -> dict[str, Any]:
    """One entry of /v1/models; `name` is the spelling to show."""
    created = int(_modified(behaviour.models.index(model)).timestamp())
    owner = model.name.rpartition("/")[0] or "library"
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _v1_models_body(behaviour: Behaviour) -> bytes:
    """GET /v1/models; with no models `data` is null, as Ollama's is (§3.4)."""
    data = [_v1_entry(behaviour, model, model.full_name) for model in behaviour.models]
    return msgspec.json.encode({"object": "list", "data": data or None})


# The control endpoint.


def control(simulator: Simulator, exchange: Exchange, body: bytes) -> None:
    """`/simulator…`: the state, the faults, the behaviour. Bad orders get 400 and a reason."""
    order = _ORDERS.get(f"{exchange.seen.method} {exchange.seen.path.rstrip('/')}")
    if order is None:
        exchange.send(404, msgspec.json.encode({"error": f"there are {', '.join(_ORDERS)}"}))
        return
    try:
        status, said = order(simulator, body)
    except (ValueError, TypeError, Refusal) as error:
        status, said = 400, {"error": str(error)}
    exchange.send(status, msgspec.json.encode(said), JSON)


def _state(simulator: Simulator, _: bytes) -> tuple[int, object]:
    tail = list(simulator.requests)[-_TAIL:]
    return 200, {
        "behaviour": simulator.behaviour,
        "busy": simulator.busy,
        "peak": simulator.peak,
        "waiting": simulator.waiting,
        "connections": simulator.connections,
        "loaded": simulator.loaded,
        "faults": simulator.faults.armed,
        "requests": [_shown(seen) for seen in tail],
    }


def _shown(seen: Seen) -> dict[str, object]:
    """Without headers and body: they may hold keys and prompts."""
    hidden = ("headers", "body")
    return {name: getattr(seen, name) for name in Seen.__slots__ if name not in hidden}


def _arm(simulator: Simulator, body: bytes) -> tuple[int, object]:
    data = decode(body)
    return 201, simulator.faults.arm(str(data.pop("kind", "")), **data)


def _disarm(simulator: Simulator, _: bytes) -> tuple[int, object]:
    simulator.faults.clear()
    return 200, {}


def _behave(simulator: Simulator, body: bytes) -> tuple[int, object]:
    simulator.behaviour = simulator.behaviour.changed(decode(body))
    return 200, simulator.behaviour


def _forget(simulator: Simulator, _: bytes) -> tuple[int, object]:
    simulator.forget()
    return 200, {}


_ORDERS: dict[str, Callable[[Simulator, bytes], tuple[int, object]]] = {
    "GET /simulator": _state,
    "POST /simulator/faults": _arm,
    "DELETE /simulator/faults": _disarm,
    "POST /simulator/behaviour": _behave,
    "DELETE /simulator/requests": _forget,
}
