"""Where our front door and another reader take the same bytes for different requests.

`python -m tests.frontdoor.differences [COUNT [SEED]]` asks nginx as well (in the PATH, or $NGINX_PROGRAM), counts
what differs, and fails where a difference is not among the known ones.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple

from tests.frontdoor.asked import OurDoor
from tests.frontdoor.messages import AFTER, Message, messages
from tests.frontdoor.nginx import Nginx, program
from tests.frontdoor.readers import Reading, Request, by_h11, by_httptools

COUNT = 9000  # all families, each liberty once, and two thousand mixtures

MISSED, BEYOND, OTHER, LAX, STAYS = (
    "we wait for more where it has a whole request",
    "we take a request that it does not see",
    "we take another request than it does",
    "we take what it refuses",
    "we take a further request where it closes",
)


def difference(ours: Reading, theirs: Reading) -> str:
    """The first difference that matters, or "". That we refuse, or close, where it goes on never matters."""
    for at, request in enumerate(ours.requests):
        if at == len(theirs.requests):
            return {"refused": LAX, "closed": STAYS}.get(theirs.end, BEYOND)
        if not _same(request, theirs.requests[at]):
            return OTHER
    if ours.end == "open" and len(theirs.requests) > len(ours.requests):
        return MISSED
    return LAX if ours.end == "open" and theirs.end == "refused" else ""


def _same(one: Request, other: Request) -> bool:
    """ASGI does not tell whether there was a `?` without a query behind it."""
    targets = {target.removesuffix(b"?") for target in (one.target, other.target)}
    return (one.method, one.body) == (other.method, other.body) and len(targets) == 1


class Case(NamedTuple):
    """One difference, with all that tells why."""

    reader: str
    what: str
    data: bytes
    ours: Reading
    theirs: Reading

    @property
    def request(self) -> Request:
        """The request that only we take; an empty one where we wait for it."""
        at = len(self.theirs.requests)
        return self.ours.requests[at] if at < len(self.ours.requests) else Request(b"", b"", b"")


_TAB = re.compile(
    rb"^(?:host|content-length|transfer-encoding):[ ]*(?:\t|[^\r\n]*\t\r\n)", re.IGNORECASE | re.MULTILINE
)
_HOST = re.compile(rb"^host:[ \t]*(?:\r\n|\.|[^\r\n]*\.\.)", re.IGNORECASE | re.MULTILINE)
_CLOSE = re.compile(rb'^connection:[^\r\n]*(?:close[^,\s]|close [^,\s]|"close")', re.IGNORECASE | re.MULTILINE)
_TRACE = re.compile(rb"(?:^|\n|hello|\r)TRACE ")
_ENDLESS = re.compile(rb"^(?:content-length:[ \t]*[0-9]{19,}|[0-9a-f]{15,}\r)", re.IGNORECASE | re.MULTILINE)
_NOUGHTS = re.compile(rb"0{20}")


def _leads_out(target: bytes) -> bool:
    """Whether a path has an escape that is none, or leads above the root."""
    path = re.sub(rb"(?i)%2e", b".", target.partition(b"?")[0])
    depth = 0
    for part in filter(None, path.split(b"/")):
        depth += {b"..": -1, b".": 0}.get(part, 1)
        if depth < 0:
            return True
    return re.search(rb"%(?![0-9a-fA-F]{2})|%00", path) is not None


# Each with its reason: who, what, and when. In none of them do the two see other bounds of a body.
KNOWN: dict[str, Callable[[Case], bool]] = {
    "nginx resolves a path and refuses what leads nowhere; we resolve none, and answer 404": lambda one: (
        one.reader == "nginx" and one.what == LAX and one.theirs.why == "400" and _leads_out(one.request.target)
    ),
    "nginx refuses TRACE itself; of us the application does, with 405": lambda one: (
        one.reader == "nginx" and one.theirs.why == "405" and _TRACE.search(one.data) is not None
    ),
    "nginx refuses a length that it cannot count; of us the application does, with 413": lambda one: (
        one.reader == "nginx" and one.theirs.why == "400" and one.ours.end == "open"
        and _ENDLESS.search(one.data) is not None
    ),
    "nginx takes no tab beside a value, where RFC 9110 allows one": lambda one: (
        one.reader == "nginx" and one.theirs.why in ("400", "501") and _TAB.search(one.data) is not None
    ),
    "nginx takes no empty host, nor one with an empty label, where RFC 9110 allows them": lambda one: (
        one.reader == "nginx" and one.theirs.why == "400" and _HOST.search(one.data) is not None
    ),
    "nginx looks for `close` anywhere in Connection, we for the word": lambda one: (
        one.reader == "nginx" and one.what == STAYS and _CLOSE.search(one.data) is not None
    ),
    "h11 counts the digits of a length, we look at their value": lambda one: (
        one.reader == "h11" and one.what == LAX and _NOUGHTS.search(one.data) is not None
        and one.theirs.why.startswith(("bad Content-Length", "illegal chunk header"))
    ),
    "httptools stops at an offer of another protocol, which we pass over": lambda one: (
        one.reader == "httptools" and one.theirs.why == "an upgrade"
    ),
}  # fmt: skip


def known(case: Case) -> str:
    """The name of a known difference, or ""."""
    return next((name for name, fits in KNOWN.items() if fits(case)), "")


async def compared(sent: Iterable[Message], nginx: str | None) -> AsyncIterator[Case]:
    """Every difference there is; with `nginx`, from that as well."""
    theirs = Nginx()
    async with OurDoor().open() as door, theirs.open(nginx):
        for message in sent:
            data = message.data + AFTER
            ours = await door.read(data)
            readings = {"h11": by_h11(data), "httptools": by_httptools(data)}
            if nginx is not None:
                readings["nginx"] = await theirs.read(data)
            for reader, reading in readings.items():
                if what := difference(ours, reading):
                    yield Case(reader, what, data, ours, reading)


def tell(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


async def _report(count: int, seed: int, nginx: str) -> int:
    sent = messages(count, seed)
    named: Counter[str] = Counter()
    unknown = 0
    async for case in compared(sent, nginx):
        if name := known(case):
            named[name] += 1
            continue
        unknown += 1
        tell(f"{case.reader}: {case.what} ({case.theirs.why})", f"  {case.data[:400]!r}")
        tell(f"  we: {case.ours}", f"  it: {case.theirs}")
    tell(f"{len(sent)} messages of seed {seed}: {unknown} unknown differences; known ones:")
    for name, times in named.most_common():
        tell(f"{times:6}  {name}")
    return 1 if unknown else 0


if __name__ == "__main__":
    binary = program()
    if binary is None:
        sys.exit("nginx is needed: apt-get install nginx-light, or its path in $NGINX_PROGRAM")
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(asyncio.run(_report(given[0] if given else COUNT, given[1] if len(given) > 1 else 1, binary)))
