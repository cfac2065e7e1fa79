"""The configuration as frozen models: every key, its default, and what it means. Reading files is `config.file`.

The models are the reference: the JSON Schema is generated from them, and the shipped routes.yaml holds every key.
Times are seconds, written as a number or "30s", "5m", "1h", "250ms"; sizes are bytes, written as a number or "64MiB".
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address, ip_network
from math import isfinite
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|KB|MB|GB)")
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _duration(value: Any) -> Any:
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise ValueError('must be a time: seconds as a number, or "250ms", "30s", "5m", "1h"')
    return float(match[1]) * _SECONDS[match[2]] if match else value


def _size(value: Any) -> Any:
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise ValueError('must be a size: bytes as a number, or "512KiB", "64MiB", "1GiB"')
    size = float(match[1]) * _BYTES[match[2]] if match else value
    return int(size) if match and isfinite(size) else size  # pydantic says what is wrong with infinity


_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


def _instance_url(value: str) -> str:
    """Scheme and authority only, without a trailing slash or `/v1`: both spellings mean the same Ollama."""
    try:
        parts = urlsplit(value)
    except ValueError:  # its own words would show the password that may be in there
        raise ValueError("must look like http://host:11434") from None
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.hostname or ""):
        raise ValueError("must look like http://host:11434")
    if parts.username or parts.password:
        raise ValueError("must not carry a user name or password")
    if parts.query or parts.fragment or parts.path.rstrip("/") not in ("", "/v1"):
        raise ValueError("must be the address alone: no path but /v1, no query")
    try:
        usable = parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must have a port from 1 to 65535")
    return f"{parts.scheme}://{parts.netloc}"


def _network(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError("must be an address or a network, as in 127.0.0.1 or 127.0.0.0/8") from None


_TIME_SCHEMA = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": rf"^{_DURATION.pattern}$"}]}
_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": rf"^{_SIZE.pattern}$"}]}

Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0, allow_inf_nan=False), WithJsonSchema(_TIME_SCHEMA)]
Network = Annotated[str, AfterValidator(_network)]
Bytes = Annotated[int, BeforeValidator(_size), Field(ge=0), WithJsonSchema(_SIZE_SCHEMA)]
InstanceUrl = Annotated[str, AfterValidator(_instance_url)]
WORD = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
SHA256 = r"^[0-9a-f]{64}$"
Word = Annotated[str, Field(pattern=WORD, max_length=64)]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]

BUILT_IN_TASKS: dict[str, tuple[str, ...]] = {
    "code_generation": ("code_generation", "coding"),
    "code_analysis": ("code_analysis", "coding"),
    "reasoning": ("reasoning",),
    "planning": ("planning", "reasoning"),
    "general_chat": ("general", "conversation"),
    "text_generation": ("text_generation", "general"),
}
DEFAULT_TASK = "general_chat"
GENERAL = ("general", "conversation")  # the capabilities of an instance that may stand in for any other


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class InstanceConfig(Frozen):
    """One Ollama process at one URL."""

    name: Word
    """What logs, metrics and headers call it."""
    url: InstanceUrl
    """Its address, with or without /v1."""
    model: ModelName | None = None
    """The model it uses when a task was asked for. Without it: one that is loaded, else one that is installed."""
    models: tuple[ModelName, ...] | None = None
    """Offer only these of its models. Without it: all it has."""
    capabilities: tuple[Word, ...] = ("general",)
    """What it is good at: the words tasks are matched with."""
    max_concurrent: int = Field(1, ge=1, le=4096)
    """Calls at once; match the instance's OLLAMA_NUM_PARALLEL."""
    max_per_model: int | None = Field(None, ge=1, le=4096)
    """Of these for any one of its models, where it has several in memory. Without it: all, or 1 as Ollama does it."""
    drain: bool = False
    """Finish what runs, take nothing new."""


class Match(Frozen):
    """Which calls a route is for. All that is given must match; a list matches if any of it does."""

    task: tuple[Word, ...] | Word | None = None
    """A task, by name."""
    model: tuple[ModelName, ...] | ModelName | None = None
    """A model, exactly or with * and ?."""
    header: dict[Word, str] | None = None
    """Request headers and the value each must have; * and ? allowed."""


class Target(Frozen):
    """Where a call may go: any mix; all that is given must hold."""

    model: ModelName | None = None
    """This model, on any instance that has it."""
    instance: Word | None = None
    """This instance, by name."""
    capability: Word | None = None
    """Any instance with this capability."""


class RouteTimeouts(Frozen):
    """Limits that replace those of `timeouts` for one route."""

    connect: Seconds | None = None
    """Replaces timeouts.connect."""
    line: Seconds | None = None
    """Replaces timeouts.line."""
    first_token: Seconds | None = None
    """Replaces timeouts.first_token."""
    loading: Seconds | None = None
    """Replaces timeouts.loading."""
    idle: Seconds | None = None
    """Replaces timeouts.idle."""
    total: Seconds | None = None
    """Replaces timeouts.total."""


class RouteConfig(Frozen):
    """A named entry of the routing table: the first whose `match` fits decides."""

    name: Word
    """What headers, logs and metrics call it."""
    match: Match
    """Which calls it is for."""
    to: tuple[Target, ...] = Field(min_length=1)
    """A fallback chain: a later target is asked when no instance of the earlier is healthy, or all of them failed."""
    timeouts: RouteTimeouts = RouteTimeouts()
    """Limits for its calls in place of the general ones."""
    priority: Literal["interactive", "normal", "batch"] | None = None
    """The class of its calls in line. Without it: what kind of call it is decides."""
    cache: Literal["auto", "always", "never"] = "auto"
    """auto: deterministic calls only. always: every finished answer. never: none."""


class Timeouts(Frozen):
    """How long each phase of a call may take."""

    connect: Seconds = 2.0
    """To open a connection to an instance."""
    line: Seconds = 120.0
    """In line, all attempts together."""
    first_token: Seconds = 300.0
    """From sending the request to the first token, where the model is loaded."""
    loading: Seconds = 600.0
    """The same where it still has to be loaded."""
    idle: Seconds = 60.0
    """Between two frames."""
    total: Seconds = 3600.0
    """The whole call."""

    def under(self, route: RouteTimeouts) -> Timeouts:
        """These limits with those of `route` in their place where it gives any."""
        return self.model_copy(update=route.model_dump(exclude_none=True))


class StreamConfig(Frozen):
    """What a waiting client of a stream is sent."""

    hold: Seconds = 10.0
    """Keep the HTTP status back this long for the first token; then commit to 200 and keep the connection alive."""
    keep_alive: Seconds = 15.0
    """Between two keep-alives."""


class LineConfig(Frozen):
    """The line where calls wait for an instance: its bounds, whose turn it is, and when a model is loaded."""

    max_calls: int | None = Field(None, ge=0, le=1_000_000)
    """Calls that may wait. Without it: 8 for every call the instances can take at once, at least 32."""
    max_bytes: Bytes = 256 * 2**20
    """Bodies held by waiting calls, together."""
    max_calls_per_caller: int | None = Field(None, ge=0, le=1_000_000)
    """Calls of one caller that may wait. Without it: three quarters of the line, so that others find a place."""
    max_running_per_caller: int | None = Field(None, ge=1, le=1_000_000)
    """Calls of one caller that may run at once. Without it: as many as there is room for."""
    priority_header: Literal["never", "lower", "any"] = "lower"
    """What a client's X-Priority may do: nothing, put its call into a lower class, or into any."""
    ageing: Seconds = Field(15.0, gt=0)
    """A class of calls that has waited this long without a turn counts as one better, for its next call."""
    hold: Seconds = 60.0
    """How long calls wait for an instance that went away, where no other could serve them."""
    switch_after: Seconds = 45.0
    """When a call has waited this long for a model that is loaded nowhere, an instance gives another up for it. An
    interactive one waits `ageing` less, a batch one as much more."""
    keep_loaded: Seconds = 30.0
    """An instance keeps what it loaded at least this long, or three times the load, if calls wait for it."""
    copy_at: float = Field(2.0, ge=0, le=1000)
    """A model is loaded once more where the work waiting for each copy exceeds this many times the load."""
    drain_grace: Seconds = 30.0
    """At most this long an instance counts as busy with a call whose client left before the first token."""


class RetryConfig(Frozen):
    """What happens when an instance fails before the client has heard anything."""

    attempts: int = Field(3, ge=1, le=10)
    """In all, the first included."""
    budget: float = Field(0.2, ge=0, le=10)
    """Retries earned by each call. Keeps a failing pool from being hit by more retries than calls."""
    reserve: int = Field(10, ge=0, le=10_000)
    """Retries allowed before any were earned. Connections that were refused cost nothing."""
    backoff: Seconds = 0.05
    """Before going back to an instance that was tried: a random time up to this, doubled each time, at most 1 s."""


class HealthConfig(Frozen):
    """How instances are probed."""

    interval: Seconds = Field(5.0, gt=0)
    """Between two probes of one instance, 20 % more or less at random."""
    timeout: Seconds = Field(2.0, gt=0)
    """For one probe."""
    fall: int = Field(3, ge=1)
    """Failures in a row until an instance is taken out."""
    rise: int = Field(2, ge=1)
    """Successes in a row until it is back."""
    catalog: Seconds = Field(15.0, gt=0)
    """Between two looks at the models it has installed and loaded."""


class BreakerConfig(Frozen):
    """When calls that fail take an instance out, whatever its probes say."""

    failures: int = Field(5, ge=1)
    """Failed calls in a row."""
    connects: int = Field(3, ge=1)
    """Failed connections in a row."""
    first_tokens: int = Field(2, ge=1)
    """Calls in a row without a first token in time, though the instance's probes are answered."""
    ratio: float = Field(0.5, gt=0, le=1)
    """This part of the calls of the last `window`, in no row, where there were `calls` or more."""
    calls: int = Field(20, ge=1)
    """The fewest calls of which `ratio` can be told."""
    window: Seconds = Field(30.0, gt=0)
    """How far back `ratio` looks."""
    cooldown: Seconds = 10.0
    """Until one call may try it again; longer each time it fails, 20 % more or less at random."""
    max_cooldown: Seconds = 300.0
    """The longest such pause."""
    slow_start: Seconds = 30.0
    """Tried with success it is given one call at a time, then more, until after this time its limit; 0: at once."""
    busy: Seconds = 5.0
    """An instance that says it is busy is given no more calls for this long than it has, or for as long as it says
    itself, at most 10 s."""


class CacheConfig(Frozen):
    """Answers kept for calls that must give the same answer again."""

    enabled: bool = True
    """False: every call goes to an instance."""
    ttl: Seconds = 24 * 3600.0
    """How long an answer is kept."""
    max_bytes: Bytes = 64 * 2**20
    """All answers together; the least recently used go first."""
    max_entry: Bytes = 2**20
    """One answer; larger ones are not kept."""


class ServerConfig(Frozen):
    """The address the gateway serves, and what it takes from a client."""

    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 for all. A change needs a restart."""
    port: int = Field(8080, ge=0, le=65535)
    """The port to listen on; 0 lets the system choose. A change needs a restart."""
    max_body: Bytes = 64 * 2**20
    """A request body."""
    keep_alive: Seconds = 75.0
    """A client's idle connection."""
    head_timeout: Seconds = 10.0
    """For the head of a request, from its first byte; for the first byte of a new connection."""
    body_timeout: Seconds = 60.0
    """For the body of a request, from the end of its head."""
    body_rate: Bytes = 16 * 2**10
    """A body that takes longer than 10 s must come this fast at least, in bytes a second. 0: any rate."""
    write_stall: Seconds = 30.0
    """How long a client may read nothing of what waits for it."""
    max_connections: int = Field(4096, ge=1, le=1_000_000)
    """Open connections of clients."""
    max_connections_per_address: int = Field(1024, ge=1, le=1_000_000)
    """The same from one address. Those of `trusted_proxies` are not counted."""
    ops_host: str = "127.0.0.1"
    """Where `ops_port` listens. A change needs a restart."""
    ops_port: int | None = Field(None, ge=0, le=65535)
    """Answer /livez, /readyz and /metrics on this port, too, without a key and from a thread of its own. A change needs
    a restart."""
    trusted_proxies: tuple[Network, ...] = ()
    """Addresses or networks whose X-Forwarded-For is believed, as in 127.0.0.0/8."""
    drain_delay: Seconds = 5.0
    """After SIGTERM: not ready, still serving, so that balancers can look away."""
    drain_timeout: Seconds = 300.0
    """After that: for streams in progress to finish."""

    def trusts(self, address: str) -> bool:
        """Whether `address` is that of a trusted proxy."""
        return bool(self.trusted_proxies) and trusted(address, self.trusted_proxies)


@lru_cache(maxsize=4096)
def trusted(address: str, networks: tuple[str, ...]) -> bool:
    """Whether `address` is in one of `networks`. An IPv4 address that came as IPv6 counts as what it is."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    return any(found in ip_network(text) for text in networks)


class KeyConfig(Frozen):
    """Who may call. The key itself is not kept, only its hash."""

    name: Word
    """What logs call its owner."""
    sha256: str = Field(pattern=SHA256)
    """The key's SHA-256 in lower-case hex: `printf %s "$KEY" | sha256sum`."""
    weight: float = Field(1.0, ge=0.01, le=100)
    """Its owner's share of the line, against that of others."""


class AuthConfig(Frozen):
    """Who may call at all. Without keys everybody who reaches the address may."""

    keys: tuple[KeyConfig, ...] = Field((), max_length=1024)
    """Each may make every call."""
    open_lists: bool = False
    """Answer lists and versions without a key: for clients that look for models before they ask for one."""


class CorsConfig(Frozen):
    """Which web pages may call from a browser."""

    origins: tuple[str, ...] = (
        "http://localhost*",
        "https://localhost*",
        "http://127.0.0.1*",
        "https://127.0.0.1*",
        "app://*",
        "file://*",
        "tauri://*",
        "vscode-webview://*",
        "vscode-file://*",
        "null",
    )
    """Origins, with * and ?; what Ollama allows by default. [] allows none, ["*"] all."""


class OpenAIConfig(Frozen):
    """How answers under /v1 are worded."""

    reasoning_content: bool = False
    """Give a model's reasoning as `reasoning_content` too, beside Ollama's `reasoning`."""


class LogConfig(Frozen):
    format: Literal["auto", "text", "json"] = "auto"
    """auto: text on a terminal, JSON otherwise."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is told."""


class Config(Frozen):
    """A whole routes.yaml."""

    instances: tuple[InstanceConfig, ...] = Field(min_length=1, max_length=1024)
    """The Ollamas behind this address."""
    tasks: dict[Word, tuple[Word, ...]] = Field(default_factory=dict, max_length=256)
    """Tasks of your own, or other capabilities for the built-in ones, in order of preference."""
    routes: tuple[RouteConfig, ...] = Field((), max_length=256)
    """The routing table; without one, models and tasks find their instances by themselves."""
    aliases: dict[ModelName, ModelName] = Field(default_factory=dict, max_length=1024)
    """Names clients use, with * and ?, and the model or `auto:<task>` each stands for; the first that fits counts."""
    timeouts: Timeouts = Timeouts()
    stream: StreamConfig = StreamConfig()
    line: LineConfig = LineConfig()
    retry: RetryConfig = RetryConfig()
    health: HealthConfig = HealthConfig()
    breaker: BreakerConfig = BreakerConfig()
    cache: CacheConfig = CacheConfig()
    auth: AuthConfig = AuthConfig()
    cors: CorsConfig = CorsConfig()
    openai: OpenAIConfig = OpenAIConfig()
    server: ServerConfig = ServerConfig()
    log: LogConfig = LogConfig()

    @property
    def all_tasks(self) -> dict[str, tuple[str, ...]]:
        """The built-in tasks and those of the file, each with the capabilities that serve it."""
        return {**BUILT_IN_TASKS, **self.tasks}
