"""Row B16: a body in a coding that is not undone here is 415 in its family's words, and no instance hears of it."""

from __future__ import annotations

import gzip
import json

import pytest

from gateway.simulator import Behaviour
from tests.faults.test_bad_bodies import SOUND
from tests.house import House, request

CODINGS = (
    "br", "deflate", "compress", "gzip, br", "gzip, gzip", "identity, gzip", "zstd,gzip", "x", "*", "gzip;q=1",
    "aes128gcm", "<script>", "x" * 3000,
)  # fmt: skip


@pytest.mark.parametrize("path", SOUND)
async def test_b16_a_coding_nobody_undoes_is_415_in_the_words_of_the_path(path: str) -> None:
    body = gzip.compress(json.dumps(SOUND[path]).encode())
    async with House({"alpha": Behaviour()}) as house:
        house.simulator("alpha").forget()
        for coding in CODINGS:
            reply = await house.post(path, body, Content_Encoding=coding)
            assert reply.status == 415, (coding, reply.body)
            assert len(reply.body) < 500
            error = reply.json["error"]
            if path.startswith("/api"):
                assert set(reply.json) == {"error"}
                assert "Content-Encoding" in error
            elif path.startswith("/v1/messages"):
                assert (reply.json["type"], error["type"]) == ("error", "invalid_request_error")
            else:
                assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_encoding")
            assert house.last_line()["status"] == 415
        assert not [seen for seen in house.simulator("alpha").requests if seen.method == "POST"]


@pytest.mark.parametrize("codings", [("gzip", "br"), ("br", "gzip"), ("gzip", "gzip")])
async def test_b16_a_body_that_is_coded_twice_in_two_lines_is_no_body_we_read(codings: tuple[str, str]) -> None:
    path = "/v1/chat/completions"
    body = gzip.compress(gzip.compress(json.dumps(SOUND[path]).encode()))
    async with House({"alpha": Behaviour()}) as house, house.wire() as wire:
        house.simulator("alpha").forget()
        lines = [f"Content-Encoding: {coding}" for coding in codings]
        await wire.send(request(path, body, *lines, "Connection: close"))
        assert (await wire.rest())[9:12] in (b"400", b"415")
        assert not [seen for seen in house.simulator("alpha").requests if seen.method == "POST"]
