"""The words all rooms share: a call, the operation it asks for, where it may go, what came back.

Nothing here does I/O or knows a wire format; `gateway.dialects` implements `Operation` and `Reader`. What each call
makes anew is a msgspec `Struct`: a frozen dataclass takes ten times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, Protocol

from msgspec import Struct

from gateway.errors import GatewayError

AUTO = "auto"  # the virtual model: choose by task
JSON = b"application/json"

_REGISTRY = "registry.ollama.ai"
_SOURCES = ("cloud", "local")


@lru_cache(maxsize=4096)
def model_key(name: str) -> str:
    """The one spelling under which a model name is compared: `x`, `X:latest` and `library/x` are the same.

    Follows Ollama's `types/model/name.go` (ollama.md §5): host, namespace and tag have defaults, case is folded,
    and a `cloud`/`local` source suffix is kept apart. The client's own spelling still goes upstream.
    """
    rest, source = _split_source(name.strip())
    slash = rest.rfind("/")
    colon = rest.rfind(":")
    path, tag = (rest[:colon], rest[colon + 1 :]) if colon > slash else (rest, "latest")
    parts = [part for part in path.split("/") if part]
    if len(parts) == 3 and parts[0].casefold() == _REGISTRY:
        parts = parts[1:]
    if len(parts) == 2 and parts[0].casefold() == "library":
        parts = parts[1:]
    return ("/".join(parts) + f":{tag or 'latest'}" + (f"@{source}" if source else "")).casefold()


def _split_source(name: str) -> tuple[str, str]:
    head, colon, last = name.rpartition(":")
    if not colon or "/" in last:
        return name, ""
    if last.casefold() in _SOURCES:
        return head, last.casefold()
    if last.casefold().endswith("-cloud"):
        return name[: -len("-cloud")], "cloud"
    return name, ""


class Priority(IntEnum):
    """The classes of calls in line; the lower goes first."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2


class Usage(NamedTuple):
    """Tokens as the instance counted them."""

    input: int
    output: int


class Frame(Struct, frozen=True, gc=False):
    """One SSE event or one NDJSON line. `raw` is what the client gets: the bytes that came, or b"" to hide it."""

    raw: bytes
    content: bool = False  # the model has spoken: text, reasoning, a tool call, a vector
    last: bool = False  # the stream's own end marker
    error: str = ""  # an in-band failure, in words


class Reply(Struct, frozen=True):
    """A finished answer: the body as the client gets it."""

    body: bytes
    usage: Usage | None = None
    content_type: bytes = JSON


class Reader(Protocol):
    """Cuts one upstream stream into frames; the same frames however the bytes were cut."""

    @property
    def complete(self) -> bool:
        """True once the stream's own end marker was seen. Only then is an end of file an end."""

    @property
    def usage(self) -> Usage | None:
        """What the instance reported, once it has."""

    @property
    def keep_alive(self) -> bytes:
        """Bytes that may be sent between the frames read by now without meaning anything."""

    def plain(self, data: bytes) -> bytes:
        """What is to go on for `data` where a look shows that it is one frame with content of which nothing else has to
        be known, as most are; b"" where it is to be fed.
        """

    def feed(self, data: bytes) -> list[Frame]:
        """Whole frames made complete by `data`, in order. Raises ValueError for a frame beyond the size limit."""

    def failure(self, error: GatewayError, request_id: str) -> bytes:
        """The last a client hears of a stream that broke after what was read: never an end marker (D7)."""


class Operation(Protocol):
    """One thing a client can ask for, in one dialect: how it is read, sent on, and answered. Stateless."""

    @property
    def name(self) -> str:
        """`chat`, `completions`, `embeddings`, `generate`: a closed set, used as metric label."""

    @property
    def dialect(self) -> str:
        """`openai`, `ollama`, `facade`: the family whose shape errors take."""

    @property
    def path(self) -> str:
        """The constant path asked of the instance. Never the client's."""

    @property
    def native(self) -> bool:
        """True where only an instance with Ollama's own API can answer."""

    @property
    def stream_type(self) -> bytes:
        """Content-Type of a streamed answer."""

    def read(self, body: bytes) -> Wish:
        """Understand a body. Raises InvalidCall."""

    def write(self, call: Call, model: str) -> bytes:
        """The body to send upstream so that `model` answers `call`."""

    def reader(self, call: Call) -> Reader:
        """A fresh reader for one streamed answer."""

    def reply(self, call: Call, model: str, body: bytes, seconds: float) -> Reply:
        """A finished upstream body as the client gets it. Raises ValueError where it is not a whole answer."""


class Wish(Struct, frozen=True, kw_only=True):
    """What a body asks for: all that routing needs, and nothing that is only the model's business."""

    model: str = ""  # as the client spelt it; "" when none was named
    task: str = ""  # the body's own word for it, where the dialect has one
    stream: bool = False
    needs: frozenset[str] = frozenset()  # capabilities a model must have: tools, vision, embedding
    priority: Priority = Priority.NORMAL  # what kind of call it is, for the line
    deterministic: bool = False  # temperature 0 or a seed, and embeddings: may be answered from the cache
    wants_usage: bool = False  # the client asked for token counts in the stream
    content_type: bytes = JSON  # of the body, as the instance is told
    # What tells this conversation from others: the body's own name for it, else a digest of what its turns begin with;
    # "" where nothing does. Text of the client's: never logged, never a label.
    conversation: str = ""

    def __repr__(self) -> str:
        return f"<a wish for {self.model or self.task or AUTO}>"


class Call(Struct, frozen=True, kw_only=True):
    """One inference in neutral form, fixed once it was read."""

    request_id: str
    operation: Operation
    wish: Wish
    body: bytes  # as the client sent it; never logged
    arrived: float = 0.0  # loop time, seconds
    task: str = ""  # as named by the first of these that names one; "" when none does
    task_from: str = ""  # header, path, alias, query or body
    model: str = ""  # without the alias; "" means choose by task
    headers: Mapping[str, str] = {}  # only those a route matches on
    conversation: str = ""  # what the client calls it; "" where it does not
    agent: str = ""  # the client's User-Agent: Ollama answers some clients differently (ollama.md §2.6)
    trace: str = ""  # the client's traceparent, as it came: whoever collects traces sees the instance's part in it
    caller: str = ""  # whose share of the line it takes; from a closed set
    priority: Priority | None = None  # as the client asked; None where it did not
    deadline: float | None = None  # loop time by which the client wants its answer; None where it does not say
    no_store: bool = False
    reasoning_content: bool = False  # reasoning goes under this name, too (config: openai.reasoning_content)

    def __repr__(self) -> str:
        return f"<call {self.request_id}: {self.wish!r}>"


class Candidate(Struct, frozen=True, kw_only=True):
    """A concrete instance and model for this call, now. Lower tiers are asked first; `rank` breaks ties within one.

    `model` is spelt as the instance or the configuration spells it, so that it may be a label; `spelt` is how it is
    sent upstream, the client's own spelling where it named this model.
    """

    instance: str
    model: str
    spelt: str = ""
    tier: int = 0
    rank: int = 0
    reason: str = ""
    substitution: str = ""  # what the client did not ask for, in words; "" when it gets just that


class Plan(Struct, frozen=True, kw_only=True):
    """Candidates in order, each with its reason, and why the others are not among them."""

    route: str
    task: str
    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()  # (instance, why)


@dataclass(slots=True, kw_only=True)
class Record:
    """What happened to one HTTP request, written by whoever knows and read once at its end, for log and metrics."""

    request_id: str
    arrived: float
    method: str = ""
    path: str = ""  # the route table's own path, never the client's
    dialect: str = "openai"
    operation: str = ""
    stream: bool = False
    asked: str = ""  # the model as the client spelt it
    task: str = ""
    route: str = ""
    model: str = ""  # the model that answered
    instance: str = ""
    substitution: str = ""
    attempts: int = 0
    waited: float = 0.0  # seconds in line, all attempts together
    position: int = 0  # its place in line when it came, counted from 1; 0 where it did not wait
    line_reason: str = ""  # why it waited, in words
    upstream: float = 0.0  # seconds from sending to the end, the attempt that answered
    first_token: float | None = None  # seconds from arrival
    tokens_span: float = 0.0  # seconds from the first to the last content frame
    usage: Usage | None = None
    cache: str = ""  # hit, miss, bypass, collapsed
    status: int = 0
    reason: str = ""  # why it failed: the error's closed-set word
    interrupted: bool = False  # broken after the first byte
