// Server-sent events out of a stream of bytes, wherever the network cuts them.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

/** Lines in, events {event, data} out. Text may end anywhere, also between \r and \n. */
export class EventParser {
  #text = "";
  #event = "message";
  #data = [];

  /** @param {string} text @returns {{event: string, data: string}[]} the events that are now complete */
  feed(text) {
    this.#text += text;
    const events = [];
    for (;;) {
      const end = this.#text.search(/[\r\n]/);
      if (end < 0 || (this.#text[end] === "\r" && end === this.#text.length - 1)) return events;
      const line = this.#text.slice(0, end);
      this.#text = this.#text.slice(end + (this.#text.startsWith("\r\n", end) ? 2 : 1));
      if (line !== "") this.#take(line);
      else if (this.#data.length) events.push(this.#finish());
      else this.#event = "message";
    }
  }

  #take(line) {
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    if (field === "event") this.#event = value;
  }

  #finish() {
    const found = { event: this.#event, data: this.#data.join("\n") };
    this.#event = "message";
    this.#data = [];
    return found;
  }
}

/** @param {ReadableStream<Uint8Array>} stream @yields {{event: string, data: string}} */
export async function* readEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.feed(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
