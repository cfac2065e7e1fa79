"""Who is calling: the owner of the key a request brought. Without keys configured everybody is welcome, unnamed.

Only SHA-256 digests are known here, and all of them are compared each time, so the time taken tells nothing of any.
A key is never kept, logged, or sent on; its owner's name is what the rest of the house knows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_address
from itertools import islice

from starlette.types import Scope

from gateway.config import AuthConfig, ServerConfig
from gateway.errors import Unauthenticated

MAX_KEY = 512  # bytes; more is refused before it is hashed
MAX_BASIC = 2 * MAX_KEY * 4 // 3 + 8  # bytes of Base64 for two such keys and the colon
MAX_TRIED = 8  # keys of one request
MAX_HOPS = 16  # of X-Forwarded-For
PLACES = 1024  # for callers without a key

_OPEN = frozenset({"/", "/livez", "/readyz"})
_LISTS = frozenset({"/v1/models", "/api/tags", "/api/version", "/api/ps", "/api/chat/models"})
_NOBODYS = bytes(32)

RawHeaders = Iterable[tuple[bytes, bytes]]


class Keys:
    """The keys of one configuration. False where there are none."""

    def __init__(self, config: AuthConfig) -> None:
        self._known = tuple((key.name, bytes.fromhex(key.sha256)) for key in config.keys)
        self._open_lists = config.open_lists

    def __bool__(self) -> bool:
        return bool(self._known)

    def needed(self, method: str, path: str) -> bool:
        """Whether a request needs a key; `path` as the table spells it. Everything does that is not named here."""
        if not self._known:
            return False
        if method not in ("GET", "HEAD"):
            return not (self._open_lists and (method, path) == ("POST", "/api/show"))
        is_list = path in _LISTS or path.startswith("/v1/models/")
        return not (path in _OPEN or (self._open_lists and is_list))

    def owner(self, headers: RawHeaders, in_path: str = "") -> str:
        """The name of whoever's key was brought: the first known one in the order of `brought`.

        Raises Unauthenticated.
        """
        keys = list(islice(brought(headers, in_path), MAX_TRIED))
        for key in keys:
            name = self._whose(hashlib.sha256(key).digest()) if len(key) <= MAX_KEY else ""
            if name:
                return name
        if not keys:
            self._whose(_NOBODYS)  # so that bringing none takes no less time
        why = "this API key is not known here" if keys else "an API key is needed"
        raise Unauthenticated(f"{why}: send it as Authorization: Bearer, as x-api-key, or in front of the path, /k/…")

    def _whose(self, digest: bytes) -> str:
        found = ""
        for name, known in self._known:
            if hmac.compare_digest(known, digest) and not found:
                found = name
        return found


def client_address(scope: Scope, server: ServerConfig) -> str:
    """Where a request comes from: the peer, or, where that is a trusted proxy, the last hop it names that is not one.

    What stands before that hop in X-Forwarded-For was written by the client, whoever it says it is.
    """
    client = scope.get("client")
    address: str = client[0] if client else ""
    if not server.trusts(address):
        return address
    told = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    for hop in map(str.strip, reversed(told.decode("latin-1").split(",")[-MAX_HOPS:])):
        if not _is_address(hop):
            break
        address = hop
        if not server.trusts(hop):
            break
    return address


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def caller(scope: Scope, server: ServerConfig) -> str:
    """Whose share of the line a request takes: the key's owner, else one of a fixed number of places by address.

    Neither can be made up by a client, and there are only so many: nothing they send makes the line remember more. An
    IPv6 host has a network of its own, so its first 64 bits count. Behind a proxy that is not
    trusted all share its address.
    """
    owner: str | None = scope.get("gateway.caller")
    return owner or f"@{_place(client_address(scope, server))}"


@lru_cache(maxsize=4096)
def _place(address: str) -> int:
    try:
        found = ip_address(address)
    except ValueError:  # a Unix socket, or a name that a test gave
        network = address.encode("utf-8", "replace")
    else:
        network = found.packed[:8] if found.version == 6 and found.ipv4_mapped is None else found.packed[-4:]
    return int.from_bytes(hashlib.blake2b(network, digest_size=4).digest()) % PLACES


def brought(headers: RawHeaders, in_path: str = "") -> Iterator[bytes]:
    """All keys a request holds: Bearer, Basic (password, then user), x-api-key, api-key, the path's. None is empty.

    Several are no mistake: clients send a placeholder they cannot be talked out of beside the key in the path
    (clients.md §6).
    """
    sent = list(headers)
    told = [value.strip().partition(b" ") for name, value in sent if name == b"authorization"]
    yield from (key.strip() for scheme, _, key in told if scheme.lower() == b"bearer" and key.strip())
    yield from (part for scheme, _, key in told if scheme.lower() == b"basic" for part in _basic(key.strip()))
    for wanted in (b"x-api-key", b"api-key"):
        yield from (value.strip() for name, value in sent if name == wanted and value.strip())
    if in_path:
        yield in_path.encode("utf-8", "replace")


def _basic(value: bytes) -> list[bytes]:
    """Password and user where there are any; [] for what is no Base64 or too long to hold a key."""
    if len(value) > MAX_BASIC:
        return [value]  # too long for a key as well, so it is refused as one
    try:
        user, _, password = base64.b64decode(value, validate=True).partition(b":")
    except binascii.Error:
        return []
    return [part for part in (password, user) if part]
