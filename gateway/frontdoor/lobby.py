"""Connections that have been quiet for a while, watched by an epoll of ours until they have something to tell.

The event loop takes all that happened on all connections in one turn. Where thousands leave at once, waiting calls or
idle ones, libuv reads the end of each of them (10 us) before anything else has a turn. From here a few go on at a time,
and it is only then that they are read; more of them where a turn is long of other work, or a busy gateway would take
too few new calls. Nothing is paid for this by who is not quiet.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import Protocol as Shape

AT_A_TURN = 8  # that go on in one turn of the loop; to refuse so many calls takes two milliseconds, to end them one

TURN = 0.005  # seconds: as many more go on for each of these that the last turn took
MOST = 64  # in one turn, however long the last one was

_SOMETHING = select.EPOLLIN | select.EPOLLRDHUP if hasattr(select, "epoll") else 0  # elsewhere than on Linux: no lobby


class Quiet(Shape):
    """A connection that can be made to wait."""

    descriptor: int

    def pause(self) -> None:
        """Read nothing from now on."""

    def resume(self) -> None:
        """Read again."""


class Lobby:
    """Has a descriptor of its own while somebody is in it."""

    def __init__(self) -> None:
        self._inside: dict[int, Quiet] = {}
        self._epoll: select.epoll | None = None
        self._let_at = 0.0  # loop time of the last turn in which some went on
        self._more = False  # were left then

    def __contains__(self, one: Quiet) -> bool:
        return self._inside.get(one.descriptor) is one

    def enter(self, one: Quiet) -> None:
        if not _SOMETHING or one in self:
            return
        with contextlib.suppress(OSError):  # no descriptor left, or the connection is gone: it stays where it is
            epoll = self._epoll or self._open()
            epoll.register(one.descriptor, _SOMETHING)
            self._inside[one.descriptor] = one
            one.pause()
        self._close_if_empty()

    def leave(self, one: Quiet) -> None:
        """It is gone. Idempotent."""
        if one in self:
            self._forget(one.descriptor)

    def _open(self) -> select.epoll:
        self._epoll = select.epoll()
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._let_some_go_on)
        return self._epoll

    def _let_some_go_on(self) -> None:
        now = asyncio.get_running_loop().time()
        turn = now - self._let_at if self._more else 0.0
        some = min(MOST, AT_A_TURN * (1 + int(turn / TURN)))
        going = self._epoll.poll(0, some) if self._epoll else ()
        self._let_at, self._more = now, len(going) == some
        for descriptor, _ in going:
            one = self._inside.get(descriptor)
            self._forget(descriptor)
            if one is not None:
                one.resume()

    def _forget(self, descriptor: int) -> None:
        self._inside.pop(descriptor, None)
        if self._epoll is not None:
            with contextlib.suppress(OSError):  # the kernel forgets it with its last descriptor
                self._epoll.unregister(descriptor)
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._epoll is not None and not self._inside:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
