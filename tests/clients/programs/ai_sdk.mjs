// Vercel's AI SDK with its OpenAI-compatible provider.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, jsonSchema, streamText, tool } from "ai";
import { Agent, setGlobalDispatcher } from "undici";
import { BUSY, CALL, CUT, EMBEDDER, GATEWAY, KEY, MODEL, NOBODY, PARAMETERS, SAY, SILENT, main } from "./tell.mjs";

const provider = createOpenAICompatible({ name: "gateway", baseURL: `${GATEWAY}/v1`, apiKey: KEY, includeUsage: true });

async function whole(model = MODEL) {
  const reply = await generateText({ model: provider(model), prompt: SAY });
  return { text: reply.text, end: reply.finishReason };
}

// `textStream` hides errors by design; `fullStream` has them as parts.
async function stream(model = MODEL, maxRetries = 2) {
  let [text, pieces, end] = ["", 0, null];
  for await (const part of streamText({ model: provider(model), prompt: SAY, maxRetries, onError() {} }).fullStream) {
    if (part.type === "error") throw part.error instanceof Error ? part.error : new Error(JSON.stringify(part.error));
    if (part.type === "text-delta") [text, pieces] = [text + part.text, pieces + 1];
    if (part.type === "finish") end = part.finishReason;
  }
  return { text, pieces, end };
}

async function tools() {
  const weather = tool({ description: "The weather of a city.", inputSchema: jsonSchema(PARAMETERS) });
  const reply = streamText({ model: provider(MODEL), prompt: CALL, tools: { weather } });
  const [call] = await reply.toolCalls;
  return { name: call.toolName, arguments: JSON.stringify(call.input) };
}

async function embed() {
  const { embeddings } = await embedMany({ model: provider.embeddingModel(EMBEDDER), values: ["one", "two"] });
  return { vectors: embeddings.length, length: embeddings[0].length };
}

function impatient() {
  setGlobalDispatcher(new Agent({ headersTimeout: 1000, bodyTimeout: 1000 }));
  return stream(SILENT, 0);
}

await main({
  whole,
  stream,
  tools,
  embed,
  missing: () => whole(NOBODY),
  cut: () => stream(CUT),
  silence: () => stream(SILENT),
  busy: () => whole(BUSY),
  impatient,
});
