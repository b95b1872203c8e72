// The form before a session: what is watched, the task, and the key where the server asks for one.

import { withoutCamera } from "./camera.js";
import { clock } from "./conversation.js";

const form = document.querySelector("#setup");
const field = (name) => form.querySelector(`#${name}`);

export class Setup {
  // start({source, file, sample, goal, steps}): the user wants to begin. unlock(key): the user has given a key.
  // The sentence of whatever they throw is shown.
  constructor(start, unlock) {
    this.samples = [];
    form.querySelectorAll("[name=source]").forEach((each) => (each.onchange = () => this.#choose()));
    field("file").onchange = () => this.explain("");
    this.#takeDrops(form.querySelector(".drop"));
    form.onsubmit = async (event) => {
      event.preventDefault();
      this.explain("");
      field("start").disabled = true;
      try {
        await (this.isLocked ? unlock(field("key").value.trim()) : start(this.#read()));
      } catch (error) {
        this.explain(error.message);
      } finally {
        field("start").disabled = false;
      }
    };
    if (withoutCamera()) field("camera-help").textContent = withoutCamera();
  }

  get source() {
    return form.querySelector("[name=source]:checked").value;
  }

  show(isShown) {
    form.hidden = !isShown;
    if (isShown) (this.isLocked ? field("key") : field("start")).focus();
  }

  // Offers samples, as GET samples lists them.
  offer(samples) {
    this.samples = samples;
    const made = samples.map((sample, index) => {
      const card = document.querySelector("#sample-card").content.firstElementChild.cloneNode(true);
      const radio = card.querySelector("input");
      radio.value = sample.id;
      radio.checked = index === 0;
      radio.onchange = () => this.#fill();
      card.querySelector("[data-goal]").textContent = sample.goal;
      card.querySelector("[data-about]").textContent = `${sample.steps.length} steps, ${clock(sample.seconds)}`;
      return card;
    });
    field("samples").replaceChildren(...made);
    const isBlank = !field("goal").value && !field("steps").value; // else the user was faster than the server
    if (this.source === "sample" && isBlank) this.#fill();
  }

  // Asks for a key, and for nothing else before there is a good one.
  lock(isLocked) {
    if (isLocked === this.isLocked) return;
    field("key-row").hidden = !isLocked;
    form.querySelectorAll("fieldset").forEach((each) => (each.hidden = isLocked));
    field("start").textContent = isLocked ? "Continue" : "Start";
    (isLocked ? field("key") : field("start")).focus();
  }

  get isLocked() {
    return !field("key-row").hidden;
  }

  // Says what is wrong; "" takes it back.
  explain(sentence) {
    field("setup-error").textContent = sentence;
  }

  get #sample() {
    const chosen = form.querySelector("[name=sample]:checked")?.value;
    return this.samples.find(({ id }) => id === chosen);
  }

  #choose() {
    this.explain("");
    form.querySelectorAll("[data-source]").forEach((each) => (each.hidden = each.dataset.source !== this.source));
    if (this.source === "sample") this.#fill();
    else if (this.#isSampleTask()) field("goal").value = field("steps").value = "";
  }

  // Whether the task is still the sample's own.
  #isSampleTask() {
    return this.samples.some(({ goal }) => goal === field("goal").value);
  }

  #fill() {
    const sample = this.#sample;
    if (!sample) return;
    field("goal").value = sample.goal;
    field("steps").value = sample.steps.join("\n");
  }

  #read() {
    const file = field("file").files[0];
    if (this.source === "file" && !file) throw new Error("Choose a video file first.");
    if (this.source === "camera" && withoutCamera()) throw new Error(withoutCamera());
    const sample = this.source === "sample" ? this.#sample : undefined;
    if (this.source === "sample" && !sample) throw new Error("The server has no samples; choose the camera or a file.");
    const steps = field("steps").value.split("\n").map((line) => line.trim()).filter(Boolean);
    return { source: this.source, file, sample, goal: field("goal").value.trim(), steps };
  }

  #takeDrops(area) {
    document.addEventListener("dragover", (event) => {
      event.preventDefault(); // a file that is dropped beside the area must not replace the page
      area.classList.toggle("over", area.contains(event.target));
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      area.classList.remove("over");
      if (!area.contains(event.target) || !event.dataTransfer.files.length) return;
      field("file").files = event.dataTransfer.files;
      this.explain("");
    });
  }
}
