"""Clients that leave, or do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from gateway.frontdoor import Protocol
from tests.house import House, Wire, request

WAYS = ("fin", "rst", "half")


def leave(wire: Wire, way: str) -> None:
    """Close the connection by FIN or by RST, or (half) only the side that sends."""
    sock = wire.writer.get_extra_info("socket")
    if way == "rst":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        sock.shutdown(socket.SHUT_WR)
    if way != "half":
        wire.leave()


@asynccontextmanager
async def slow(house: House, body: dict[str, Any]) -> AsyncIterator[Wire]:
    """A client that has asked and reads nothing yet, with as little room on the way as the kernel allows."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, house.address)
    connections = cast(set[Protocol], house.server.server_state.connections)
    port = sock.getsockname()[1]
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    wire = Wire(reader, writer)
    try:
        await house.until(lambda: port in {one.client[1] for one in connections if one.client})
        (ours,) = (one for one in connections if one.client and one.client[1] == port)
        assert ours.transport is not None
        ours.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        await wire.send(request("/v1/chat/completions", json.dumps(body).encode()))
        yield wire
    finally:
        wire.leave()
