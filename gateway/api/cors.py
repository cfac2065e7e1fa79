"""Which web pages may call from a browser, and what a browser has to be told so that it lets them.

The gateway never asks for credentials of a browser's own (cookies), so an origin that is allowed is named and that is
all. What a preflight asks for is echoed: fixed lists of headers rot with every release of an SDK (clients.md §7).
"""

from __future__ import annotations

import re

from gateway.config import CorsConfig
from gateway.errors import Forbidden
from gateway.wire import Headers

MAX_ORIGIN = 512  # bytes
MAX_AGE = 3600  # seconds a browser may remember a preflight
METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
EXPOSED = (
    b"x-request-id, request-id, retry-after, retry-after-ms, x-should-retry, server-timing, cache-status, "
    b"x-gateway-instance, x-gateway-model, x-gateway-route, x-gateway-task, x-gateway-attempts, "
    b"x-gateway-line, x-gateway-substituted"
)

_ORIGIN = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_ORIGIN)  # what browsers send is ASCII, and we echo it
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,4096}")
_OTHER_PAGES = frozenset({b"cross-site", b"same-site"})


class Cors:
    """The origins of one configuration."""

    def __init__(self, config: CorsConfig) -> None:
        self._allowed = re.compile("|".join(f"(?:{_pattern(origin)})" for origin in config.origins) or r"(?!)")

    def allows(self, origin: bytes) -> bool:
        return _ORIGIN.fullmatch(origin) is not None and bool(self._allowed.fullmatch(origin.decode("ascii").lower()))

    def headers(self, origin: bytes) -> Headers:
        """What every answer to a request from `origin` carries."""
        vary = (b"vary", b"Origin")
        if not self.allows(origin):
            return [vary]
        return [vary, (b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]

    def admit(self, origin: bytes, fetch_site: bytes) -> None:
        """Turn away what a browser sends for a page that may not call. Raises Forbidden.

        A browser hides the answer from such a page, but has sent the call by then, and a POST of plain text goes out
        without a preflight: any page could keep the instances busy. Programs that send an Origin are not browsers.
        """
        if fetch_site in _OTHER_PAGES and not self.allows(origin):
            raise Forbidden("pages of this origin may not call (cors.origins)")

    def preflight(self, origin: bytes, headers: bytes, private_network: bytes) -> Headers:
        """What OPTIONS is answered with, beside `headers`: all that was asked for, to an origin that is allowed."""
        if not self.allows(origin):
            return []
        found = [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", b"%d" % MAX_AGE)]
        if _HEADER_NAMES.fullmatch(headers):
            found.append((b"access-control-allow-headers", headers))
        if private_network == b"true":
            found.append((b"access-control-allow-private-network", b"true"))
        return found


def _pattern(origin: str) -> str:
    """A regular expression for an origin with * and ?.

    A `*` right after a host's name stands for a port and nothing else: `http://localhost*` must not allow
    `http://localhost.evil.example`.
    """
    origin = origin.lower()
    port = len(origin) > 1 and origin.endswith("*") and (origin[-2].isalnum() or origin[-2] == "]")
    shape = re.escape(origin[:-1] if port else origin).replace(r"\*", ".*").replace(r"\?", ".")
    return shape + (r"(?::[0-9]{1,5})?" if port else "")
