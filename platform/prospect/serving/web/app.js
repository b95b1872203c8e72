// The page: the form, then the session, then the form again. Talks to the server that it came from and to nobody else.

import { release, showCamera, showFile } from "./camera.js";
import { Live } from "./live.js";
import { Setup } from "./setup.js";

const KEY = "prospect.key";
const part = (id) => document.querySelector(`#${id}`);
const video = part("video");
const setup = new Setup(start, unlock);
let live = null;

// A path of this server, with the key if there is one; throws a sentence.
async function ask(path) {
  const key = sessionStorage.getItem(KEY);
  const answer = await fetch(path, { headers: key ? { Authorization: `Bearer ${key}` } : {} }).catch(() => null);
  if (answer === null) throw new Error("The server does not answer.");
  if (answer.ok) return answer;
  const { error } = await answer.json();
  if (answer.status === 401) setup.lock(true);
  throw new Error(error.message);
}

async function load() {
  const model = await (await ask("v1/model")).json();
  setup.lock(false);
  part("model").textContent = [model.name, model.version].filter(Boolean).join(" · ");
  if (!model.accepts_images) throw new Error("This server takes embeddings only, no pictures.");
  if (!setup.samples.length) setup.offer(await (await ask("samples")).json());
}

async function unlock(key) {
  sessionStorage.setItem(KEY, key);
  await load();
}

async function start({ source, file, sample, goal, steps }) {
  await load();
  if (!("requestVideoFrameCallback" in video)) throw new Error("This browser is too old: it cannot tell which picture is shown.");
  if (source === "camera") await showCamera(video);
  else await showFile(video, file ?? (await (await ask(`samples/${sample.id}.mp4`)).blob()));
  const isOwn = sample && sample.goal === goal && sample.steps.join("\n") === steps.join("\n");
  live = new Live(address(), { goal, steps, says: isOwn ? sample.says : [] }, again);
  try {
    await live.open();
  } catch (error) {
    release(video);
    throw error;
  }
  setup.show(false);
  part("live").hidden = false;
  live.watch(video);
  part("live").focus();
}

function address() {
  const url = new URL("v1/stream", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const key = sessionStorage.getItem(KEY);
  return { url, protocols: key ? ["prospect", `prospect.key.${key}`] : [] };
}

function again() {
  live = null;
  release(video);
  part("live").hidden = true;
  part("connection").dataset.state = "idle";
  part("connection").textContent = "Not started";
  setup.show(true);
}

addEventListener("pagehide", () => live?.leave());

load().catch((error) => setup.isLocked || setup.explain(error.message));
