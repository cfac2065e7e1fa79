"""nginx on loopback, as a proxy before a server that writes down what it is asked: how a strict front reads.

nginx asks the server in words of its own, with the length of each body, so reading what it asks is easy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.frontdoor.readers import Reading, Request
from tests.house import LIMIT

CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  keepalive_requests 100000;
  large_client_header_buffers 8 128k;
  lingering_close off;
  merge_slashes off;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{behind};
      proxy_http_version 1.1;
      proxy_ignore_client_abort on;
      proxy_set_header Connection "";
      proxy_set_header X-Client $remote_port;
    }}
  }}
}}
"""


def program() -> str | None:
    """Where nginx is, None where it is not."""
    return os.environ.get("NGINX_PROGRAM") or shutil.which(
        "nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )


class Nginx:
    """Ask it with `read`."""

    def __init__(self) -> None:
        self._seen: dict[bytes, list[Request]] = {}
        self.port = 0

    async def read(self, data: bytes) -> Reading:
        """What it made of these bytes, which are all that the client ever sends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            port = b"%d" % writer.get_extra_info("sockname")[1]
            writer.write(data)
            with contextlib.suppress(OSError):  # it may have closed by now
                writer.write_eof()
            async with asyncio.timeout(LIMIT):
                answer = await _all(reader)
        finally:
            writer.transport.abort()
        seen = tuple(self._seen.pop(port, ()))
        statuses = [line[9:12].decode() for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        statuses = [status for status in statuses if status != "100"]
        refusals = [status for status in statuses if status[0] in "45"]
        if refusals:
            return Reading(seen, "refused", refusals[0])
        if len(statuses) < len(seen) or not statuses:  # it says nothing to a client that ended before its request did
            return Reading(seen, "refused" if answer.startswith(b"<") else "open")
        last = answer.rpartition(b"HTTP/1.1 ")[2].lower()
        return Reading(seen, "closed" if b"connection: close" in last else "clean")

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.split(b"\r\n", 1)[0].split(b" ", 2)
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
                body = await reader.readexactly(int(fields.get(b"Content-Length", b"0")))
                self._seen.setdefault(fields[b"X-Client"], []).append(Request(method, target, body))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @asynccontextmanager
    async def open(self, binary: str | None) -> AsyncIterator[Nginx]:
        """While it runs; without a `binary` nothing does."""
        if binary is None:
            yield self
            return
        behind = await asyncio.start_server(self._asked, "127.0.0.1", 0, limit=2**20)
        with tempfile.TemporaryDirectory() as folder:
            self.port = await _free_port()
            config = Path(folder) / "nginx.conf"
            config.write_text(CONFIG.format(folder=folder, port=self.port, behind=behind.sockets[0].getsockname()[1]))
            running = await asyncio.create_subprocess_exec(binary, "-p", folder, "-c", str(config), env={})
            try:
                await self._until_up(running)
                yield self
            finally:
                if running.returncode is None:
                    running.terminate()
                await running.wait()
                behind.close()

    async def _until_up(self, running: asyncio.subprocess.Process) -> None:
        async with asyncio.timeout(LIMIT):
            while running.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except ConnectionError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                return
        raise OSError(f"nginx ended with status {running.returncode}")


async def _all(reader: asyncio.StreamReader) -> bytes:
    """Until the end, which may be a reset: nginx leaves what it refused unread."""
    found = b""
    while True:
        try:
            data = await reader.read(65536)
        except ConnectionError:
            return found
        if not data:
            return found
        found += data


async def _free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
