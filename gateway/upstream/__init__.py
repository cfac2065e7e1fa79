"""One Ollama over HTTP: connections of our own, httpx as the interface for everything off the data path."""

from gateway.upstream.probe import Health, InstalledModel, Listing, LoadedModel, Prober
from gateway.upstream.transport import UpstreamTransport, client
from gateway.upstream.upstream import Request, Response, Upstream

__all__ = [
    "Health",
    "InstalledModel",
    "Listing",
    "LoadedModel",
    "Prober",
    "Request",
    "Response",
    "Upstream",
    "UpstreamTransport",
    "client",
]
