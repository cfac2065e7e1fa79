"""Writes docs/compatibility.md from a run of the tests in this directory: `make compatibility`.

A statement's result is that of its tests together; one without a test, or with a test that did not pass, is written
as such. test_page.py holds the page to the tests that are there.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.conformance.statements import SECTIONS, STATEMENTS, Statement

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parent.parent / "docs" / "compatibility.md"
PASS, FAIL, NO_TEST = "pass", "**fail**", "**no test**"

HEAD = """\
# Compatibility

What the clients of an Ollama or of OpenAI's API rely on, and the test that holds this gateway to it, each on real
sockets before a simulated Ollama. `make compatibility` runs them and writes this page; a test keeps it true.
Where a decision of this gateway goes another way than some client would like, the statement says what is decided.
"""


def written() -> dict[int, list[str]]:
    """The tests in the tree by statement, as `file::name` in the order of the files; read, not run."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(HERE.glob("test_?_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[number_of(node.name)].append(f"{path.name}::{node.name}")
    return dict(found)


def number_of(name: str) -> int:
    """The statement a test belongs to by its name, 0 where it belongs to none."""
    digits = name.removeprefix("test_")[:3]
    return int(digits) if digits.isdigit() else 0


class Outcomes:
    """A pytest plugin: whether every case of each test passed, in all its phases."""

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path, _, name = report.nodeid.partition("::")
        test = f"{Path(path).name}::{name.partition('[')[0]}"
        good = report.passed and not hasattr(report, "wasxfail")
        self.passed[test] = self.passed.get(test, True) and good


def page(tests: Mapping[int, list[str]], passed: Mapping[str, bool]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *_rows(tests, passed)])


def _rows(tests: Mapping[int, list[str]], passed: Mapping[str, bool]) -> Iterator[str]:
    for section, title in SECTIONS.items():
        yield from (f"## {section}. {title}", "", "| | statement | tests | result |", "|---|---|---|---|")
        for statement in (one for one in STATEMENTS if one.section == section):
            yield _row(statement, tests.get(statement.number, []), passed)
        yield ""


def _row(statement: Statement, tests: list[str], passed: Mapping[str, bool]) -> str:
    good = all(passed.get(test, False) for test in tests)
    result = (PASS if good else FAIL) if tests else NO_TEST
    names = "<br>".join(f"`{test}`" for test in tests)
    return f"| {statement.number} | {statement.sentence} | {names} | {result} |"


def main() -> int:
    """Run the statements' tests and write the page; pytest's exit status."""
    outcomes = Outcomes()
    files = [str(path) for path in sorted(HERE.glob("test_?_*.py"))]
    status = pytest.main(["-q", "--tb=short", *files], plugins=[outcomes])
    PAGE.write_text(page(written(), outcomes.passed))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
