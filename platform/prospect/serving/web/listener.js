// Listens to a session without taking part in it (docs/protocol.md, Watching). An EventSource could send no API key.

import { PASSING, Refusal } from "./session.js";

const PAUSE_MS = 1000;

export class Listener {
  // path: of the session's events. ask(path, headers): answers, or throws a Refusal, or an Error where nobody answers.
  // heard(message): each message, once. changed(state, why): `watching`, `reconnecting`, `ended` or `lost`.
  constructor({ path, ask, heard, changed }) {
    this.path = path;
    this.ask = ask;
    this.heard = heard;
    this.changed = changed;
    this.lastEvent = null;
    this.decided = -1; // seq of the last decision
    this.over = false;
  }

  // Listens until the session is over.
  async listen() {
    while (!this.over) {
      try {
        const answer = await this.ask(this.path, this.lastEvent === null ? {} : { "Last-Event-ID": this.lastEvent });
        if (answer.status === 204) return this.#end("ended", "client");
        this.changed("watching", "");
        await this.#read(answer.body);
      } catch (error) {
        if (error instanceof Refusal && !PASSING.has(error.code)) return this.#end("lost", error.message);
      }
      if (this.over) return;
      this.changed("reconnecting", "");
      await new Promise((resume) => setTimeout(resume, PAUSE_MS));
    }
  }

  async #read(body) {
    let rest = "";
    for (const reader = body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      events.forEach((event) => this.#take(event));
    }
  }

  #take(event) {
    const data = event.split("\n").find((line) => line.startsWith("data: "));
    if (!data) return; // a comment that keeps the connection, or how long to wait
    const message = JSON.parse(data.slice("data: ".length));
    if (message.event !== undefined) {
      if (message.event <= (this.lastEvent ?? 0)) return;
      this.lastEvent = message.event;
    }
    if (message.type === "decision") {
      if (message.seq <= this.decided) return;
      this.decided = message.seq;
    }
    this.heard(message);
    if (message.type === "session.closed") this.#end("ended", message.reason);
  }

  #end(state, why) {
    this.over = true;
    this.changed(state, why);
  }
}
