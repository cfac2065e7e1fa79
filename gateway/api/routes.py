"""The whole public surface as one table, and how a path finds its entry.

Paths are compared after `//` and a trailing slash are taken out, the prefixes `/k/<key>` and `/t/<task>` are taken
off, and a base URL that was doubled, mixed or cut short is put right; nothing is ever redirected, and no path of the
client's is sent upstream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.call import Operation, Record
from gateway.dialects import anthropic, facade, facade_or_ollama, ollama, openai, responses
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


Choose = Callable[[bytes], Operation]


def inference(make: Callable[[Operation | Choose], ASGIApp]) -> Iterable[Entry]:
    """The paths that ask a model for something; `make` builds the endpoint for the operation that a body asks for, or
    for the only one there is.
    """
    own_path: tuple[Operation, ...] = (
        openai.CHAT,
        openai.COMPLETIONS,
        openai.EMBEDDINGS,
        openai.TRANSCRIPTIONS,
        responses.RESPONSES,
        anthropic.MESSAGES,
        ollama.GENERATE,
        ollama.EMBED,
        ollama.EMBEDDINGS,
    )
    for operation in own_path:
        yield _inference(operation, make)
    yield Entry(path="/api/chat", methods=POST, operation=facade.CHAT.name, endpoint=make(facade_or_ollama))


def _inference(operation: Operation, make: Callable[[Operation | Choose], ASGIApp]) -> Entry:
    return Entry(path=operation.path, methods=POST, operation=operation.name, endpoint=make(operation))


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

    def find(self, path: str, scope: Scope, record: Record) -> Entry:
        """The entry for a request to `path`, as `locate` gives it; notes it in `record`.

        Raises UnknownPath, WrongMethod and, for what Ollama has but the gateway keeps closed, Forbidden.
        """
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


def locate(scope: Scope, record: Record) -> str:
    """The path in the table's spelling; notes its family in `record`.

    Notes the key of a prefix `/k/<key>` and the task of `/t/<task>` in `scope`, one each in either order, and leaves no
    other trace of the key there.
    """
    if (asked := _AS_IT_IS.get(scope["path"])) is not None:
        record.dialect = asked
        return str(scope["path"])
    parts = [part for part in scope["path"].split("/") if part]
    while len(parts) >= 2 and (name := _PREFIXES.get(parts[0])) is not None and name not in scope:
        scope[name] = parts[1]
        parts = parts[2:]
    path = "/" + "/".join(_repaired(parts))
    if "gateway.key" in scope:
        scope["path"], scope["raw_path"] = path, quote(path, errors="replace").encode()
    record.dialect = family(path)
    return path


_PREFIXES = {"k": "gateway.key", "t": "gateway.task"}
_DOUBLED = (["v1", "v1"], ["api", "api"], ["v1", "api"])
_UNDER_V1 = frozenset({"chat", "completions", "embeddings", "models", "responses", "messages"})


def _repaired(parts: list[str]) -> list[str]:
    """What was meant where a base URL had a `/v1` or `/api` too many or none; `/v1` alone is `/` (clients.md §9 A)."""
    if parts[:2] in _DOUBLED:
        parts = parts[1:]
    if parts == ["v1"]:
        return []
    return ["v1", *parts] if parts and parts[0] in _UNDER_V1 else parts


def family(path: str) -> str:
    """Whose words errors on `path` take."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "ollama" if path == "/api" or path.startswith("/api/") else "openai"


def _nothing_at(path: str) -> Exception:
    if any(path == closed or path.startswith(f"{closed}/") for closed in CLOSED):
        return Forbidden("the gateway keeps Ollama's model management and account routes closed")
    return UnknownPath("there is nothing at this path")


# The paths that are asked most, which are in no need of repair, with their families.
_AS_IT_IS = {one: family(one) for one in ("/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/api/chat")}
