"use strict";
// Text is set by textContent alone: whatever a name holds, it stays text.
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a", "#a05195"];
const table = document.getElementById("table"), body = table.tBodies[0], rows = [...body.rows];
const filter = document.getElementById("filter");
const texts = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
let chosen = [];

function make(name, text, attributes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  return made;
}

function sortBy(head, index) {
  const down = head.getAttribute("aria-sort") !== "descending" && head.dataset.sorted !== "yes" && index > 1
    || head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) { other.setAttribute("aria-sort", "none"); delete other.dataset.sorted; }
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  head.dataset.sorted = "yes";
  const key = row => { const cell = row.cells[index]; return cell.dataset.order ?? cell.textContent; };
  const numeric = rows.every(row => key(row) !== "" && !isNaN(key(row)));
  rows.sort((a, b) => (numeric ? key(a) - key(b) : key(a).localeCompare(key(b), "en", {numeric: true})) * (down ? -1 : 1));
  body.append(...rows);
}
[...table.tHead.rows[0].cells].forEach((head, index) => {
  const button = head.querySelector("button");
  if (button) button.addEventListener("click", () => sortBy(head, index));
});

function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    row.hidden = !words.every(word => texts.get(row).includes(word));
    if (!row.hidden) count++;
  }
  document.getElementById("shown").textContent = words.length ? `${count} of ${rows.length}` : "";
}
filter.addEventListener("input", applyFilter);

function best() {
  const place = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.trim() === "test");
  const value = row => place < 0 ? 0 : Number(row.cells[place].dataset.order);
  return [...rows].sort((a, b) => value(b) - value(a)).slice(0, COLORS.length).map(row => Number(row.dataset.run));
}

const SVG = "http://www.w3.org/2000/svg", WIDTH = 460, HEIGHT = 240, LEFT = 52, BOTTOM = 24;
function draw(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
function ticks(low, high) {
  const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => rough <= power * factor);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(6)));
  return found;
}
function plot(place, kind, shown) {
  const box = document.getElementById(place);
  box.replaceChildren();
  const lines = shown.map(run => (DATA.runs[run].curves[kind] || []));
  const points = lines.flat();
  if (!points.length) { box.append(make("p", "Nothing was logged.")); return; }
  const xs = points.map(p => p[0]), ys = points.map(p => p[1]);
  const [x0, y0] = [Math.min(...xs), Math.min(...ys)];
  const x1 = Math.max(...xs, x0 + 1e-9), y1 = Math.max(...ys, y0 + 1e-9);
  const x = value => LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - 12);
  const y = value => HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - BOTTOM - 12);
  const svg = draw("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": kind});
  for (const value of ticks(y0, y1)) {
    svg.append(draw("line", {class: "grid", x1: LEFT, x2: WIDTH - 12, y1: y(value), y2: y(value)}));
    svg.append(draw("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, String(value)));
  }
  for (const value of ticks(x0, x1)) svg.append(draw("text", {x: x(value), y: HEIGHT - 6, "text-anchor": "middle"}, value.toLocaleString("en")));
  lines.forEach((line, index) => {
    if (!line.length) return;
    const path = line.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
    svg.append(line.length > 1 ? draw("polyline", {points: path, fill: "none", stroke: COLORS[index], "stroke-width": 2})
      : draw("circle", {cx: x(line[0][0]), cy: y(line[0][1]), r: 3, fill: COLORS[index]}));
  });
  box.append(svg);
}

function differences(shown) {
  const place = document.getElementById("differences");
  const head = make("tr");
  head.append(make("th", "option", {class: "name"}), ...shown.map(run => make("th", DATA.runs[run].name, {class: "text"})));
  const lines = [head];
  DATA.keys.forEach((key, index) => {
    const found = shown.map(run => DATA.runs[run].options[index] ?? -1);
    if (new Set(found).size < 2) return;
    const line = make("tr");
    line.append(make("td", key, {class: "name"}), ...found.map(at => make("td", at < 0 ? "–" : DATA.values[index][at], {class: "text"})));
    lines.push(line);
  });
  if (lines.length === 1) {
    const line = make("tr");
    line.append(make("td", "no option differs", {class: "text"}));
    lines.push(line);
  }
  place.replaceChildren(...lines);
}

function update() {
  const shown = chosen.length ? chosen : best();
  plot("selection", "selection", shown);
  plot("loss", "loss", shown);
  document.getElementById("legend").replaceChildren(...shown.map((run, index) => {
    const item = make("span", DATA.runs[run].name);
    const line = make("i");
    line.style.background = COLORS[index];
    item.prepend(line);
    return item;
  }));
  differences(shown);
}
body.addEventListener("change", event => {
  const row = event.target.closest("tr"), run = Number(row.dataset.run);
  if (event.target.checked && chosen.length === COLORS.length) { event.target.checked = false; return; }
  chosen = event.target.checked ? [...chosen, run] : chosen.filter(other => other !== run);
  row.classList.toggle("chosen", event.target.checked);
  update();
});
document.getElementById("clear").addEventListener("click", () => {
  chosen = [];
  for (const row of rows) { row.classList.remove("chosen"); row.querySelector("input").checked = false; }
  update();
});
update();
