"""What the kernel says of processes: their time, their memory, and where they may run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0))
CONTENDER = CORES[:1] if len(CORES) > 1 else CORES  # what is measured has a core to itself
REST = CORES[1:2] or CORES  # the instance behind it and the callers before it share another
NICE = -10
_libc = ctypes.CDLL(None)
_PDEATHSIG = 1


def tree(pid: int) -> list[int]:
    """The process and all that it started."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu(pids: Iterable[int]) -> int:
    """Nanoseconds of processor time so far, all threads."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # that thread ended just now
                total += int((task / "schedstat").read_text().split()[0])
    return total


def memory(pids: Iterable[int]) -> int:
    """Bytes that they hold in proportion: what several share is divided among them."""
    total = 0
    for pid in pids:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(row.split()[1]) for row in rows if row.startswith("Pss:")) * 1024
    return total


def resident(pid: int) -> int:
    """Bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(cores: list[int]) -> None:
    """In a process about to become one of ours: it has its cores, and ends when we do, however that comes about."""
    pin(cores)
    _libc.prctl(_PDEATHSIG, signal.SIGTERM)


def pin(cores: list[int]) -> None:
    """This process, and what it starts from now on."""
    os.sched_setaffinity(0, cores)


def alone(pids: Iterable[int], *, wanted: bool = True) -> None:
    """Nothing else runs on their core while they have something to do. Raises PermissionError."""
    policy, priority = (os.SCHED_RR, 1) if wanted else (os.SCHED_OTHER, 0)
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(task.name), policy, os.sched_param(priority))


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Before other work on this machine, where that is allowed: times then say less of it.

    Where the kernel groups processes by session it is the session that must be first; it is put back afterwards.
    """
    group = Path("/proc/self/autogroup")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    before = None
    with contextlib.suppress(OSError):
        before = group.read_text().split()[-1]
        group.write_text(str(NICE))
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                group.write_text(before)


def many_files() -> None:
    """As many descriptors as we may have; some systems begin with a thousand."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def pressure() -> str:
    """How much others wanted the processors, as the kernel puts it."""
    with contextlib.suppress(OSError):
        return Path("/proc/pressure/cpu").read_text().splitlines()[0]
    return "unknown"
