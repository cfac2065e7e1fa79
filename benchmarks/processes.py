"""The gateway and simulated instances as processes of their own, for runs that look at what they do over time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
MODEL = "llama3.1:8b"

Address = tuple[str, int]


@asynccontextmanager
async def running(
    *arguments: str, ready: str, module: str = "gateway", errors: IO[bytes] | int = DEVNULL
) -> AsyncIterator[tuple[Process, Address]]:
    """A process of ours and the address it printed; what it says of itself, its log, goes to `errors`."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, env=env, cwd="/", stdout=PIPE, stderr=errors
    )
    assert process.stdout is not None
    try:
        while True:
            line = (await process.stdout.readline()).decode()
            assert line, "it ended before it listened"
            found = re.search(ready + r" http://([\d.]+):(\d+)", re.sub(r" +", " ", line))
            if found:
                break
        yield process, (found[1], int(found[2]))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def request(body: dict[str, object]) -> bytes:
    content = json.dumps({"model": MODEL, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content
