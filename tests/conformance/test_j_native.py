"""J. Native /api/chat and /api/generate: statements 94 to 104 of clients.md §9."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.simulator import Behaviour, SimulatedModel
from tests.conformance.asking import ABLE, each_generation, freed_within_a_second, lines, one, received, saying, tool
from tests.house import MODEL, House, Reply

CHAT, GENERATE = "/api/chat", "/api/generate"
each_path = pytest.mark.parametrize("path", [CHAT, GENERATE])


def native(path: str, prompt: str, **more: Any) -> dict[str, Any]:
    said = {"messages": [{"role": "user", "content": prompt}]} if path == CHAT else {"prompt": prompt}
    return {"model": MODEL, **said, **more}


def text(found: list[dict[str, Any]]) -> str:
    return "".join(line["message"]["content"] if "message" in line else line["response"] for line in found).strip()


@each_generation
@each_path
async def test_094_a_body_that_does_not_say_streams_one_object_a_line(version: str, path: str) -> None:
    async with one(version=version) as house:
        for more in ({}, {"stream": None}, {"stream": True}):
            found = lines(await house.post(path, native(path, "say: one two three", **more)))
            assert len(found) == 4
            assert text(found) == "one two three"
        assert (await house.post(path, native(path, "say: one", stream=False))).json["done"] is True


@each_generation
@each_path
async def test_095_the_last_line_has_the_reason_and_the_counters(version: str, path: str) -> None:
    counters = ["prompt_eval_count", "eval_count", *(f"{kind}_duration" for kind in ("total", "prompt_eval", "eval"))]
    async with one(version=version) as house:
        *others, last = lines(await house.post(path, native(path, "say: one two three")))
        assert not [line for line in others if line["done"] or "done_reason" in line]
        assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 3)
        assert [name for name in counters if type(last.get(name)) is not int] == []


@each_path
@pytest.mark.parametrize("stream", [False, True])
async def test_096_a_failure_before_the_stream_is_a_status_and_a_string(path: str, stream: bool) -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("out_of_memory", times=None, path=path)
        failed = await house.post(path, native(path, "hi", stream=stream))
        house.simulator("alpha").faults.clear()
        unknown = await house.post(path, native(path, "hi", stream=stream) | {"model": "nobody:7b"})
        for reply, status, words in ((failed, 500, "memory"), (unknown, 404, "nobody:7b")):
            assert (reply.status, set(reply.json)) == (status, {"error"})
            assert reply.headers["content-type"].startswith("application/json")
            assert words in reply.json["error"]


@each_generation
@each_path
@pytest.mark.parametrize("kind", ["cut", "reset", "error_in_band", "swallowed_error", "hang_mid_stream"])
async def test_096_a_failure_in_the_stream_is_its_last_line(version: str, path: str, kind: str) -> None:
    async with one({"timeouts": {"idle": 0.2}}, version=version) as house:
        house.simulator("alpha").faults.arm(kind, path=path, after=2)
        *others, last = lines(await house.post(path, native(path, "say: one two three four")))
        assert set(last) == {"error"}
        assert isinstance(last["error"], str)
        assert not [line for line in others if line["done"] or "error" in line]


@each_generation
@each_path
async def test_097_a_good_line_has_no_error(version: str, path: str) -> None:
    async with one(version=version) as house:
        assert not [line for line in lines(await house.post(path, native(path, "hi"))) if "error" in line]


ODD = "a\u0085b\u2028c\u2029d"


@each_path
async def test_098_lines_pass_byte_for_byte(path: str) -> None:
    """Also those that no Ollama would write so: separators as they are, spaces, fields in another order, `\\r\\n`."""
    said = [
        {"done": False, "message": {"content": ODD}, "response": ODD, "new": None},
        {"done": True, "message": {"content": ""}, "response": "", "done_reason": "stop", "model": MODEL},
    ]
    written = "\r\n".join([*(json.dumps(line, ensure_ascii=False, indent=None) for line in said), ""]).encode()
    async with saying(written, "application/x-ndjson") as house:
        assert (await house.post(path, native(path, "hi"))).body == written


@each_path
async def test_098_a_line_of_the_gateways_own_is_one_line_to_any_reader(path: str) -> None:
    async with one() as house:
        house.simulator("alpha").faults.arm("error_in_band", path=path, after=1, text=f"out of memory {ODD}")
        reply = await house.post(path, native(path, "say: one two"))
        assert len(reply.body.decode().splitlines()) == reply.body.count(b"\n")
        assert "out of memory" in lines(reply)[-1]["error"]


@each_path
async def test_099_a_keep_alive_is_a_space_and_never_a_line(path: str) -> None:
    """Only streams have any; a whole answer comes in one piece."""
    quick = {"stream": {"hold": 0.02, "keep_alive": 0.03}}
    async with one(quick, first_token=0.2, per_second=10.0) as house:
        reply = await house.post(path, native(path, "say: one two three"))
        assert text(lines(reply)) == "one two three"
        kept = [line for line in reply.body.split(b"\n") if line.startswith(b" ")]
        assert len(kept) >= 2
        assert all(line.lstrip(b" ").startswith(b"{") for line in reply.body.split(b"\n")[:-1])


PAIR = {"alpha": "a:1b", "beta": "b:1b"}


@each_path
@pytest.mark.parametrize(("home", "other"), [("alpha", "beta"), ("beta", "alpha")])
@pytest.mark.parametrize("keep_alive", [300, -1, "5m", "-1m", 0, "0"])
async def test_100_an_empty_question_loads_or_unloads_the_model_where_it_is(
    keep_alive: int | str, home: str, other: str, path: str
) -> None:
    async with House({name: Behaviour(models=(SimulatedModel(name=model),)) for name, model in PAIR.items()}) as house:
        for model in PAIR.values():
            assert (await house.post(path, native(path, "hi") | {"model": model})).status == 200
        body = json.dumps({"model": PAIR[home], "keep_alive": keep_alive}).encode()
        said = (await house.post(path, body)).json
        unloads = keep_alive in (0, "0")
        assert (said["done"], said["done_reason"]) == (True, "unload" if unloads else "load")
        assert received(house, home).body == body
        assert house.simulator(home).loaded == ([] if unloads else [PAIR[home]])
        assert house.simulator(other).loaded == [PAIR[other]]


@each_path
@pytest.mark.parametrize("keep_alive", [300, -1, "5m", "-1m", 0])
async def test_100_how_long_to_keep_the_model_is_passed_on_with_any_question(keep_alive: int | str, path: str) -> None:
    async with one() as house:
        lines(await passed_unchanged(house, path, native(path, "hi", keep_alive=keep_alive)))


async def passed_unchanged(house: House, path: str, body: dict[str, Any]) -> Reply:
    sent = json.dumps(body, ensure_ascii=False, indent=1).encode()
    reply = await house.post(path, sent)
    assert reply.status == 200, reply.body
    assert received(house).body == sent
    return reply


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
EITHER: dict[str, Any] = {"think": True, "format": "json", "logprobs": True, "top_logprobs": 3, "truncate": False}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "more"),
    [
        *((path, {name: value}) for path in (CHAT, GENERATE) for name, value in EITHER.items()),
        *((path, {"think": level}) for path in (CHAT, GENERATE) for level in (False, "low", "high")),
        *((path, {"format": SCHEMA}) for path in (CHAT, GENERATE)),
        (CHAT, {"messages": [{"role": "user", "content": "hi", "images": ["iVBORw0KGgo="]}]}),
        *((GENERATE, {name: value}) for name, value in {"raw": True, "suffix": "é", "context": [1, 2, 3]}.items()),
        (GENERATE, {"images": ["iVBORw0KGgo="], "system": "be brief", "template": "{{ .Prompt }}"}),
    ],
)
async def test_101_what_only_ollama_knows_passes_unchanged(path: str, more: dict[str, Any], stream: bool) -> None:
    async with one() as house:
        await passed_unchanged(house, path, native(path, "hi", stream=stream) | more)


TOOLS: dict[str, dict[str, Any]] = {
    "no tools": {"tools": []},
    "tools": {"tools": [tool("look")]},
    "results": {
        "tools": [tool("look")],
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"at": {"x": 1}}}}]},
            {"role": "tool", "tool_name": "look", "content": "nothing"},
        ],
    },
}


@each_generation
@pytest.mark.parametrize("more", TOOLS.values(), ids=TOOLS)
async def test_102_tools_and_what_they_said_pass_unchanged(version: str, more: dict[str, Any]) -> None:
    async with one(version=version) as house:
        await passed_unchanged(house, CHAT, native(CHAT, "hi") | more)


@each_path
@pytest.mark.parametrize("num_ctx", [8193, 11_337])
async def test_103_the_size_of_the_context_is_left_as_it_is(path: str, num_ctx: int) -> None:
    """Rounding it up is optional and off by default; so no header tells of it either."""
    async with one() as house:
        reply = await passed_unchanged(house, path, native(path, "hi", options={"num_ctx": num_ctx}))
        assert not [name for name in reply.headers if "num" in name or "ctx" in name]


@each_path
@pytest.mark.parametrize("kind", ["hang_before_headers", "hang_mid_stream"])
async def test_104_who_leaves_a_native_stream_frees_the_instance_at_once(kind: str, path: str) -> None:
    async with House({"alpha": Behaviour(models=(ABLE,))}) as house:
        alpha = house.simulator("alpha")
        alpha.faults.arm(kind, path=path, after=2)
        async with house.asking(native(path, "say: one two three"), path) as wire:
            await alpha.until(lambda: alpha.busy == 1)
            if kind == "hang_mid_stream":
                await wire.until(b"\n{")
            await freed_within_a_second(house, wire)
