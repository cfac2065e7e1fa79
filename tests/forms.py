"""Forms as clients send them for a transcription."""

from __future__ import annotations

BOUNDARY = "d74496d66958873e"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
SOUND = bytes(range(256)) * 4


def form(sound: bytes | None = SOUND, /, **fields: str) -> bytes:
    """A form with these fields and, unless None, a file."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        for name, text in fields.items()
    ]
    if sound is not None:
        head = 'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        parts.append(f"--{BOUNDARY}\r\n{head}".encode() + sound + b"\r\n")
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
