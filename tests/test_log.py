"""What the operator reads: a line stays a line whatever a client wrote, and no line holds a prompt."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.call import Call, Record, Usage, Wish
from gateway.config import LogConfig
from gateway.dialects import openai
from gateway.log import MAX_TEXT, call_facts, configure
from gateway.outlet import MAX_KEPT, catch_up, lines_lost

LIBRARIES = ("", "httpx", "asyncio", "uvicorn")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Log:
    """Everything that is logged from now on, in one form."""

    def __init__(self, out: io.StringIO, **config: Any) -> None:
        self._out = out
        configure(LogConfig(**config), out)
        self.log = structlog.get_logger("gateway")

    @property
    def text(self) -> str:
        return self._out.getvalue()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def clear(self) -> None:
        self._out.seek(0)
        self._out.truncate()


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is one for the whole process: leave it as it was found."""
    root = logging.getLogger()
    handlers, levels = root.handlers, {name: logging.getLogger(name).level for name in LIBRARIES}
    yield
    structlog.reset_defaults()
    root.handlers = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def lines() -> Log:
    return Log(io.StringIO(), format="json")


@pytest.fixture
def words() -> Log:
    return Log(io.StringIO(), format="text")


def boom(text: str = "boom") -> None:
    raise ValueError(text)


# The form


def test_an_event_is_one_line_of_json_that_says_when_how_grave_and_what_first(lines: Log) -> None:
    lines.log.warning("breaker.change", instance="alpha", failures=5)
    (event,) = lines.events
    assert list(event)[:3] == ["timestamp", "level", "event"]
    assert datetime.fromisoformat(event.pop("timestamp")).utcoffset() is not None
    assert event == {"level": "warning", "event": "breaker.change", "instance": "alpha", "failures": 5}


def test_text_on_request_is_read_by_people(words: Log) -> None:
    words.log.info("call.done", status=200, model="llama3.1:8b")
    assert "call.done" in words.text
    assert "model=llama3.1:8b" in words.text
    assert "{" not in words.text
    assert "\x1b" not in words.text


@pytest.mark.parametrize(
    ("form", "out", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("text", io.StringIO, False),
    ],
)
def test_the_form_is_the_one_asked_for_or_else_what_suits_the_reader(
    form: str, out: Callable[[], io.StringIO], is_json: bool
) -> None:
    log = Log(out(), format=form)
    log.log.info("hello")
    assert log.text.startswith("{") == is_json


def test_what_is_less_grave_than_the_level_is_not_written() -> None:
    log = Log(io.StringIO(), format="json", level="warning")
    log.log.info("quiet")
    log.log.warning("loud")
    assert [event["event"] for event in log.events] == ["loud"]


@pytest.mark.parametrize("size", range(MAX_TEXT - 12, MAX_TEXT + 3))
@pytest.mark.parametrize("name", ["asked", "a", "the_last_of_them"])
def test_texts_near_the_longest_are_cut_just_there_wherever_they_stand(lines: Log, name: str, size: int) -> None:
    for facts in ({name: "x" * size}, {name: "x" * size, "number": 1}, {"number": 1, name: "x" * size, "b": "b"}):
        lines.log.info("event", **facts)
        assert lines.events[-1] == lines.events[-1] | facts | {name: "x" * min(size, MAX_TEXT)}


def test_the_time_of_an_event_is_told_to_the_microsecond_and_by_now(lines: Log) -> None:
    before = datetime.now(UTC)
    lines.log.info("event")
    (event,) = lines.events
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["timestamp"])
    told = datetime.fromisoformat(event["timestamp"])
    assert before - timedelta(microseconds=1) <= told <= datetime.now(UTC)


def test_libraries_speak_in_the_same_form_and_only_when_it_matters(lines: Log) -> None:
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("asyncio").warning("took %s s", 3)
    (event,) = lines.events
    assert (event["event"], event["level"]) == ("took 3 s", "warning")


def test_a_second_configuration_takes_the_place_of_the_first(lines: Log) -> None:
    second = Log(io.StringIO(), format="json")
    second.log.info("hello")
    assert (len(second.events), lines.text) == (1, "")


# Whatever a client wrote

BREAKING = ["\n", "\r", "\x00", "\x0b", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u2029"]


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("char", BREAKING)
def test_a_line_stays_a_line_and_a_terminal_is_not_commanded(form: str, char: str) -> None:
    log = Log(io.StringIO(), format=form)
    event = f"an{char}event"
    log.log.info(event, asked=f"a{char}b")
    logging.getLogger("library").warning("its%swords", char)
    assert len(log.text.splitlines()) == 2
    assert char not in log.text.replace("\n", "")
    assert "a b" in log.text


@given(text=st.text(), form=st.sampled_from(["json", "text"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_at_all_is_one_line(text: str, form: str) -> None:
    log = Log(io.StringIO(), format=form)
    log.log.info("event", asked=text)
    assert len(log.text.splitlines()) == 1
    if form == "json":
        assert len(log.events[0]["asked"]) <= MAX_TEXT


@pytest.mark.parametrize("form", ["json", "text"])
def test_text_that_cannot_be_encoded_is_still_a_line(form: str) -> None:
    log = Log(io.StringIO(), format=form)
    log.log.info("event", path="\udcff")
    log.text.encode()
    assert "event" in log.text


def test_long_text_is_cut(lines: Log) -> None:
    lines.log.info("event", asked="x" * 10_000)
    assert lines.events[0]["asked"] == "x" * MAX_TEXT


def test_values_of_any_kind_can_be_told(lines: Log) -> None:
    lines.log.info("event", error=ValueError("no\u2028way"), several=["a\u2028b"], none=None, number=1.5)
    (event,) = lines.events
    assert len(lines.text.splitlines()) == 1
    assert (event["error"], event["none"], event["number"]) == ("no\u2028way", None, 1.5)


# Exceptions


@pytest.mark.parametrize("name", ["gateway", "library"])
def test_an_exception_is_told_as_text_on_the_line_of_its_event(lines: Log, name: str) -> None:
    try:
        boom("no \u2028 \x1b[31m way")
    except ValueError:
        (structlog.get_logger(name) if name == "gateway" else logging.getLogger(name)).exception("call.defect")
    assert len(lines.text.splitlines()) == 1
    (event,) = lines.events
    assert (event["event"], event["level"]) == ("call.defect", "error")
    assert event["exception"].startswith("Traceback (most recent call last):\n")
    assert event["exception"].endswith("ValueError: no    [31m way")
    assert "exc_info" not in event


@pytest.mark.parametrize("name", ["gateway", "library"])
def test_as_text_an_exception_keeps_its_lines_but_commands_no_terminal(words: Log, name: str) -> None:
    try:
        boom("no \x1b[31m way")
    except ValueError:
        (structlog.get_logger(name) if name == "gateway" else logging.getLogger(name)).exception("call.defect")
    assert len(words.text.splitlines()) > 3
    assert "ValueError: no  [31m way" in words.text
    assert "\x1b" not in words.text


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_does_not_tell_what_variables_held(form: str) -> None:
    log = Log(io.StringIO(), format=form)

    def work(prompt: str) -> None:
        boom()

    try:
        work("".join(["my ", "secret"]))
    except ValueError:
        log.log.exception("call.defect")
        logging.getLogger("library").exception("defect")
    assert "Traceback" in log.text
    assert "my secret" not in log.text


# The line of a call


def record(**facts: Any) -> Record:
    usual: dict[str, Any] = {"request_id": "r1", "arrived": 0.0, "method": "POST", "path": "/v1/chat/completions"}
    return Record(**(usual | facts))


def test_the_line_of_a_call_tells_its_story() -> None:
    done = record(
        status=200, route="by-model", task="", asked="Llama3.1", model="llama3.1:8b", instance="alpha", attempts=2,
        stream=True, cache="bypass", waited=0.12345678, first_token=0.98765432, usage=Usage(18, 204),
    )  # fmt: skip
    assert call_facts(done, 1.23456789) == {
        "id": "r1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "seconds": 1.2346,
        "route": "by-model",
        "asked": "Llama3.1",
        "model": "llama3.1:8b",
        "instance": "alpha",
        "attempts": 2,
        "stream": True,
        "cache": "bypass",
        "wait": 0.1235,
        "ttft": 0.9877,
        "in": 18,
        "out": 204,
    }


def test_what_did_not_happen_is_not_told() -> None:
    assert set(call_facts(record(status=404, reason="not_found"), 0.001)) == {
        "id",
        "method",
        "path",
        "status",
        "seconds",
        "reason",
    }


def test_a_substitution_and_a_failure_are_told() -> None:
    facts = call_facts(record(status=502, reason="connect", substitution="no instance is good at planning"), 0.0)
    assert (facts["reason"], facts["substituted"]) == ("connect", "no instance is good at planning")


def test_the_line_of_a_call_has_no_place_for_a_prompt(lines: Log) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"my secret"}]}'
    call = Call(request_id="r1", operation=openai.CHAT, wish=Wish(model="m"), body=body)
    assert "secret" not in repr(call)
    lines.log.info("call.done", **call_facts(record(asked=call.wish.model, status=200), 0.1))
    assert "secret" not in lines.text


# No room


def test_lines_that_nobody_reads_are_kept_within_a_bound_and_those_beyond_are_counted() -> None:
    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    with os.fdopen(writes, "w") as out, os.fdopen(reads, "rb") as reader:
        configure(LogConfig(format="json"), out)
        log, count = structlog.get_logger("gateway"), 0
        while lines_lost() < 10:
            log.info("event", text="x" * MAX_TEXT, number=count)
            count += 1
        read = b""
        while data := reader.read():
            read += data
            catch_up()
        numbers = [json.loads(line)["number"] for line in read.splitlines()]
        assert numbers == list(range(count - 10))
        assert MAX_KEPT < len(read) < MAX_KEPT + 2**17
        log.info("event", number=count)
        assert json.loads(reader.read())["number"] == count


def test_a_file_that_refuses_lines_costs_them_and_nothing_else() -> None:
    with open("/dev/full", "w") as out:  # noqa: PTH123
        configure(LogConfig(format="json"), out)
        for _ in range(3):
            structlog.get_logger("gateway").info("event")
        assert lines_lost() == 3
