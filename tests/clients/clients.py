"""The clients, one entry each: how its program is started and what its user is told when things go wrong."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
UNWATCHED = ("whole", "stream", "tools", "embed", "models", "missing", "cut", "silence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """`missing`, `cut` and `busy` are the type, the status and a part of the text of what it raises then."""

    name: str
    file: str
    missing: tuple[str, int | None, str]
    cut: tuple[str, int | None, str]
    busy: tuple[str, int | None, str]
    posts: int  # what one call of its user becomes when the answer is always 429
    lacks: tuple[str, ...] = ()  # scenarios it has no words for
    more: tuple[str, ...] = ()  # scenarios only it has

    @property
    def command(self) -> tuple[str, ...]:
        if self.file.endswith(".mjs"):
            return ("node", str(PROGRAMS / self.file))
        return (sys.executable, "-m", f"tests.clients.programs.{self.file.removesuffix('.py')}")

    @property
    def scenarios(self) -> tuple[str, ...]:
        return tuple(name for name in (*UNWATCHED, *self.more) if name not in self.lacks)


GONE = "not found"
SHORT = "cut its answer short"
FULL = "line"

OPENAI = Client(
    name="openai",
    file="openai_sync.py",
    missing=("NotFoundError", 404, GONE),
    cut=("APIError", None, SHORT),
    busy=("RateLimitError", 429, FULL),
    posts=3,
    more=("responses", "completions", "alias"),
)
OPENAI_ASYNC = Client(
    name="openai-async",
    file="openai_async.py",
    missing=("NotFoundError", 404, GONE),
    cut=("APIError", None, SHORT),
    busy=("RateLimitError", 429, FULL),
    posts=3,
)
OPENAI_NODE = Client(
    name="openai-node",
    file="openai.mjs",
    missing=("NotFoundError", 404, GONE),
    cut=("APIError", None, SHORT),
    busy=("RateLimitError", 429, FULL),
    posts=3,
    more=("responses", "impatient"),
)
AI_SDK = Client(
    name="ai-sdk",
    file="ai_sdk.mjs",
    missing=("APICallError", 404, GONE),
    cut=("Error", None, SHORT),
    busy=("RetryError", None, FULL),
    posts=3,
    lacks=("models",),
    more=("impatient",),
)
OLLAMA = Client(
    name="ollama",
    file="ollama_python.py",
    missing=("ResponseError", 404, GONE),
    cut=("ResponseError", -1, SHORT),
    busy=("ResponseError", 429, FULL),
    posts=1,
    more=("generate", "show", "loaded", "hurry"),
)
OLLAMA_NODE = Client(
    name="ollama-node",
    file="ollama.mjs",
    missing=("ResponseError", 404, GONE),
    cut=("Error", None, SHORT),
    busy=("ResponseError", 429, FULL),
    posts=1,
    more=("show", "loaded", "version"),
)
ANTHROPIC = Client(
    name="anthropic",
    file="anthropic_sync.py",
    missing=("NotFoundError", 404, GONE),
    cut=("APIStatusError", 200, SHORT),
    busy=("RateLimitError", 429, FULL),
    posts=3,
    lacks=("embed",),
    more=("alias", "count"),
)
LANGCHAIN_OPENAI = Client(
    name="langchain-openai",
    file="langchain_with_openai.py",
    missing=("OpenAIModelNotFoundError", 404, GONE),
    cut=("APIError", None, SHORT),
    busy=("OpenAIRateLimitError", 429, FULL),
    posts=3,
    lacks=("models",),
)
LANGCHAIN_OLLAMA = Client(
    name="langchain-ollama",
    file="langchain_with_ollama.py",
    missing=("ResponseError", 404, GONE),
    cut=("ResponseError", -1, SHORT),
    busy=("ResponseError", 429, FULL),
    posts=1,
    lacks=("models",),
    more=("unlisted",),
)
LLAMA_INDEX = Client(
    name="llama-index",
    file="llama_index_ollama.py",
    missing=("ResponseError", 404, GONE),
    cut=("ResponseError", -1, SHORT),
    busy=("ResponseError", 429, FULL),
    posts=1,
    lacks=("embed", "models"),
    more=("context",),
)
LLM = Client(
    name="llm",
    file="llm_command.py",
    missing=("CommandError", None, "Unknown model"),
    cut=("CommandError", None, SHORT),
    busy=("CommandError", None, FULL),
    posts=1,
    lacks=("tools", "silence"),
)

CLIENTS = (
    OPENAI,
    OPENAI_ASYNC,
    OPENAI_NODE,
    AI_SDK,
    OLLAMA,
    OLLAMA_NODE,
    ANTHROPIC,
    LANGCHAIN_OPENAI,
    LANGCHAIN_OLLAMA,
    LLAMA_INDEX,
    LLM,
)
