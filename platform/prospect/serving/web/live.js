// A running session on the page: pictures in, what the server says out.

import { Sampler, freeze } from "./camera.js";
import { Chart } from "./charts.js";
import { Checklist } from "./checklist.js";
import { Conversation, clock } from "./conversation.js";
import { Latency } from "./latency.js";
import { Session } from "./session.js";

const part = (id) => document.querySelector(`#${id}`);
const WORDS = { live: "Live", reconnecting: "Reconnecting", ended: "Ended", lost: "Lost" };
const REASONS = { client: "The session has ended.", idle: "The session was idle for too long and has ended." };
const MOVED_SHOWN_MS = 6000;

export class Live {
  // address: {url, protocols} of the stream. task: {goal, steps, says}, where says are the user's words by time.
  // left(): the user wants another session.
  constructor(address, task, left) {
    this.task = task;
    this.says = [...(task.says ?? [])];
    const update = { goal: task.goal, steps: task.steps };
    const heard = (message) => this.#hear(message);
    this.session = new Session({ ...address, update, heard, changed: (state, why) => this.#changed(state, why) });
    this.seconds = 0; // of the last frame that was sent
    this.sent = this.decided = 0;
    this.left = left;
  }

  // Opens the session; throws a sentence.
  async open() {
    const created = await this.session.open();
    this.fps = created.fps;
    part("task").textContent = this.task.goal;
    part("step-list").replaceChildren();
    part("announcer").textContent = "";
    part("latency").textContent = "–";
    part("latencies").textContent = "";
    part("clock").textContent = clock(0);
    part("frames").textContent = "no frame yet";
    this.talk = new Conversation(part("entries"), part("draft"));
    this.latency = new Latency((last, others) => {
      part("latency").textContent = last;
      part("latencies").textContent = `(${others})`;
    });
    this.charts = {
      speak: new Chart(part("speak"), "Speak", created.thresholds?.speak),
      update: new Chart(part("update"), "Update checklist", created.thresholds?.update),
    };
    this.checklist = new Checklist({
      list: part("step-list"),
      count: part("done"),
      steps: this.task.steps,
      corrected: (id, state) => this.session.patch({ [id]: state }),
      announce: (sentence) => (part("announcer").textContent = sentence),
    });
    this.checklist.show(created.state, true);
    this.#enable(true);
    part("say").onsubmit = (event) => this.#say(event);
    part("stop").onclick = () => this.stop();
    part("again").onclick = () => this.left();
  }

  // Sends what `video` shows.
  watch(video) {
    this.video = video;
    this.sampler = new Sampler(video, this.fps, (image, pts) => this.#push(image, pts), () => this.stop());
    this.sampler.start();
    video.play();
  }

  // Ends the session after what was sent.
  stop() {
    this.sampler?.stop();
    if (this.session.ledger.closing) return;
    part("stop").disabled = true;
    this.session.close();
  }

  leave() {
    this.sampler?.stop();
    this.session.leave();
  }

  #push(image, pts) {
    if (!this.session.hasRoom) {
      return this.talk.happened("full", (n) => `${n} frames were not sent: the server has not answered for too long.`, pts);
    }
    while (this.says.length && Math.floor(this.says[0].time * this.fps) <= pts * this.fps) {
      this.#tell(this.says.shift().text, pts);
    }
    this.seconds = pts;
    this.latency.began(this.session.push(image, pts));
    this.sent += 1;
    part("clock").textContent = clock(pts);
    this.#count();
  }

  #count() {
    const waiting = this.session.ledger.frames.size;
    part("frames").textContent = `${this.decided} frames decided` + (waiting > 1 ? `, ${waiting} waiting` : "");
  }

  #say(event) {
    event.preventDefault();
    const text = part("words").value.trim();
    if (!text) return;
    part("words").value = "";
    this.#tell(text, this.seconds);
  }

  #tell(text, seconds) {
    this.session.say(text);
    this.talk.say("user", text, seconds);
  }

  #hear(message) {
    const at = message.frame === undefined ? this.seconds : (message.frame + 1) / this.fps;
    switch (message.type) {
      case "decision":
        this.decided += 1;
        this.latency.ended(message.seq);
        this.charts.speak.add(message.p_speak);
        this.charts.update.add(message.p_update);
        return this.#count();
      case "state.updated":
        if (this.checklist.show(message.state) && message.seq !== undefined) this.charts.update.mark();
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
        this.latency.forget(message.decided_to);
        this.#showMove();
        return this.talk.happened("moved", () => moved(message), at);
      case "session.going_away":
        return this.talk.happened("away", () => `This gateway stops (${message.reason}); the session goes on at another one.`, at);
      case "error":
        this.checklist.show({}); // a correction that was refused waits no more
        document.querySelectorAll("#step-list .waiting").forEach((each) => each.classList.remove("waiting"));
        return this.talk.happened("error", () => message.message, at);
    }
  }

  #changed(state, why) {
    clearTimeout(this.moving);
    this.#connection(state, WORDS[state]);
    if (state === "reconnecting") this.talk.happened("broken", () => "The connection broke. Frames are kept and sent again.", this.seconds);
    if (state === "ended") this.talk.happened("ended", () => REASONS[why] ?? why, this.seconds);
    if (state === "lost") this.talk.happened("error", () => why, this.seconds);
    if (state !== "ended" && state !== "lost") return;
    this.sampler?.stop();
    if (this.video) freeze(this.video);
    this.checklist.freeze();
    this.#enable(false);
    part("again").focus();
  }

  #showMove() {
    this.#connection("moved", "Moved to another engine");
    clearTimeout(this.moving);
    this.moving = setTimeout(() => this.#connection("live", WORDS.live), MOVED_SHOWN_MS);
  }

  #connection(state, words) {
    part("connection").dataset.state = state;
    part("connection").textContent = words;
  }

  #enable(isLive) {
    part("say").hidden = !isLive;
    part("stop").disabled = !isLive;
    part("again").hidden = isLive;
  }
}

function moved({ seconds, lost_frames: lost }) {
  const how = seconds ? `The session moved to another engine in ${seconds.toFixed(1)} s` : "The session moved to another gateway";
  return `${how}; ${lost ? `${lost} frames of its context are lost` : "nothing is lost"}.`;
}
