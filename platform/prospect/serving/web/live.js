// A session of this page: pictures in, what the server says out.

import { Board } from "./board.js";
import { Sampler, freeze } from "./camera.js";
import { clock } from "./conversation.js";
import { Latency } from "./latency.js";
import { Ledger } from "./ledger.js";
import { forget, keep } from "./memory.js";
import { Past } from "./past.js";
import { Session } from "./session.js";

const part = (id) => document.querySelector(`#${id}`);

export class Live {
  // address: {url, protocols} of the stream. task: {goal, steps, says, source, sample}, where says are the user's words
  // by time, and the last two what a reload shows again. left(): the user wants another session.
  constructor(address, task, left) {
    this.task = task;
    this.says = [...(task.says ?? [])];
    this.seconds = null; // of the last frame that was sent
    this.sentAt = null; // when
    this.from = 0; // seconds at which the next video begins
    this.left = left;
    this.session = new Session({
      ...address,
      update: { goal: task.goal, steps: task.steps },
      heard: (message) => this.#hear(message),
      changed: (state, why) => this.#changed(state, why),
      noted: () => this.#keep(),
    });
  }

  // Opens the session; throws a sentence.
  async open() {
    const created = await this.session.open();
    this.#show({ ...created, goal: this.task.goal, steps: this.task.steps });
    this.board.changed("live");
  }

  // Goes on with a session that `#keep` has kept, after a reload; view and transcript are the server's.
  async resume(kept, view, transcript) {
    this.session.ledger = Ledger.restored(kept.ledger);
    const { created, decided, decidedFrame } = this.session.ledger;
    const { fps } = created;
    this.#show({ ...view, fps, decided: (decided ?? -1) + 1 });
    this.seconds = kept.seconds;
    part("clock").textContent = clock(this.seconds ?? 0);
    this.sentAt = kept.sentAt;
    this.says = this.says.filter(({ time }) => this.seconds === null || Math.floor(time * fps) > this.seconds * fps);
    this.past = new Past(this.board.talk);
    this.past.show(transcript);
    const told = transcript.entries.filter(({ frame }) => frame > (decidedFrame ?? -1)).flatMap(({ user = [] }) => user);
    for (const { text } of this.session.ledger.texts.map(({ message }) => message)) {
      const at = told.indexOf(text);
      if (at < 0) this.board.talk.say("user", text, this.seconds ?? 0);
      else told.splice(at, 1); // shown with the transcript; an equal one after it is another
    }
    const lost = await this.session.resume();
    if (this.isOver) return;
    const words = lost ? `${lost} ${lost > 1 ? "frames are" : "frame is"} lost` : "nothing is lost";
    this.board.talk.happened("reloaded", () => `The page was loaded again; ${words}.`, this.seconds ?? 0);
    // A file goes on behind its last frame, which was sent when its interval was over; a camera has gone on since then.
    const missed = this.task.source === "camera" ? (Date.now() - kept.sentAt) / 1000 : 0;
    this.from = this.seconds === null ? 0 : this.seconds + 1 / fps + missed;
  }

  get isOver() {
    return this.session.ledger.over;
  }

  // Sends what `video` shows, from `this.from` on.
  watch(video) {
    this.video = video;
    this.sampler = new Sampler(video, this.board.fps, this.from, (image, pts) => this.#push(image, pts), () => this.stop());
    this.sampler.start();
    video.play();
  }

  // Says what keeps the video from going on.
  explain(sentence) {
    this.board.talk.happened("error", () => sentence, this.seconds ?? 0);
  }

  // Ends the session after what was sent.
  stop() {
    this.sampler?.stop();
    if (this.session.ledger.closing) return;
    part("stop").disabled = true;
    this.session.close();
  }

  #show(about) {
    this.board = new Board(about, (id, state) => this.session.patch({ [id]: state }));
    this.latency = new Latency((last, others) => {
      part("latency").textContent = last;
      part("latencies").textContent = `(${others})`;
    });
    this.#enable(true);
    part("watch").href = `?watch=${encodeURIComponent(this.session.ledger.created.session_id)}`;
    part("say").onsubmit = (event) => this.#say(event);
    part("stop").onclick = () => this.stop();
    part("again").onclick = () => this.left();
  }

  #push(image, pts) {
    if (!this.session.hasRoom) {
      return this.board.talk.happened("full", (n) => `${n} frames were not sent: the server has not answered for too long.`, pts);
    }
    while (this.says.length && Math.floor(this.says[0].time * this.board.fps) <= pts * this.board.fps) {
      this.#tell(this.says.shift().text, pts);
    }
    this.seconds = pts;
    this.sentAt = Date.now();
    this.latency.began(this.session.push(image, pts));
    part("clock").textContent = clock(pts);
    this.#count();
  }

  #count() {
    this.board.count(this.session.ledger.frames.size);
  }

  #say(event) {
    event.preventDefault();
    const text = part("words").value.trim();
    if (!text) return;
    part("words").value = "";
    this.#tell(text, this.seconds ?? 0);
  }

  #tell(text, seconds) {
    this.session.say(text);
    this.board.talk.say("user", text, seconds);
  }

  #hear(message) {
    if (message.type === "decision") this.latency.ended(message.seq);
    if (message.type === "session.moved") this.latency.forget(message.decided_to);
    const isPast = message.type === "response.done" && this.past?.take(message.frame);
    if (!isPast) this.board.hear(message, this.board.time(message, this.seconds ?? 0));
    if (message.type === "decision") this.#count();
  }

  #changed(state, why) {
    const at = this.seconds ?? 0;
    if (state === "reconnecting" && this.board.state === "live") {
      this.board.talk.happened("broken", () => "The connection broke. Frames are kept and sent again.", at);
    }
    if (!this.board.changed(state, why, at)) return;
    this.sampler?.stop();
    if (this.video) freeze(this.video);
    this.#enable(false);
    part("again").focus();
  }

  // Lets a reload of the page go on with the session.
  #keep() {
    const { ledger } = this.session;
    if (ledger.over) return forget();
    const { source, sample } = this.task;
    keep({ ledger: ledger.kept(), source, sample, seconds: this.seconds, sentAt: this.sentAt });
  }

  #enable(isLive) {
    part("live").classList.remove("watching");
    part("say").hidden = !isLive;
    part("stop").disabled = !isLive;
    part("watch").hidden = !isLive;
    part("rechoose").hidden = true;
    part("again").hidden = isLive;
  }
}
