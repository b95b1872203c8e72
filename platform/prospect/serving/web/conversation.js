// What was said, and what happened to the session.

const NEAR = 40; // px from the end

export class Conversation {
  // list: a log of whole entries, which a screen reader reads out. draft: shows an utterance while it is generated.
  // user: what the user is called.
  constructor(list, draft, user) {
    this.user = user;
    this.list = list;
    this.draft = draft;
    this.note = null; // {item, count, words} of the last entry, if it is a note
    this.box = list.parentElement;
    this.isAtEnd = true; // and stays there, unless the user scrolls up
    this.box.onscroll = () => (this.isAtEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR);
    new ResizeObserver(() => this.#scroll()).observe(this.box);
    list.replaceChildren();
    this.#write("");
  }

  say(who, text, seconds) {
    this.note = null;
    this.#add(who, text, clock(seconds), who === "user" ? this.user : "Assistant");
  }

  // A piece of the utterance that is being generated.
  piece(text) {
    this.#write(this.draft.querySelector("p").textContent + text);
  }

  takeBack() {
    this.#write("");
  }

  done(text, seconds) {
    this.#write("");
    this.say("assistant", text, seconds);
  }

  // Something that happened; words(count) says how often it did, one after the other.
  happened(kind, words, seconds) {
    if (this.note?.kind === kind) {
      this.note.count += 1;
      this.note.item.querySelector("p").textContent = words(this.note.count);
      return;
    }
    const item = this.#add(kind === "error" ? "note problem" : "note", words(1), clock(seconds), "");
    this.note = { kind, item, count: 1 };
  }

  #write(text) {
    this.draft.querySelector("p").textContent = text;
    this.draft.hidden = !text;
    this.#scroll();
  }

  #add(kind, text, time, who) {
    const item = document.querySelector("#entry").content.firstElementChild.cloneNode(true);
    item.className = kind;
    item.querySelector("p").textContent = text;
    item.querySelector("[data-who]").textContent = who;
    item.querySelector("time").textContent = time;
    this.list.append(item);
    this.#scroll();
    return item;
  }

  #scroll() {
    if (this.isAtEnd) this.box.scrollTop = this.box.scrollHeight;
  }
}

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
