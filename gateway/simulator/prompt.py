"""What a request asks for, and the answer to it: the same prompt gets the same words. Pure.

Lines of the last user message steer the answer: `say: <text>` answers with just that text; `think: <text>` reasons
first; `call: <name> {"json": "arguments"}` calls a tool, when the request offers tools and the last message is not a
tool's result. Reasoning that is only asked for (`think`, `reasoning_effort`) is made up. Nothing is reasoned unless
asked, unlike a real thinking model.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

MAX_TOKENS = 100_000
DIMENSIONS = 8

_DIRECTIVE = re.compile(r"^(say|think|call): ?(.*)$", re.MULTILINE)
_TOKEN = re.compile(r"\s*\S+|\s+\Z")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_STORY = (
    "the a calm river under old stone bridges carries light toward open water while small birds wait above "
    "tall grass and every morning someone walks along its bank counting boats until rain comes over blue hills "
    "then quiet rooms fill with voices of people reading letters from far towns where winter still keeps snow on"
)
_WORDS = tuple(" " + word for word in _STORY.split())
_MUSING = (" perhaps", " so", " then")


class Refusal(Exception):
    """A request Ollama turns down: its status and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Part(NamedTuple):
    """What one frame carries: a token of text or of reasoning, or a whole tool call (name, arguments)."""

    text: str = ""
    thinking: str = ""
    call: tuple[str, dict[str, Any]] | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request, read."""

    model: str
    stream: bool = False
    prompt: str = ""  # the last user message
    words: int = 0  # of the whole prompt
    empty: bool = False  # nothing to answer: load or unload the model
    limit: int | None = None  # tokens
    tools: bool = False
    may_call: bool = False  # tools are offered and no result of one was just brought
    think: bool = False
    wants_usage: bool = False
    seed: int = 0
    keep_alive: float | None = None  # seconds; infinity = for ever
    inputs: tuple[str, ...] = ()  # texts to embed
    dimensions: int = DIMENSIONS
    encoding: str = "float"
    style: str = ""


def decode(body: bytes) -> dict[str, Any]:
    """A body as an object, whatever its Content-Type. Raises Refusal."""
    if not body:
        raise Refusal(400, "missing request body")
    try:
        data = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "invalid character in request body") from None
    if not isinstance(data, dict):
        raise Refusal(400, f"json: cannot unmarshal {type(data).__name__} into Go value of type object")
    return data


def read_native_chat(data: dict[str, Any]) -> Ask:
    texts, last, is_tool = _conversation(data)
    tools = bool(data.get("tools"))
    return Ask(
        model=_word(data, "model"),
        stream=data.get("stream") is not False,
        prompt=last,
        words=_count(texts),
        empty=not data.get("messages"),
        tools=tools,
        may_call=tools and not is_tool,
        think=bool(data.get("think")),
        keep_alive=_keep_alive(data.get("keep_alive")),
        **_options(data),
    )


def read_generate(data: dict[str, Any]) -> Ask:
    prompt = _word(data, "prompt")
    return Ask(
        model=_word(data, "model"),
        stream=data.get("stream") is not False,
        prompt=prompt,
        words=_count([_word(data, "system"), prompt]),
        empty=not prompt,
        think=bool(data.get("think")),
        keep_alive=_keep_alive(data.get("keep_alive")),
        **_options(data),
    )


def read_openai_chat(data: dict[str, Any]) -> Ask:
    if not data.get("messages"):
        raise Refusal(400, "[] is too short - 'messages'")
    texts, last, is_tool = _conversation(data)
    tools = bool(data.get("tools"))
    reasoning = data.get("reasoning")
    effort = data.get("reasoning_effort") or (reasoning.get("effort") if isinstance(reasoning, dict) else None)
    return Ask(
        prompt=last,
        words=_count(texts),
        tools=tools,
        may_call=tools and not is_tool,
        think=effort not in (None, "", "none"),
        **_openai(data),
    )


def read_completion(data: dict[str, Any]) -> Ask:
    prompt = _word(data, "prompt")
    return Ask(prompt=prompt, words=_count([prompt]), **_openai(data))


def read_embed(data: dict[str, Any], style: str) -> Ask:
    """All three embedding requests. Token arrays are turned down, as Ollama does."""
    given = data.get("prompt" if style == "embeddings" else "input")
    inputs = [given] if isinstance(given, str) else given or []
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise Refusal(400, "invalid input type")
    if style == "openai" and not inputs:
        raise Refusal(400, "invalid input")
    dimensions = data.get("dimensions")
    return Ask(
        model=_word(data, "model"),
        words=_count(inputs),
        inputs=tuple(inputs),
        dimensions=min(dimensions, 4_096) if type(dimensions) is int and dimensions > 0 else DIMENSIONS,
        encoding=_word(data, "encoding_format") or "float",
        keep_alive=_keep_alive(data.get("keep_alive")),
        style=style,
    )


def compose(ask: Ask, tokens: int) -> tuple[list[Part], str]:
    """The answer in parts, and why it stopped: `stop`, or `length` where the request's own limit ended it."""
    told = _DIRECTIVE.findall(ask.prompt) if ": " in ask.prompt or ":\n" in ask.prompt else []
    parts = [Part(thinking=token) for word, text in told if word == "think" for token in _TOKEN.findall(text)]
    if ask.think and not parts:
        parts = [Part(thinking=token) for token in _MUSING]
    calls = [_call(text) for word, text in told if word == "call"] if ask.may_call else []
    said = next((text for word, text in told if word == "say"), None)
    room = MAX_TOKENS if ask.limit is None else ask.limit
    if calls:
        parts += [Part(call=call) for call in calls]
    elif said is not None:
        parts += [Part(token) for token in _TOKEN.findall(said)]
    else:
        wanted = tokens if ask.limit is None else max(ask.limit - len(parts), 0)
        parts += _words(ask.prompt, wanted)
        return parts[:room], "stop" if ask.limit is None else "length"
    return parts[:room], "stop" if len(parts) <= room else "length"


def _words(prompt: str, count: int) -> tuple[Part, ...]:
    start = zlib.crc32(prompt.encode("utf-8", "replace"))
    return _story(start, count) if count <= 1_000 else _story.__wrapped__(start, min(count, MAX_TOKENS))


@lru_cache(maxsize=256)
def _story(state: int, count: int) -> tuple[Part, ...]:
    words = []
    for _ in range(count):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        words.append(_WORDS[(state >> 16) % len(_WORDS)])
    words[:1] = [word[1:].capitalize() for word in words[:1]]
    return tuple(Part(word) for word in words)


def _call(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.strip().partition(" ")
    try:
        arguments = msgspec.json.decode(rest) if rest else {}
    except ValueError:
        arguments = {}
    return name, arguments if isinstance(arguments, dict) else {}


def _conversation(data: dict[str, Any]) -> tuple[list[str], str, bool]:
    """All texts, the last user's, and whether the last message is a tool's."""
    messages = data.get("messages") or []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refusal(400, "json: cannot unmarshal into Go struct field .messages of type []message")
    texts = [_text(message) for message in messages]
    last = next((texts[i] for i in range(len(texts) - 1, -1, -1) if messages[i].get("role") == "user"), "")
    return texts, last, bool(messages) and messages[-1].get("role") == "tool"


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is None and message.get("tool_calls"):
        return ""
    raise Refusal(400, f"invalid message content type: {'<nil>' if content is None else type(content).__name__}")


def _word(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refusal(400, f"json: cannot unmarshal {type(value).__name__} into Go struct field .{key} of type string")
    return value


def _count(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _limit(value: object) -> int | None:
    return min(value, MAX_TOKENS) if isinstance(value, int) and value > 0 else None


def _seed(value: object) -> int:
    return value if isinstance(value, int) else 0


def _options(data: dict[str, Any]) -> dict[str, Any]:
    options = data.get("options")
    options = options if isinstance(options, dict) else {}
    return {"limit": _limit(options.get("num_predict")), "seed": _seed(options.get("seed"))}


def _openai(data: dict[str, Any]) -> dict[str, Any]:
    # max_completion_tokens is ignored by Ollama, so it is here (ollama.md §3.3).
    asked = data.get("stream_options")
    return {
        "model": _word(data, "model"),
        "stream": data.get("stream") is True,
        "limit": _limit(data.get("max_tokens")),
        "seed": _seed(data.get("seed")),
        "wants_usage": isinstance(asked, dict) and asked.get("include_usage") is True,
    }


def _keep_alive(value: object) -> float | None:
    """Seconds, a Go duration, or negative for ever; anything else counts as not said."""
    if isinstance(value, int | float):
        return float("inf") if value < 0 else float(value)
    if not isinstance(value, str):
        return None
    if value.startswith("-"):
        return float("inf")
    if value == "0":
        return 0.0
    found = _DURATION.findall(value)
    return sum(float(number) * _SECONDS[unit] for number, unit in found) if found else None
