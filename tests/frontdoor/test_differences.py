"""Nothing that our front door takes is read differently by h11 or httptools, and by nginx where there is one."""

from __future__ import annotations

import random

import pytest

from tests.frontdoor.asked import OurDoor
from tests.frontdoor.differences import BEYOND, KNOWN, LAX, MISSED, OTHER, STAYS, compared, difference, known
from tests.frontdoor.messages import messages
from tests.frontdoor.nginx import program
from tests.frontdoor.readers import Reading, Request

COUNT = 700  # `make fuzz-frontdoor` asks many more
A, B = Request(b"GET", b"/a", b""), Request(b"GET", b"/b", b"")


async def test_what_we_take_no_strict_reader_takes_for_something_else() -> None:
    cases = [case async for case in compared(messages(COUNT), program())]
    assert not [case for case in cases if not known(case)]
    assert {case.what for case in cases} <= {LAX, STAYS, OTHER}
    assert {case.reader for case in cases if case.what == OTHER} <= {"httptools"}  # which stops at an offer


async def test_a_verdict_does_not_depend_on_how_the_bytes_were_cut() -> None:
    chance = random.Random(3)  # noqa: S311 - not for secrets
    sent = [one for one in messages(COUNT) if len(one.data) < 5000]
    async with OurDoor().open() as door:
        for message in sent:
            whole = await door.read(message.data)
            for cuts in ([chance.randrange(len(message.data)) for _ in range(3)], range(0, len(message.data), 7)):
                cut = await door.read(message.data, cuts)
                assert (cut.requests, cut.end) == (whole.requests, whole.end), message


@pytest.mark.parametrize(
    ("ours", "theirs", "what"),
    [
        (Reading((A,)), Reading((A,)), ""),
        (Reading((A,)), Reading((B,)), OTHER),
        (Reading((A, B)), Reading((A,)), BEYOND),
        (Reading((A, B)), Reading((A,), "open"), BEYOND),
        (Reading((A, B)), Reading((A,), "closed"), STAYS),
        (Reading((A, B)), Reading((A,), "refused"), LAX),
        (Reading((A,), "open"), Reading((A, B)), MISSED),
        (Reading((A,), "open"), Reading((A,), "refused"), LAX),
        (Reading((A,), "open"), Reading((A,), "open"), ""),
        (Reading((A,), "refused"), Reading((A, B)), ""),
        (Reading((A,), "closed"), Reading((A, B)), ""),
    ],
)
def test_a_difference_matters_where_somebody_would_answer_what_the_other_does_not_see(
    ours: Reading, theirs: Reading, what: str
) -> None:
    assert difference(ours, theirs) == what


def test_the_same_seed_gives_the_same_messages_and_all_of_them_differ() -> None:
    sent = messages(COUNT)
    assert sent == messages(COUNT)
    assert len({message.data for message in sent}) == COUNT
    assert sent != messages(COUNT, seed=2)
    assert len({message.kind.partition(":")[0] for message in sent}) > 30


def test_every_known_difference_says_why() -> None:
    assert all(len(name.split()) > 8 for name in KNOWN)
