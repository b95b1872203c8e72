"use strict";
const videos = [...document.querySelectorAll(".video")];
let current = videos[0], zoom = 1;

const part = (name) => current.querySelector(name);

/* The point of the axis below `x` (pixels from the box's left edge) stays where it is. */
function setZoom(wanted, x = part(".timeline").clientWidth / 2) {
  const box = part(".timeline"), sheet = part(".sheet"), label = part(".name").offsetWidth;
  const at = Math.max(0, box.scrollLeft + x - label) / (sheet.clientWidth - label);
  zoom = Math.min(Number(current.dataset.max), Math.max(1, wanted));
  sheet.style.setProperty("--zoom", zoom);
  sheet.dataset.level = zoom >= 64 ? 3 : zoom >= 16 ? 2 : zoom >= 4 ? 1 : 0;
  document.getElementById("zoom").textContent = `${zoom}\u00d7`;
  box.scrollLeft = at * (sheet.clientWidth - label) + label - x;
}

function within(box, element) {
  const outer = box.getBoundingClientRect(), inner = element.getBoundingClientRect();
  box.scrollTop += inner.top - outer.top - outer.height / 2;
  if (inner.left < outer.left + part(".name").offsetWidth + 10 || inner.left > outer.right - 40) {
    box.scrollLeft += inner.left - outer.left - outer.width / 2;
  }
}

/* The picture of a frame, or of the nearest frame that has one. */
function showPicture(frame) {
  const shown = part(".shown"), known = [...current.querySelectorAll("img[data-frame]")];
  shown.hidden = Number.isNaN(frame) || !known.length;
  if (shown.hidden) return;
  const far = (image) => Math.abs(Number(image.dataset.frame) - frame);
  const nearest = known.reduce((best, other) => far(other) < far(best) ? other : best);
  shown.src = nearest.src;
  shown.alt = shown.title = far(nearest) ? `${nearest.alt}, the nearest with a picture` : nearest.alt;
}

/* `id` is that of a row; its mark's differs in one letter. */
function select(id, from) {
  current.querySelectorAll(".on").forEach((element) => element.classList.remove("on"));
  const row = document.getElementById(id), mark = document.getElementById(id.replace("e", "m"));
  if (!row) return;
  row.classList.add("on");
  const [frame, time, by, text, verdict, delay, similarity] = [...row.cells].map((cell) => cell.textContent.trim());
  part(".told").textContent = `Frame ${frame}, ${time}, ${by}: ${text}`
    + (verdict && `\nVerdict: ${verdict}`) + (delay && `, delay ${delay}`) + (similarity && `, similarity ${similarity}`);
  showPicture(Number(frame));
  if (from !== "list" && row.offsetParent) within(row.closest(".scroll"), row);
  part(".cursor").hidden = !mark;
  if (!mark) return;
  mark.classList.add("on");
  part(".cursor").style.left = mark.style.getPropertyValue("--at");
  if (from !== "timeline") within(part(".timeline"), mark);
  current.querySelectorAll(".mark[tabindex='0']").forEach((other) => other.setAttribute("tabindex", "-1"));
  mark.setAttribute("tabindex", "0");
}

/* One mark of a dialogue is a tab stop; the arrow keys go on from it in the order of time. */
function show(index) {
  videos.forEach((video) => { video.hidden = video.dataset.dialogue !== String(index); });
  current = videos[index];
  current.querySelectorAll(".mark").forEach((mark) => mark.setAttribute("tabindex", "-1"));
  part(".mark")?.setAttribute("tabindex", "0");
  document.getElementById("dialogue").value = index;
  setZoom(1);
}

videos.forEach((video) => {
  const box = video.querySelector(".timeline");
  box.addEventListener("click", (event) => {
    const mark = event.target.closest(".mark, .delay"), picture = event.target.closest("img[data-frame]");
    if (mark) {
      event.preventDefault();
      select(mark.hash.slice(1), mark.matches(".mark") ? "timeline" : "");
    } else if (picture) {
      showPicture(Number(picture.dataset.frame));
      part(".told").textContent = picture.title;
    }
  });
  box.addEventListener("focusin", (event) => {
    if (event.target.matches(".mark:focus-visible")) select(event.target.hash.slice(1), "timeline");
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") setZoom(zoom * 2);
    else if (event.key === "-") setZoom(zoom / 2);
    else if (event.target.matches(".mark") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const step = event.key === "ArrowRight" ? "nextElementSibling" : "previousElementSibling";
      let row = document.getElementById(event.target.hash.slice(1))[step];
      while (row && !document.getElementById(row.id.replace("e", "m"))) row = row[step];
      if (row) {
        select(row.id);
        document.getElementById(row.id.replace("e", "m")).focus({ preventScroll: true });
      }
      event.preventDefault();
    }
  });
  box.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    setZoom(event.deltaY < 0 ? zoom * 2 : zoom / 2, event.clientX - box.getBoundingClientRect().left);
  }, { passive: false });
  video.querySelector(".list").addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (!row) return;
    event.preventDefault();
    select(row.id, "list");
  });
});

document.querySelectorAll(".open").forEach((link) => link.addEventListener("click", () => show(Number(link.hash.slice(2)))));

if (current) {
  document.getElementById("in").addEventListener("click", () => setZoom(zoom * 2));
  document.getElementById("out").addEventListener("click", () => setZoom(zoom / 2));
  document.getElementById("fit").addEventListener("click", () => setZoom(1));
  document.getElementById("dialogue").addEventListener("change", (event) => show(Number(event.target.value)));
  show(/^#v\d+$/.test(location.hash) && videos[Number(location.hash.slice(2))] ? Number(location.hash.slice(2)) : 0);
}
