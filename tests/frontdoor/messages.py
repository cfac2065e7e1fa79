"""Raw HTTP/1.1 messages that are nearly right: families of one kind of liberty each, and random mixtures of them.

The same seed gives the same messages. Each is followed by one more plain request, so that whoever ends a message early
or late shows it by what it takes that request for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import NamedTuple

from tests.frontdoor.test_verdicts import MALFORMED, OTHERWISE

AFTER = b"GET /after HTTP/1.1\r\nHost: gateway\r\n\r\n"


class Message(NamedTuple):
    kind: str
    data: bytes


class Field(NamedTuple):
    name: bytes
    value: bytes
    colon: bytes = b": "
    end: bytes = b"\r\n"

    def __bytes__(self) -> bytes:
        return self.name + self.colon + self.value + self.end


@dataclass(frozen=True)
class Draft:
    """A request in its parts."""

    method: bytes = b"POST"
    gap: bytes = b" "
    target: bytes = b"/v1/chat/completions"
    space: bytes = b" "
    version: bytes = b"HTTP/1.1"
    end: bytes = b"\r\n"
    fields: tuple[Field, ...] = (Field(b"Host", b"gateway"),)
    blank: bytes = b"\r\n"
    body: bytes = b""
    before: bytes = b""

    def __bytes__(self) -> bytes:
        line = self.before + self.method + self.gap + self.target + self.space + self.version + self.end
        return line + b"".join(map(bytes, self.fields)) + self.blank + self.body

    def having(self, *more: Field, first: bool = False) -> Draft:
        return replace(self, fields=(*more, *self.fields) if first else (*self.fields, *more))


PLAIN = Draft(b"GET", target=b"/livez")
LENGTH = Draft(body=b"hello").having(Field(b"Content-Length", b"5"))
CHUNKED = Draft(body=b"5\r\nhello\r\n0\r\n\r\n").having(Field(b"Transfer-Encoding", b"chunked"))
SOUND = (PLAIN, LENGTH, CHUNKED)

LENGTHS = (
    b"5", b"0", b"6", b"4", b"05", b"+5", b"-5", b"-0", b"5.0", b"0x5", b"5,5", b"5, 5", b"5,6", b"5;", b"", b" ",
    b"5 5", b"\t5", b"5\t", b"5\x0b", b"\x0c5", b"5\x00", b"0" * 40 + b"5", b"18446744073709551621", b"4294967301",
    b"9" * 30, b"1_0", "\u0665".encode(), b"five", b"5\r", b"\xa05", b'"5"', b"15", b"1000000",
)  # fmt: skip
CODINGS = (
    b"chunked", b"Chunked", b"CHUNKED", b" chunked", b"\tchunked", b"chunked\t", b"chunked ", b"\x0bchunked",
    b"\x0cchunked", b"chunked\x00", b"\x00chunked", b"chunked,", b",chunked", b"chunked;", b"chunked;q=1",
    b'"chunked"', b"xchunked", b"chunke", b"chunkedx", b"chunk", b"identity", b"gzip", b"gzip, chunked",
    b"chunked, gzip", b"identity, chunked", b"chunked, identity", b"chunked, chunked", b"chunked chunked", b"", b" ",
    b"\xffchunked", b"chunked\xff", b"cow", b"chun ked", b"chunked\r", b"trailers, chunked", b"deflate",
    "chun\u212aed".encode(),
)  # fmt: skip
NAMES = (
    b"Transfer-Encoding", b"transfer-encoding", b"TRANSFER-ENCODING", b"Transfer_Encoding", b"Transfer-Encoding ",
    b"Transfer-Encoding\t", b" Transfer-Encoding", b"Transfer-Encoding\x00", b"Transfer Encoding",
    b"Transfer-Encoding\x0b", b"X\r\nTransfer-Encoding", b"X: y\nTransfer-Encoding", b"X: y\rTransfer-Encoding",
    b"Content-Length ", b"Content_Length", b"content-length", b"Content-Length\t", b"Content-Length\x00",
    b"\xefContent-Length",
)  # fmt: skip
BODIES = (
    b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", b"",
    b"0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: gateway\r\n\r\n",
)  # fmt: skip
CHUNKS = (
    b"5\r\nhello\r\n0\r\n\r\n", b"05\r\nhello\r\n0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n", b"5\t\r\nhello\r\n0\r\n\r\n", b"5;\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\n\r\n", b'5;a="b;c"\r\nhello\r\n0\r\n\r\n', b'5;a="\r\nhello\r\n0\r\n\r\n',
    b"5;a\nb\r\nhello\r\n0\r\n\r\n", b"5;a\rb\r\nhello\r\n0\r\n\r\n", b"5;\x00\r\nhello\r\n0\r\n\r\n",
    b"5;" + b"x" * 3000 + b"\r\nhello\r\n0\r\n\r\n", b"5; a=b\r\nhello\r\n0\r\n\r\n",
    b"5 ;a=b\r\nhello\r\n0\r\n\r\n", b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r\n0\n\r\n",
    b"5\r\nhello\r\n0\r\n\n", b"5\rhello\r\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5\r\nhello0\r\n\r\n",
    b"5\r\nhelloX\r\n0\r\n\r\n", b"5\r\nhell\r\n0\r\n\r\n", b"5\r\n\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n",
    b"5_0\r\nhello\r\n0\r\n\r\n", b"5h\r\nhello\r\n0\r\n\r\n", b"\r\nhello\r\n0\r\n\r\n",
    b";a\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"00\r\n\r\n",
    b"000000000000000000000\r\n\r\n", b"0;a=b\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\nX\r\n\r\n",
    b"0\r\n X: y\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\nContent-Length: 7\r\n\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\nHost: evil\r\n\r\n", b"0\r\nX: y\n\r\n",
    b"0\r\nX: y\r\r\n\r\n", b"0\r\n: y\r\n\r\n", b"0\r\nX: \x00\r\n\r\n", b"0\r\n",
    b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n", b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    b"F\r\nhello\r\n0\r\n\r\nabcde\r\n0\r\n\r\n", b"A\r\nhellohello\r\n0\r\n\r\n", b"a\r\nhellohello\r\n0\r\n\r\n",
    b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"\x00\r\nhello\r\n0\r\n\r\n", b"5\x00\r\nhello\r\n0\r\n\r\n",
    b"\xb25\r\nhello\r\n0\r\n\r\n", "\uff15".encode() + b"\r\nhello\r\n0\r\n\r\n", b"5\x0b\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\nX", b"5\r\nhello\r\n-0\r\n\r\n",
    b"5\r\nhello\r\n0 \r\n\r\n",
)  # fmt: skip
METHODS = (
    b"GET", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PROPFIND", b"get", b"Get",
    b"gET", b"FOO", b"", b"G ET", b"G\tET", b"GET\t", b"G\x00ET", b"\x00GET", b"GET\xff", b"(GET)", b"GET,POST",
    b"G" * 300, b"PRI", b"SOURCE", b"M-SEARCH", b"QUERY", b"\r\nGET", b"\nGET", b"\rGET", b" GET", b"\tGET",
    b"\xef\xbb\xbfGET", b"G-ET", b"G_ET", b"1GET", b"GE!T",
)  # fmt: skip
TARGETS = (
    b"/", b"//", b"*", b"", b"livez", b"http://gateway/livez", b"http://evil/livez", b"https://gateway/",
    b"gateway:80", b"?x", b"/#x", b"/livez#", b"/a b", b"/a\tb", b"/a\x00b", b"/a\x0bb", b"/a\rb", b"/a\nb",
    b"/\xff", "/é".encode(), b"/%", b"/%zz", b"/%00", b"/%2e%2e/", b"/../", b"/./", b"/a%2fb", b"/a\\b", b"/a;b",
    b"/a?b?c", b"/a?b#c", b"/<>", b'/"', b"/{}", b"/^`|", b"/" + b"a" * 3000, b"/" + b"a" * 9000, b"/\x7f",
    b"/a HTTP/1.1", b"/a%20HTTP/1.1", b"#", b"@", b"//evil/a", b"http:///a", b"HTTP://GATEWAY/", b"http://a@b/",
    b"http://[::1]/", b"file:///etc", b"/a\x80", b"/\x01", b"\\", b"/a%0d%0ab",
)  # fmt: skip
VERSIONS = (
    b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/1.10", b"HTTP/1.01", b"HTTP/01.1", b"HTTP/2.0",
    b"HTTP/2", b"HTTP/0.9", b"HTTP/3.0", b"http/1.1", b"Http/1.1", b"HTTP /1.1", b"HTTP/ 1.1", b"HTTP/1 .1",
    b"HTTP/1.", b"HTTP/.1", b"HTTP/1", b"HTTP/", b"HTTP", b"", b"HTTP/1.1 ", b"HTTP/1.1\t", b"HTTP/1.1x",
    b"HTTP/1.1\x00", b"HTTP/1,1", b"HTTP/-1.1", b"HTTP/+1.1", b"HTTPS/1.1", b"ICE/1.0", b"RTSP/1.0", b"HTTP/1.1\x0b",
    b"HTTP\\1.1", "HTTP/\u0661.1".encode(), b"HTTP/11", b"HTTP/1.1 HTTP/1.1", b"HTTP/1.\xb1",
)  # fmt: skip
HOSTS = (
    b"gateway", b"gateway:80", b"gateway:", b"gateway:0", b"gateway:99999", b"gateway:999999", b"gateway:-1",
    b"gateway:8o", b"", b"a/b", b"a?b", b"a#b", b"a@b", b"a b", b"a,b", b"a\tb", b"a\\b", b"[::1]", b"[::1]:80",
    b"[::1", b"::1", b"[::1]x", b"127.0.0.1", b"a\x00b", b"a\x80", "é".encode(), b"http://a", b"a;b", b"a:80:80",
    b"a%00", b"%61", b".", b"..", b"a..b", b"-a", b"_", b"a" * 300, b"a\x7f", b"<a>", b'"a"', b"{a}", b"a|b", b"^",
    b"`", b"a:80 ", b" a", b"a\x0b", b"a:\xb2", b"[v1.a]", b"[]", b"a[", b"*",
)  # fmt: skip
CONNECTIONS = (
    b"close", b"keep-alive", b"Close", b"close, keep-alive", b"keep-alive, close", b"close,close", b"", b"x",
    b"close x", b"closed", b"Transfer-Encoding", b"Content-Length", b"Host", b"upgrade", b"Upgrade, close",
    b"\tclose", b"close\x0b", b"cl ose", b'"close"',
)  # fmt: skip
UPGRADES = (
    b"h2c", b"websocket", b"WebSocket", b"TLS/1.0", b"h2c, websocket", b"", b"x", b"HTTP/2.0",
)  # fmt: skip
ENDS = (
    b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r", b"\x0b\r\n", b"\x00\r\n", b" \r\n", b"\t\r\n", b"", b"\x85",
    b"\r\n ", b"\r\n\t", b"\n ",
)  # fmt: skip
COLONS = (
    b":", b":  ", b":\t", b" :", b"\t:", b" : ", b"", b" ", b"::", b"=", b":\x0b", b":\x00", b"\x00:", b":\r\n ",
    b": \r\n\t", b":\n ", b";",
)  # fmt: skip
ODD_BYTES = (*range(0x21), *range(0x7F, 0xA2), 0xFF, *b'"(),/:;<=>?@[\\]{}', *b"!#$%&'*+-.^_`|~")


def lengths_and_codings() -> Iterator[Message]:
    for length, body in product(LENGTHS, BODIES):
        yield Message("length", bytes(Draft(body=body).having(Field(b"Content-Length", length))))
    for coding, body in product(CODINGS, BODIES):
        coded, counted = Field(b"Transfer-Encoding", coding), Field(b"Content-Length", b"%d" % len(body))
        yield Message("coding", bytes(Draft(body=body).having(coded)))
        yield Message("coding and length", bytes(Draft(body=body).having(coded, counted)))
        yield Message("length and coding", bytes(Draft(body=body).having(counted, coded)))
        yield Message("coding in 1.0", bytes(replace(Draft(body=body), version=b"HTTP/1.0").having(coded)))
    for one, other in product(LENGTHS[:12], LENGTHS[:12]):
        both = (Field(b"Content-Length", one), Field(b"Content-Length", other))
        yield Message("two lengths", bytes(Draft(body=b"hello").having(*both)))
    for one, other in product(CODINGS[:4] + CODINGS[16:26], repeat=2):
        both = (Field(b"Transfer-Encoding", one), Field(b"Transfer-Encoding", other))
        yield Message("two codings", bytes(Draft(body=BODIES[1]).having(*both)))
    for name, body in product(NAMES, BODIES):
        value = b"chunked" if b"ength" not in name else b"%d" % len(body)
        yield Message("a name", bytes(Draft(body=body).having(Field(name, value))))
        yield Message("a name and a length", bytes(LENGTH.having(Field(name, value))))


def chunks() -> Iterator[Message]:
    for body in CHUNKS:
        yield Message("chunks", bytes(replace(CHUNKED, body=body)))
        yield Message("chunks and length", bytes(replace(CHUNKED, body=body).having(Field(b"Content-Length", b"5"))))
    body, digits = CHUNKED.body, b"05;Afg\x7f\xa0\xff"
    for at, odd in product(range(len(body) + 1), (*range(0x21), *digits)):
        yield Message("a byte in chunks", bytes(replace(CHUNKED, body=body[:at] + bytes([odd]) + body[at:])))


def lines() -> Iterator[Message]:
    for draft in SOUND:
        yield from (Message("method", bytes(replace(draft, method=method))) for method in METHODS)
        yield from (Message("target", bytes(replace(draft, target=target))) for target in TARGETS)
        yield from (Message("version", bytes(replace(draft, version=version))) for version in VERSIONS)
        for gap in (b"", b"  ", b"\t", b"\x0b", b"\x0c", b"\r", b"\xa0", b" \t", b"\x00", b"\n"):
            yield Message("gap", bytes(replace(draft, gap=gap)))
            yield Message("space", bytes(replace(draft, space=gap)))
        for end in ENDS:
            yield Message("end of line", bytes(replace(draft, end=end)))
            yield Message("blank line", bytes(replace(draft, blank=end)))
            last = draft.fields[-1]
            yield Message("end of field", bytes(replace(draft, fields=(*draft.fields[:-1], last._replace(end=end)))))
            yield Message("before", bytes(replace(draft, before=end)))
        for colon in COLONS:
            last = draft.fields[-1]
            yield Message("colon", bytes(replace(draft, fields=(*draft.fields[:-1], last._replace(colon=colon)))))
        yield Message("no end", bytes(replace(draft, end=b"", fields=(), blank=b"")))


def fields() -> Iterator[Message]:
    for draft in SOUND:
        bare = replace(draft, fields=draft.fields[1:])
        yield Message("no host", bytes(bare))
        yield Message("no host in 1.0", bytes(replace(bare, version=b"HTTP/1.0")))
        for host in HOSTS:
            yield Message("host", bytes(bare.having(Field(b"Host", host), first=True)))
            yield Message("second host", bytes(draft.having(Field(b"Host", host))))
        for version, connection in product((b"HTTP/1.1", b"HTTP/1.0"), CONNECTIONS):
            yield Message("connection", bytes(replace(draft, version=version).having(Field(b"Connection", connection))))
        for connection, upgrade in product((b"upgrade", b"Upgrade, close", b"close", b""), UPGRADES):
            offer = (Field(b"Connection", connection), Field(b"Upgrade", upgrade))
            yield Message("upgrade", bytes(draft.having(*offer)))
        for expect in (b"100-continue", b"100-Continue", b"x", b"", b"100-continue, x"):
            yield Message("expect", bytes(draft.having(Field(b"Expect", expect))))


def odd_and_large_fields() -> Iterator[Message]:
    for draft, odd in product(SOUND, (bytes([byte]) for byte in ODD_BYTES)):
        for text in (odd, b"X" + odd, odd + b"X", b"X" + odd + b"Y"):
            yield Message("a byte in a name", bytes(draft.having(Field(text, b"y"))))
            yield Message("a byte in a value", bytes(draft.having(Field(b"X", text))))
    for draft in SOUND:
        for many in (99, 100, 200):
            yield Message("many fields", bytes(draft.having(*[Field(b"X", b"y")] * (many - len(draft.fields)))))
        for size in (4000, 9000, 30_000, 70_000):
            yield Message("a long value", bytes(draft.having(Field(b"X", b"y" * size))))
            yield Message("a long name", bytes(draft.having(Field(b"X" * size, b"y"))))


def families() -> list[Message]:
    return [*lengths_and_codings(), *chunks(), *lines(), *fields(), *odd_and_large_fields()]


def pipelines(chance: random.Random) -> Iterator[Message]:
    """One of the others after a sound request: what is right for the first must be right for the second."""
    for message in chance.sample(families(), 900):
        first = chance.choice(SOUND)
        yield Message(f"second: {message.kind}", bytes(first) + message.data)


def mixtures(chance: random.Random) -> Iterator[Message]:
    """Without end: several liberties at once, and bytes changed, doubled, moved and left out."""
    known = [*(payload for payload in MALFORMED.values() if len(payload) < 2000), *map(bytes, SOUND)]
    while True:
        if chance.random() < 0.5:
            yield Message("mixture", _mixed(chance))
            continue
        data = chance.choice(known)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data) + 1)
            length = chance.randint(0, 8)
            piece = chance.choice(
                [b"", bytes([chance.choice(ODD_BYTES)]), data[at : at + length] * 2, b"\r\n", b"\n", b"0", b","]
            )
            data = data[:at] + piece + data[at + chance.choice([0, 0, 1, length]) :]
        yield Message("bytes", data)


Change = Callable[[Draft, random.Random], Draft]
CHANGES: tuple[Change, ...] = (
    lambda draft, chance: draft.having(
        Field(b"Transfer-Encoding", chance.choice(CODINGS)), first=chance.random() < 0.5
    ),
    lambda draft, chance: draft.having(Field(b"Content-Length", chance.choice(LENGTHS)), first=chance.random() < 0.5),
    lambda draft, chance: replace(draft, version=chance.choice(VERSIONS)),
    lambda draft, chance: replace(draft, body=chance.choice(CHUNKS + BODIES)),
    lambda draft, chance: draft.having(Field(b"Connection", chance.choice(CONNECTIONS))),
    lambda draft, chance: draft.having(Field(b"Upgrade", chance.choice(UPGRADES))),
    lambda draft, chance: draft.having(Field(b"X", b"y", chance.choice(COLONS), chance.choice(ENDS))),
    lambda draft, chance: replace(draft, method=chance.choice(METHODS)),
    lambda draft, chance: draft.having(Field(b"Host", chance.choice(HOSTS))),
    lambda draft, chance: draft.having(Field(chance.choice(NAMES), chance.choice(LENGTHS + CODINGS))),
)


def _mixed(chance: random.Random) -> bytes:
    draft = chance.choice(SOUND)
    for _ in range(chance.randint(2, 4)):
        draft = chance.choice(CHANGES)(draft, chance)
    return bytes(draft)


def messages(count: int, seed: int = 1) -> list[Message]:
    """That many different ones: first all that is known, then all families, then mixtures."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    known = [Message(f"known: {name}", data) for name, data in MALFORMED.items()]
    known += [Message(f"known: {name}", data) for name, (_, data) in OTHERWISE.items()]
    known += [Message("sound", bytes(draft)) for draft in SOUND]
    derived = families()
    if count < len(derived):
        derived = chance.sample(derived, count // 2)
    found: dict[bytes, str] = {}
    for message in chain(known, derived, pipelines(chance), mixtures(chance)):
        found.setdefault(message.data, message.kind)
        if len(found) >= count:
            break
    return [Message(kind, data) for data, kind in found.items()]
