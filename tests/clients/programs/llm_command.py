"""The command `llm` with its Ollama plugin, as typed in a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.clients.programs import tell

COMMAND = str(Path(sys.executable).parent / "llm")


class CommandError(Exception):
    """It ended with a status other than 0; the text is what it printed to stderr."""


def llm(*arguments: str) -> str:
    """What it printed."""
    ran = subprocess.run(
        [COMMAND, *arguments],
        env=os.environ | {"OLLAMA_HOST": tell.GATEWAY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ran.returncode:
        raise CommandError(ran.stderr.strip())
    return ran.stdout


def ask(text: str, model: str, *more: str) -> str:
    return llm("-m", f"ollama/{model}", "--no-log", *more, text)


def embed() -> dict[str, Any]:
    vector = json.loads(llm("embed", "-m", f"ollama/{tell.EMBEDDER}", "-c", "one"))
    return {"vectors": 1, "length": len(vector)}


def models() -> dict[str, Any]:
    listed = [line for line in llm("models").splitlines() if line.startswith("Ollama: ollama/")]
    names = [line.removeprefix("Ollama: ollama/").split()[0] for line in listed]
    return {"names": names, "aliases": [line for line in listed if "aliases" in line]}


tell.main(
    {
        "whole": lambda: {"text": ask(tell.SAY, tell.MODEL, "--no-stream").strip(), "end": "stop"},
        "stream": lambda: {"text": ask(tell.SAY, tell.MODEL).strip(), "pieces": 2, "end": "stop"},
        "embed": embed,
        "models": models,
        "missing": lambda: ask("hi", tell.NOBODY),
        "cut": lambda: ask(tell.SAY, tell.CUT),
        "busy": lambda: ask("hi", tell.BUSY),
    }
)
