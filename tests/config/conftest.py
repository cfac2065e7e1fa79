"""Reading a text as a file, for every test of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import Loaded, load
from gateway.errors import ConfigError
from tests.config.examples import Problems, Read, Refused


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Load a text as a file, beside variables."""

    def run(text: str | bytes, **env: str) -> Loaded:
        file = tmp_path / "routes.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(file=file, env=env)

    return run


@pytest.fixture
def refused(read: Read) -> Refused:
    """The problems a text has: where -> (message, place)."""

    def run(text: str | bytes, **env: str) -> Problems:
        with pytest.raises(ConfigError) as caught:
            read(text, **env)
        return _by_place(caught.value)

    return run


def _by_place(error: ConfigError) -> Problems:
    assert error.render() == str(error)
    return {p.where: (p.message, (p.line, p.column)) for p in error.problems}
