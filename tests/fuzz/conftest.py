"""The gateway that schemathesis asks, for a whole run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.house import LIMIT


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where it serves; afterwards it must have found nothing left over."""
    command = [sys.executable, "-m", "tests.fuzz.serving"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        yield serving.stdout.readline().strip()
        serving.communicate(timeout=3 * LIMIT)
    assert serving.returncode == 0
