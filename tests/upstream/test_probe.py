"""What is asked of an instance, what is made of its answers, and what is said where there is none."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadAnswer, ConnectFailed, ConnectionLost, FirstTokenTimeout, Refused
from gateway.upstream import Health, InstalledModel, Listing, Prober
from gateway.upstream.probe import AT_A_TURN, MAX_MODELS, MAX_NAME, MAX_POSTS, MAX_REPLY, _installed, _version
from tests.upstream.scripted import (
    CHUNKED,
    HELLO,
    Script,
    answering,
    at_paths,
    black_hole,
    body,
    once,
    quiet,
    reaching,
    silent,
    speaking,
    until,
)

VERSION = body(b'{"version":"0.32.15"}')
TAGS = body(
    b'{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest","modified_at":"2026-08-21T10:00:00.1+02:00",'
    b'"size":2019393189,"digest":"a80c4f17acd5","details":{"parent_model":"","format":"gguf","family":"llama",'
    b'"families":null,"parameter_size":"3.2B","quantization_level":"Q4_K_M","context_length":131072},'
    b'"capabilities":["completion","tools"]},{"name":"old:7b","size":1,"digest":"b"}]}'
)
PS = body(
    b'{"models":[{"name":"llama3.2:latest","size":3,"size_vram":2,"context_length":4096,'
    b'"expires_at":"2318-01-01T00:00:00Z"}]}'
)
MODELS = body(b'{"object":"list","data":[{"id":"qwen/qwen2.5-7b@q4","object":"model","owned_by":"x"}]}')


async def health(script: Script, limit: float = 5) -> Health:
    async with speaking(script) as instance, reaching(instance.url) as upstream:
        prober = Prober(upstream)
        seen = await prober.health(limit)
        await prober.close()
        assert quiet(upstream)
        return seen


async def listing(script: Script, *, native: bool = True, limit: float = 5) -> Listing:
    async with speaking(script) as instance, reaching(instance.url) as upstream:
        prober = Prober(upstream)
        try:
            return await prober.listing(limit, native)
        finally:
            await prober.close()
            assert quiet(upstream)


async def problem(script: Script, limit: float = 5) -> str:
    seen = await health(script, limit)
    assert not seen.ok
    assert seen.seconds > 0
    assert "127.0.0.1" not in seen.problem
    assert "alpha" not in seen.problem
    return seen.problem


# Health


async def test_an_ollama_is_known_by_its_version() -> None:
    seen = await health(at_paths({"/api/version": VERSION}))

    assert (seen.ok, seen.version, seen.native, seen.problem) == (True, "0.32.15", True, "")
    assert seen.seconds > 0


@pytest.mark.parametrize("version", [{}, {"/api/version": body(b'{"error":"Unexpected endpoint"}')}])
async def test_a_server_that_knows_only_v1_is_well_and_not_native(version: dict[str, bytes]) -> None:
    for models in (MODELS, body(b'{"data":null}')):
        seen = await health(at_paths({**version, "/v1/models": models}))
        assert (seen.ok, seen.version, seen.native, seen.problem) == (True, "", False, "")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (at_paths({}), "answers, but is no Ollama and has no /v1/models"),
        (at_paths({"/v1/models": body(b"<html>", kind=b"text/html")}), "answers, but is no Ollama"),
        (at_paths({"/v1/models": body(b"[]")}), "answers, but is no Ollama"),
        (at_paths({"/v1/models": body(b"{}", b"401 Unauthorized")}), "asks for credentials"),
        (answering(body(b"", b"403 Forbidden")), "Ollama refuses this Host"),
        (answering(body(b"", b"500 Internal Server Error")), "answers 500 to /api/version"),
        (answering(body(b"", b"302 Found")), "answers 302 to /api/version"),
        (answering(body(b"[" * 200_000)), "answers, but is no Ollama"),
        (once(b"SSH-2.0-OpenSSH_9.6\r\n"), "not an HTTP answer"),
        (once(b""), "closed the connection without an answer"),
        (once(CHUNKED + b"5\r\nhello\r\n"), "cut its answer short"),
        (answering(body(b"z" * (MAX_REPLY + 1))), "is larger than"),
    ],
)
async def test_what_is_wrong_is_said_in_words(script: Script, words: str) -> None:
    assert words in await problem(script)


async def test_a_silent_instance_is_a_problem_and_not_an_exception() -> None:
    assert "timed out: no answer within 0.05 s. Is" in await problem(silent(), limit=0.05)
    assert "timed out: no answer within 0.1 s. Is" in await problem(silent(CHUNKED + b"1\r\n{\r\n"), limit=0.1)


async def test_an_instance_that_is_not_there_comes_with_the_likely_fix() -> None:
    async with speaking(answering(HELLO)) as instance:
        pass
    async with reaching(instance.url) as upstream:
        seen = await Prober(upstream).health(5)
        assert seen.problem == "connection refused. Is Ollama running there, and is OLLAMA_HOST=0.0.0.0 set?"
    async with reaching(f"http://{'a' * 64}.invalid:1") as upstream:
        assert (await Prober(upstream).health(5)).problem.startswith("its name does not resolve. Is it spelt right")
    async with black_hole() as url, reaching(url) as upstream:
        assert (await Prober(upstream).health(0.1)).problem.startswith("timed out")


async def test_a_version_that_is_no_plain_word_is_not_repeated() -> None:
    assert _version(b'{"version":"0.1\\n<script>"}') == ""
    assert _version(b'{"version":7}') is None
    assert (await health(at_paths({"/api/version": body(b'{"version":"a b"}')}))).ok


async def test_a_probe_that_is_cancelled_leaves_nothing_behind() -> None:
    async with speaking(silent()) as instance, reaching(instance.url) as upstream:
        task = asyncio.ensure_future(Prober(upstream).health(60))
        await until(lambda: bool(instance.peers and instance.peers[0].bodies))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert quiet(upstream)


# Lists


async def test_installed_and_loaded_models_are_read() -> None:
    seen = await listing(at_paths({"/api/tags": TAGS, "/api/ps": PS}))

    assert seen.loaded is not None
    (there,) = seen.loaded
    assert (there.name, there.size_vram, there.context_length) == ("llama3.2:latest", 2, 4096)
    assert (there.expires_at, there.size) == ("2318-01-01T00:00:00Z", 3)
    assert there.raw["size"] == 3
    first, second = seen.installed
    assert (first.name, first.digest, first.size, first.family) == (
        "llama3.2:latest",
        "a80c4f17acd5",
        2019393189,
        "llama",
    )
    assert (first.capabilities, first.context_length) == (frozenset({"completion", "tools"}), 131072)
    assert first.raw["details"]["quantization_level"] == "Q4_K_M"
    assert (second.name, second.capabilities, second.context_length) == ("old:7b", None, None)


async def test_entries_that_do_not_fit_are_skipped_in_both_lists() -> None:
    odd = body(b'{"models":[{"name":"a b"},{"name":"good:1"},{"size":1}]}')
    seen = await listing(at_paths({"/api/tags": odd, "/api/ps": odd}))
    assert [model.name for model in seen.installed] == ["good:1"]
    assert [model.name for model in seen.loaded or ()] == ["good:1"]


async def test_a_list_that_is_as_it_was_is_the_same_and_one_that_changed_is_read() -> None:
    more = body(b'{"models":[{"name":"old:7b"},{"name":"new:7b"}]}')
    pages = {"/api/tags": TAGS, "/api/ps": PS}
    async with speaking(at_paths(pages)) as instance, reaching(instance.url) as upstream:
        prober = Prober(upstream)
        first, again = await prober.listing(5, True), await prober.listing(5, True)
        assert again.installed is first.installed
        assert again.loaded is first.loaded
        pages["/api/tags"] = more
        changed = await prober.listing(5, True)
        assert [model.name for model in changed.installed] == ["old:7b", "new:7b"]
        assert changed.loaded is first.loaded
        await prober.close()


async def test_no_turn_of_the_loop_reads_more_than_some_entries_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []  # at which turn each entry was
    turn = 0

    def reading(raw: msgspec.Raw) -> InstalledModel | None:
        read.append(turn)
        return _installed(raw)

    async def turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr("gateway.upstream.probe._installed", reading)
    long = body(msgspec.json.encode({"models": [{"name": f"m:{number}"} for number in range(5 * AT_A_TURN)]}))
    async with speaking(at_paths({"/api/tags": long, "/api/ps": PS})) as instance, reaching(instance.url) as upstream:
        one_at_a_time = asyncio.Lock()
        counting = asyncio.create_task(turns(), name="turns")
        await asyncio.gather(*(Prober(upstream, one_at_a_time).listing(5, True) for _ in range(8)))
        counting.cancel()
    assert len(read) == 8 * 5 * AT_A_TURN
    assert max(Counter(read).values()) <= AT_A_TURN


async def test_a_server_that_knows_only_v1_tells_its_models_and_not_what_is_loaded() -> None:
    seen = await listing(at_paths({"/v1/models": MODELS}), native=False)

    assert [model.name for model in seen.installed] == ["qwen/qwen2.5-7b@q4"]
    assert seen.loaded is None


async def test_a_list_that_is_null_is_empty() -> None:
    nothing = body(b'{"models":null}')
    assert await listing(at_paths({"/api/tags": nothing, "/api/ps": nothing})) == Listing((), ())
    assert await listing(at_paths({"/v1/models": body(b'{"data":null}')}), native=False) == Listing((), None)


@pytest.mark.parametrize(
    "loaded", [b"", body(b"{}", b"500 Internal Server Error"), body(b"nonsense")], ids=["slow", "failing", "malformed"]
)
async def test_not_being_told_what_is_loaded_is_no_failure(loaded: bytes) -> None:
    seen = await listing(at_paths({"/api/tags": TAGS, "/api/ps": loaded}), limit=0.5)

    assert len(seen.installed) == 2
    assert seen.loaded is None


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (at_paths({}), BadAnswer),
        (at_paths({"/api/tags": body(b"{}")}), BadAnswer),
        (at_paths({"/api/tags": body(b"")}), BadAnswer),
        (at_paths({"/api/tags": body(b'{"models":7}')}), BadAnswer),
        (at_paths({"/api/tags": body(b'{"models":[{"name":')}), BadAnswer),
        (at_paths({"/api/tags": body(b"\xff\xfe")}), BadAnswer),
        (answering(body(b"z" * (MAX_REPLY + 1))), BadAnswer),
        (once(b""), ConnectionLost),
        (silent(), FirstTokenTimeout),
    ],
)
async def test_a_list_that_cannot_be_had_is_an_upstream_error(script: Script, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await listing(script, limit=0.3)


async def test_an_instance_that_is_gone_is_a_failed_connection() -> None:
    async with speaking(answering(HELLO)) as instance:
        pass
    async with reaching(instance.url) as upstream:
        with pytest.raises(ConnectFailed, match="connection refused"):
            await Prober(upstream).listing(5, native=True)


SHOWN = b'{"details":{"family":"llama"},"model_info":{},"template":"{{ .Prompt }}"}'


async def show(script: Script, *, limit: float = 5, verbose: bool = False) -> tuple[bytes, list[bytes]]:
    """What came back, and the bodies that were asked with."""
    async with speaking(script) as instance, reaching(instance.url) as upstream:
        try:
            told = await Prober(upstream).show("x:1b", limit, verbose=verbose)
        finally:
            assert quiet(upstream)
        return told, [sent for peer in instance.peers for sent in peer.bodies]


async def test_what_a_model_is_comes_as_the_instance_says_it() -> None:
    assert await show(at_paths({"/api/show": body(SHOWN)})) == (SHOWN, [b'{"model":"x:1b"}'])
    _, asked = await show(at_paths({"/api/show": body(SHOWN)}), verbose=True)
    assert asked == [b'{"model":"x:1b","verbose":true}']


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (at_paths({}), Refused),
        (answering(body(b"{}", b"500 Internal Server Error")), Refused),
        (answering(body(SHOWN, b"302 Found")), BadAnswer),
        (answering(body(b'{"error":"Unexpected endpoint"}')), BadAnswer),
        (answering(body(b"[]")), BadAnswer),
        (answering(body(b"[" * 200_000)), BadAnswer),
        (answering(body(b"z" * (MAX_REPLY + 1))), BadAnswer),
        (once(b""), ConnectionLost),
        (silent(), FirstTokenTimeout),
    ],
)
async def test_a_model_that_cannot_be_shown_is_an_upstream_error(script: Script, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await show(script, limit=0.3)


async def test_no_more_questions_with_a_body_are_under_way_than_the_cap_and_those_that_wait_have_their_limit() -> None:
    async with speaking(silent()) as instance, reaching(instance.url) as upstream:
        prober = Prober(upstream)
        first = [asyncio.ensure_future(prober.show("x", 60)) for _ in range(MAX_POSTS)]
        await until(lambda: len(instance.peers) == MAX_POSTS)
        later = await asyncio.gather(*(prober.show("x", 0.05) for _ in range(3)), return_exceptions=True)
        assert {type(one) for one in later} == {FirstTokenTimeout}
        assert len(instance.peers) == MAX_POSTS
        for one in first:
            one.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        assert quiet(upstream)


async def test_no_question_leaves_for_another_address_than_its_instances() -> None:
    async with speaking(answering(HELLO)) as instance, speaking(answering(HELLO)) as other:
        async with reaching(instance.url) as upstream:
            with pytest.raises(ConnectionLost, match="instance alpha: no answer"):
                await Prober(upstream).post(f"{other.url}/api/show", b"{}", 5)
        assert (instance.peers, other.peers) == ([], [])


def test_an_entry_so_deep_that_it_could_not_be_passed_on_is_skipped() -> None:
    deep = b'{"name":"deep","x":%b%b}' % (b"[" * 600, b"]" * 600)
    seen = installed([msgspec.Raw(deep), *entries({"name": "flat", "x": [[[1]]]})])
    assert [model.name for model in seen] == ["flat"]


def entries(*models: object) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(model)) for model in models]


def installed(listed: list[msgspec.Raw]) -> list[InstalledModel]:
    return [model for raw in listed if (model := _installed(raw)) is not None]


def test_entries_that_do_not_fit_are_skipped_and_the_others_kept() -> None:
    odd = [
        {"name": "good:1"},
        {"name": 7},
        {"name": ""},
        {"size": 1},
        [],
        None,
        {"name": "a" * (MAX_NAME + 1)},
        {"name": "new\nline"},
        {"name": "<script>"},
        {"name": "space d"},
        {"name": "good:2", "size": "big"},
        {"name": "a" * MAX_NAME, "capabilities": ["tools", "no such\nword"], "digest": None, "details": None},
    ]
    seen = installed(entries(*odd))

    assert [model.name for model in seen] == ["good:1", "a" * MAX_NAME]
    assert seen[1].capabilities == frozenset({"tools"})


@pytest.mark.parametrize("name", ["hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", "/models/x.gguf", "a/b:c@d"])
def test_names_as_real_servers_give_them_are_kept(name: str) -> None:
    assert [model.name for model in installed(entries({"name": name}))] == [name]


async def test_no_more_models_are_kept_than_the_cap() -> None:
    many = msgspec.json.encode({"models": [{"name": f"m:{i}"} for i in range(MAX_MODELS + 5)]})
    seen = await listing(at_paths({"/api/tags": body(many), "/api/ps": body(many)}))

    assert len(seen.installed) == MAX_MODELS
    assert seen.loaded is not None
    assert len(seen.loaded) == MAX_MODELS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
keys = st.sampled_from(["name", "id", "digest", "size", "capabilities", "details", "context_length", "expires_at"])


@given(models=st.lists(json_values | st.dictionaries(keys, json_values), max_size=5))
def test_whatever_an_entry_holds_it_is_read_or_skipped(models: list[object]) -> None:
    for model in installed(entries(*models)):
        assert 0 < len(model.name) <= MAX_NAME
