// One card after another: a cell, right or wrong; or a field, in which what is missed is tapped.

import { get, make, number, post, who } from "./http.js";

const element = (id) => document.getElementById(id);
const canvas = element("canvas"), context = canvas.getContext("2d");
const KEYS = { y: "yes", n: "no", u: "unsure", ArrowRight: "yes", ArrowLeft: "no", ArrowDown: "unsure" };
let sample = "random", card = null, image = null, missed = [], hidden = false, busy = false;

const say = (text, bad) => { element("said").textContent = text; element("said").classList.toggle("error", Boolean(bad)); };
const tried = (act) => async (...given) => {
  if (busy) return;
  busy = true;
  try { await act(...given); } catch (error) { say(error.message, true); } finally { busy = false; }
};

async function picture(url) {
  const loaded = new Image();
  loaded.src = url;
  await loaded.decode();
  return loaded;
}

async function next() {
  card = await get(`/api/review/next?sample=${sample}`);
  missed = [];
  element("cell-tools").hidden = card?.kind === "field";
  element("field-tools").hidden = card?.kind !== "field";
  if (!card) {
    element("question").textContent = "Nothing is left to ask.";
    context.clearRect(0, 0, canvas.width, canvas.height);
    return;
  }
  image = await picture(card.image);
  element("question").textContent = card.kind === "cell"
    ? "Is the ringed thing one cell? Above from the top, below from the side."
    : "Tap every cell in the square that has no ring, then done.";
  element("progress").textContent = `${card.answered} answered`;
  canvas.dataset.kind = card.kind;
  canvas.dataset.key = card.key;
  draw();
}

function ring(x, y, radius, ink) {
  for (const [style, width] of [["#000a", 4], [ink, 1.8]]) {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke();
  }
}

function draw() {
  const scale = card.kind === "cell" ? 2 : 1;
  canvas.width = image.width * scale;
  canvas.height = image.height * scale;
  context.imageSmoothingEnabled = true;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (card.kind === "cell") {
    const half = canvas.width / 2;
    if (!hidden) ring(half, half, canvas.width / 6 * 0.75, "#ffd166cc");
    return;
  }
  const [, y0, x0] = card.seen_low_um, [, y1, x1] = card.seen_high_um;
  const perUm = canvas.width / (x1 - x0);
  const left = (card.low_um[2] - x0) * perUm, top = (card.low_um[1] - y0) * perUm;
  const width = (card.high_um[2] - card.low_um[2]) * perUm, height = (card.high_um[1] - card.low_um[1]) * perUm;
  context.fillStyle = "#0009";
  context.fillRect(0, 0, canvas.width, top);
  context.fillRect(0, top + height, canvas.width, canvas.height);
  context.fillRect(0, top, left, height);
  context.fillRect(left + width, top, canvas.width, height);
  context.strokeStyle = "#fff8";
  context.lineWidth = 1.5;
  context.strokeRect(left, top, width, height);
  if (!hidden) for (const [y, x] of card.shown) ring((x - x0) * perUm, (y - y0) * perUm, card.radius_um * perUm, "#4fd6be");
  for (const [y, x] of missed) ring((x - x0) * perUm, (y - y0) * perUm, card.radius_um * perUm, "#ffd166");
}

canvas.addEventListener("click", (event) => {
  if (card?.kind !== "field") return;
  const box = canvas.getBoundingClientRect();
  const [, y0, x0] = card.seen_low_um, [, y1, x1] = card.seen_high_um;
  const place = [y0 + (event.clientY - box.top) / box.height * (y1 - y0), x0 + (event.clientX - box.left) / box.width * (x1 - x0)];
  const near = missed.findIndex(([y, x]) => Math.hypot(y - place[0], x - place[1]) < card.radius_um);
  if (near >= 0) missed.splice(near, 1);
  else if (place[0] < card.low_um[1] || place[0] > card.high_um[1] || place[1] < card.low_um[2] || place[1] > card.high_um[2]) {
    say("only what lies in the square counts");
    return;
  } else missed.push(place);
  say(`${missed.length} missed`);
  draw();
});

const answer = tried(async (mark) => {
  if (card?.kind !== "cell") return;
  await post("/api/review/answer", { kind: "cell", key: card.key, mark, sample, who: who() });
  say("");
  await next();
});

const done = tried(async () => {
  if (card?.kind !== "field") return;
  const { written, ignored } = await post("/api/review/answer", { kind: "field", key: card.key, missed, who: who() });
  say(`${written} missed${ignored ? `, ${ignored} of the marks lie on cells that are found` : ""}`);
  await next();
});

const undo = tried(async () => {
  const { undone } = await post("/api/review/undo");
  say(undone ? `taken back: ${undone.mark ?? "a field"}` : "there is nothing to take back");
  await next();
});

const share = (found) => found
  ? `${(100 * found.value).toFixed(0)} % (${(100 * found.low).toFixed(0)} to ${(100 * found.high).toFixed(0)})` : "–";

const result = tried(async () => {
  const box = element("result");
  if (!box.hidden) { box.hidden = true; return; }
  const found = await get("/api/review/result");
  const head = make("tr", {}, ...["division", "cells", "judged", "right (95 %)", "found (95 %)"].map((name) => make("th", {}, name)));
  const row = (name, cells, judged, right, seen) => make("tr", {}, make("td", {}, name), make("td", { class: "n" }, number(cells)),
    make("td", { class: "n" }, String(judged)), make("td", {}, share(right)), make("td", {}, share(seen)));
  const total = found.divisions.reduce((sum, one) => sum + one.cells, 0);
  box.replaceChildren(
    make("p", {}, found.enough
      ? `Of the cells counted, ${share(found.precision)} are cells; of the cells there are, ${share(found.recall)} are counted.`
      : `${found.more} more answers say how good the counts are.`),
    make("p", { class: "hint" }, `${found.judged} cells judged, ${found.unsure} unsure and left out, ${found.fields} fields, ${found.missed} cells missed in them.`),
    make("table", {}, head, row("whole image", total, found.judged, found.precision, found.recall),
      ...found.divisions.map((one) => row(one.division, one.cells, one.judged, one.precision, one.recall))));
  box.hidden = false;
});

function toggle() { hidden = !hidden; draw(); }

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in KEYS && card?.kind === "cell") { event.preventDefault(); answer(KEYS[key]); }
  else if (key === "Enter" && card?.kind === "field" && event.target.tagName !== "BUTTON") done();
  else if (key === "q") undo();
  else if (key === "h") toggle();
});

for (const button of document.querySelectorAll("[data-mark]")) button.addEventListener("click", () => answer(button.dataset.mark));
const ACTS = { undo, done, clear: () => { missed = []; draw(); }, hide: toggle };
for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", () => ACTS[button.dataset.act]());
element("show").addEventListener("click", result);
for (const name of ["random", "hard"]) {
  element(name).addEventListener("click", tried(async () => {
    sample = name;
    for (const other of ["random", "hard"]) element(other).setAttribute("aria-pressed", String(other === name));
    await next();
  }));
}
tried(next)();
