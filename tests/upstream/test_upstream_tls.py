"""An instance behind TLS is an instance like any other."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from gateway.errors import ConnectFailed
from tests.upstream.scripted import (
    BIG,
    HELLO,
    answering,
    ask,
    reaching,
    refuses,
    speaking,
)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "both.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([openssl, "req", *options, *names, *files], check=True, capture_output=True, timeout=30)
    path.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "cert.pem").read_bytes())
    return path


async def test_an_https_instance_is_served_like_any_other(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with speaking(answering(HELLO), tls=context) as instance, reaching(instance.url) as upstream:
        assert await ask(upstream) == (200, b"hello")
        assert await ask(upstream, BIG) == (200, b"hello")
        assert len(instance.peers) == 1
        assert instance.peers[0].bodies[1] == BIG.body


async def test_a_certificate_nobody_vouches_for_is_a_failed_connection(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with speaking(answering(HELLO), tls=context) as instance, reaching(instance.url) as upstream:
        assert "certificate" in await refuses(upstream, ConnectFailed)
