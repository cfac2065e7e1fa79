"""Without a file left to open, no instance is to blame, however its address is written."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from gateway.errors import ConnectFailed, Exhausted
from gateway.upstream import Prober, Request, Upstream
from tests.upstream.scripted import NO_SUCH_NAME


@contextmanager
def no_files_left() -> Iterator[None]:
    """This process has as many files open as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            os.close(one)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"])
async def test_no_connection_for_want_of_files_is_the_gateways_own_fault(address: str) -> None:
    upstream = Upstream("alpha", address)
    with no_files_left(), pytest.raises(Exhausted) as raised:
        await upstream.open(Request(b"GET", b"/"), connect=5, first=5)
    assert (raised.value.status, raised.value.counts, raised.value.failover) == (503, False, False)
    with no_files_left(), pytest.raises(Exhausted):
        await Prober(upstream).health(5)
    with pytest.raises(ConnectFailed, match="instance alpha: connection refused"):
        await upstream.open(Request(b"GET", b"/"), connect=5, first=5)
    upstream.close()


async def test_nor_is_a_name_to_blame_that_could_not_be_looked_up_for_want_of_files() -> None:
    upstream = Upstream("alpha", f"http://{NO_SUCH_NAME}:1")
    with no_files_left(), pytest.raises(Exhausted):
        await upstream.open(Request(b"GET", b"/"), connect=5, first=5)
    with pytest.raises(ConnectFailed, match="its name does not resolve"):
        await upstream.open(Request(b"GET", b"/"), connect=5, first=5)
    upstream.close()
