"""What lists say of a model: all that an instance told, and nothing a strict client would stumble over."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.lists import entries
from gateway.upstream import InstalledModel

DIGEST = "a" * 64
TEXTS = ("parent_model", "format", "family", "parameter_size", "quantization_level")
values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.none() | st.text(max_size=3))
odd_details = st.none() | st.text(max_size=5) | st.dictionaries(st.sampled_from([*TEXTS, "families", "more"]), values)
odd_entries = st.dictionaries(st.sampled_from(["modified_at", "created", "size", "digest", "model", "more"]), values)


def complete(entry: dict[str, Any]) -> None:
    """As strict as the strictest client (clients.md §9 D 30)."""
    assert entry["model"] == entry["name"] != ""
    assert type(entry["size"]) is int
    assert re.fullmatch("[0-9a-f]{64}", entry["digest"])
    assert all(type(entry["details"][name]) is str for name in TEXTS)
    assert all(type(one) is str for one in entry["details"]["families"])
    json.dumps(entry)


@given(entry=odd_entries, details=odd_details, digest=st.sampled_from(["", DIGEST, "sha256:" + DIGEST, "A" * 64]))
def test_30_an_entry_is_complete_whatever_the_instance_told(entry: dict[str, Any], details: Any, digest: str) -> None:
    model = InstalledModel("x:1b", digest, 7, told=json.dumps({**entry, "details": details}).encode())
    told = entries.installed(model)
    complete(told)
    assert entries.moment(told["modified_at"]) is not None
    assert told.get("more") == entry.get("more")
    complete(entries.loaded({**entry, "details": details}, "x:1b", model, "2318-01-01T00:00:00Z"))
    complete(entries.loaded({}, "x:1b", None, "2318-01-01T00:00:00Z"))


def test_30_what_is_complete_stays_as_it_is() -> None:
    details = {**dict.fromkeys(TEXTS, "t"), "families": ["a", "b"], "context_length": 5}
    raw = {
        "name": "x:1b",
        "model": "x:1b",
        "modified_at": "2026-08-21T10:00:00.123456789+02:00",
        "size": 7,
        "digest": DIGEST,
        "details": details,
        "remote_host": "h",
    }
    assert entries.installed(InstalledModel("x:1b", DIGEST, 7, told=json.dumps(raw).encode())) == raw
    assert list(entries.installed(InstalledModel("x:1b", DIGEST, 7, told=json.dumps(raw).encode()))) == list(raw)


def test_30_a_time_of_the_other_api_is_a_date_too() -> None:
    told = entries.installed(InstalledModel("x:1b", told=b'{"id": "x:1b", "created": 1700000000}'))
    assert told["modified_at"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    "told", ["", "yesterday", "2026-08-21", "2026-08-21 10:00:00Z", "2026-13-41T10:00:00Z", None, 7]
)
def test_30_what_is_no_rfc_3339_is_no_time(told: Any) -> None:
    assert entries.moment(told) is None


def test_31_models_without_a_digest_have_one_each() -> None:
    names = ("auto", "auto:planning", "auto:reasoning")
    digests = {entries.virtual(name, {"completion"}, 1)["digest"] for name in names}
    assert len({digest[:12] for digest in digests}) == 3


def test_34_an_answer_that_has_all_is_passed_on_byte_for_byte() -> None:
    body = b'{"template":"{{ .Prompt }}" , "parameters":"","details":{},"capabilities":[],"model_info":{"x":1e400}}'
    assert entries.show_complete(body, InstalledModel("x:1b")) is body


@pytest.mark.parametrize("body", [b'{"details":{"family":"f"}}', b'{"details":{"family":"f"},"capabilities":null}'])
def test_34_what_an_old_ollama_leaves_out_is_filled_in_from_the_lists(body: bytes) -> None:
    model = InstalledModel("ns/x:1b", capabilities=frozenset({"tools", "completion"}), context_length=9, family="fam")
    told = json.loads(entries.show_complete(body, model))
    assert (told["details"], told["capabilities"]) == ({"family": "f"}, ["completion", "tools"])
    assert (told["template"], told["parameters"]) == ("", "")
    info = {"general.architecture": "fam", "general.basename": "x", "fam.context_length": 9}
    assert told["model_info"] == info


def test_34_renaming_changes_one_field_and_copies_the_others() -> None:
    body = b'{"license":"l","model_info":{"general.basename":"old","n":12345678901234567890123,"a":[1.0]},"x":1e400}'
    told = entries.show_named(body, "new:1b")
    assert told == body.replace(b'"old"', b'"new:1b"')


@given(words=st.sets(st.sampled_from([*entries.CAPABILITIES, "zither", "new"])))
def test_capabilities_come_in_ollamas_order(words: set[str]) -> None:
    known = [word for word in entries.CAPABILITIES if word in words]
    assert entries.ordered(words) == known + sorted(words - set(known))
