"""YAML as it is written: variables, anchors, places; and files that mean harm."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import load
from gateway.errors import ConfigError
from tests.config.examples import GOOD, Read, Refused

# --- variables inside the file


@pytest.mark.parametrize(
    ("written", "env", "meant"),
    [
        ("${N}", {"N": "3"}, 3),
        ("${N:-2}", {}, 2),
        ("${N:-2}", {"N": ""}, 2),
        ("${N:?how many}", {"N": "0x10"}, 16),
        ('"${N}"', {"N": "4"}, 4),
    ],
)
def test_a_variable_alone_has_the_type_of_what_it_holds(
    read: Read, written: str, env: dict[str, str], meant: int
) -> None:
    text = GOOD.replace("max_concurrent: 2", f"max_concurrent: {written}")
    assert read(text, **env).config.instances[1].max_concurrent == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [("gpu-${A}-${B:-b}.example", "gpu-1-b.example"), ("$${A}", "${A}"), ("$A", "$A"), ("$$", "$"), ("'${A}'", "1"),
     ("${B:-}x", "x"), ("${B:-a:b-c?d}", "a:b-c?d")],
)  # fmt: skip
def test_a_variable_in_a_text_is_text(read: Read, written: str, meant: str) -> None:
    assert read(GOOD + f"server:\n  host: {written}\n", A="1").config.server.host == meant


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("${A}", "the variable A is not set"),
        ("${A:?the host to serve}", "the variable A is not set: the host to serve"),
        ("${A", "write ${NAME}, ${NAME:-default} or ${NAME:?message}; a dollar sign alone is $$"),
        ("${}", "write ${NAME}, ${NAME:-default} or ${NAME:?message}; a dollar sign alone is $$"),
        ("${A:-${B}}", "write ${NAME}, ${NAME:-default} or ${NAME:?message}; a dollar sign alone is $$"),
    ],
)
def test_a_variable_that_cannot_be_filled_in_is_told_with_its_place(
    refused: Refused, written: str, message: str
) -> None:
    assert refused(GOOD + f"server:\n  host: {written}\n") == {"server.host": (message, (22, 9))}


def test_the_value_of_a_secret_is_never_shown(read: Read) -> None:
    text = (
        "instances:\n"
        "  - name: a\n"
        "    url: http://me:${OLLAMA_TOKEN}@gpu1\n"
        "    max_concurrent: ${MY_SECRET}\n"
        "  - {name: b, url: 'http://me:plain-hunter2@gpu2'}\n"
        "  - {name: c, url: http://gpu3}\n"
        "routes:\n"
        "  - name: r\n"
        "    match: {task: '${DB_PASSWORD}'}\n"
        "    to: [{instance: '${API_KEY}'}]\n"
        "log:\n"
        "  level: ${API_KEY}\n"
        "server:\n"
        "  port: ${PORT_KEY}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read(
            text,
            OLLAMA_TOKEN="hunter2-a",
            MY_SECRET="hunter2-b",
            DB_PASSWORD="hunter2-c",
            API_KEY="hunter2-d",
            PORT_KEY="0070123",
        )
    assert "hunter2" not in str(caught.value)
    assert "70123" not in str(caught.value)
    assert len(caught.value.problems) == 7


def test_merge_keys_and_anchors_say_a_thing_once(read: Read) -> None:
    text = (
        "instances:\n"
        "  - &base {name: a, url: http://gpu1, capabilities: [coding], max_concurrent: 4}\n"
        "  - {<<: *base, name: b, url: http://gpu2}\n"
    )
    first, second = read(text).config.instances
    assert (second.name, second.capabilities, second.max_concurrent) == ("b", first.capabilities, 4)


def test_a_problem_in_a_merged_key_is_told_where_it_is_written(refused: Refused) -> None:
    text = "instances:\n  - {name: a, url: http://a, <<: [{drain: 3}]}\n"
    place = (2, text.splitlines()[1].index("3}") + 1)
    assert refused(text)["instances[0].drain"] == ("must be true or false, found 3", place)


def test_only_numbers_have_a_type_of_their_own(read: Read) -> None:
    text = "instances: [{name: no, url: http://gpu1, model: 2020-01-01, drain: off}]\nserver: {port: 0o17}"
    with pytest.raises(ConfigError, match="must be a whole number"):
        read(text)
    (instance,) = read(text.replace("0o17", "017")).config.instances
    assert (instance.name, instance.model, instance.drain) == ("no", "2020-01-01", False)


def test_a_byte_order_mark_is_not_part_of_the_first_key(read: Read) -> None:
    assert read(b"\xef\xbb\xbf" + GOOD.encode()).config == read(GOOD).config


# --- hostile files: refused within a second, with a place (faults.md B17)

_LAYERS = "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, 10))
_MERGES = "".join(f"k{i}: &k{i} {{<<: [{', '.join([f'*k{i - 1}'] * 9)}]}}\n" for i in range(1, 10))
_CHAIN = "".join(f"k{i}: &k{i} [*k{i - 1}]\n" for i in range(1, 3000))
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "an alias bomb": ("k0: &k0 [x, x, x]\n" + _LAYERS, "aliases unfold to more than 1,000"),
    "a merge bomb": ("k0: &k0 {a: 1}\n" + _MERGES, "aliases unfold to more than 1,000"),
    "an alias chain": ("k0: &k0 [x]\n" + _CHAIN, "nested more than 32 deep"),
    "an alias of itself": ("a: &a [*a]", "the alias *a contains itself"),
    "an alias of nothing": ("a: *b", "has no anchor &b"),
    "deep lists": ("a: " + "[" * 500_000, "nest"),  # libyaml from 0.2.6 on finds it before we do
    "deep mappings": ("a: " + "{a: " * 200_000, "nested more than 32 deep"),
    "deep dashes": ("- " * 400_000, "nested more than 32 deep"),
    "too many values": ("instances:\n" + "- a\n" * 260_000, "holds more than 32,000 values"),
    "many wrong values": ("instances:\n" + "- a\n" * 31_000, 'found "a"'),
    "many unknown keys": ("".join(f"instancess{i}: 1\n" for i in range(15_000)), "unknown key"),
    "many unknown targets": (
        GOOD.partition("cache:")[0] + "      - {instance: bata}\n" * 7_000,
        "no instance is called",
    ),
    "many models": (
        GOOD.replace('["llama3.1:8b"]', f"[{'m, ' * 20_000}]")
        .replace("instance: beta", "instance: alpha")
        .replace("cache:", "      - {instance: alpha, model: x}\n" * 1_000 + "cache:"),
        "is not among the `models`",
    ),
    "ten megabytes": ("# " + "x" * 10_000_000, "larger than 1 MiB"),
    "a large key": ("? " + "x" * 1_000_000 + "\n: 1", "unknown key"),
    "an open quote": ('a: "' + "x" * 1_000_000, "is not YAML"),
    "a large number": ("server: {port: " + "9" * 100_000 + "}", "must be a finite number"),
    "a tag of Python": ("a: !!python/object/apply:os.system [echo]", "is not allowed"),
    "a tag of one's own": ("!mine {a: 1}", "the tag !mine is not allowed"),
    "a key twice": ("a: 1\na: 2", "appears twice, first on line 1"),
    "a key that is a list": ("? [a]\n: 1", "a key must be text"),
    "a merge of a text": ("<<: x", "a merge key << takes a mapping"),
    "a list": ("- a", "must be a mapping"),
    "a text": ("instances", "must be a mapping"),
    "nothing": ("", "is empty"),
    "only comments": ("# a\n" * 100_000, "is empty"),
    "an empty document": ("---\n...\n", "is empty"),
    "two documents": ("a: 1\n---\nb: 1", "must hold one document"),
    "tabs": ("a:\n\tb: 1", "is not YAML"),
    "zero bytes": (b"a: \x00", "is not YAML"),
    "no text": (b"instances:\n  \xff\xfe", "is not UTF-8 text"),
    "a user in a URL": (GOOD.replace("http://gpu2", "http://me:word@gpu2"), "must not carry a user name or password"),
    "control characters": (GOOD.replace("name: beta", r'name: "\e[31m"'), r'found "\x1b[31m"'),
    "a variable as a bomb": ("a: [" + '"${BIG}", ' * 30_000 + "]", "the variable BIG makes it too large"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_soon_and_with_a_place(read: Read, name: str) -> None:
    text, message = HOSTILE[name]
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        read(text, BIG="x" * 100_000)
    assert time.perf_counter() - started < 5  # about 0.3 s; the bound only guards against what grows without one
    told = [problem for problem in caught.value.problems if message in problem.message]
    assert told
    assert name == "ten megabytes" or told[0].line > 0
    assert len(str(caught.value)) < 100_000


def test_the_place_of_a_byte_that_is_no_text_is_told(refused: Refused) -> None:
    assert refused(b"instances:\n  \xff") == {"": ("is not UTF-8 text", (2, 3))}


def test_a_file_that_is_not_there_or_no_file_is_told_calmly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(file=tmp_path / "none.yaml", env={})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(file=tmp_path, env={})


_PIECES = st.sampled_from(
    ["[", "]", "{", "}", ":", " ", "\n", "- ", "*a", "&a ", "<<: ", "${", "$$", "!x ", "'", '"', "|", ">", "%", "?",
     "#", "\t", "null", "~", "-1", "1e999", ".nan", "\x00", "\u2028", "é", "\ufeff", "instances", "to", "match",
     "---\n"]
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_changed_at_random_is_read_or_refused_but_never_breaks(read: Read, data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + data.draw(_PIECES | st.text(max_size=3)) + text[end:]
    try:
        loaded = read(text.encode("utf-8", "surrogatepass"), a="b")
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either outcome is right; nothing else may be raised
    else:
        assert loaded.config.instances


@given(content=st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_at_random_are_refused_but_never_break(read: Read, content: bytes) -> None:
    with pytest.raises(ConfigError):
        read(content)
