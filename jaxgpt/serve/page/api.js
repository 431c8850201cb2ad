// The server's API, as the page uses it.
import { readEvents } from "./sse.js";

/** An answer other than the one that was asked for; `code` as in OpenAI's errors. */
class ApiError extends Error {
  constructor({ message, code }) {
    super(message);
    this.code = code;
  }
}

/** The model that is served: {id, is_chat, context_tokens}. */
export async function fetchModel(key) {
  const answer = await fetch("/v1/models", { headers: headersOf(key) });
  if (!answer.ok) throw new ApiError(await errorOf(answer));
  return (await answer.json()).data[0];
}

/**
 * Pieces of the answer's text as they come, then {usage, reason}.
 * @param {{id: string, is_chat: boolean}} model
 * @param {{role: string, content: string}[]} messages for a base model, the text that it continues
 * @param {AbortSignal} signal
 */
export async function* streamAnswer(model, messages, settings, signal) {
  const body = { model: model.id, stream: true, stream_options: { include_usage: true } };
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"])
    if (Number.isFinite(settings[name])) body[name] = settings[name];
  body.max_tokens ??= Math.max(1, Math.floor(model.context_tokens / 4)); // the rest is for the conversation
  if (model.is_chat) {
    const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
    body.messages = [...system, ...messages.map(({ role, content }) => ({ role, content }))];
  } else {
    body.prompt = messages.map((message) => message.content).join("");
  }
  const answer = await fetch(model.is_chat ? "/v1/chat/completions" : "/v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headersOf(settings.key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!answer.ok) throw new ApiError(await errorOf(answer));
  let usage = null;
  let reason = null;
  for await (const { event, data } of readEvents(answer.body)) {
    if (data === "[DONE]") {
      yield { usage, reason };
      return;
    }
    const chunk = JSON.parse(data);
    if (event === "error" || chunk.error) throw new ApiError(chunk.error);
    usage = chunk.usage ?? usage;
    const choice = chunk.choices[0];
    reason = choice?.finish_reason ?? reason;
    const text = choice?.delta?.content ?? choice?.text;
    if (text) yield { text };
  }
  throw new Error("the connection ended before the answer did");
}

function headersOf(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function errorOf(answer) {
  try {
    return (await answer.json()).error;
  } catch {
    return { message: `the server answered ${answer.status}` };
  }
}
