// What this side of a session has sent and heard: what to send again, and from where to resume.
// The rules are those of prospect/client/ledger.py; tests/serving/web/test_ledger.py holds one against the other.

export const ACKNOWLEDGED_EVERY = 100; // durable messages after which the server is told that it need not keep them

const ELSEWHERE = new Set(["unknown_session", "fenced", "unavailable"]); // answers of a gateway that no longer has the session

export class Ledger {
  constructor(update) {
    this.update = update;
    this.created = null; // the server's answer to the last connection
    this.over = false; // the session is closed, or this side has left
    this.closing = false; // the session was asked to close
    this.frames = new Map(); // by seq: sent and neither decided nor dropped
    this.texts = []; // {seq of the frame that it joins, message}: sent and not decided
    this.patches = []; // that the server has not confirmed
    this.nextSeq = null;
    this.lastEvent = null; // null until something of the kind is heard: the server then sends what nobody has
    this.decided = null;
    this.decidedFrame = null; // number of the last frame that was decided: dropped ones have a seq and no number
    this.acknowledged = 0;
  }

  // The ledger that `kept` was called on before the page was loaded again.
  static restored(kept) {
    return Object.assign(new Ledger({}), kept);
  }

  // All that is needed to go on, as JSON can hold it; the frames are too large to be kept.
  kept() {
    const { update, frames, ...rest } = this;
    return rest;
  }

  // After a reload: goes on where the server is, and returns how many frames it never got.
  giveUp() {
    const lost = Math.max(0, this.following - this.created.next_seq);
    this.nextSeq = this.created.next_seq;
    for (const text of this.texts) text.seq = Math.min(text.seq, this.nextSeq);
    return lost;
  }

  opening() {
    return { type: "session.update", ...this.update, keep: true }; // it has to outlive a connection that breaks
  }

  resuming() {
    const update = { type: "session.update", resume: this.created.resume };
    if (this.lastEvent !== null) update.last_event = this.lastEvent;
    if (this.decided !== null) update.decided = this.decided;
    return update;
  }

  get following() {
    return this.nextSeq ?? this.created.next_seq;
  }

  frame(image, pts) {
    const message = { type: "input_frame.append", seq: this.following, pts, image };
    this.nextSeq = message.seq + 1;
    this.frames.set(message.seq, message);
    return message;
  }

  text(text, id) {
    const message = { type: "input_text.append", text, id };
    this.texts.push({ seq: this.following, message });
    return message;
  }

  patch(state) {
    const message = { type: "state.patch", state };
    this.patches.push(message);
    return message;
  }

  // What the server may not have: patches, and the frames from next_seq on with the texts before them.
  toSendAgain() {
    const again = [...this.frames.values()].map((message) => ({ seq: message.seq, place: 1, message }));
    again.push(...this.texts.map(({ seq, message }) => ({ seq, place: 0, message })));
    const due = again.filter(({ seq }) => seq >= this.created.next_seq);
    due.sort((one, other) => one.seq - other.seq || one.place - other.place);
    return [...this.patches, ...due.map(({ message }) => message)];
  }

  // Notes what has arrived; returns whether it is new.
  note(message) {
    if (message.event !== undefined) {
      if (message.event <= (this.lastEvent ?? 0)) return false;
      this.lastEvent = message.event;
    }
    switch (message.type) {
      case "decision":
        if (this.decided !== null && message.seq <= this.decided) return false;
        this.decided = message.seq;
        this.decidedFrame = message.frame;
        this.#forgetBefore(message.seq + 1);
        break;
      case "state.updated":
        if (message.seq === undefined) this.patches.shift();
        break;
      case "error":
        if ((message.field ?? "").split(".")[0] === "state") this.patches.shift();
        else if (message.seq !== undefined && !ELSEWHERE.has(message.code)) this.frames.delete(message.seq);
        break;
      case "frame.dropped":
        this.frames.delete(message.seq);
        break;
      case "session.moved":
        this.decided = Math.max(this.decided ?? -1, message.decided_to);
        this.#forgetBefore(message.decided_to + 1);
        break;
      case "session.closed":
        this.over = true;
    }
    return true;
  }

  // What tells the server which events it need not keep, or null where that is not due.
  acknowledgement() {
    if (this.over || this.lastEvent === null || this.lastEvent < this.acknowledged + ACKNOWLEDGED_EVERY) return null;
    this.acknowledged = this.lastEvent;
    return { type: "event.ack", event: this.lastEvent };
  }

  #forgetBefore(seq) {
    for (const each of [...this.frames.keys()]) if (each < seq) this.frames.delete(each);
    while (this.texts.length && this.texts[0].seq < seq) this.texts.shift();
  }
}
