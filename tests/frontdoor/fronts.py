"""nginx and haproxy on loopback in front of a real gateway, strict as they come and as lax as they can be told to be.

Each gives every request that it passes on an id of its own, whatever the client called it, and writes that id down
with the status it relayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.frontdoor.nginx import program
from tests.house import LIMIT

PLACE = "127.0.0.1"
NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  log_format told '$request_id $upstream_status';
  access_log {folder}/told told;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_header_timeout 2s;
  client_body_timeout 2s;
  lingering_close off;
  merge_slashes off;
  {lax}
  upstream gateway {{ server {place}:{behind}; keepalive 4; }}
  server {{
    listen {place}:{port};
    location / {{
      proxy_pass http://gateway;
      proxy_http_version 1.1;
      proxy_request_buffering off;
      proxy_next_upstream off;
      proxy_ignore_client_abort on;
      proxy_set_header Connection "";
      proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
"""
HAPROXY = """
global
  log stdout format raw local0
defaults
  mode http
  log global
  log-format "%ID %ST"
  retries 0
  timeout connect 1s
  timeout client 2s
  timeout server 10s
  timeout http-request 2s
  http-reuse always
  {lax_behind}
frontend door
  bind {place}:{port}
  {lax}
  unique-id-format %[uuid()]
  http-request del-header X-Request-Id
  unique-id-header X-Request-Id
  default_backend gateway
backend gateway
  server gateway {place}:{behind}
"""
LAX = {
    "nginx": {"lax": "ignore_invalid_headers off; underscores_in_headers on;"},
    "haproxy": {"lax": "option accept-invalid-http-request", "lax_behind": "option accept-invalid-http-response"},
}
STRICT = {"lax": "", "lax_behind": ""}


def found(kind: str) -> str | None:
    """Where that program is, None where it is not."""
    if kind == "nginx":
        return program()
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


class Front:
    """One that runs. `told` is what it wrote down: ids and statuses."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self._log = port, log

    def told(self) -> list[tuple[str, str]]:
        lines = (line.split() for line in self._log.read_text().splitlines())
        return [(line[0], line[1]) for line in lines if len(line) == 2]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(PLACE, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def said(self, data: bytes) -> bytes:
        """What comes back for these bytes, which are all that the client ever sends."""
        async with self.connected() as (reader, writer):
            writer.write(data)
            with contextlib.suppress(OSError):  # it may have closed by now
                writer.write_eof()
            answer = b""
            async with asyncio.timeout(LIMIT):
                with contextlib.suppress(ConnectionError):
                    while more := await reader.read(65536):
                        answer += more
            return answer


@asynccontextmanager
async def running(kind: str, behind: int, folder: Path, *, lax: bool) -> AsyncIterator[Front]:
    """That program in front of what listens on the port `behind`."""
    binary, port = found(kind), await _free_port()
    assert binary is not None
    told = {"place": PLACE, "port": port, "behind": behind, "folder": folder, **STRICT, **(LAX[kind] if lax else {})}
    config, log = folder / "config", folder / "told"
    config.write_text((NGINX if kind == "nginx" else HAPROXY).format(**told))
    arguments = ["-p", str(folder), "-c", str(config)] if kind == "nginx" else ["-db", "-f", str(config)]
    with log.open("a") as out:
        process = await asyncio.create_subprocess_exec(binary, *arguments, env={}, stdout=out)
    try:
        await _until_up(process, port)
        yield Front(port, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _until_up(process: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(LIMIT):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection(PLACE, port)
            except ConnectionError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return
    raise OSError(f"it ended with status {process.returncode}")


async def _free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, PLACE, 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
