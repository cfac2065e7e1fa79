"""What clients need from this gateway: 117 statements, each held by at least one test in this directory.

A test belongs to a statement by its name, `test_<number as three digits>_<the sentence as words>`. Where a decision of
this house (docs/decisions.md) goes another way than a client would like, the sentence states the decision.
"""

from typing import Final, NamedTuple


class Statement(NamedTuple):
    """One thing a client may rely on: its number, the section it stands in (a key of `SECTIONS`) and one sentence."""

    number: int
    section: str
    sentence: str


SECTIONS: Final = {
    "A": "Paths, liveness and version",
    "B": "Keys and headers",
    "C": "Browsers",
    "D": "Models and what they can do",
    "E": "Chat completions",
    "F": "Completions and code infill",
    "G": "Embeddings",
    "H": "Responses",
    "I": "Messages",
    "J": "Ollama's own chat and generate",
    "K": "Limits, retries and load",
}

STATEMENTS: Final = (
    Statement(1, "A", "`GET /` says `Ollama is running` as plain text, as an Ollama does."),
    Statement(2, "A", "`HEAD /` answers 200 and carries no body."),
    Statement(3, "A", "A bare prefix (`/v1`, `/t/<task>`, `/k/<key>`) answers 200 with or without its last slash."),
    Statement(4, "A", "`/` and `/api/version` answer while every instance is down; only readiness tells."),
    Statement(
        5, "A", "`/api/version` gives the lowest version of the healthy instances as plain numbers, never a brand."
    ),
    Statement(6, "A", "`HEAD` works on `/api/version` and `/api/tags`."),
    Statement(7, "A", "A doubled or trailing slash means the same path and is never answered with a redirect."),
    Statement(
        8, "A", "A base URL that was doubled, mixed or left out (`/v1/v1/…`, `/v1/api/…`, `/models`) still works."
    ),
    Statement(9, "A", "Query parameters nobody knows do not change where a call goes."),
    Statement(
        10, "A", "An unknown path is 404 and a wrong method 405, in the error shape of the family the path belongs to."
    ),
    Statement(
        11, "A", "A WebSocket upgrade is refused at once with 426; a plain `GET /v1/responses` is a JSON 404 or 405."
    ),
    Statement(
        12, "A", "A path prefix can carry task and key in either API; it goes no further, and the key is never logged."
    ),
    Statement(
        13, "A", "`Upgrade: h2c` and `Expect: 100-continue` with a large body work, and Expect is not passed on."
    ),
    Statement(
        14, "B", "A key may come as Bearer, Basic, `x-api-key`, `api-key` or in the path and means the same caller."
    ),
    Statement(15, "B", "With no keys configured, an empty, a dummy and a missing key are all welcome."),
    Statement(16, "B", "A wrong key is 401 before the body is read, in the shape of its family."),
    Statement(17, "B", "Read-only discovery can be left open while everything else asks for a key."),
    Statement(
        18, "B", "Every answer carries a request id, errors and streams too; a sane one of the client's own is kept."
    ),
    Statement(19, "B", "Keys, cookies and our own headers never reach an instance, which sees its own host name."),
    Statement(20, "B", "Sixty-four headers or 32 KiB of them are accepted."),
    Statement(21, "B", "Headers nobody knows, and any `anthropic-version`, are no error."),
    Statement(
        22, "C", "`OPTIONS` works on every route without a key, echoes what was asked and holds for ten minutes."
    ),
    Statement(23, "C", "A preflight naming the SDKs' own headers passes."),
    Statement(
        24, "C", "Every answer, errors and streams too, has exactly one `Access-Control-Allow-Origin`, and it is ours."
    ),
    Statement(
        25, "C", "`Origin` and `Referer` stay here; an editor's webview and the null origin are served when allowed."
    ),
    Statement(26, "C", "Scripts in a page may read the request id, the retry headers and where the call was routed."),
    Statement(27, "D", "`/v1/models` lists every model of the pool once, in a stable order, and is never null."),
    Statement(
        28, "D", "`/v1/models/<id>` works with a colon and with an escaped slash in the name, and is 404 otherwise."
    ),
    Statement(29, "D", "The Anthropic SDK's model list works on the same route."),
    Statement(30, "D", "Every entry of `/api/tags` is complete and correctly typed, without nulls."),
    Statement(31, "D", "So are the entries the gateway adds, each with a digest and a base name of its own."),
    Statement(32, "D", "The lists answer promptly while an instance hangs."),
    Statement(33, "D", "`/api/show` takes `model` or the older `name`, tagged or not, for every name the lists give."),
    Statement(
        34, "D", "`/api/show` tells details, capabilities, architecture, context length, template and parameters."
    ),
    Statement(35, "D", "An added model claims only what all its candidates can do, and the smallest context of them."),
    Statement(36, "D", "Fifty `/api/show` at once are answered from memory and use up no place of an inference."),
    Statement(
        37, "D", "`/api/ps` joins what all instances have loaded, with proper dates; an idle pool is an empty list."
    ),
    Statement(
        38, "D", "One tag with different digests on two instances is one entry, always the same, and a metric tells."
    ),
    Statement(
        39, "D", "Pulling a model that is already listed succeeds at once; any other pull is refused in clear words."
    ),
    Statement(
        40, "D", "Routes that change what an instance has are closed by default and never sent to some instance."
    ),
    Statement(41, "D", "A model name means the same in every route: `x` is `x:latest`, and case does not matter."),
    Statement(42, "E", "Streaming is decided by the body and not by `Accept`."),
    Statement(43, "E", "A body is read whatever its `Content-Type`, and broken JSON is a 400."),
    Statement(44, "E", "`max_completion_tokens` limits the answer where `max_tokens` is absent."),
    Statement(45, "E", "The role `developer` reaches the model as `system`."),
    Statement(46, "E", "An assistant message whose content is null or missing is accepted as empty."),
    Statement(47, "E", "Fields nobody knows are never an error."),
    Statement(48, "E", "`options` inside an OpenAI body does what the reference says it does."),
    Statement(49, "E", "A stream is an unbuffered event stream without a length; a whole answer is JSON with one."),
    Statement(50, "E", "Only the first delta names the role `assistant`, and no role is ever empty."),
    Statement(51, "E", "Id, creation time and model stay the same through a stream of `chat.completion.chunk`."),
    Statement(
        52,
        "E",
        "Tool-call deltas count from 0 without gaps, name themselves once and end with the reason `tool_calls`.",
    ),
    Statement(53, "E", "A finish reason comes before `[DONE]` in every stream that completed."),
    Statement(54, "E", "Usage comes last with no choices when `include_usage` asks for it, and not otherwise."),
    Statement(55, "E", "A completed stream ends with `[DONE]` and a blank line and then lets go at once."),
    Statement(56, "E", "Thoughts come as `reasoning`, by option also as `reasoning_content`, apart from the content."),
    Statement(57, "E", "A good chunk has no key `error`."),
    Statement(58, "E", "A chat stream consists of data lines and comments only."),
    Statement(59, "E", "A keep-alive is one comment line between events and does not begin as a ping."),
    Statement(60, "E", "Two minutes of silence before the first token disturb no client."),
    Statement(61, "E", "More than five minutes of silence are survived too, thanks to keep-alives."),
    Statement(62, "E", "A failure after the first bytes is one error event and then the end, without `[DONE]`."),
    Statement(63, "E", "A failure before the first byte is tried elsewhere and the client never hears of it."),
    Statement(64, "E", "A client that leaves, wherever its call stands, frees instance and place within a second."),
    Statement(65, "E", "Closing right after `[DONE]` counts as success."),
    Statement(66, "E", "Characters cut between two reads arrive whole, and so does an event of one mebibyte."),
    Statement(67, "E", "A missing model is a 400 that names the field; an unknown one is 404 `model_not_found`."),
    Statement(68, "E", "The answer names the model as the reference says, and the headers always name who served it."),
    Statement(69, "E", "Images of up to 20 MB inside the body pass; an image to be fetched is a 400 that says why."),
    Statement(70, "F", "A prompt with a suffix works, streamed and whole."),
    Statement(71, "F", "Lists of prompts or of token numbers are a 400 in clear words."),
    Statement(72, "F", "The older infill and engine paths are answered as the reference says."),
    Statement(73, "F", "An editor that asks and cancels twenty times a second leaves no work behind."),
    Statement(
        74, "G", "Embeddings come as base64 little-endian floats or as numbers, as asked, in the order of the input."
    ),
    Statement(75, "G", "Token numbers as input are a 400 that names the client's setting to change."),
    Statement(
        76, "G", "`/api/embed` answers a text or a list with `embeddings`, `/api/embeddings` a prompt with `embedding`."
    ),
    Statement(77, "G", "Usage counts the tokens of the prompt and of all."),
    Statement(78, "G", "An empty list is a 400; dimensions, truncation and context size are passed on."),
    Statement(79, "H", "A turn as Codex sends it completes with text."),
    Statement(
        80, "H", "Events come in order from created to completed, named alike in line and data, and counted upwards."
    ),
    Statement(81, "H", "The completed response carries whole-number usage with its details."),
    Statement(82, "H", "Compressed bodies are decoded within a limit, or refused as 415."),
    Statement(83, "H", "Asking for stored state is a clear 400; asking to store is ignored."),
    Statement(84, "H", "Keep-alives are comments; only Codex gets a data event."),
    Statement(85, "H", "A failure in the stream is `response.failed` with a code, and says when to try again."),
    Statement(86, "H", "Routes for stored responses, compaction and counting are a 404 object."),
    Statement(87, "I", "`?beta=true` and fields nobody knows are accepted."),
    Statement(88, "I", "Events keep their names and their order, and there is no `[DONE]`."),
    Statement(89, "I", "Errors have Anthropic's shape, types and request id."),
    Statement(90, "I", "A keep-alive is a ping event, a failure in the stream an error event."),
    Statement(91, "I", "Counting tokens gives an estimate or a 404 in Anthropic's shape."),
    Statement(
        92,
        "I",
        "A turn as Claude Code sends it works under the root URL, with a slash, under `/v1` and under a prefix.",
    ),
    Statement(93, "I", "A model name of Anthropic's can be an alias of a local model."),
    Statement(
        94, "J", "Without `stream` it streams: one JSON object to a line, no blank lines, as `application/x-ndjson`."
    ),
    Statement(95, "J", "The last line is done, says why and counts."),
    Statement(
        96,
        "J",
        "A failure is a status and an error string before the stream, an error line in it, and never a silent end.",
    ),
    Statement(97, "J", "A good line has no key `error`."),
    Statement(
        98,
        "J",
        "Lines pass byte for byte, and a line we write ourselves escapes what some readers take for a line end.",
    ),
    Statement(99, "J", "A keep-alive is spaces without a line end."),
    Statement(
        100,
        "J",
        "`keep_alive` in any of its forms, and loading or unloading by an empty prompt, reach the right instance.",
    ),
    Statement(
        101, "J", "Thinking, formats, images, raw prompts, suffix, context and log probabilities pass unchanged."
    ),
    Statement(102, "J", "An empty tool list, tool names and tool arguments pass unchanged."),
    Statement(103, "J", "`num_ctx` is passed on as it came; nothing rounds it unasked."),
    Statement(104, "J", "A client that breaks off its stream frees the instance within a second."),
    Statement(
        105, "K", "429 and 503 always say when to come back, in one to thirty seconds, in seconds and in milliseconds."
    ),
    Statement(106, "K", "A failure that would only repeat itself says not to retry."),
    Statement(107, "K", "A Codex turn against a full pool waits in line and costs one call."),
    Statement(108, "K", "A call sent again does not run beside the one its client gave up."),
    Statement(109, "K", "Lists and descriptions are answered while every place of an inference is taken."),
    Statement(110, "K", "An idle connection is kept for at least 75 seconds and works when used again."),
    Statement(111, "K", "A body of 32 MB is accepted; a larger one is a 413 the client can read."),
    Statement(
        112,
        "K",
        "On shutdown readiness turns first, running streams finish, and what cannot be served is told to come back.",
    ),
    Statement(113, "K", "Two calls of one conversation at the same time both proceed."),
    Statement(
        114,
        "K",
        "A conversation that names itself stays on one instance while that is no busier, and moves on where it fails.",
    ),
    Statement(
        115, "K", "Header, path, alias and query choose the same route; where they conflict, a header says which won."
    ),
    Statement(
        116, "K", "A stream is never compressed, whatever the client accepts, and instances are asked for plain bytes."
    ),
    Statement(
        117, "K", "Streams and errors carry the gateway's headers: request id, instance, model, task and time in line."
    ),
)
