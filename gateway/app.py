"""The ASGI application over one engine: the table of routes, and the guard around it."""

from __future__ import annotations

from dataclasses import replace

from starlette.types import Message, Receive, Scope, Send

from gateway.api.guard import Guard
from gateway.api.inference import Inference, Intake, TokenCount
from gateway.api.models import Memory, Models, Native
from gateway.api.ops import Ops
from gateway.api.presence import Crowd
from gateway.api.routes import GET, POST, Choose, Entry, Surface, answer, inference
from gateway.call import Operation
from gateway.engine import Engine

MEMORY = ("/api/chat", "/api/generate")  # where a body without a question loads or unloads a model


class App(Guard):
    """The application. The engine is started and stopped by whoever built it, the ASGI lifespan does nothing."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.crowd = Crowd()
        super().__init__(Surface(_entries(engine, self.crowd)), engine.metrics, _no_lifespan, lambda: engine.config)


def _entries(engine: Engine, crowd: Crowd) -> list[Entry]:
    intake = Intake(engine, crowd)

    def make(operation: Operation | Choose) -> Inference:
        return Inference(engine, crowd, intake, operation)

    def remembering(entry: Entry) -> Entry:
        return replace(entry, endpoint=Memory(engine, crowd, intake, entry.endpoint)) if entry.path in MEMORY else entry

    models, native, ops = Models(engine), Native(engine, intake), Ops(engine, crowd)
    pages = {
        "/": ops.hello,
        "/livez": ops.live,
        "/readyz": ops.ready,
        "/metrics": ops.metrics,
        "/openapi.json": ops.description,
        "/gateway/status": ops.status,
        "/gateway/line": ops.line,
        "/gateway/explain": ops.explain,
    }
    lists = {
        "/v1/models": models.listed,
        "/api/chat/models": models.instances,
        "/api/tags": native.tags,
        "/api/ps": native.ps,
        "/api/version": native.version,
    }
    named = {"/api/show": native.show, "/api/pull": native.pull}
    return [
        *map(remembering, inference(make)),
        Entry(path="/v1/messages/count_tokens", methods=POST, operation="count_tokens", endpoint=TokenCount(intake)),
        *(Entry(path=path, methods=GET, operation="ops", endpoint=answer(page)) for path, page in pages.items()),
        *(Entry(path=path, methods=GET, operation="models", endpoint=answer(page)) for path, page in lists.items()),
        *(Entry(path=path, methods=POST, operation="models", endpoint=answer(page)) for path, page in named.items()),
        Entry(path="/v1/models", methods=GET, operation="models", endpoint=answer(models.one), below=True),
    ]


async def _no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Agree to start and to stop; refuse anything else that is not HTTP."""
    if scope["type"] != "lifespan":
        await send({"type": "websocket.close", "code": 1003})
        return
    while True:
        message: Message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
