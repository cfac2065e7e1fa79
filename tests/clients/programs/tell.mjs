// The same as tell.py, for clients from npm.

const { GATEWAY, MODEL, EMBEDDER, MODEL_CUT: CUT, MODEL_BUSY: BUSY, MODEL_SILENT: SILENT } = process.env;
export { GATEWAY, MODEL, EMBEDDER, CUT, BUSY, SILENT };
export const KEY = process.env.KEY ?? "unused";
export const NOBODY = "nobody:1b";
export const SAY = "say: a fine day to you";
export const CALL = 'call: weather {"city": "Oslo"}';
export const PARAMETERS = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
export const TOOL = {
  type: "function",
  function: { name: "weather", description: "The weather of a city.", parameters: PARAMETERS },
};
export const user = (text) => [{ role: "user", content: text }];

export async function main(scenarios) {
  for (const name of process.argv.slice(2)) {
    console.log(JSON.stringify({ scenario: name, ...(await outcome(scenarios[name])) }));
  }
  process.exit(0);
}

async function outcome(scenario) {
  try {
    return { told: await scenario() };
  } catch (error) {
    const status = error.status ?? error.statusCode ?? error.status_code ?? null;
    const text = [error.message, error.cause?.message, error.cause?.code].filter(Boolean).join(" / ").slice(0, 500);
    return { raised: { type: error.constructor.name, status, text } };
  }
}
