// A live session, whatever connections it has (docs/protocol.md). Knows no page: it tells what happens by callbacks.

import { Ledger } from "./ledger.js";

const TAKEN_OVER = 4001;
export const PASSING = new Set(["busy", "unavailable", "fenced", "internal", "rate_limited"]); // refusals of a server that may soon answer
const PATIENCE_MS = 300_000; // for which a connection is tried: the server keeps a session for as long
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 2_000;
const ANSWERED_WITHIN_MS = 20_000;
const MOST_KEPT = 240; // frames without an answer, after which no more are taken

export class Refusal extends Error {
  constructor({ code, message, field }) {
    super(message);
    this.code = code;
    this.field = field;
  }
}

export class Session {
  // url: of the stream. protocols: of the WebSocket. update: fields of session.update.
  // heard(message): each message, once. changed(state, why): `live` again, `reconnecting`, `ended` or `lost`.
  // noted(): the ledger is another one than before.
  constructor({ url, protocols = [], update, heard, changed, noted }) {
    this.ledger = new Ledger(update);
    this.url = url;
    this.protocols = protocols;
    this.heard = heard;
    this.changed = changed;
    this.noted = noted;
    this.socket = null;
  }

  // Opens the session and returns session.created; throws a Refusal.
  open() {
    return this.#connect(this.ledger.opening());
  }

  // Continues the session of a ledger that was kept over a reload, and returns how many frames the server never got.
  async resume() {
    let lost = 0;
    await this.#reconnect(() => (lost = this.ledger.giveUp()));
    return lost;
  }

  // Whether another frame may be sent: the server has answered enough of the last ones.
  get hasRoom() {
    return this.ledger.frames.size < MOST_KEPT;
  }

  // Sends a picture (base64) and returns its seq.
  push(image, pts) {
    const message = this.ledger.frame(image, pts);
    this.#send(message);
    return message.seq;
  }

  say(text) {
    const id = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0"));
    this.#send(this.ledger.text(text, id.join("")));
  }

  patch(state) {
    this.#send(this.ledger.patch(state));
  }

  // Closes the session after what was sent; `session.closed` is the last thing heard.
  close() {
    this.ledger.closing = true;
    this.#send({ type: "session.close" });
  }

  // What cannot be sent now is sent by the next connection: the ledger keeps it.
  #send(message) {
    this.noted();
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  // Connects, sends `update` and returns session.created; throws a Refusal, or a plain Error where nobody answers.
  #connect(update) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(this.url, this.protocols);
      let isOpen = false;
      const late = setTimeout(() => socket.close(), ANSWERED_WITHIN_MS);
      socket.onopen = () => socket.send(JSON.stringify(update));
      socket.onclose = ({ code }) => {
        clearTimeout(late);
        if (!isOpen) reject(new Error("The server does not answer."));
        else if (this.socket === socket) this.#lost(code);
      };
      socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (isOpen) return this.#hear(message);
        if (message.type !== "session.created") {
          reject(new Refusal(message));
          return socket.close();
        }
        isOpen = true;
        clearTimeout(late);
        this.socket = socket;
        this.ledger.created = message;
        this.noted();
        resolve(message);
      };
    });
  }

  #hear(message) {
    if (!this.ledger.note(message)) return;
    const due = this.ledger.acknowledgement();
    if (due) this.#send(due);
    this.noted();
    this.heard(message);
    if (this.ledger.over) this.changed("ended", message.reason ?? "");
  }

  async #lost(code) {
    this.socket = null;
    if (this.ledger.over) return;
    if (code === TAKEN_OVER) return this.#end("lost", "The session goes on in another window.");
    await this.#reconnect();
  }

  // connected(): the server has answered, and nothing was sent again yet.
  async #reconnect(connected = () => {}) {
    this.changed("reconnecting", "");
    const since = Date.now();
    for (let pause = FIRST_PAUSE_MS; !this.ledger.over; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      try {
        await this.#connect(this.ledger.resuming());
        connected();
        return this.#goOn();
      } catch (error) {
        const isClosed = error.code === "unknown_session" && this.ledger.closing && !this.ledger.frames.size;
        if (isClosed) return this.#end("ended", "client");
        if (error instanceof Refusal && !PASSING.has(error.code)) return this.#end("lost", error.message);
        if (Date.now() - since > PATIENCE_MS) return this.#end("lost", error.message);
      }
      await new Promise((resume) => setTimeout(resume, pause));
    }
  }

  #goOn() {
    this.ledger.toSendAgain().forEach((message) => this.#send(message));
    if (this.ledger.closing) this.#send({ type: "session.close" });
    this.changed("live", "");
  }

  #end(state, why) {
    this.ledger.over = true;
    this.noted();
    this.changed(state, why);
  }
}
