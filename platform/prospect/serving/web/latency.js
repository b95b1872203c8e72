// Milliseconds from sending a frame to its decision.

const MOST = 120;

export class Latency {
  // show(sentence)
  constructor(show) {
    this.show = show;
    this.sent = new Map();
    this.last = [];
  }

  began(seq) {
    this.sent.set(seq, performance.now());
  }

  ended(seq) {
    const began = this.sent.get(seq);
    this.forget(seq);
    if (began === undefined) return;
    this.last.push(performance.now() - began);
    if (this.last.length > MOST) this.last.shift();
    const sorted = [...this.last].sort((one, other) => one - other);
    const at = (share) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]);
    this.show(`${Math.round(this.last.at(-1))} ms`, `median ${at(0.5)}, 95 % within ${at(0.95)} ms`);
  }

  // The frame and those before it get no decision.
  forget(seq) {
    for (const each of [...this.sent.keys()]) if (each <= seq) this.sent.delete(each);
  }
}
