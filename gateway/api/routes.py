"""The whole public surface as one table, and how a path finds its entry.

Paths are compared after `//` and a trailing slash are taken out and a prefix `/t/<task>` is taken off; nothing is ever
redirected, and no path of the client's is sent upstream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.call import Operation, Record
from gateway.dialects import facade, facade_or_ollama, ollama, openai
from gateway.errors import Forbidden, UnknownPath, WrongMethod

Answer = Callable[[Request], Awaitable[Response]]
GET = ("GET", "HEAD")
POST = ("POST",)

CLOSED = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs", "/api/me", "/api/signout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One path; with `below`, all paths under it, what follows being the rest, as in a model's id."""

    path: str
    methods: tuple[str, ...]
    operation: str  # metric label
    endpoint: ASGIApp
    below: bool = False


def answer(endpoint: Answer) -> ASGIApp:
    """A function from request to response as an ASGI application."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)

    return app


def inference(make: Callable[[Callable[[bytes], Operation]], ASGIApp]) -> Iterable[Entry]:
    """The paths that ask a model for something; `make` builds the endpoint for the operation a body asks for."""
    own_path: tuple[Operation, ...] = (
        openai.CHAT,
        openai.COMPLETIONS,
        openai.EMBEDDINGS,
        ollama.GENERATE,
        ollama.EMBED,
        ollama.EMBEDDINGS,
    )
    for operation in own_path:
        yield _inference(operation, make)
    yield Entry(path="/api/chat", methods=POST, operation=facade.CHAT.name, endpoint=make(facade_or_ollama))


def _inference(operation: Operation, make: Callable[[Callable[[bytes], Operation]], ASGIApp]) -> Entry:
    return Entry(path=operation.path, methods=POST, operation=operation.name, endpoint=make(lambda _: operation))


class Surface:
    """The table, indexed."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._exact: dict[str, list[Entry]] = {}
        self._below: list[Entry] = []
        for entry in entries:
            if entry.below:
                self._below.append(entry)
            else:
                self._exact.setdefault(entry.path, []).append(entry)

    @property
    def paths(self) -> list[str]:
        return sorted(self._exact)

    def find(self, scope: Scope, record: Record) -> Entry:
        """The entry for a request; notes its path and family in `record`.

        Raises UnknownPath, WrongMethod and, for what Ollama has but the gateway keeps closed, Forbidden.
        """
        path = _canonical(scope)
        record.dialect = family(path)
        entries = self._exact.get(path) or [one for one in self._below if path.startswith(f"{one.path}/")]
        if not entries:
            record.operation = "none"
            raise _nothing_at(path)
        scope["gateway.rest"] = path[len(entries[0].path) + 1 :]
        record.path = entries[0].path
        for entry in entries:
            if scope["method"] in entry.methods:
                record.operation = entry.operation
                return entry
        record.operation = "none"
        allowed = ", ".join(method for entry in entries for method in entry.methods)
        raise WrongMethod(f"{record.path} takes {allowed}", allow=allowed)


def _canonical(scope: Scope) -> str:
    """The path in the table's spelling. Notes the task of a `/t/<task>` prefix in `scope`."""
    parts = [part for part in scope["path"].split("/") if part]
    if len(parts) >= 2 and parts[0] == "t":
        scope["gateway.task"] = parts[1]
        parts = parts[2:]
    return "/" + "/".join(parts)


def family(path: str) -> str:
    """Whose words errors on `path` take."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "ollama" if path == "/api" or path.startswith("/api/") else "openai"


def _nothing_at(path: str) -> Exception:
    if any(path == closed or path.startswith(f"{closed}/") for closed in CLOSED):
        return Forbidden("the gateway keeps Ollama's model management and account routes closed")
    return UnknownPath("there is nothing at this path")
