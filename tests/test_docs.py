"""The words are true: README's commands run, and every metric, header, error code and event is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import errors
from gateway.metrics import InstanceReading, Metrics, Reading
from gateway.simulator import DEMO
from tests.test_cli import LIMIT, run, serving

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
FAULTS = {"U": 16, "S": 8, "C": 12, "Q": 7, "L": 8, "B": 17}  # of the fault matrix, by the letter of their rows
LATER = {"B12", "B15"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line]


def sources() -> Iterator[str]:
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        if "simulator" not in path.parts:
            yield path.read_text()


def test_every_command_of_the_readme_is_one_that_is_run_here() -> None:
    known = ("make demo", "make run", "curl ", "export OLLAMA_")
    assert all(command.startswith(known) for command in commands())
    for command in ("make demo", "make run"):
        told = subprocess.run(
            ["make", "--dry-run", "--always-make", command.split()[1]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        assert f"ollama-gateway {'demo' if 'demo' in command else 'serve'}" in told.stdout


def test_the_readmes_curl_lines_and_sdk_snippet_answer_in_front_of_the_demo(tmp_path: Path) -> None:
    with serving("demo", cwd=tmp_path) as (_, url, _):
        answers = []
        for command in (line for line in commands() if line.startswith("curl")):
            told = subprocess.run(
                ["bash", "-c", command.replace("http://127.0.0.1:8080", url)],
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=True,
            )
            answers.append(told.stdout)
        assert '"chat.completion"' in answers[0]
        assert DEMO[1].models[0].name in answers[0]
        assert answers[1].endswith("data: [DONE]\n\n")
        assert '"task_type":"reasoning"' in answers[2]
        (snippet,) = blocks("python")
        told = subprocess.run(
            [sys.executable, "-c", snippet.replace("http://127.0.0.1:8080", url)],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        assert len(told.stdout.split()) > 5


def test_the_readmes_variables_are_a_sound_configuration(tmp_path: Path) -> None:
    pairs = re.findall(r"(OLLAMA_\w+)=(\S+)", "\n".join(blocks("sh")))
    told = run("check", cwd=tmp_path, **dict(pairs))
    assert (told.returncode, told.stderr) == (0, "")
    assert "the environment is sound: 2 instance(s)" in told.stdout


def test_the_readmes_options_are_those_of_the_command_line(tmp_path: Path) -> None:
    told = run("serve", "--help", cwd=tmp_path).stdout
    for option in ("[URL]...", "--config", "--env-file", "--host", "--port"):
        assert option in told
    for command in re.findall(r"`ollama-gateway (\w+)", README):
        assert run(command, "--help", cwd=tmp_path).returncode == 0


def test_every_file_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


async def test_every_series_is_documented_and_every_documented_one_exists() -> None:
    metrics = Metrics("test")
    one = InstanceReading(name="a", state="healthy", up=True, in_flight=0, draining=0, limit=1, connections=0)
    metrics.read = lambda: Reading(instances=(one,))
    await metrics.exposition(0.0)
    published = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith("gateway_")
    }
    table = REFERENCE[REFERENCE.index("## Metrics") :]
    assert set(re.findall(r"`(gateway_\w+)`", table)) == published


def test_every_error_code_is_documented_with_its_status() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.GatewayError)]
    leaves = [kind for kind in kinds if not kind.__subclasses__()]
    for kind in leaves:
        rows = [row for row in REFERENCE.splitlines() if f"`{kind.code}`" in row and row.startswith("| `")]
        assert rows, f"{kind.__name__}: {kind.code} is not documented"
        assert any(str(kind.status) in row for row in rows), f"{kind.code} is not documented with {kind.status}"


def test_every_header_we_send_is_documented() -> None:
    sent = set(re.findall(r'b"(x-[a-z-]+|server-timing|cache-status|retry-after[a-z-]*)"', "\n".join(sources())))
    internal = {"x-accel-buffering"}
    for header in sent - internal:
        assert header in REFERENCE.lower(), f"{header} is not documented"


def test_every_event_we_log_is_documented() -> None:
    events = {
        node.args[0].value
        for source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("info", "warning", "error")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }
    assert events
    for event in events:
        assert f"`{event}`" in REFERENCE, f"{event} is not documented"


def test_every_fault_has_a_line_that_names_the_files_that_hold_it_and_all_of_them_have_tests() -> None:
    lines = re.findall(r"^\| ([USCQLB]\d+) \| [^|]+ \| ([^|]+) \|$", RELIABILITY, re.MULTILINE)
    rows = {f"{letter}{number}" for letter, count in FAULTS.items() for number in range(1, count + 1)} - LATER
    assert sorted(row for row, _ in lines) == sorted(rows)
    for row, files in lines:
        names = re.findall(r"`([^`]+)`", files)
        assert names, row
        for name in names:
            assert re.search(r"^(async )?def test_", (ROOT / "tests" / name).read_text(), re.MULTILINE), (row, name)


@pytest.mark.parametrize("word", ["backend", "tmp/", "localhost:1143"])
def test_the_words_for_users_are_the_glossarys(word: str) -> None:
    assert word not in README + REFERENCE
