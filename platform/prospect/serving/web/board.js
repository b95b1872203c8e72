// What is to be seen of a session, whether this page streams it or only watches: checklist, scores, conversation.

import { Chart } from "./charts.js";
import { Checklist } from "./checklist.js";
import { Conversation, clock } from "./conversation.js";

const part = (id) => document.querySelector(`#${id}`);
const WORDS = { live: "Live", watching: "Watching", reconnecting: "Reconnecting", ended: "Ended", lost: "Lost" };
const REASONS = {
  client: "The session has ended.",
  idle: "The session was idle for too long and has ended.",
  disconnected: "The session's client has gone, and the session has ended.",
};
const MOVED_SHOWN_MS = 6000;

export class Board {
  // about: {goal, steps, fps, thresholds, state, decided} of the session, decided being its frames so far.
  // corrected(id, state): the user has chosen another state of a step; null: nobody can.
  constructor({ goal, steps, fps, thresholds, state, decided = 0 }, corrected) {
    this.fps = fps;
    this.decided = decided;
    this.state = null; // of the connection
    part("task").textContent = goal;
    part("step-list").replaceChildren();
    part("announcer").textContent = "";
    part("latency").textContent = "–";
    part("latencies").textContent = "";
    part("clock").textContent = clock(0);
    this.talk = new Conversation(part("entries"), part("draft"), corrected ? "You" : "User");
    this.charts = {
      speak: new Chart(part("speak"), "Speak", thresholds?.speak),
      update: new Chart(part("update"), "Update checklist", thresholds?.update),
    };
    this.checklist = new Checklist({
      list: part("step-list"),
      count: part("done"),
      steps,
      corrected,
      announce: (sentence) => (part("announcer").textContent = sentence),
    });
    this.checklist.show(state, true);
    if (!corrected) this.checklist.freeze();
    this.count();
  }

  // Seconds in the session at which a message's frame was decided; those of `otherwise` where it has none.
  time(message, otherwise) {
    return message.frame === undefined ? otherwise : (message.frame + 1) / this.fps;
  }

  // Shows a message of the server that was said at these seconds.
  hear(message, at) {
    switch (message.type) {
      case "decision":
        this.decided += 1;
        this.charts.speak.add(message.p_speak);
        this.charts.update.add(message.p_update);
        return this.count();
      case "state.updated":
        this.checklist.show(message.state);
        if (message.delta) this.charts.update.mark();
        return;
      case "response.delta":
        return this.talk.piece(message.text);
      case "response.cancelled":
        return this.talk.takeBack();
      case "response.done":
        this.charts.speak.mark();
        return this.talk.done(message.text, at);
      case "frame.dropped":
        return this.talk.happened("dropped", (n) => `${n} ${n > 1 ? "frames were" : "frame was"} dropped: too many waited.`, at);
      case "session.refreshed":
        return this.talk.happened("refreshed", () => "The context was rebuilt from the checklist.", at);
      case "session.moved":
        this.#showMove();
        return this.talk.happened("moved", () => moved(message), at);
      case "session.going_away":
        return this.talk.happened("away", () => `This gateway stops (${message.reason}); the session goes on at another one.`, at);
      case "error":
        this.checklist.waitNoMore(); // a correction that was refused
        return this.talk.happened("error", () => message.message, at);
    }
  }

  // waiting: frames that were sent and are not decided.
  count(waiting = 0) {
    const decided = this.decided ? `${this.decided} frames decided` : "no frame yet";
    part("frames").textContent = decided + (waiting > 1 ? `, ${waiting} waiting` : "");
  }

  // The connection is another one; returns whether it is over.
  changed(state, why, at) {
    clearTimeout(this.moving);
    this.state = state;
    this.#connection(state, WORDS[state]);
    if (state === "ended") this.talk.happened("ended", () => REASONS[why] ?? why, at);
    if (state === "lost") this.talk.happened("error", () => why, at);
    const isOver = state === "ended" || state === "lost";
    if (isOver) this.checklist.freeze();
    return isOver;
  }

  #showMove() {
    this.#connection("moved", "Moved to another engine");
    clearTimeout(this.moving);
    this.moving = setTimeout(() => this.#connection(this.state, WORDS[this.state]), MOVED_SHOWN_MS);
  }

  #connection(state, words) {
    part("connection").dataset.state = state;
    part("connection").textContent = words;
  }
}

function moved({ seconds, lost_frames: lost }) {
  const how = seconds ? `The session moved to another engine in ${seconds.toFixed(1)} s` : "The session moved to another gateway";
  return `${how}; ${lost ? `${lost} frames of its context are lost` : "nothing is lost"}.`;
}
