// The page on which people mark cells: one window of a tile after another, with or without a connection.
import "./menu.js";
import { call, Offline, picture, Refused } from "./http.js";
import { Input } from "./input.js";
import { Sender } from "./sender.js";
import { Storage } from "./storage.js";
import { clamp, View } from "./view.js";

const facts = JSON.parse(document.getElementById("facts").textContent);
const $ = (id) => document.getElementById(id);
const REACH_PX = { mouse: 8, touch: 15, key: 10 };

/** A text of the catalogue with its braces filled in. */
function say(key, values = {}) {
  return facts.texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** A UUID; browsers make them themselves only over https. */
function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
  return [8, 12, 16, 20].reduceRight((text, at) => `${text.slice(0, at)}-${text.slice(at)}`, hex);
}

class Work {
  constructor(storage) {
    this.storage = storage;
    this.tile = null;
    this.index = 0;
    this.numbers = { done: 0, all: 0 };
    this.saving = Promise.resolve();
    this.view = new View($("tile"), $("picture"), $("marks"), $("loupe"));
    this.input = new Input(this.view, {
      hit: (place, touch) => this.near(place, touch ? REACH_PX.touch : REACH_PX.mouse),
      tap: (place, touch) => this.tap(place, touch ? REACH_PX.touch : REACH_PX.mouse),
      moveTo: (mark, place, final) => this.drag(mark, place, final),
      key: (name, event) => this.key(name, event),
    });
    this.sender = new Sender(storage, {
      changed: (state) => this.showUnsent(state),
      refused: (_change, error) => this.toast(say("can_not_store", { reason: error.message })),
      answered: (change, answer) => this.completed(change, answer),
      stop: (error) => this.stop(error),
    });
    this.bind();
  }

  bind() {
    $("undo").onclick = () => this.undo();
    $("hide").onclick = () => this.hide();
    $("previous").onclick = () => this.go(this.index - 1);
    $("next-subtile").onclick = () => this.nextWindow();
    $("done").onclick = () => this.done();
    $("again").onclick = () => this.advance();
    $("zoom-in").onclick = () => this.view.zoomBy(1.3);
    $("zoom-out").onclick = () => this.view.zoomBy(1 / 1.3);
    $("reset-view").onclick = () => {
      $("brightness").value = $("contrast").value = "1";
      this.filter();
      this.view.resetZoom();
    };
    for (const id of ["brightness", "contrast"]) {
      $(id).value = localStorage.getItem(id) || "1";
      $(id).oninput = () => this.filter();
    }
    this.filter();
    // Instructions lie open for who is new, and stay as they were left.
    $("how").open = localStorage.getItem("how") !== "closed" && !matchMedia("(max-width: 800px)").matches;
    $("how").ontoggle = () => localStorage.setItem("how", $("how").open ? "open" : "closed");
  }

  filter() {
    for (const id of ["brightness", "contrast"]) localStorage.setItem(id, $(id).value);
    this.view.filter($("brightness").value, $("contrast").value);
  }

  // ---- which tile -----------------------------------------------------------------------------------------

  /** Go to the tile that is to be done: the server's word where it is to be had, else what is at hand. */
  async advance() {
    this.show("waiting");
    $("waiting").textContent = say("loading");
    const all = await this.sender.wake();
    try {
      if (!all) throw new Offline("unsent");
      const found = await call("GET", `/api/projects/${facts.project}/next`);
      if (found === null) return await this.thank();
      await this.open(await this.kept(found));
    } catch (error) {
      if (error instanceof Refused) return this.stop(error);
      if (!(error instanceof Offline)) throw error;
      const [tile] = (await this.storage.tiles(facts.project)).filter((t) => !t.completed && t.image);
      if (tile) await this.open(tile);
      else {
        $("waiting").textContent = say("no_connection");
        this.retry = setTimeout(() => this.advance(), 4000);
      }
    }
  }

  /** A tile as the server knows it, together with what only this browser keeps: picture, undo, place. */
  async kept(found) {
    const [old] = (await this.storage.tiles(facts.project)).filter((tile) => tile.tile === found.tile);
    const tile = { undo: [], index: null, ...old, ...found, project: facts.project, completed: false };
    tile.undo = tile.undo.filter((step) => step.kind === "remove" || tile.clicks.some((c) => c.id === step.id));
    if (!tile.image || !(tile.image instanceof Blob)) tile.image = await picture(found.image);
    await this.storage.save(tile);
    return tile;
  }

  async open(tile) {
    clearTimeout(this.retry);
    this.tile = tile;
    this.feedback = null;
    this.view.state = { ...this.view.state, chosen: null, cross: null, feedback: null, ghost: null };
    await this.view.show(tile);
    this.show("work");
    this.buildMap();
    $("feedback").hidden = true;
    $("done").textContent = say("done");
    const first = tile.index ?? tile.subtiles.findIndex((w) => !w.done);
    this.view.resize();
    this.go(first < 0 ? 0 : first);
    this.view.element.focus({ preventScroll: true });
    this.count();
    this.fetchAhead(tile);
  }

  /** The next tile is there before it is needed, also for work without a connection. */
  async fetchAhead(tile) {
    try {
      await this.sender.wake();
      const found = await call("GET", `/api/projects/${facts.project}/next?after=${encodeURIComponent(tile.tile)}`);
      if (found) await this.kept(found);
    } catch (error) {
      if (!(error instanceof Offline) && !(error instanceof Refused)) throw error;
    }
  }

  async count() {
    try {
      const projects = await call("GET", "/api/projects");
      const mine = projects.find((project) => project.name === facts.project);
      this.numbers = { done: mine.tiles_done, all: Math.max(mine.tiles_total, mine.tiles_done) };
      localStorage.setItem(`numbers-${facts.account}-${facts.project}`, JSON.stringify(this.numbers));
    } catch (error) {
      if (!(error instanceof Offline) && !(error instanceof Refused)) throw error;
      const stored = localStorage.getItem(`numbers-${facts.account}-${facts.project}`);
      if (stored) this.numbers = JSON.parse(stored);
    }
    this.showProgress();
  }

  async thank() {
    this.tile = null;
    await this.count();
    $("thanks-count").textContent = say("thanks_count", { tiles: this.numbers.done });
    this.show("thanks");
  }

  stop(error) {
    if (error.status === 403 && error.facts.consent) return location.assign("/");
    if (error.status === 401) {
      this.toast(say("log_in_again"), true);
      if (!this.tile) location.assign("/");
      return undefined;
    }
    $("waiting").textContent = error.message;
    if (!this.tile) this.show("waiting");
    return undefined;
  }

  // ---- windows --------------------------------------------------------------------------------------------

  get window() { return this.tile.subtiles[this.index]; }

  get here() { return this.tile.clicks.filter((click) => click.subtile === this.index); }

  go(index) {
    if (!this.tile) return;
    this.index = clamp(index, 0, this.tile.subtiles.length - 1);
    this.tile.index = this.index;
    this.view.state.chosen = null;
    if (this.view.state.cross) this.centreCross();
    this.view.showWindow(this.window);
    this.showProgress();
    this.announce(say("window", { window: this.index + 1, windows: this.tile.subtiles.length }));
    this.save();
  }

  /** This window has been looked through; on to the next that has not. */
  nextWindow() {
    if (this.feedback || !this.tile) return;
    this.see(this.index);
    const all = this.tile.subtiles;
    const order = [...all.slice(this.index + 1), ...all.slice(0, this.index)];
    const next = order.find((w) => !w.done);
    if (next) this.go(next.index);
    else {
      this.showProgress();
      $("done").focus({ preventScroll: true });
    }
  }

  see(index) {
    const w = this.tile.subtiles[index];
    if (w.done) return;
    w.done = true;
    this.save([{ kind: "subtile", tile: this.tile.tile, index, done: true }]);
  }

  async done() {
    if (!this.tile) return;
    if (this.feedback) {
      this.feedback = null;
      await this.forward();
      return;
    }
    const others = this.tile.subtiles.filter((w) => !w.done && w.index !== this.index);
    if (others.length) {
      this.see(this.index);
      this.go(others[0].index);
      this.toast(say("keep_looking", { count: others.length }));
      return;
    }
    this.see(this.index);
    const tile = this.tile;
    tile.completed = true;
    this.save([{ kind: "complete", tile: tile.tile }]);
    await this.saving;
    if (tile.practice) {
      // Feedback is the server's: it knows the answer, this page does not.
      this.toast(say("feedback_waits"));
      return;
    }
    await this.forward();
  }

  /** Behind a finished tile: the one at hand, at once; else whatever the server has. */
  async forward() {
    const at = this.tile.tile;
    const [ahead] = (await this.storage.tiles(facts.project)).filter((t) => !t.completed && t.image && t.tile !== at);
    this.numbers.done += this.tile.practice ? 0 : 1;
    if (ahead) await this.open(ahead);
    else {
      this.tile = null;
      await this.advance();
    }
  }

  /** The server has taken a finished tile. */
  async completed(change, answer) {
    if (answer.practice && this.tile?.tile === change.tile) this.showFeedback(answer.practice);
    await this.saving;
    await this.storage.forget(change.tile);
    if (this.tile?.tile === change.tile) this.tile.gone = true;
  }

  showFeedback(practice) {
    this.feedback = practice;
    this.view.state.feedback = practice;
    const found = practice.cells.filter((cell) => cell.found).length;
    const summary = document.createElement("p");
    summary.textContent = say("feedback_summary", { found, cells: practice.cells.length, extra: practice.extra.length });
    const legend = ["found", "missed", "extra"].map((kind) => {
      const item = document.createElement("b");
      item.className = kind;
      item.textContent = say(`feedback_${kind}`);
      return item;
    });
    $("feedback").replaceChildren(summary, ...legend);
    $("feedback").hidden = false;
    $("message").hidden = true;
    $("done").textContent = say("done_continue");
    this.showAll();
    $("done").focus({ preventScroll: true });
  }

  /** The whole tile at once. */
  showAll() {
    const { width, height } = this.tile;
    this.view.window = { index: -1, x: 0, y: 0, width, height };
    this.view.showWindow(this.view.window);
    this.showProgress();
  }

  // ---- marks ----------------------------------------------------------------------------------------------

  near(place, reach) {
    if (!this.tile || this.view.state.hidden) return null;
    let best = null, least = reach / this.view.scale;
    for (const click of this.tile.clicks) {
      const away = Math.hypot(click.x - place.x, click.y - place.y);
      if (away <= least) [best, least] = [click, away];
    }
    return best;
  }

  /** Mark a cell, or remove the mark that is there. */
  tap(place, reach) {
    if (!this.tile || this.tile.completed) return;
    if (this.view.state.hidden) this.hide(false);
    const mark = this.near(place, reach);
    if (!mark) return this.add(place);
    // In the overlap of windows a cell is met twice: whoever clicks it again has hardly meant to remove the mark.
    if (mark.subtile !== this.index && this.view.state.chosen !== mark.id) {
      this.view.state.chosen = mark.id;
      this.view.draw();
      return this.toast(say("already_marked"));
    }
    return this.remove(mark);
  }

  inside({ x, y }) {
    return x >= -0.5 && y >= -0.5 && x <= this.tile.width - 0.5 && y <= this.tile.height - 0.5;
  }

  add(place) {
    if (!this.inside(place)) return;
    const click = { id: newId(), x: round(place.x), y: round(place.y), subtile: this.index };
    this.tile.clicks.push(click);
    this.tile.undo.push({ kind: "add", id: click.id });
    this.put(click);
    this.announce(say("mark_here", { ...this.inWindow(click), count: this.here.length }));
  }

  remove(click) {
    this.tile.clicks = this.tile.clicks.filter((other) => other.id !== click.id);
    this.tile.undo.push({ kind: "remove", click });
    this.view.state.chosen = null;
    this.save([{ kind: "delete", tile: this.tile.tile, id: click.id }]);
    this.announce(say("mark_removed", { count: this.here.length }));
  }

  drag(mark, place, final) {
    if (this.tile.completed) return;
    if (!final) {
      this.view.state.ghost = place;
      this.view.draw();
      return;
    }
    this.view.state.ghost = null;
    if (!this.inside(place)) return this.view.draw();
    this.tile.undo.push({ kind: "move", id: mark.id, x: mark.x, y: mark.y });
    Object.assign(mark, { x: round(place.x), y: round(place.y) });
    this.put(mark);
    return this.announce(say("mark_moved", this.inWindow(mark)));
  }

  put(click) {
    this.save([{ kind: "put", tile: this.tile.tile, ...click, at: new Date().toISOString() }]);
  }

  undo() {
    if (!this.tile || this.tile.completed) return;
    const step = this.tile.undo.pop();
    if (!step) return this.toast(say("undo_nothing"));
    const click = this.tile.clicks.find((other) => other.id === step.id);
    if (step.kind === "add" && click) {
      this.tile.clicks = this.tile.clicks.filter((other) => other !== click);
      this.save([{ kind: "delete", tile: this.tile.tile, id: click.id }]);
    } else if (step.kind === "move" && click) {
      Object.assign(click, { x: step.x, y: step.y });
      this.put(click);
    } else if (step.kind === "remove") {
      // What was deleted stays deleted under its name: it comes back under another one.
      const back = { ...step.click, id: newId() };
      for (const other of this.tile.undo) if (other.id === step.click.id) other.id = back.id;
      this.tile.clicks.push(back);
      this.put(back);
    }
    return this.announce(say("undone"));
  }

  hide(hidden = !this.view.state.hidden) {
    this.view.state.hidden = hidden;
    $("hide").setAttribute("aria-pressed", String(hidden));
    this.view.draw();
    this.announce(say(hidden ? "marks_hidden" : "marks_shown"));
  }

  /** Store the tile and the changes to send; one after another, so that their order is that of the hands. */
  save(changes = []) {
    this.view.draw();
    this.showProgress();
    const tile = this.tile;
    if (tile.gone) return;
    const copy = { ...tile, clicks: tile.clicks.map((c) => ({ ...c })), undo: [...tile.undo], subtiles: tile.subtiles.map((w) => ({ ...w })) };
    // Counted before it is stored: what waits is shown from the first moment.
    this.sender.count += changes.length;
    if (changes.length) this.sender.tell();
    this.saving = this.saving.then(async () => {
      await this.storage.save(copy, changes);
      if (changes.length) this.sender.added(0);
    });
  }

  // ---- keys -----------------------------------------------------------------------------------------------

  key(name, event) {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.tile) return false;
    if (name in arrows) {
      const step = event.shiftKey ? 10 : 2, [dx, dy] = arrows[name];
      const cross = this.view.state.cross ?? this.centreCross();
      cross.x = clamp(cross.x + dx * step, this.window.x, this.window.x + this.window.width - 1);
      cross.y = clamp(cross.y + dy * step, this.window.y, this.window.y + this.window.height - 1);
      this.view.draw();
      const mark = this.near(cross, REACH_PX.key), at = this.inWindow(cross);
      this.announce(mark ? say("mark_here", { ...at, count: this.here.length }) : `${at.x}, ${at.y}`);
      return true;
    }
    const commands = {
      Enter: () => this.tap(this.view.state.cross ?? this.centreCross(), REACH_PX.key),
      Delete: () => this.removeNear(), Backspace: () => this.removeNear(),
      n: () => this.nextWindow(), PageDown: () => this.nextWindow(),
      p: () => this.go(this.index - 1), PageUp: () => this.go(this.index - 1),
      u: () => this.undo(), undo: () => this.undo(), h: () => this.hide(),
      "+": () => this.view.zoomBy(1.3), "-": () => this.view.zoomBy(1 / 1.3), 0: () => this.view.resetZoom(),
    };
    commands[" "] = commands.Enter;
    const command = commands[name] ?? commands[name.toLowerCase()];
    command?.();
    return Boolean(command);
  }

  removeNear() {
    const chosen = this.tile.clicks.find((click) => click.id === this.view.state.chosen);
    const mark = chosen ?? (this.view.state.cross && this.near(this.view.state.cross, REACH_PX.key)) ?? this.here.at(-1);
    if (mark && !this.tile.completed) this.remove(mark);
    else this.announce(say("mark_none"));
  }

  centreCross() {
    const w = this.window;
    this.view.state.cross = { x: w.x + Math.floor(w.width / 2), y: w.y + Math.floor(w.height / 2) };
    return this.view.state.cross;
  }

  inWindow({ x, y }) {
    return { x: Math.round(x - this.window.x), y: Math.round(y - this.window.y) };
  }

  // ---- what is shown --------------------------------------------------------------------------------------

  show(part) {
    for (const id of ["work", "waiting", "thanks"]) $(id).hidden = id !== part;
  }

  showProgress() {
    if (!this.tile) {
      $("progress").textContent = this.numbers.all ? `${this.numbers.done}/${this.numbers.all}` : "";
      return;
    }
    const all = this.tile.subtiles, seen = all.filter((w) => w.done).length;
    const values = {
      done: Math.min(this.numbers.done + 1, Math.max(this.numbers.all, 1)), all: Math.max(this.numbers.all, 1),
      window: this.index + 1, windows: all.length,
    };
    $("progress").textContent = say(this.tile.practice ? "progress_practice" : "progress", values);
    const text = say("map", { done: seen, all: all.length });
    $("map").setAttribute("aria-label", text);
    $("map-text").textContent = text;
    [...$("map").children].forEach((button, index) => {
      button.classList.toggle("seen", all[index].done);
      button.setAttribute("aria-current", String(index === this.index && !this.feedback));
    });
    const rest = all.filter((w) => !w.done && w.index !== this.index).length;
    $("done").classList.toggle("ready", !rest);
    $("done").disabled = Boolean(rest) || (this.tile.completed && !this.feedback);
    $("next-subtile").disabled = this.tile.completed || (!rest && this.window.done);
    $("next-subtile").classList.toggle("primary", !$("next-subtile").disabled);
    $("previous").disabled = this.index === 0 || this.tile.completed;
    $("undo").disabled = this.tile.completed || !this.tile.undo.length;
  }

  buildMap() {
    const columns = new Set(this.tile.subtiles.map((w) => w.x)).size;
    $("map").style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1.6rem))`;
    $("map").replaceChildren(...this.tile.subtiles.map((w) => {
      const button = document.createElement("button");
      button.type = "button";
      button.tabIndex = -1;
      button.ariaLabel = say("window", { window: w.index + 1, windows: this.tile.subtiles.length });
      button.onclick = () => { if (!this.tile.completed) this.go(w.index); };
      return button;
    }));
  }

  showUnsent({ count, lost }) {
    $("offline").hidden = count === 0;
    $("offline").classList.toggle("lost", lost);
    $("offline").textContent = lost ? say("offline", { count }) : say("saving");
  }

  announce(text) { $("said").textContent = text; }

  toast(text, stays = false) {
    clearTimeout(this.toastTimer);
    $("message").textContent = text;
    $("message").hidden = false;
    if (!stays) this.toastTimer = setTimeout(() => { $("message").hidden = true; }, 3500);
  }
}

const round = (value) => Math.round(value * 100) / 100;

/** Keep this page for a reload without a connection; only where it earns its keep: over https, or at home. */
async function keepPage() {
  if (!("serviceWorker" in navigator)) return;
  try {
    await navigator.serviceWorker.register("/sw.js", { scope: "/" });
    await navigator.serviceWorker.ready;
    const pages = await caches.open("pages");
    await pages.add(new Request(location.pathname, { credentials: "same-origin" }));
  } catch (error) {
    // A browser that refuses (private windows do) still works while it has a connection.
    console.warn(error);
  }
}

const work = new Work(await Storage.open(facts.account));
navigator.storage?.persist?.();
keepPage();
await work.advance();
