"""docs/compatibility.md tells of every statement, names just the tests there are, and claims that they passed."""

from __future__ import annotations

from tests.conformance.page import PAGE, page, written
from tests.conformance.statements import SECTIONS, STATEMENTS

NUMBERS = [statement.number for statement in STATEMENTS]


def test_the_statements_are_numbered_from_1_to_117_and_stand_in_their_sections_in_order() -> None:
    assert list(range(1, 118)) == NUMBERS
    assert list(dict.fromkeys(statement.section for statement in STATEMENTS)) == list(SECTIONS)


def test_every_statement_has_a_test_and_every_test_a_statement() -> None:
    assert sorted(written()) == NUMBERS


def test_the_page_is_the_one_that_these_tests_write_when_all_of_them_pass() -> None:
    tests = written()
    expected = page(tests, {test: True for names in tests.values() for test in names})
    assert PAGE.read_text() == expected, "run `make compatibility`"


def test_a_statement_without_a_test_or_with_a_failing_one_is_written_as_such() -> None:
    told = page(
        {1: ["test_a_paths.py::test_001"], 2: ["test_a_paths.py::test_002"]}, {"test_a_paths.py::test_001": True}
    )
    rows = [line for line in told.splitlines() if line.startswith("| ")][1:4]
    assert [row.split(" | ")[-1] for row in rows] == ["pass |", "**fail** |", "**no test** |"]
