"use strict";
const timeline = document.getElementById("timeline");
const sheet = timeline.querySelector(".sheet");
const cursor = document.getElementById("cursor");
const told = document.getElementById("told");
const shown = document.getElementById("shown");
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const maxZoom = Number(timeline.dataset.max);
let zoom = 1;

/* The point of the axis below `x` (pixels from the box's left edge) stays where it is. */
function setZoom(wanted, x = timeline.clientWidth / 2) {
  const label = sheet.querySelector(".name").offsetWidth;
  const at = Math.max(0, timeline.scrollLeft + x - label) / (sheet.clientWidth - label);
  zoom = Math.min(maxZoom, Math.max(1, wanted));
  sheet.style.setProperty("--zoom", zoom);
  sheet.dataset.level = zoom >= 64 ? 3 : zoom >= 16 ? 2 : zoom >= 4 ? 1 : 0;
  document.getElementById("zoom").textContent = `${zoom}\u00d7`;
  timeline.scrollLeft = at * (sheet.clientWidth - label) + label - x;
}

function within(box, element) {
  const outer = box.getBoundingClientRect(), inner = element.getBoundingClientRect();
  box.scrollTop += inner.top - outer.top - outer.height / 2;
  if (box === timeline && (inner.left < outer.left + sheet.querySelector(".name").offsetWidth + 10 || inner.left > outer.right - 40)) {
    box.scrollLeft += inner.left - outer.left - outer.width / 2;
  }
}

/* The event's own picture, or of a video with very many events the nearest one. */
function showPicture(frame) {
  const known = Object.keys(pictures).map(Number);
  shown.hidden = Number.isNaN(frame) || !known.length;
  if (shown.hidden) return;
  const nearest = known.reduce((best, other) => Math.abs(other - frame) < Math.abs(best - frame) ? other : best);
  shown.src = pictures[nearest];
  shown.alt = shown.title = nearest === frame ? `frame ${frame}` : `frame ${nearest}, the nearest with a picture`;
}

/* `id` is that of a row; its mark's differs in one letter. */
function select(id, from) {
  document.querySelectorAll(".on").forEach((element) => element.classList.remove("on"));
  const row = document.getElementById(id), mark = document.getElementById(id.replace("e", "m"));
  if (!row) return;
  row.classList.add("on");
  const [frame, time, kind, text, state] = [...row.cells].map((cell) => cell.innerText.trim());
  told.textContent = `Frame ${frame}${time && `, ${time}`}, ${kind}: ${text}${state && `\nState: ${state}`}`;
  showPicture(Number(frame));
  if (from !== "list") within(row.closest(".scroll"), row);
  cursor.hidden = !mark;
  if (!mark) return;
  mark.classList.add("on");
  cursor.style.left = mark.style.getPropertyValue("--at");
  if (from !== "timeline") within(timeline, mark);
  document.querySelectorAll(".mark[tabindex='0']").forEach((other) => other.setAttribute("tabindex", "-1"));
  mark.setAttribute("tabindex", "0");
}

/* One mark of a dialogue is a tab stop; the arrow keys go on from it in the order of time. */
function show(index) {
  document.querySelectorAll(".dialogue").forEach((part) => { part.hidden = part.dataset.dialogue !== String(index); });
  document.querySelectorAll(".mark").forEach((mark) => mark.setAttribute("tabindex", "-1"));
  document.querySelector(`.sheet [data-dialogue="${index}"] .mark`)?.setAttribute("tabindex", "0");
  cursor.hidden = true;
}

timeline.addEventListener("click", (event) => {
  const mark = event.target.closest(".mark");
  if (!mark) return;
  event.preventDefault();
  select(mark.hash.slice(1), "timeline");
});
timeline.addEventListener("focusin", (event) => {
  if (event.target.matches(".mark:focus-visible")) select(event.target.hash.slice(1), "timeline");
});
timeline.addEventListener("keydown", (event) => {
  if (event.key === "+" || event.key === "=") setZoom(zoom * 2);
  else if (event.key === "-") setZoom(zoom / 2);
  else if (event.target.matches(".mark") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const row = document.getElementById(event.target.hash.slice(1));
    const next = event.key === "ArrowRight" ? row.nextElementSibling : row.previousElementSibling;
    const mark = next && document.getElementById(next.id.replace("e", "m"));
    if (mark) { select(next.id); mark.focus({ preventScroll: true }); }
    event.preventDefault();
  }
});
timeline.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(event.deltaY < 0 ? zoom * 2 : zoom / 2, event.clientX - timeline.getBoundingClientRect().left);
}, { passive: false });
document.querySelectorAll(".list").forEach((list) => list.addEventListener("click", (event) => {
  const row = event.target.closest("tbody tr");
  if (!row) return;
  event.preventDefault();
  select(row.id, "list");
}));
document.getElementById("in").addEventListener("click", () => setZoom(zoom * 2));
document.getElementById("out").addEventListener("click", () => setZoom(zoom / 2));
document.getElementById("fit").addEventListener("click", () => setZoom(1));
document.getElementById("dialogue").addEventListener("change", (event) => show(event.target.value));
show(0);
