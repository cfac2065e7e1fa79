"""The relay that one writes in an afternoon: starlette and httpx. `python -m benchmarks.hotpath.naive PORT UPSTREAM`"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse  # noqa: TID251 - as one would
from starlette.routing import Route

upstream = sys.argv[2]


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=upstream, timeout=300, limits=limits) as client:
        app.state.client = client
        yield


async def chat(request: Request) -> Response:
    client: httpx.AsyncClient = request.app.state.client
    body = await request.json()
    if not body.get("stream"):
        answer = await client.post("/v1/chat/completions", json=body)
        return Response(answer.content, answer.status_code, media_type="application/json")
    asked = client.build_request("POST", "/v1/chat/completions", content=json.dumps(body))
    answer = await client.send(asked, stream=True)
    closing = BackgroundTask(answer.aclose)
    return StreamingResponse(answer.aiter_raw(), media_type="text/event-stream", background=closing)


if __name__ == "__main__":
    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])], lifespan=lifespan)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
