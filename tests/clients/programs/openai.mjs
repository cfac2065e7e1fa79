// OpenAI's SDK for Node.

import OpenAI from "openai";
import { Agent, setGlobalDispatcher } from "undici";
import { BUSY, CALL, CUT, EMBEDDER, GATEWAY, KEY, MODEL, NOBODY, SAY, SILENT, TOOL, main, user } from "./tell.mjs";

const client = new OpenAI({ baseURL: `${GATEWAY}/v1`, apiKey: KEY });
const chat = client.chat.completions;

async function whole(model = MODEL) {
  const reply = await chat.create({ model, messages: user(SAY) });
  return { text: reply.choices[0].message.content, end: reply.choices[0].finish_reason };
}

async function stream(model = MODEL, options = {}) {
  let [text, pieces, end] = ["", 0, null];
  for await (const chunk of await chat.create({ model, messages: user(SAY), stream: true }, options)) {
    const choice = chunk.choices[0];
    if (!choice) continue;
    text += choice.delta.content ?? "";
    pieces += 1;
    end = choice.finish_reason ?? end;
  }
  return { text, pieces, end };
}

async function tools() {
  const message = await chat.stream({ model: MODEL, messages: user(CALL), tools: [TOOL] }).finalMessage();
  const call = message.tool_calls[0].function;
  return { name: call.name, arguments: call.arguments, role: message.role };
}

async function embed() {
  const reply = await client.embeddings.create({ model: EMBEDDER, input: ["one", "two"] });
  return { vectors: reply.data.length, length: reply.data[0].embedding.length };
}

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  return { names, one: (await client.models.retrieve(MODEL)).id };
}

async function responses() {
  const asked = { model: MODEL, input: SAY };
  const whole = await client.responses.create(asked);
  const kinds = [];
  const events = client.responses.stream(asked);
  for await (const event of events) kinds.push(event.type);
  const streamed = await events.finalResponse();
  return { text: whole.output_text, streamed: streamed.output_text, kinds: [kinds[0], kinds.at(-1)] };
}

// Node's own fetch gives up after 300 s without a head or between two pieces; here after 1 s.
function impatient() {
  setGlobalDispatcher(new Agent({ headersTimeout: 1000, bodyTimeout: 1000 }));
  return stream(SILENT, { maxRetries: 0 });
}

await main({
  whole,
  stream,
  tools,
  embed,
  models,
  responses,
  missing: () => whole(NOBODY),
  cut: () => stream(CUT),
  silence: () => stream(SILENT),
  busy: () => whole(BUSY),
  impatient,
});
