"""httpx over our own connections: the interface for probes, lists and management, never for the data path.

httpx is imported here and nowhere else, so that its maintained fork could take its place in one line. Its own pool
leaks sockets on cancellation (faults.md §0.1) and is not used; nothing here keeps a cookie, follows a redirect, reads
proxy settings from the environment, or reaches any other address than the one instance's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
from httpx import AsyncClient, HTTPError

from gateway.errors import BadAnswer, ConnectFailed, ConnectionLost, UpstreamError
from gateway.upstream.upstream import OURS, Request, Response, Upstream

__all__ = ["AsyncClient", "HTTPError", "UpstreamTransport", "client"]

_NO_LIMIT = 3600.0  # seconds; what "no timeout" means here, since nothing is unbounded
_HOP_BY_HOP = OURS | {b"keep-alive", b"te", b"trailer", b"upgrade", b"proxy-authorization", b"proxy-connection"}


def client(upstream: Upstream) -> AsyncClient:
    """A client for paths of one instance (`client.get("/api/tags")`). Closing it leaves `upstream` open."""
    return AsyncClient(
        transport=UpstreamTransport(upstream),
        base_url=upstream.url,
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),
        trust_env=False,
        follow_redirects=False,
    )


class UpstreamTransport(httpx.AsyncBaseTransport):
    """One `Upstream` as httpx sees it. Of the timeouts `connect` and `read` count; there is no pool to wait for.

    Our errors become httpx's, with ours as the cause.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._address = _address(httpx.URL(upstream.url))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if _address(request.url) != self._address:
            raise httpx.ConnectError("this client reaches one instance only", request=request)
        limits = request.extensions.get("timeout", {})
        read = _seconds(limits.get("read"))
        try:
            ours = Request(
                method=request.method.encode("ascii"),
                path=request.url.raw_path,
                headers=tuple((name, value) for name, value in request.headers.raw if name.lower() not in _HOP_BY_HOP),
                body=await request.aread(),
            )
            response = await self._upstream.open(ours, connect=_seconds(limits.get("connect")), first=read)
        except UpstreamError as error:
            raise _as_httpx(error, request) from error
        except ValueError as error:
            raise httpx.LocalProtocolError(str(error), request=request) from error
        response.spoke(read)
        return httpx.Response(
            response.status, headers=list(response.headers), stream=_Body(response, request), request=request
        )


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: Response, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while data := await self._response.read():
                yield data
        except UpstreamError as error:
            raise _as_httpx(error, self._request) from error

    async def aclose(self) -> None:
        self._response.close()


def _address(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _seconds(limit: float | None) -> float:
    return _NO_LIMIT if limit is None else limit


def _as_httpx(error: UpstreamError, request: httpx.Request) -> httpx.TransportError:
    kind: type[httpx.TransportError] = httpx.ReadTimeout
    if isinstance(error, ConnectFailed):
        kind = httpx.ConnectTimeout if isinstance(error.__cause__, TimeoutError) else httpx.ConnectError
    elif isinstance(error, ConnectionLost):
        kind = httpx.ReadError
    elif isinstance(error, BadAnswer):
        kind = httpx.RemoteProtocolError
    return kind(error.message, request=request)
