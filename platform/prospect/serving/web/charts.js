// A score over the last minute, with its threshold and the frames at which something was done.

const SVG = "http://www.w3.org/2000/svg";
const FRAMES = 120;
const INSET = 5; // px, so that marks at the edges are whole

function element(name, parent, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return parent.appendChild(made);
}

export class Chart {
  // root: holds an <svg>, an [data-now] and a [data-threshold]. name: of the score. threshold: 0 to 1, or undefined.
  constructor(root, name, threshold) {
    this.root = root;
    this.name = name;
    this.threshold = threshold;
    this.points = []; // {p, acted}
    this.svg = root.querySelector("svg");
    this.svg.replaceChildren();
    this.area = element("path", this.svg, { class: "area" });
    this.line = element("path", this.svg, { class: "line" });
    this.limit = element("line", this.svg, { class: "limit" });
    this.marks = element("g", this.svg, { class: "marks" });
    this.now = root.querySelector("[data-now]");
    root.querySelector("[data-threshold]").textContent = threshold === undefined ? "" : `acts above ${score(threshold)}`;
    new ResizeObserver(() => this.draw()).observe(this.svg);
    this.draw();
  }

  add(p) {
    this.points.push({ p, acted: false });
    if (this.points.length > FRAMES) this.points.shift();
    this.now.textContent = score(p);
    this.draw();
  }

  // The last frame is one at which something was done.
  mark() {
    const last = this.points.at(-1);
    if (last) last.acted = true;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!width) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const step = (width - 2 * INSET) / (FRAMES - 1);
    const first = FRAMES - this.points.length;
    const x = (index) => (INSET + (first + index) * step).toFixed(1);
    const y = (p) => (height - INSET - p * (height - 2 * INSET)).toFixed(1);
    const path = this.points.map(({ p }, index) => `${index ? "L" : "M"}${x(index)} ${y(p)}`).join("");
    this.line.setAttribute("d", path);
    const end = this.points.length - 1;
    this.area.setAttribute("d", path && `${path}L${x(end)} ${y(0)}L${x(0)} ${y(0)}Z`);
    const level = this.threshold === undefined ? -height : y(this.threshold);
    for (const [key, value] of Object.entries({ x1: 0, x2: width, y1: level, y2: level })) this.limit.setAttribute(key, value);
    this.marks.replaceChildren();
    this.points.forEach(({ p, acted }, index) => {
      if (acted) element("circle", this.marks, { cx: x(index), cy: y(p), r: 4 });
    });
    this.svg.setAttribute("aria-label", this.#told());
  }

  #told() {
    const last = this.points.at(-1);
    if (!last) return `${this.name}: no frame yet`;
    const acted = this.points.filter((point) => point.acted).length;
    const limit = this.threshold === undefined ? "" : `, threshold ${score(this.threshold)}`;
    return `${this.name}: ${score(last.p)} now${limit}, above it ${acted} times in the last minute`;
  }
}

function score(p) {
  return p.toFixed(2);
}
