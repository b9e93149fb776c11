// How far a run is, asked again every few seconds.

import { get, make, number } from "./http.js";

const element = (id) => document.getElementById(id);
const EVERY_MS = 3000;

function duration(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${minutes % 60} min` : minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.round(seconds)} s`;
}

function show(status) {
  element("run").textContent = status.run;
  element("state").textContent = [status.status, status.stage].filter(Boolean).join(", ");
  const failed = Object.entries(status.failed), empty = status.empty ?? 0;
  const left = status.total === null ? null : status.total - status.done - empty - failed.length;
  element("bar").value = status.total ? (status.done + empty + failed.length) / status.total : 0;
  const rows = [
    ["blocks", status.total === null ? null : `${status.done} done, ${empty} empty, ${failed.length} failed, ${left} left`],
    ["cells", number(status.cells)],
    ["rate", status.blocks_per_minute === null ? null : `${status.blocks_per_minute.toFixed(1)} blocks a minute`],
    ["left", status.seconds_left === null ? null : duration(status.seconds_left)],
    ["elapsed", duration(status.elapsed_s)],
    ["last news", status.seconds_since_news === null ? null : `${duration(status.seconds_since_news)} ago`],
    ["by", status.devices.join(", ")],
    ["cost", status.cost === null ? null : status.cost.toFixed(2)],
  ].filter(([, value]) => value);
  element("facts").replaceChildren(...rows.map(([name, value]) => make("tr", {}, make("th", {}, name), make("td", {}, value))));
  element("failed-title").hidden = !failed.length;
  element("failed").replaceChildren(...failed.slice(0, 200).map(([block, reason]) => make("tr", {}, make("td", {}, block), make("td", {}, reason))));
}

async function loop() {
  try { show(await get("/api/status")); } catch (error) { element("state").textContent = error.message; }
  setTimeout(loop, EVERY_MS);
}

loop();
