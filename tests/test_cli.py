"""The command line as its users meet it: real processes, real signals, exit statuses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.simulator import Behaviour, SimulatedModel, Simulator
from tests.house import ask

COMMAND = [sys.executable, "-m", "gateway"]
ROOT = Path(__file__).parent.parent
LIMIT = 30  # seconds; guards against a hang


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "ENABLE_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | variables


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@contextmanager
def serving(
    *arguments: str, cwd: Path, errors: int = subprocess.PIPE, variables: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A running gateway: the process, its address, and what it printed at its start. Its log goes to `errors`."""
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--port", "0"],
        cwd=cwd,
        env=environment(**(variables or {})),
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    try:
        printed = ""
        assert process.stdout is not None
        while "status   http" not in printed:
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            printed += line
        address = re.search(r"API +(http://\S+)/v1", printed)
        assert address is not None
        yield process, address[1], printed
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal; the exit status and what was logged."""
    process.send_signal(number)
    _, logged = process.communicate(timeout=LIMIT)
    return process.returncode, logged


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT) as response:  # noqa: S310 - our own address
        body: bytes = response.read()
    return body.decode()


def test_help_names_every_command(tmp_path: Path) -> None:
    told = run("--help", cwd=tmp_path)
    assert told.returncode == 0
    for command in ("serve", "check", "explain", "models", "simulate", "demo", "healthcheck"):
        assert command in told.stdout


def test_it_starts_with_instances_on_the_command_line_though_none_answers_and_names_the_likely_fix(
    tmp_path: Path,
) -> None:
    with serving("serve", "http://127.0.0.1:1", "http://localhost:2", cwd=tmp_path) as (process, url, printed):
        assert "cannot reach localhost (http://localhost:2): connection refused." in printed
        assert "OLLAMA_HOST=0.0.0.0" in printed
        for heading in ("instance", "state", "ollama", "models", "loaded", "limit", "round trip"):
            assert heading in printed
        assert get(f"{url}/livez") == "alive"
        status, logged = ended(process, signal.SIGINT)
        assert status == 0
        assert "Traceback" not in logged


async def test_the_numbered_variables_work_alone(tmp_path: Path) -> None:
    async with Simulator(Behaviour()) as simulator:
        variables = {
            "OLLAMA_URL_1": f"{simulator.url}/v1",
            "OLLAMA_MODEL_1": "llama3.1:8b",
            "OLLAMA_CAPABILITIES_1": "general,reasoning",
            "OLLAMA_MAX_CONCURRENT_1": "2",
        }
        with_file = tmp_path / "gateway.env"
        with_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        for arguments, given in (((), variables), (("--env-file", str(with_file)), {})):

            def look(arguments: tuple[str, ...] = arguments, given: dict[str, str] = given) -> str:
                with serving("serve", *arguments, cwd=tmp_path, variables=given) as (_, url, printed):
                    assert "ollama-1  healthy" in printed
                    return get(f"{url}/api/chat/models")

            listed = json.loads(await asyncio.to_thread(look))
            assert listed["models"] == [
                {
                    "model": "llama3.1:8b",
                    "url": simulator.url,
                    "capabilities": ["general", "reasoning"],
                    "max_concurrent": 2,
                }
            ]


def test_sigterm_finishes_the_stream_in_progress_and_exits_with_0(tmp_path: Path) -> None:
    with serving("demo", cwd=tmp_path) as (process, url, _):
        body = json.dumps(ask("say: one two three four five six", model="auto", stream=True)).encode()
        asked = urllib.request.Request(f"{url}/v1/chat/completions", data=body)  # noqa: S310 - our own address
        with urllib.request.urlopen(asked, timeout=LIMIT) as stream:  # noqa: S310
            first = stream.readline()
            assert first.startswith(b"data: ")
            process.send_signal(signal.SIGTERM)
            assert stream.read().endswith(b"data: [DONE]\n\n")
        process.communicate(timeout=LIMIT)
        assert process.returncode == 0


def test_the_demo_answers_by_model_by_task_and_as_facade(tmp_path: Path) -> None:
    with serving("demo", cwd=tmp_path) as (process, url, printed):
        assert "general" in printed
        assert "coding" in printed
        assert run("healthcheck", "--port", url.rsplit(":", 1)[1], cwd=tmp_path).returncode == 0
        models = [model["id"] for model in json.loads(get(f"{url}/v1/models"))["data"]]
        assert "qwen3-coder:30b-a3b-q4_K_M" in models
        assert ended(process, signal.SIGINT)[0] == 0


def test_an_address_in_use_is_exit_status_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = run("serve", "http://127.0.0.1:1", "--port", str(taken.getsockname()[1]), cwd=tmp_path)
    assert told.returncode == 3
    assert "Traceback" not in told.stderr
    assert "in use" in told.stderr


def test_a_port_for_probes_that_is_taken_is_told_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "routes.yaml").write_text(
            f"server: {{port: 0, ops_port: {port}}}\ninstances: [{{name: one, url: 'http://127.0.0.1:1'}}]\n"
        )
        told = run("serve", cwd=tmp_path)
    assert told.returncode == 3
    assert "server.ops_port" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_wrong_configuration_is_exit_status_2_with_every_problem_and_its_place(tmp_path: Path) -> None:
    (tmp_path / "routes.yaml").write_text(
        "instances:\n  - name: a\n    urll: http://x:1\n    max_concurrent: 0\n"
        "routes:\n  - name: r\n    match: {task: code_genration}\n    to: [{instance: b}]\n"
    )
    for command in (("serve",), ("check",), ("check", "routes.yaml"), ("explain",)):
        told = run(*command, cwd=tmp_path)
        assert told.returncode == 2
        assert "routes.yaml has 5 problems:" in told.stderr
        assert re.search(r"line 3:5 .* unknown key\. Did you mean \"url\"\?", told.stderr)
        assert "Traceback" not in told.stderr


@pytest.mark.parametrize("arguments", [("serve", "--port", "high"), ("nothing",), ("check", "no-such-file.yaml")])
def test_wrong_usage_is_exit_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    told = run(*arguments, cwd=tmp_path)
    assert told.returncode == 2
    assert "Traceback" not in told.stderr


def test_the_shipped_configuration_is_sound() -> None:
    told = run("check", cwd=ROOT)
    assert (told.returncode, told.stderr) == (0, "")
    assert "routes.yaml is sound: 1 instance(s)" in told.stdout


async def test_explain_prints_the_plan_and_its_reasons(tmp_path: Path) -> None:

    async with Simulator(Behaviour()) as simulator:
        told = await asyncio.to_thread(
            run, "explain", simulator.url, "--task", "code_generation", "--model", "auto", cwd=tmp_path
        )
        assert told.returncode == 0
        assert "task code_generation from header" in told.stdout
        assert "stands in" in told.stdout
        missing = await asyncio.to_thread(run, "explain", simulator.url, "--model", "nobody", cwd=tmp_path)
        assert (missing.returncode, missing.stderr) == (1, "model 'nobody' not found\n")
        listed = await asyncio.to_thread(run, "models", simulator.url, cwd=tmp_path)
        assert listed.returncode == 0
        assert "llama3.1:8b" in listed.stdout


async def test_check_can_look_at_the_instances_too(tmp_path: Path) -> None:
    models = [SimulatedModel(name="llama3.1:8b", digest=digit * 64) for digit in "ab"]
    async with Simulator(Behaviour(models=(models[0],))) as one, Simulator(Behaviour(models=(models[1],))) as other:
        file = tmp_path / "routes.yaml"
        file.write_text(f"instances:\n  - {{name: one, url: '{one.url}'}}\n  - {{name: other, url: '{other.url}'}}\n")
        told = await asyncio.to_thread(run, "check", "--probe", cwd=tmp_path)
        assert told.returncode == 1
        assert "one       healthy" in told.stdout
        assert "llama3.1:8b" in told.stderr
        file.write_text(f"instances:\n  - {{name: one, url: '{one.url}'}}\n")
        told = await asyncio.to_thread(run, "check", "--probe", cwd=tmp_path)
        assert (told.returncode, told.stderr) == (0, "")


def test_nobody_there_is_exit_status_1(tmp_path: Path) -> None:
    assert run("healthcheck", "--port", "1", cwd=tmp_path).returncode == 1
    told = run("models", "http://127.0.0.1:1", cwd=tmp_path)
    assert told.returncode == 1
    assert "cannot reach" in told.stderr


def test_a_changed_file_is_read_anew_and_a_broken_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    good = "instances:\n  - {name: a, url: 'http://127.0.0.1:1', max_concurrent: %d}\n"
    file.write_text(good % 1)
    with serving("serve", cwd=tmp_path) as (process, url, _):
        assert process.stderr is not None

        def logged(event: str) -> str:
            assert process.stderr is not None
            for line in process.stderr:
                if event in line:
                    return line
            raise AssertionError(f"{event} was never logged")

        file.write_text(good % 7)
        assert "~ instance a" in logged("config.applied")
        assert json.loads(get(f"{url}/gateway/status"))["instances"][0]["limit"] == 7
        file.write_text("instances: 3\n")
        assert "instances" in logged("config.problem")
        assert json.loads(get(f"{url}/gateway/status"))["instances"][0]["limit"] == 7
        assert json.loads(get(f"{url}/gateway/status"))["config"]["reload_ok"] is False


def test_help_and_healthcheck_do_not_load_the_server() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from gateway.cli import main; "
        "CliRunner().invoke(main, ['healthcheck', '--port', '1']); "
        "print([name for name in ('starlette', 'pydantic', 'httpx', 'uvicorn', 'yaml') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert told.stdout.strip() == "[]"
