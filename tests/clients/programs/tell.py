"""How a program tells what a real client did: one JSON line on stdout for each scenario it was asked for.

    {"scenario": "whole", "told": {"text": "…"}}
    {"scenario": "missing", "raised": {"type": "NotFoundError", "status": 404, "text": "…"}}

What a client raises is a finding like any other. A scenario is a function, sync or async, named in `main`'s table.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

GATEWAY = os.environ["GATEWAY"]
MODEL, EMBEDDER, CUT, BUSY, SILENT = (
    os.environ[name] for name in ("MODEL", "EMBEDDER", "MODEL_CUT", "MODEL_BUSY", "MODEL_SILENT")
)
KEY = os.environ.get("KEY", "unused")
NOBODY = "nobody:1b"  # a model nobody has
SAY = "say: a fine day to you"
CALL = 'call: weather {"city": "Oslo"}'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def main(scenarios: Mapping[str, Callable[[], Any]]) -> None:
    """Run the scenarios named on the command line, in that order."""
    for name in sys.argv[1:]:
        print(json.dumps({"scenario": name} | _outcome(scenarios[name])), flush=True)  # noqa: T201 - it is the result


def _outcome(scenario: Callable[[], Any]) -> dict[str, Any]:
    try:
        told = scenario()
        if inspect.iscoroutine(told):
            told = asyncio.run(told)
    except Exception as error:  # noqa: BLE001 - whatever a client raises is what it tells its user
        status = getattr(error, "status_code", None)
        return {"raised": {"type": type(error).__name__, "status": status, "text": str(error)[:500]}}
    return {"told": told}
