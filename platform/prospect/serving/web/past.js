// What was said in a session while this page did not listen, from its transcript; each thing is shown once.

export class Past {
  constructor(talk) {
    this.talk = talk;
    this.shown = new Map(); // by frame: {users: texts of the user that are shown, spoke: whether the assistant's is}
    this.isWhole = true;
  }

  // Shows what is new in an answer of GET transcript.
  show({ complete, entries }) {
    if (!complete && this.isWhole) this.talk.happened("forgotten", () => "What was said before is forgotten.", entries[0]?.time ?? 0);
    this.isWhole = complete;
    for (const { frame, time, user = [], utterance } of entries) {
      const shown = this.#at(frame);
      user.slice(shown.users).forEach((text) => this.talk.say("user", text, time));
      shown.users = user.length;
      if (utterance && !shown.spoke) this.talk.say("assistant", utterance, time);
      shown.spoke ||= Boolean(utterance);
    }
  }

  // Whether the utterance of a frame is shown; from now on it counts as such.
  take(frame) {
    const shown = this.#at(frame);
    const before = shown.spoke;
    shown.spoke = true;
    return before;
  }

  #at(frame) {
    if (!this.shown.has(frame)) this.shown.set(frame, { users: 0, spoke: false });
    return this.shown.get(frame);
  }
}
