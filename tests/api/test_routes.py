"""How a path finds its entry: one spelling for many, no redirects, and what is closed or wrong is said in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.routes import CLOSED, GET, POST, Entry, Surface, answer, family, inference, locate
from gateway.call import Operation, Record
from gateway.dialects import anthropic, facade, ollama, openai, responses
from gateway.errors import Forbidden, UnknownPath, WrongMethod


async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError


def entry(path: str, methods: tuple[str, ...] = POST, operation: str = "chat", below: bool = False) -> Entry:
    return Entry(path=path, methods=methods, operation=operation, endpoint=endpoint, below=below)


SURFACE = Surface(
    [
        entry("/", GET, "ops"),
        entry("/livez", GET, "ops"),
        entry("/v1/chat/completions"),
        entry("/api/chat"),
        entry("/api/chat/models", GET, "models"),
        entry("/v1/models", GET, "models"),
        entry("/v1/models", GET, "models", below=True),
        entry("/gateway/both", GET, "ops"),
        entry("/gateway/both", POST, "chat"),
    ]
)


def find(scope: dict[str, Any], record: Record) -> Entry:
    return SURFACE.find(locate(scope, record), scope, record)


class Found:
    """Where a request went."""

    def __init__(self, path: str, method: str = "POST") -> None:
        self.scope: dict[str, Any] = {"type": "http", "path": path, "method": method}
        self.record = Record(request_id="r", arrived=0.0)
        self.entry = find(self.scope, self.record)


def refused(path: str, method: str = "POST") -> Record:
    """The record of a request for which there is no entry."""
    record = Record(request_id="r", arrived=0.0)
    with pytest.raises((UnknownPath, WrongMethod, Forbidden)):
        find({"type": "http", "path": path, "method": method}, record)
    return record


def spelt(parts: list[str], slashes: list[int], last: int) -> str:
    """A path with any number of slashes, but one at least, before each part, and any number at the end."""
    return "".join("/" * count + part for count, part in zip(slashes, parts, strict=False)) + "/" * last


SLASHES = st.lists(st.integers(1, 4), min_size=8, max_size=8)


@given(path=st.sampled_from(SURFACE.paths), slashes=SLASHES, last=st.integers(0, 3), task=st.sampled_from(["", "code"]))
def test_a_path_is_the_same_with_any_number_of_slashes(path: str, slashes: list[int], last: int, task: str) -> None:
    parts = [part for part in path.split("/") if part]
    asked = spelt(["t", task, *parts] if task else parts, slashes, last) or "/"
    for method in ("GET", "POST"):
        record = Record(request_id="r", arrived=0.0)
        scope = {"type": "http", "path": asked, "method": method}
        try:
            found = find(scope, record)
        except WrongMethod:
            continue
        assert found.path == record.path == path
        assert scope.get("gateway.task", "") == task


@given(path=st.text(alphabet="/tv1.apichat%?\n\u00e9", max_size=30))
def test_any_path_at_all_is_found_or_refused(path: str) -> None:
    record = Record(request_id="r", arrived=0.0)
    try:
        find({"type": "http", "path": "/" + path, "method": "POST"}, record)
    except (UnknownPath, WrongMethod, Forbidden):
        assert record.operation == "none"
    assert record.path in ("", *SURFACE.paths)  # never the client's own spelling


def test_a_request_is_noted_under_the_path_and_operation_of_the_table() -> None:
    found = Found("//v1/chat//completions/")
    assert (found.record.path, found.record.operation) == ("/v1/chat/completions", "chat")
    assert found.record.dialect == "openai"


def test_a_path_is_compared_letter_by_letter() -> None:
    for path in (
        "/V1/chat/completions",
        "/v1/chat/completions/x",
        "/v1/chat",
        "/v1/chat/completions?x",
        "/v1/../livez",
    ):
        assert refused(path).operation == "none"


# The task in the path


@pytest.mark.parametrize("path", ["/t/code/v1/chat/completions", "//t//code//v1/chat/completions/"])
def test_a_prefix_names_the_task(path: str) -> None:
    found = Found(path)
    assert found.scope["gateway.task"] == "code"
    assert found.entry.path == "/v1/chat/completions"


def test_without_a_prefix_no_task_is_named() -> None:
    assert "gateway.task" not in Found("/v1/chat/completions").scope


def test_a_prefix_alone_is_the_root() -> None:
    assert Found("/t/code", "GET").entry.path == "/"


def test_a_prefix_without_a_task_is_nothing() -> None:
    assert refused("/t").path == ""
    assert refused("/t/").path == ""


def test_one_prefix_is_taken_off_and_not_two() -> None:
    assert refused("/t/code/t/code/v1/chat/completions").path == ""


def test_behind_a_prefix_errors_take_the_words_of_the_path_itself() -> None:
    assert refused("/t/code/api/nothing").dialect == "ollama"


# The key in the path


@pytest.mark.parametrize(
    "path", ["/k/secret/v1/chat/completions", "/k/secret/t/code/v1/chat/completions", "//t/code//k/secret/api/chat/"]
)
def test_a_prefix_carries_the_key_before_or_after_the_task(path: str) -> None:
    found = Found(path)
    assert found.scope["gateway.key"] == "secret"
    assert found.scope.get("gateway.task", "code") == "code"
    assert found.entry.path in ("/v1/chat/completions", "/api/chat")


def test_a_key_leaves_no_trace_but_the_one_it_is_looked_up_by() -> None:
    found = Found("/k/secret/v1/chat/completions")
    assert found.scope.pop("gateway.key") == "secret"
    assert "secret" not in repr(found.scope) + repr(found.record)


def test_a_second_key_is_no_prefix() -> None:
    assert refused("/k/one/k/two/v1/chat/completions").path == ""


@pytest.mark.parametrize("path", ["/k/secret", "/k/secret/", "/k/secret/t/code", "/v1", "/v1/", "/t/code/v1", "/v1/v1"])
def test_a_bare_prefix_is_the_root(path: str) -> None:
    assert Found(path, "GET").entry.path == Found(path, "HEAD").entry.path == "/"


# Base URLs that were doubled, mixed or cut short


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/api/api/tags", "/api/tags"),
        ("/v1/api/tags", "/api/tags"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/embeddings", "/v1/embeddings"),
        ("/models", "/v1/models"),
        ("/models/hf.co/user/model:Q4", "/v1/models/hf.co/user/model:Q4"),
        ("/responses", "/v1/responses"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/k/secret/t/code/v1/v1/messages", "/v1/messages"),
        ("/api/chat", "/api/chat"),
        ("/api/v1/models", "/api/v1/models"),
        ("/gateway/status", "/gateway/status"),
    ],
)
def test_a_base_url_with_a_part_too_many_or_too_few_is_put_right(asked: str, meant: str) -> None:
    record = Record(request_id="r", arrived=0.0)
    assert locate({"type": "http", "path": asked, "method": "GET"}, record) == meant
    assert record.dialect == family(meant)


# Paths below


@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("/v1/models/llama3.1:8b", "llama3.1:8b"),
        ("/v1/models/hf.co/user/model:Q4", "hf.co/user/model:Q4"),
        ("//v1//models//hf.co//user/model:Q4/", "hf.co/user/model:Q4"),
        ("/t/code/v1/models/x", "x"),
        ("/v1/models/v1/models/x", "v1/models/x"),
    ],
)
def test_what_follows_a_path_that_has_paths_below_it_is_the_rest(path: str, rest: str) -> None:
    found = Found(path, "GET")
    assert (found.scope["gateway.rest"], found.record.path) == (rest, "/v1/models")
    assert found.entry.below


def test_the_path_itself_is_not_below_itself() -> None:
    found = Found("/v1/models/", "GET")
    assert (found.scope["gateway.rest"], found.entry.below) == ("", False)


def test_a_path_that_only_begins_with_the_same_letters_is_not_below() -> None:
    assert refused("/v1/modelsx/y", "GET").operation == "none"


# Methods


def test_a_wrong_method_is_told_which_are_right() -> None:
    with pytest.raises(WrongMethod) as caught:
        Found("/v1/chat/completions", "GET")
    assert (caught.value.status, caught.value.allow) == (405, "POST")
    assert "/v1/chat/completions takes POST" in caught.value.message


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        ("/v1/models", "POST", "GET, HEAD"),
        ("/v1/models/a/b", "DELETE", "GET, HEAD"),
        ("/gateway/both", "PUT", "GET, HEAD, POST"),
    ],
)
def test_allow_names_the_methods_of_every_entry_at_the_path(path: str, method: str, allow: str) -> None:
    with pytest.raises(WrongMethod) as caught:
        Found(path, method)
    assert caught.value.allow == allow


def test_one_path_can_be_two_entries_by_method() -> None:
    assert Found("/gateway/both", "HEAD").record.operation == "ops"
    assert Found("/gateway/both", "POST").record.operation == "chat"


def test_a_wrong_method_is_noted_under_no_operation() -> None:
    assert refused("/livez", "POST").operation == "none"


# Families and what is closed


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api", "ollama"),
        ("/api/chat", "ollama"),
        ("/apiary", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messagesx", "openai"),
        ("/v1/chat/completions", "openai"),
        ("/", "openai"),
        ("/nothing/at/all", "openai"),
    ],
)
def test_errors_take_the_words_of_the_family_a_path_belongs_to(path: str, words: str) -> None:
    assert family(path) == words


def test_the_family_is_noted_before_anything_can_go_wrong() -> None:
    assert refused("/api/nothing").dialect == "ollama"
    assert refused("/v1/messages").dialect == "anthropic"
    assert refused("/livez", "DELETE").dialect == "openai"


@pytest.mark.parametrize("path", CLOSED)
def test_what_ollama_has_and_the_gateway_keeps_closed_is_forbidden_whatever_the_method(path: str) -> None:
    for asked in (path, f"{path}/", f"/{path}/sha256:0", f"/t/code{path}"):
        for method in ("GET", "POST", "DELETE"):
            with pytest.raises(Forbidden) as caught:
                Found(asked, method)
            assert caught.value.status == 403


def test_what_only_begins_with_the_same_letters_is_unknown_and_not_forbidden() -> None:
    with pytest.raises(UnknownPath):
        Found("/api/pulled")


# The table


def test_the_paths_that_ask_a_model_are_those_of_the_operations() -> None:
    chosen: dict[str, Any] = {}

    def make(choose: Any) -> ASGIApp:
        async def made(scope: Scope, receive: Receive, send: Send) -> None:
            raise AssertionError

        chosen[str(len(chosen))] = choose
        return made

    entries = list(inference(make))
    operations: tuple[Operation, ...] = (
        openai.CHAT, openai.COMPLETIONS, openai.EMBEDDINGS, openai.TRANSCRIPTIONS, responses.RESPONSES,
        anthropic.MESSAGES, ollama.GENERATE, ollama.EMBED, ollama.EMBEDDINGS,
    )  # fmt: skip
    assert [one.path for one in entries] == [*(operation.path for operation in operations), "/api/chat"]
    assert all(one.methods == POST for one in entries)
    assert [chosen[str(at)] for at in range(len(operations))] == list(operations)
    assert chosen["9"](b'{"message":"hello"}') is facade.CHAT
    assert chosen["9"](b'{"model":"m","messages":[]}') is ollama.CHAT


async def test_a_function_from_request_to_response_is_an_application() -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse(request.url.path)

    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/livez", "method": "GET", "headers": [], "query_string": b""}
    await answer(page)(scope, receive, send)
    assert (sent[0]["status"], sent[1]["body"]) == (200, b"/livez")
