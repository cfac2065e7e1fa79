"""Where figures go: marked places of docs/performance.md, written by the commands that measured them."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sysconfig
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.hotpath import kernel

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
PACKAGES = ("uvicorn", "uvloop", "httptools", "starlette", "httpx", "msgspec", "prometheus-client")


def write(place: str, text: str) -> None:
    """Between `<!-- place -->` and the next `<!-- end -->`."""
    page, mark = PAGE.read_text(), f"<!-- {place} -->\n"
    before, found, rest = page.partition(mark)
    assert found, f"{PAGE} has no place for {place}"
    _, _, after = rest.partition("<!-- end -->")
    PAGE.write_text(f"{before}{mark}{text}\n<!-- end -->{after}")


def environment(**others: str) -> str:
    """What the figures depend on, in one paragraph."""
    told = [
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}",
        f"commit {_commit()}",
        f"{len(kernel.CORES)} cores ({_processor()}), Linux {'.'.join(platform.release().split('.')[:2])}",
        f"CPython {platform.python_version()} {build()}",
        *(f"{name} {_version(name)}" for name in PACKAGES),
        *(f"{name} {value}" for name, value in others.items() if value),
    ]
    return ", ".join(told) + f". Others wanted the processors at its end: {kernel.pressure()}."


def build() -> str:
    made = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return "with PGO" if "--enable-optimizations" in made else "without PGO"


def _version(name: str) -> str:
    with suppress(PackageNotFoundError):
        return version(name)
    return "missing"


def _commit() -> str:
    changed = " with changes" if _git("status", "--porcelain", "gateway") else ""
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + changed


def _git(*order: str) -> str:
    with suppress(OSError):
        asked = ("git", "-C", str(ROOT), *order)
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    return ""


def _processor() -> str:
    with suppress(OSError, StopIteration):
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        return next(row.partition(":")[2].strip() for row in rows if row.startswith("model name"))
    return os.uname().machine
