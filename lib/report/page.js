"use strict";
// The page's views in 3D, the values under the pointer in the curves, and tables sorted by a click. No library, no network.
const data = JSON.parse(document.getElementById("data").textContent);
const PEOPLE = data.colors;
const GRID = { fine: 500, coarse: 1000 }; // mm between the lines of the floor; coarse from 6 m on

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];

// The viewer's axes: right, up, into the picture. The upright axis of the scene stays upright in the picture.
function axes(up, azimuth, elevation) {
  let ahead = Math.abs(up[2]) > 0.5 ? [0, 1, 0] : [0, 0, 1];
  const right = cross(ahead, up);
  const a = azimuth * Math.PI / 180, e = elevation * Math.PI / 180;
  const turned = add(right.map(v => v * Math.cos(a)), ahead, Math.sin(a));
  ahead = add(ahead.map(v => v * Math.cos(a)), right, -Math.sin(a));
  return [turned, add(up.map(v => v * Math.cos(e)), ahead, Math.sin(e)), add(ahead.map(v => v * Math.cos(e)), up, -Math.sin(e))];
}

class View {
  constructor(element, items, start) {
    this.items = items;
    this.start = start;
    this.canvas = element.querySelector("canvas");
    this.select = element.querySelector("select");
    this.truth = element.querySelector("input[type=checkbox]");
    this.select.addEventListener("change", () => this.show(Number(this.select.value)));
    this.truth.addEventListener("change", () => this.draw());
    for (const button of element.querySelectorAll("button[data-turn]")) {
      button.addEventListener("click", () => this.turnTo(...button.dataset.turn.split(" ").map(Number)));
    }
    this.canvas.addEventListener("pointerdown", e => { this.canvas.setPointerCapture(e.pointerId); this.at = [e.clientX, e.clientY]; });
    this.canvas.addEventListener("pointermove", e => this.drag(e));
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => { this.at = null; });
    this.canvas.addEventListener("wheel", e => { e.preventDefault(); this.zoomBy(Math.exp(-e.deltaY / 600)); }, { passive: false });
    this.canvas.addEventListener("dblclick", () => this.turnTo(...this.start));
    this.canvas.addEventListener("keydown", e => this.key(e));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    [this.azimuth, this.elevation, this.zoom] = [...start, 1];
    this.show(0);
  }

  show(index) {
    this.item = this.items[index];
    this.select.value = index;
    const points = [];
    const take = point => point && points.push(point);
    this.item.people.forEach(person => person.forEach(take));
    this.item.truth.forEach(person => person.forEach(take));
    (this.item.cameras || []).forEach(camera => camera.points.forEach(take));
    const low = [0, 1, 2].map(k => Math.min(...points.map(p => p[k]))), high = [0, 1, 2].map(k => Math.max(...points.map(p => p[k])));
    this.middle = low.map((v, k) => (v + high[k]) / 2);
    this.reach = Math.max(600, ...points.map(p => Math.hypot(...add(p, this.middle, -1))));
    const height = points.map(p => dot(add(p, this.middle, -1), this.item.up));
    this.floor = this.item.cameras ? -dot(this.middle, this.item.up) : Math.min(...height);
    if (this.item.cameras && Math.abs(this.floor) > 2 * this.reach) this.floor = Math.min(...height);
    document.querySelectorAll(".sample").forEach(s => s.classList.toggle("shown", this.canvas.id === "poses" && s.dataset.index === String(index)));
    this.draw();
  }

  turnTo(azimuth, elevation) { [this.azimuth, this.elevation, this.zoom] = [azimuth, elevation, 1]; this.draw(); }
  zoomBy(factor) { this.zoom = Math.min(12, Math.max(0.3, this.zoom * factor)); this.draw(); }
  turn(right, up) {
    this.azimuth += right;
    this.elevation = Math.min(90, Math.max(-90, this.elevation + up));
    this.draw();
  }

  drag(event) {
    if (!this.at) return;
    this.turn((this.at[0] - event.clientX) * 0.5, (event.clientY - this.at[1]) * 0.5);
    this.at = [event.clientX, event.clientY];
  }

  key(event) {
    const turns = { ArrowLeft: [-6, 0], ArrowRight: [6, 0], ArrowUp: [0, 6], ArrowDown: [0, -6] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (turns[event.key]) this.turn(...turns[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.15);
    else if (event.key === "-") this.zoomBy(1 / 1.15);
    else if (event.key === "0") this.turnTo(...this.start);
    else return;
    event.preventDefault();
  }

  draw() {
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight, ratio = devicePixelRatio || 1;
    if (!width || !this.item) return;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const c = this.c = this.canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    this.color = name => style.getPropertyValue("--" + name).trim();
    c.scale(ratio, ratio);
    c.lineCap = c.lineJoin = "round";
    const view = axes(this.item.up, this.azimuth, this.elevation), scale = 0.46 * Math.min(width, height) / this.reach * this.zoom;
    this.place = point => {
      const p = add(point, this.middle, -1);
      return [width / 2 + scale * dot(p, view[0]), height / 2 - scale * dot(p, view[1]), dot(p, view[2])];
    };
    this.drawFloor();
    (this.item.cameras || []).forEach(camera => this.drawCamera(camera));
    if (this.truth.checked) this.item.truth.forEach(person => this.drawPerson(person, () => this.color("truth"), 2.2, [5, 5]));
    const several = this.item.people.length > 1;
    const size = Math.max(2, Math.min(5, scale * 26));
    this.item.people.forEach((person, i) => this.drawPerson(person, side => several ? PEOPLE[i % PEOPLE.length] : this.color(side), size, []));
  }

  line(a, b, color, width, dash = []) {
    const c = this.c;
    c.strokeStyle = color; c.lineWidth = width; c.setLineDash(dash);
    c.beginPath(); c.moveTo(a[0], a[1]); c.lineTo(b[0], b[1]); c.stroke();
  }

  drawFloor() {
    const up = this.item.up, base = add(this.middle, up, this.floor), [right, , ahead] = axes(up, 0, 0);
    const grid = this.reach > 6000 ? GRID.coarse : GRID.fine, lines = Math.ceil(this.reach / grid);
    for (let i = -lines; i <= lines; i++) {
      for (const [one, other] of [[right, ahead], [ahead, right]]) {
        const at = add(base, one, i * grid);
        this.line(this.place(add(at, other, -lines * grid)), this.place(add(at, other, lines * grid)), this.color("floor"), 1);
      }
    }
  }

  drawCamera(camera) {
    const p = camera.points.map(point => this.place(point)), color = this.color("camera");
    for (const [a, b] of [[0, 1], [1, 2], [2, 3], [3, 0], [0, 4], [1, 4], [2, 4], [3, 4]]) this.line(p[a], p[b], color, a + b === 1 ? 2.4 : 1.2);
    this.c.fillStyle = color;
    this.c.font = "12px system-ui, sans-serif";
    this.c.fillText(camera.name, Math.max(2, Math.min(p[4][0] + 6, this.canvas.clientWidth - this.c.measureText(camera.name).width - 4)), p[4][1] - 6);
  }

  drawPerson(person, color, width, dash) {
    const p = person.map(point => point && this.place(point));
    const bones = data.bones.filter(([a, b]) => p[a] && p[b]).sort((m, n) => (p[n[0]][2] + p[n[1]][2]) - (p[m[0]][2] + p[m[1]][2]));
    for (const [a, b, side] of bones) {
      if (!dash.length && width > 3.5) this.line(p[a], p[b], this.color("panel"), width + 2); // an edge, so that crossings stay clear
      this.line(p[a], p[b], color(side), width, dash);
    }
    if (dash.length && data.bones.length) return;
    this.c.fillStyle = color("center");
    for (const point of data.bones.length ? [] : p.filter(Boolean)) {
      this.c.beginPath(); this.c.arc(point[0], point[1], width, 0, 2 * Math.PI); this.c.fill();
    }
  }
}

const poses = document.getElementById("poses"), layout = document.getElementById("cameras");
if (poses) {
  const view = new View(poses.closest(".view"), data.poses, [25, 10]);
  for (const sample of document.querySelectorAll(".sample[data-index]")) {
    sample.querySelector("button").addEventListener("click", () => { view.show(Number(sample.dataset.index)); poses.focus(); });
  }
}
if (layout) new View(layout.closest(".view"), data.rigs, [35, 28]);

for (const svg of document.querySelectorAll(".curve svg")) { // the value nearest to the pointer
  const points = svg.dataset.points.split(" ").map(text => text.split(","));
  const output = svg.closest("figure").querySelector("output"), last = output.textContent;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  svg.addEventListener("pointermove", event => {
    const x = (event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth * svg.viewBox.baseVal.width;
    const best = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    output.textContent = `step ${best[1]}: ${best[2]}`;
    for (const [name, value] of [["x1", best[0]], ["x2", best[0]], ["y1", 10], ["y2", svg.viewBox.baseVal.height - 24]]) cursor.setAttribute(name, value);
    svg.append(cursor);
  });
  svg.addEventListener("pointerleave", () => { output.textContent = last; cursor.remove(); });
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    const value = row => { const text = row.cells[column].textContent; return text === "" || isNaN(text) ? text : Number(text); };
    const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    const rows = [...body.rows].sort((a, b) => order(value(a), value(b)) * (down ? -1 : 1));
    head.closest("tr").querySelectorAll("th").forEach(th => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  });
}
