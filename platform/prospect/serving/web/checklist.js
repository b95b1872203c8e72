// The task's steps with their states; each can be corrected.

const NAMES = { not_started: "not started", in_progress: "in progress", completed: "completed" };

export class Checklist {
  // list: an <ol>. count: says how many are done. corrected(id, state): the user has chosen another state.
  // announce(sentence): a state has changed.
  constructor({ list, count, steps, corrected, announce }) {
    this.count = count;
    this.announce = announce;
    this.corrected = corrected;
    this.rows = new Map(steps.map((name, index) => [`S${index + 1}`, this.#row(list, `S${index + 1}`, name)]));
  }

  // Shows a state, such as {S1: "completed"}.
  show(state, isFirst = false) {
    const changed = [];
    for (const [id, label] of Object.entries(state)) {
      const row = this.rows.get(id);
      if (!row) continue;
      row.item.classList.remove("waiting");
      if (row.state === label) continue;
      row.state = row.item.dataset.state = label;
      row.label.textContent = NAMES[label];
      for (const choice of row.choices) choice.setAttribute("aria-pressed", String(choice.value === label));
      if (isFirst) continue;
      changed.push(`${row.name}: ${NAMES[label]}.`);
      row.item.classList.remove("changed");
      void row.item.offsetWidth; // begins the animation again
      row.item.classList.add("changed");
    }
    const done = [...this.rows.values()].filter((row) => row.state === "completed").length;
    this.count.textContent = this.rows.size ? `${done} of ${this.rows.size} done` : "";
    if (changed.length) this.announce(changed.join(" "));
  }

  // Corrections that are not confirmed will not be.
  waitNoMore() {
    for (const { item } of this.rows.values()) item.classList.remove("waiting");
  }

  // Nothing can be corrected any more.
  freeze() {
    for (const { item, toggle } of this.rows.values()) {
      toggle.disabled = true;
      this.#open(item, toggle, false);
    }
  }

  #row(list, id, name) {
    const item = document.querySelector("#step-row").content.firstElementChild.cloneNode(true);
    const toggle = item.querySelector("[data-toggle]");
    const choices = [...item.querySelectorAll("[data-choices] button")];
    item.querySelector("[data-name]").textContent = name;
    item.querySelector("[data-choices]").setAttribute("aria-label", `Correct: ${name}`);
    toggle.onclick = () => this.#open(item, toggle, toggle.getAttribute("aria-expanded") !== "true");
    item.onkeydown = ({ key }) => {
      if (key !== "Escape") return;
      this.#open(item, toggle, false);
      toggle.focus();
    };
    for (const choice of choices) {
      choice.onclick = () => {
        this.#open(item, toggle, false);
        toggle.focus();
        if (this.rows.get(id).state === choice.value) return;
        item.classList.add("waiting");
        this.corrected(id, choice.value);
      };
    }
    list.append(item);
    return { item, name, toggle, choices, label: item.querySelector("[data-label]"), state: null };
  }

  #open(item, toggle, isOpen) {
    toggle.setAttribute("aria-expanded", String(isOpen));
    item.querySelector("[data-choices]").hidden = !isOpen;
  }
}
