"""Which conversation a call belongs to: one for all its turns, another for another beginning, and never a fault."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Operation
from gateway.dialects import anthropic, facade, ollama, openai, responses
from gateway.dialects.reading import NAME_LENGTH, PART_LENGTH, PROMPT_LENGTH

Turns = list[dict[str, Any]]


class Talk(NamedTuple):
    """One dialect that holds conversations, and where it has the system prompts of one."""

    operation: Operation
    turns: str
    system: str  # the field; "" where they are the first messages

    def read(self, turns: Turns, system: Any = None, **more: Any) -> str:
        if not self.system and system is not None:
            turns = [{"role": "system", "content": system}, *turns]
        elif self.system:
            more[self.system] = system
        return conversation(self.operation, {self.turns: turns, **more})


OPENAI = Talk(openai.CHAT, "messages", "")
RESPONSES = Talk(responses.RESPONSES, "input", "instructions")
ANTHROPIC = Talk(anthropic.MESSAGES, "messages", "system")
OLLAMA = Talk(ollama.CHAT, "messages", "")
EVERY = pytest.mark.parametrize("talk", [OPENAI, RESPONSES, ANTHROPIC, OLLAMA], ids=lambda talk: talk.operation.path)
SELF_NAMED = pytest.mark.parametrize(
    ("operation", "body"),
    [
        (openai.CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
        (openai.COMPLETIONS, {"prompt": "hi"}),
        (responses.RESPONSES, {"input": "hi"}),
    ],
    ids=lambda value: getattr(value, "path", ""),
)

TOOLS = [{"type": "function", "name": "look"}]
TEXTS = st.text(max_size=30)
LATER = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXTS}),
    max_size=5,
)
OTHERS: dict[str, Any] = {
    "model": "other",
    "temperature": 0.5,
    "seed": 3,
    "stream": True,
    "top_p": 0.1,
    "user": "u-1",
    "safety_identifier": "u-1",
    "metadata": {"user_id": "u-1"},
    "x": ["hi"],
}
BEGINNINGS = st.tuples(st.none() | TEXTS, st.none() | st.lists(st.dictionaries(TEXTS, TEXTS), max_size=2), TEXTS)


def encoded(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"model": "m", **fields})


def conversation(operation: Operation, fields: dict[str, Any]) -> str:
    return operation.read(encoded(fields)).conversation


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@EVERY
@given(beginning=BEGINNINGS, later=LATER)
def test_turns_that_are_added_never_change_it(
    talk: Talk, beginning: tuple[str | None, list[dict[str, str]] | None, str], later: Turns
) -> None:
    system, tools, first = beginning

    begun = talk.read([user(first)], system, tools=tools)

    assert begun
    assert talk.read([user(first), *later], system, tools=tools) == begun


@EVERY
@given(one=BEGINNINGS, other=BEGINNINGS)
def test_another_beginning_is_another_conversation(talk: Talk, one: Any, other: Any) -> None:
    digests = [talk.read([user(first)], system, tools=tools) for system, tools, first in (one, other)]

    assert (digests[0] == digests[1]) == (one == other)


@EVERY
def test_the_first_message_the_system_prompt_and_the_tools_each_count(talk: Talk) -> None:
    beginnings = [
        talk.read([user("a")], "b", tools=TOOLS),
        talk.read([user("x")], "b", tools=TOOLS),
        talk.read([user("a")], "x", tools=TOOLS),
        talk.read([user("a")], "b", tools=[*TOOLS, *TOOLS]),
        talk.read([user("a")], "b"),
        talk.read([user("a")], tools=TOOLS),
        talk.read([user("b")], "a", tools=TOOLS),
        talk.read([user("ab")], "", tools=TOOLS),
        talk.read([user("a"), user("b")], tools=[]),
    ]

    assert len(set(beginnings)) == len(beginnings)


@EVERY
@given(names=st.sets(st.sampled_from(sorted(OTHERS))))
def test_other_fields_do_not_change_it(talk: Talk, names: set[str]) -> None:
    assert talk.read([user("hi")], **{name: OTHERS[name] for name in names}) == talk.read([user("hi")])


@EVERY
def test_the_order_of_fields_does_not_change_it(talk: Talk) -> None:
    fields = {talk.turns: [user("hi")], "tools": TOOLS, "model": "m"}

    assert conversation(talk.operation, dict(reversed(fields.items()))) == conversation(talk.operation, fields)


@EVERY
def test_an_answer_before_the_first_message_of_a_user_is_not_its_beginning(talk: Talk) -> None:
    assert talk.read([assistant("welcome"), user("hi")]) == talk.read([user("hi")])


@EVERY
@pytest.mark.parametrize("turns", [[assistant("hi")], [{"role": "system", "content": "be brief"}], [{"role": "x"}]])
def test_where_no_user_speaks_there_is_no_telling(talk: Talk, turns: Turns) -> None:
    assert talk.read(turns, tools=TOOLS) == ""


@EVERY
def test_all_leading_system_prompts_count_and_no_later_one(talk: Talk) -> None:
    first, second = ({"role": "system", "content": text} for text in ("a", "b"))

    both = talk.read([first, second, user("hi")])

    assert both not in (talk.read([first, user("hi")]), talk.read([second, first, user("hi")]))
    assert talk.read([first, assistant("?"), second, user("hi")]) == talk.read([first, user("hi")])


@EVERY
def test_a_message_that_is_huge_is_told_by_its_beginning_and_its_length(talk: Talk) -> None:
    huge = "x" * 2 * PART_LENGTH
    tail = huge[:-1] + "y"

    assert talk.read([user(tail)]) == talk.read([user(huge)])
    assert talk.read([user(huge + "x")]) != talk.read([user(huge)])
    assert talk.read([user("y" + huge[1:])]) != talk.read([user(huge)])


@EVERY
@given(text=TEXTS, first=st.booleans())
def test_a_mark_that_moves_from_turn_to_turn_does_not_count(talk: Talk, text: str, first: bool) -> None:
    kind = "input_text" if talk is RESPONSES else "text"
    blocks = [{"type": kind, "text": "so"}, {"type": kind, "text": text}]
    marked = [dict(block) for block in blocks]
    marked[0 if first else 1]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}  # type: ignore[assignment]

    assert talk.read([user(marked)]) == talk.read([user(blocks)])


def test_a_mark_is_known_with_spaces_and_is_no_mark_inside_a_text() -> None:
    spaced = b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"%b"%b}]}]}'
    texts = [spaced % (text, b"") for text in (b"x", rb"x, \"cache_control\": {}", rb"x, \"cache_control\": {1}")]
    marked = spaced % (b"x", b', "cache_control" : { "type": "ephemeral" }')

    digests = [anthropic.MESSAGES.read(body).conversation for body in texts]

    assert len(set(digests)) == len(digests)
    assert anthropic.MESSAGES.read(marked).conversation == digests[0]


def test_a_developer_speaks_as_a_system_does_and_ollama_folds_the_case_of_roles() -> None:
    developer = {"role": "developer", "content": "be brief"}

    assert OPENAI.read([developer, user("hi")]) == OPENAI.read([user("hi")], "be brief")
    assert OLLAMA.read([{"role": "System", "content": "a"}, {"role": "USER", "content": "hi"}]) == (
        OLLAMA.read([user("hi")], "a")
    )


def test_text_as_input_is_what_a_user_says() -> None:
    assert conversation(responses.RESPONSES, {"input": "hi"}) == RESPONSES.read([user("hi"), assistant("ho")])
    assert conversation(responses.RESPONSES, {}) == ""


def test_images_tell_conversations_apart_wherever_a_dialect_has_them() -> None:
    seen = [
        OLLAMA.read([user("what?")]),
        OLLAMA.read([user("what?", images=["AAAA"])]),
        OLLAMA.read([user("what?", images=["BBBB"])]),
        OLLAMA.read([user("what?", images=["AAAA", "BBBB"])]),
        conversation(ollama.GENERATE, {"prompt": "what?", "images": ["AAAA"]}),
        conversation(ollama.GENERATE, {"prompt": "what?", "images": ["BBBB"]}),
    ]

    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("operation", [openai.COMPLETIONS, ollama.GENERATE], ids=lambda operation: operation.path)
@given(more=st.text(max_size=3000), system=st.none() | TEXTS)
def test_a_prompt_is_told_by_how_it_begins(operation: Operation, more: str, system: str | None) -> None:
    start = "x" * PROMPT_LENGTH

    def read(prompt: str) -> str:
        return conversation(operation, {"prompt": prompt, "system": system})

    assert read(start + more) == read(start)
    assert read("y" + start[1:] + more) != read(start)


def test_a_prompt_is_told_by_its_system_prompt_too_where_it_has_one() -> None:
    plain, brief = ({"prompt": "hi", "system": system} for system in (None, "be brief"))

    assert conversation(ollama.GENERATE, plain) != conversation(ollama.GENERATE, brief)
    assert conversation(openai.COMPLETIONS, plain) == conversation(openai.COMPLETIONS, brief)  # it is no field of its


@SELF_NAMED
@given(name=st.text(min_size=1))
def test_its_own_name_wins(operation: Operation, body: dict[str, Any], name: str) -> None:
    assert conversation(operation, {**body, "prompt_cache_key": name}) == name


@SELF_NAMED
def test_a_name_is_cut_to_a_bounded_length(operation: Operation, body: dict[str, Any]) -> None:
    assert conversation(operation, {**body, "prompt_cache_key": "é" * 100_000}) == "é" * NAME_LENGTH


@SELF_NAMED
@pytest.mark.parametrize("name", [None, "", 3, 1.5, True, [], ["x"], {"x": "y"}])
def test_a_name_of_another_kind_is_none(operation: Operation, body: dict[str, Any], name: Any) -> None:
    assert conversation(operation, {**body, "prompt_cache_key": name}) == conversation(operation, body)


@SELF_NAMED
def test_a_body_is_no_less_welcome_for_how_it_spells_its_name(operation: Operation, body: dict[str, Any]) -> None:
    assert conversation(operation, {**body, "Prompt_Cache_Key": "x"}) == conversation(operation, body)


@pytest.mark.parametrize("role", [None, 3, ["user"], {"a": "b"}, 10**40])
def test_an_item_spoken_by_nobody_passes(role: Any) -> None:
    body = encoded({"input": [{"role": None, "content": "x"}, user("hi")]}).replace(
        b"null", str(role).encode() if isinstance(role, int) else msgspec.json.encode(role)
    )

    assert responses.RESPONSES.read(body).conversation == RESPONSES.read([user("hi")])


def test_a_name_is_no_part_of_what_is_printed_and_goes_on_as_it_came() -> None:
    body = encoded({"messages": [user("hi")], "prompt_cache_key": "secret"})
    call = Call(request_id="r", operation=openai.CHAT, wish=openai.CHAT.read(body), body=body)

    assert "secret" not in repr(call)
    assert openai.CHAT.write(call, "m") is body


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (openai.EMBEDDINGS, {"input": "hi", "prompt_cache_key": "x"}),
        (ollama.EMBED, {"input": "hi"}),
        (ollama.EMBEDDINGS, {"prompt": "hi"}),
        (ollama.CHAT, {"tools": TOOLS, "prompt_cache_key": "x"}),
        (ollama.CHAT, {"messages": []}),
        (ollama.GENERATE, {"system": "be brief"}),
        (ollama.GENERATE, {"prompt": "", "keep_alive": 0}),
        (facade.CHAT, {"message": "hi", "prompt_cache_key": "x"}),
    ],
)
def test_what_is_no_conversation_has_none(operation: Operation, fields: dict[str, Any]) -> None:
    assert conversation(operation, fields) == ""


def test_a_transcription_has_none() -> None:
    form = (
        b'--e\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
        b'--e\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--e--\r\n'
    )

    assert openai.TRANSCRIPTIONS.read(form).conversation == ""


def test_the_digest_is_short_and_the_same_in_every_process() -> None:
    assert OPENAI.read([user("hi")], "be brief") == "080af842be2e84d26fff6b7d"
