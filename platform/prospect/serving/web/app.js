// The page: the form, then the session, then the form again. Talks to the server that it came from and to nobody else.
// With ?watch=SESSION_ID it listens to a session of somebody else's.

import { release, showCamera, showFile } from "./camera.js";
import { Live } from "./live.js";
import { forget, recall } from "./memory.js";
import { PASSING, Refusal } from "./session.js";
import { Setup } from "./setup.js";
import { Watch } from "./watch.js";

const KEY = "prospect.key";
const PATIENCE_MS = 60_000; // for a session whose gateway has just died, when the page is loaded again
const PAUSE_MS = 1000;
const part = (id) => document.querySelector(`#${id}`);
const video = part("video");
const setup = new Setup(start, unlock);
const watched = new URLSearchParams(location.search).get("watch");

// An answer of this server, asked with the key if there is one; throws a Refusal, or an Error where nobody answers.
async function ask(path, headers = {}) {
  const key = sessionStorage.getItem(KEY);
  const all = key ? { Authorization: `Bearer ${key}`, ...headers } : headers;
  const answer = await fetch(path, { headers: all }).catch(() => null);
  if (answer === null) throw new Error("The server does not answer.");
  if (answer.ok) return answer;
  const { error } = await answer.json();
  if (answer.status === 401) setup.lock(true);
  throw new Refusal(error);
}

async function begin() {
  const model = await load();
  if (watched) return watch(model.fps);
  await offer(model);
  if (recall()) await resume(recall());
}

async function load() {
  const model = await (await ask("v1/model")).json();
  setup.lock(false);
  part("model").textContent = [model.name, model.version].filter(Boolean).join(" · ");
  return model;
}

async function offer(model) {
  if (!model.accepts_images) throw new Error("This server takes embeddings only, no pictures.");
  if (!setup.samples.length) setup.offer(await (await ask("samples")).json());
}

async function unlock(key) {
  sessionStorage.setItem(KEY, key);
  await begin();
}

async function start({ source, file, sample, goal, steps }) {
  await offer(await load());
  if (!("requestVideoFrameCallback" in video)) throw new Error("This browser is too old: it cannot tell which picture is shown.");
  const task = { goal, steps, source, sample: sample?.id, says: says(sample, goal, steps) };
  await show(task, file, 0);
  const live = new Live(address(), task, again);
  try {
    await live.open();
  } catch (error) {
    release(video);
    throw error;
  }
  reveal();
  live.watch(video);
}

// Goes on with the session that this tab had before it was loaded again.
async function resume(kept) {
  const session = `v1/sessions/${kept.ledger.created.session_id}`;
  let view, transcript;
  try {
    view = await (await askPatiently(session)).json();
    transcript = await (await askPatiently(`${session}/transcript`)).json();
  } catch (error) {
    if (error instanceof Refusal) forget();
    throw new Error(`The session from before this page was loaded cannot go on: ${error.message}`);
  }
  const sample = setup.samples.find(({ id }) => id === kept.sample);
  const task = { ...kept, says: says(sample, view.goal, view.steps) };
  const live = new Live(address(), task, again);
  reveal();
  await live.resume(kept, view, transcript);
  if (live.isOver || kept.ledger.closing) return;
  const goOn = async (file) => {
    try {
      await show(task, file, live.from);
      live.watch(video);
    } catch (error) {
      live.explain(error.message);
    }
  };
  if (kept.source !== "file") return goOn();
  live.explain("A page that is loaded again has lost its video file: choose it again, and it goes on where it was.");
  part("rechoose").hidden = false;
  part("rechoose").querySelector("input").onchange = ({ target }) => {
    part("rechoose").hidden = true;
    goOn(target.files[0]);
  };
}

async function watch(fps) {
  const watching = new Watch(`v1/sessions/${encodeURIComponent(watched)}`, ask);
  await watching.open(fps);
  reveal();
}

// Lets the page show what is to be watched, from so many seconds on.
async function show({ source, sample }, file, seconds) {
  if (source === "camera") await showCamera(video);
  else await showFile(video, file ?? (await (await ask(`samples/${sample}.mp4`)).blob()), seconds);
}

// What the user of a sample says, while the task is the sample's own.
function says(sample, goal, steps) {
  const isOwn = sample && sample.goal === goal && sample.steps.join("\n") === steps.join("\n");
  return isOwn ? sample.says : [];
}

// Asks again where the server may soon answer.
async function askPatiently(path) {
  for (const since = Date.now(); ; ) {
    try {
      return await ask(path);
    } catch (error) {
      if (!PASSING.has(error.code) || Date.now() - since > PATIENCE_MS) throw error;
    }
    await new Promise((resume) => setTimeout(resume, PAUSE_MS));
  }
}

function address() {
  const url = new URL("v1/stream", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const key = sessionStorage.getItem(KEY);
  return { url, protocols: key ? ["prospect", `prospect.key.${key}`] : [] };
}

function reveal() {
  setup.show(false);
  part("live").hidden = false;
  part("live").focus();
}

function again() {
  release(video);
  part("live").hidden = true;
  part("connection").dataset.state = "idle";
  part("connection").textContent = "Not started";
  setup.show(true);
}

if (watched || recall()) setup.show(false);
begin().catch((error) => {
  setup.show(true);
  if (!setup.isLocked) setup.explain(error.message);
});
