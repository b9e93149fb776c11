// The panel beside the viewer: marks, cells, regions, threshold. The viewer is Neuroglancer in a frame of the same
// origin; its `viewer` object is spoken to directly.

import { get, make, number, post, who } from "./http.js";

const KEYS = { y: "yes", n: "no", u: "unsure", m: "missed", f: "complete" };
const WORDS = ["yes", "no", "unsure", "missed"];
const element = (id) => document.getElementById(id);
const frame = element("viewer");
let facts, chosen = null, marks = [];

const viewer = () => frame.contentWindow?.viewer;
const layer = (name) => viewer()?.layerManager.getLayerByName(name)?.layer;
const say = (text, bad) => { element("said").textContent = text; element("said").classList.toggle("error", Boolean(bad)); };

/** Run something that may fail; say why. */
const tried = (act) => async (...given) => {
  try { return await act(...given); } catch (error) { say(error.message, true); return undefined; }
};

// ---- the viewer ------------------------------------------------------------------------------------------------

/** Where the pointer is, z y x in um; null outside of the pictures. */
function pointed() {
  const mouse = viewer()?.mouseState;
  // Where it is now, not where it was when the last picture was drawn.
  mouse?.updateUnconditionally();
  if (!mouse?.active || mouse.position.length < 3) return null;
  const [x, y, z] = mouse.position;
  return [z, y, x];
}

/** What a finger's width on the screen spans, in um. */
const reach = () => 10 * (viewer()?.navigationState.zoomFactor.value || 1);

function fly([z, y, x], scale) {
  const shown = viewer();
  shown.navigationState.position.value = Float32Array.of(x, y, z);
  if (scale) shown.navigationState.zoomFactor.value = scale;
}

function control(name, value) {
  const controls = layer("cells")?.annotationDisplayState.shaderControls.state;
  const found = controls?.get(name);
  if (found) found.trackable.value = value;
}

/** Show the marks as a layer of their own. */
function drawMarks() {
  const source = layer("marks")?.localAnnotations;
  if (!source) return;
  source.restoreState(marks.map(({ zyx_um: [z, y, x], mark }, index) => ({
    type: "point", id: `mark${index}`, point: [x, y, z], props: [WORDS.indexOf(mark)],
  })));
}

// What every view of this run has, whatever a link says: where data are, and what is drawn from the server.
const OURS = ["source", "segmentColors", "annotations", "annotationProperties"];

/** The state behind the # of a link, over the present one of the run; null where there is none. */
function linked(state) {
  if (!location.hash.startsWith("#!")) return null;
  let own;
  try { own = JSON.parse(decodeURIComponent(location.hash.slice(2))); } catch { return null; }
  const known = new Map(state.layers.map((one) => [one.name, one]));
  const layers = (own.layers ?? []).filter(({ name }) => known.has(name)).map((one) => {
    const base = known.get(one.name);
    return { ...one, ...Object.fromEntries(OURS.filter((key) => key in base).map((key) => [key, base[key]])) };
  });
  return { ...state, ...own, layers: layers.length ? layers : state.layers };
}

/** The address of the present view. */
function address() {
  const state = viewer().state.toJSON();
  const layers = state.layers.map((one) => Object.fromEntries(Object.entries(one).filter(([key]) => !OURS.includes(key))));
  const text = JSON.stringify({ ...state, layers }, (_, value) => typeof value === "bigint" ? String(value) : value);
  return `${location.origin}/#!${encodeURIComponent(text)}`;
}

async function openViewer() {
  const state = await get("/api/state");
  // A link from a report names a place.
  const place = new URLSearchParams(location.search).get("at")?.split(",").map(Number);
  if (place?.length === 3 && place.every(Number.isFinite)) {
    state.position = [place[2], place[1], place[0]];
    state.crossSectionScale = facts.diameter_um / 20;
  }
  frame.src = "/v/brainmap/";
  while (!viewer()?.layerManager) await new Promise((done) => setTimeout(done, 50));
  // The state is ours: its client would send it to Neuroglancer's own server with every move. It is not given behind
  // the # of the frame either, since the client writes there while it reads, and then loses layers on slow machines.
  const inside = frame.contentWindow, real = inside.fetch.bind(inside);
  inside.fetch = (what, ...rest) => String(what).endsWith("/state/brainmap")
    ? Promise.resolve(new Response('{"g": "0"}')) : real(what, ...rest);
  viewer().state.restoreState(linked(state) ?? state);
  while (!layer("cells") || !layer("marks")?.localAnnotations) await new Promise((done) => setTimeout(done, 50));
  listen();
}

function listen() {
  const inside = frame.contentWindow;
  for (const window_ of [window, inside]) window_.addEventListener("keydown", onKey, { capture: true });
  let down = null;
  inside.addEventListener("pointerdown", (event) => { down = event.button === 0 ? [event.clientX, event.clientY] : null; }, { capture: true });
  inside.addEventListener("pointerup", (event) => {
    const still = down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 4;
    down = null;
    if (still && event.target.closest?.(".neuroglancer-rendered-data-panel")) onClick();
  }, { capture: true });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target?.closest?.("input:not([type=range]), textarea, select, [contenteditable=true], .cm-editor")) return;
  const key = event.key.toLowerCase();
  if (!(key in KEYS) && key !== "q") return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (key === "q") undo();
  else mark(KEYS[key]);
}

function onClick() {
  const place = pointed();
  if (!place) return;
  if (chosen) mark(chosen, place);
  else look(place);
}

// ---- marks -----------------------------------------------------------------------------------------------------

const mark = tried(async (word, place = pointed()) => {
  if (!place) { say("point at the picture first"); return; }
  const asked = { mark: word, zyx_um: place, who: who(), radius_um: reach(), threshold: Number(element("threshold").value) };
  const answer = await post(word === "complete" ? "/api/fields" : "/api/marks", asked);
  if (word === "complete") say("field complete: what is missed in it is marked");
  else say(`${word}${answer.cell ? `: ${answer.cell.acronym || answer.cell.region}, score ${answer.cell.score.toFixed(2)}` : ""}`);
  await showMarks();
});

const undo = tried(async () => {
  const { undone } = await post("/api/undo");
  say(undone ? `taken back: ${undone.mark ?? "complete field"}` : "there is nothing to take back");
  await showMarks();
});

async function showMarks() {
  marks = await get("/api/marks");
  drawMarks();
  await showCounts();
}

function showNumbers(numbers) {
  const parts = [...WORDS, "fields"].map((word) => `${numbers[word]} ${word === "fields" ? "fields complete" : word}`);
  element("numbers").textContent = parts.join(", ");
  const enough = numbers.yes + numbers.no + numbers.missed >= facts.fewest_marks;
  element("tune").hidden = !enough;
}

// ---- one cell --------------------------------------------------------------------------------------------------

const look = tried(async ([z, y, x]) => {
  const cell = await get(`/api/cell?z=${z}&y=${y}&x=${x}&radius=${reach()}`);
  const box = element("cell");
  if (!cell) { box.replaceChildren(make("p", { class: "hint" }, "No cell here.")); return; }
  const [cz, cy, cx] = cell.zyx_um;
  const side = facts.diameter_um * 5;
  const buttons = ["yes", "no", "unsure"].map((word) => make("button", {
    type: "button", class: word, onclick: () => mark(word, cell.zyx_um) }, { yes: "right", no: "wrong", unsure: "unsure" }[word]));
  box.replaceChildren(make("div", { class: "cell" },
    make("img", { src: `/crop.png?z=${cz}&y=${cy}&x=${cx}&side=${side}`, alt: "The cell from above and from the side" }),
    make("div", {},
      make("p", {}, make("b", {}, cell.acronym || cell.region), document.createElement("br"), cell.acronym ? cell.region : ""),
      make("p", { class: "hint" }, `score ${cell.score.toFixed(3)}${cell.shown ? "" : " (below the threshold)"}, ${cell.hemisphere} hemisphere, z ${cz.toFixed(1)} y ${cy.toFixed(1)} x ${cx.toFixed(1)} um`))),
    make("div", { class: "row" }, ...buttons));
});

// ---- regions ---------------------------------------------------------------------------------------------------

function showTree(regions) {
  element("region-part").hidden = !regions.length;
  const list = element("tree");
  const draw = () => {
    const words = element("search").value.trim().toLowerCase();
    const found = regions.filter(({ acronym, name }) => !words || acronym.toLowerCase().includes(words) || name.toLowerCase().includes(words));
    list.replaceChildren(...found.slice(0, 400).map((region) => {
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      dot.setAttribute("viewBox", "0 0 10 10");
      const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      for (const [name, value] of [["cx", 5], ["cy", 5], ["r", 4], ["fill", `rgb(${region.color})`]]) circle.setAttribute(name, value);
      dot.append(circle);
      const indent = words ? "" : "\u2003".repeat(Math.min(region.depth, 8));
      const button = make("button", { type: "button", "data-region": region.id, onclick: () => visit(region) });
      button.append(indent, dot, `${region.name} (${region.acronym})`);
      return make("li", {}, button);
    }));
  };
  element("search").addEventListener("input", draw);
  draw();
}

function visit(region) {
  fly(region.zyx_um);
  const shown = layer("regions")?.displayState;
  if (shown) shown.selectedAlpha.value = 0.35;
  const groups = layer("regions")?.displayState.segmentationGroupState.value;
  if (groups) {
    groups.visibleSegments.clear();
    for (const id of region.within) groups.visibleSegments.add(BigInt(id));
  }
  say(`${region.name} (${region.acronym})`);
}

/** Every region with all that lie in it, itself included. */
function withDescendants(regions) {
  const known = new Map(regions.map((region) => [region.id, { ...region, within: [region.id] }]));
  for (const region of known.values()) {
    for (let up = known.get(region.parent_id); up; up = known.get(up.parent_id)) up.within.push(region.id);
  }
  return [...known.values()];
}

// ---- threshold -------------------------------------------------------------------------------------------------

const share = ({ value, low, high }) => `${(100 * value).toFixed(0)} % (${(100 * low).toFixed(0)} to ${(100 * high).toFixed(0)})`;

const showCounts = tried(async () => {
  const threshold = Number(element("threshold").value);
  const { rows, quality, marks: numbers } = await get(`/api/counts?threshold=${threshold}`);
  showNumbers(numbers);
  element("quality").textContent = quality
    ? `precision ${share(quality.precision)}, recall ${share(quality.recall)}, by the marks`
    : `mark ${facts.fewest_marks} cells, right and wrong ones, to see precision and recall`;
  const head = make("tr", {}, make("th", {}, "division"), make("th", { class: "n" }, "cells"), make("th", { class: "n" }, "now"));
  element("counts").replaceChildren(head, ...rows.map(({ acronym, name, count, now }) => make("tr", { title: name },
    make("td", {}, acronym), make("td", { class: "n" }, number(count)), make("td", { class: "n" }, number(now)))));
});

function setThreshold() {
  const value = Number(element("threshold").value);
  element("threshold-value").textContent = value.toFixed(2);
  element("apply").disabled = Math.abs(value - facts.threshold) < 0.005;
  control("threshold", value);
}

function ask(title, ...content) {
  const dialog = element("ask");
  element("ask-title").textContent = title;
  element("ask-text").replaceChildren(...content);
  dialog.showModal();
  return new Promise((done) => {
    element("ask-yes").onclick = () => { dialog.close(); done(true); };
    element("ask-no").onclick = () => { dialog.close(); done(false); };
    dialog.oncancel = () => done(false);
  });
}

const apply = tried(async () => {
  const threshold = Number(element("threshold").value);
  const text = make("p", {}, `Tables, exports and report of this run are written anew for cells with a score of at least ${threshold}, as brainmap regions --threshold ${threshold} does.`);
  if (!await ask(`Count at ${threshold}?`, text)) return;
  say("counting anew");
  const found = await post("/api/threshold", { threshold, confirmed: true });
  facts = await get("/api/run");
  say(`${number(found.cells)} cells at ${threshold}`);
  setThreshold();
  await showCounts();
});

const tune = tried(async () => {
  say("weighing the marks");
  const found = await post("/api/tune", {});
  const table = make("table", {}, ...found.lines.map(([name, value]) => make("tr", {}, make("td", {}, name), make("td", {}, value))));
  say("");
  if (!found.changes) { await ask("The marks change nothing", table); return; }
  const note = make("p", { class: "hint" }, "A detector is written into tuned_detector, for this run's tissue and the animals to come; this run stays as it is.");
  if (!await ask("Write a tuned detector?", table, note)) return;
  const written = await post("/api/tune", { confirmed: true });
  say(written.written ? "the tuned detector is written" : "nothing was written");
});

// ---- all of it -------------------------------------------------------------------------------------------------

async function start() {
  facts = await get("/api/run");
  document.title = `${facts.name} – brainmap`;
  element("name").textContent = facts.name;
  element("who").value = who();
  element("who").addEventListener("input", (event) => localStorage.setItem("who", event.target.value));
  const slider = element("threshold");
  slider.min = facts.lowest;
  slider.value = facts.threshold;
  slider.addEventListener("input", setThreshold);
  slider.addEventListener("change", showCounts);
  element("color").addEventListener("change", (event) => control("color_by", Number(event.target.value)));
  for (const button of document.querySelectorAll("[data-mark]")) {
    button.addEventListener("click", () => {
      chosen = chosen === button.dataset.mark ? null : button.dataset.mark;
      for (const other of document.querySelectorAll("[data-mark]")) other.setAttribute("aria-pressed", String(other.dataset.mark === chosen));
      say(chosen ? `click marks ${chosen}; the same button again ends it` : "a click shows a cell");
    });
  }
  element("undo").addEventListener("click", undo);
  element("apply").addEventListener("click", apply);
  element("tune").addEventListener("click", tune);
  element("link").addEventListener("click", tried(async () => {
    const link = address();
    history.replaceState(null, "", link);
    await navigator.clipboard.writeText(link);
    say("the link is copied");
  }));
  await openViewer();
  await showMarks();
  setThreshold();
  say(`${number(facts.cells)} cells`);
  document.body.dataset.ready = "true";
  const regions = withDescendants(await get("/api/regions"));
  showTree(regions);
  // A link from a report may name a region, by its id or acronym.
  const at = new URLSearchParams(location.search).get("at");
  const region = regions.find(({ id, acronym }) => String(id) === at || acronym === at);
  if (region) visit(region);
  else if (at && !at.includes(",")) say(`there is no region ${at} in this brain`);
}

tried(start)();
