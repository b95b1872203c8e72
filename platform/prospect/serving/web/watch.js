// A session that somebody else streams: what it says, without its pictures, and nothing to change in it.

import { Board } from "./board.js";
import { clock } from "./conversation.js";
import { Listener } from "./listener.js";
import { Past } from "./past.js";

const part = (id) => document.querySelector(`#${id}`);
const WORDS_EVERY_MS = 3000; // after which is asked again what the user has said, of which the server's messages say nothing

export class Watch {
  // session: its address. ask(path, headers): see Listener.
  constructor(session, ask) {
    this.session = session;
    this.ask = ask;
    this.seconds = 0; // of the last decision
    this.decided = -1; // its frame
    this.asked = 0; // when the transcript was asked for
    this.telling = Promise.resolve();
  }

  // Shows the session as it is, and goes on in the background; throws a sentence.
  async open(fps) {
    const view = await (await this.ask(this.session)).json();
    this.board = new Board({ ...view, fps }, null);
    this.past = new Past(this.board.talk);
    this.first = view.next_seq - view.waiting; // frame from which on this is new
    await this.#tell();
    part("live").classList.add("watching");
    part("say").hidden = true;
    part("again").hidden = false;
    part("again").onclick = () => location.assign(location.pathname);
    this.listener = new Listener({
      path: `${this.session}/events`,
      ask: this.ask,
      heard: (message) => this.#hear(message),
      changed: (state, why) => this.board.changed(state, why, this.seconds),
    });
    this.listener.listen();
  }

  #hear(message) {
    this.seconds = this.board.time(message, this.seconds);
    if (message.type === "decision") {
      this.decided = message.frame;
      part("clock").textContent = clock(this.seconds);
      this.board.decided = message.seq; // and those before, of which it has not heard
      if (performance.now() - this.asked > WORDS_EVERY_MS) this.#tell();
      return this.board.hear(message, this.seconds);
    }
    const isPast = (message.frame ?? this.decided + 1) < this.first; // and shown already
    if (message.type === "response.done") this.board.charts.speak.mark();
    if (message.type === "state.updated" && message.delta && isPast) this.board.charts.update.mark();
    if (isPast) return;
    if (message.type !== "response.done") return this.board.hear(message, this.seconds);
    const at = this.seconds;
    this.#tell().then(() => {
      this.board.talk.takeBack();
      if (!this.past.take(message.frame)) this.board.talk.say("assistant", message.text, at);
    });
  }

  // Shows what was said meanwhile, by user and assistant, in its order.
  #tell() {
    this.asked = performance.now();
    this.telling = this.telling.then(async () => {
      try {
        this.past.show(await (await this.ask(`${this.session}/transcript`)).json());
      } catch {
        // the session has just ended, or moves: what the assistant says comes with the events too
      }
    });
    return this.telling;
  }
}
