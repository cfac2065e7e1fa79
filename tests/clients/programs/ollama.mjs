// Ollama's library for Node: the native API.

import { Ollama } from "ollama";
import { BUSY, CALL, CUT, EMBEDDER, GATEWAY, KEY, MODEL, NOBODY, SAY, SILENT, TOOL, main, user } from "./tell.mjs";

const client = new Ollama({ host: GATEWAY, headers: { Authorization: `Bearer ${KEY}` } });

async function whole(model = MODEL) {
  const reply = await client.chat({ model, messages: user(SAY) });
  return { text: reply.message.content, end: reply.done_reason };
}

async function stream(model = MODEL) {
  let [text, pieces, end] = ["", 0, null];
  for await (const line of await client.chat({ model, messages: user(SAY), stream: true })) {
    text += line.message.content;
    pieces += 1;
    end = line.done_reason ?? end;
  }
  return { text, pieces, end };
}

async function tools() {
  const reply = await client.chat({ model: MODEL, messages: user(CALL), tools: [TOOL] });
  const call = reply.message.tool_calls[0].function;
  return { name: call.name, arguments: JSON.stringify(call.arguments), role: reply.message.role };
}

async function embed() {
  const reply = await client.embed({ model: EMBEDDER, input: ["one", "two"] });
  return { vectors: reply.embeddings.length, length: reply.embeddings[0].length };
}

async function show() {
  const shown = await client.show({ model: MODEL });
  const info = shown.model_info;
  return {
    capabilities: shown.capabilities,
    context: info[`${info["general.architecture"]}.context_length`],
    virtual: (await client.show({ model: "auto" })).capabilities,
  };
}

async function loaded() {
  await whole();
  const models = (await client.ps()).models;
  return { names: models.map((model) => model.model), dated: models.every((model) => Date.parse(model.expires_at)) };
}

await main({
  whole,
  stream,
  tools,
  embed,
  models: async () => ({ names: (await client.list()).models.map((model) => model.model) }),
  show,
  loaded,
  version: async () => (await client.version()).version,
  missing: () => whole(NOBODY),
  cut: () => stream(CUT),
  silence: () => stream(SILENT),
  busy: () => whole(BUSY),
});
