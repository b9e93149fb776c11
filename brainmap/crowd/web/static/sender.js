// Sends the queue, in order. A change leaves it when the server has acknowledged it: whatever is lost on the way
// is sent again under the same name, which does no harm.
import { call, Offline, Refused } from "./http.js";

const BATCH = 200;
const FIRST_WAIT_MS = 1000, LONGEST_WAIT_MS = 20000;

export class Sender {
  /** `changed({count, lost})` after every step; `refused(change, error)` for what the server does not take;
   *  `answered(change, answer)` for what a page may want to know; `stop(error)` when somebody must log in. */
  constructor(storage, handlers) {
    this.storage = storage;
    this.on = handlers;
    this.count = 0;
    this.lost = false;
    this.running = null;
    this.wait = FIRST_WAIT_MS;
    this.timer = 0;
    window.addEventListener("online", () => this.wake());
    window.addEventListener("offline", () => { this.lost = true; this.tell(); });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.wake(); });
  }

  tell() { this.on.changed({ count: this.count, lost: this.lost }); }

  /** Count what was just stored and start sending. */
  added(n) {
    this.count += n;
    this.tell();
    this.wake();
  }

  /** Send now; resolves to whether everything has been acknowledged. */
  wake() {
    clearTimeout(this.timer);
    if (!this.running) {
      this.running = this.drain().then(
        (done) => { this.running = null; return done && this.again ? this.wake() : done; },
        (error) => { this.running = null; throw error; },
      );
    } else {
      // What was added while the last request was under way must not wait for the next occasion.
      this.again = true;
    }
    return this.running;
  }

  async drain() {
    // Tabs of one browser share the queue: one sends at a time.
    if (navigator.locks) return navigator.locks.request("brainmap-sender", () => this.sendAll());
    return this.sendAll();
  }

  async sendAll() {
    for (;;) {
      this.again = false;
      const waiting = await this.storage.waiting(BATCH);
      if (!waiting.length) {
        this.count = await this.storage.count();
        if (this.count || this.again) continue;
        this.lost = false;
        this.tell();
        return true;
      }
      const group = leading(waiting);
      try {
        await this.send(group);
      } catch (error) {
        if (!(error instanceof Offline) && !(error instanceof Refused)) throw error;
        const passing = error instanceof Offline || error.status === 429 || error.status >= 500;
        if (passing || error.status === 401 || error.status === 403) {
          this.lost = true;
          this.count = await this.storage.count();
          this.tell();
          if (!passing) this.on.stop(error);
          this.later();
          return false;
        }
        for (const change of group) this.on.refused(change, error);
      }
      await this.storage.sent(group);
      this.lost = false;
      this.wait = FIRST_WAIT_MS;
      this.count = await this.storage.count();
      this.tell();
    }
  }

  later() {
    this.timer = setTimeout(() => this.wake(), this.wait * (0.75 + Math.random() / 2));
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT_MS);
  }

  async send(group) {
    const [first] = group;
    const base = `/api/tiles/${first.tile}`;
    if (first.kind === "subtile") return call("PUT", `${base}/subtiles/${first.index}`, { done: first.done });
    if (first.kind === "complete") {
      const answer = await call("POST", `${base}/complete`, {});
      return this.on.answered(first, answer);
    }
    if (group.length === 1) {
      const url = `${base}/clicks/${first.id}`;
      return first.kind === "put" ? call("PUT", url, place(first)) : call("DELETE", url);
    }
    const put = group.filter((change) => change.kind === "put").map((c) => ({ id: c.id, ...place(c) }));
    const remove = group.filter((change) => change.kind === "delete").map((change) => change.id);
    const { results } = await call("POST", `${base}/clicks`, { put, delete: remove });
    for (const result of results) {
      if (result.status >= 400) {
        this.on.refused(group.find((c) => c.id === result.id), new Refused(result.status, result));
      }
    }
    return results;
  }
}

const place = ({ x, y, subtile, at }) => ({ x, y, subtile, at });
const isClick = ({ kind }) => kind === "put" || kind === "delete";

/** The changes at the head of the queue that go in one request: clicks of one tile, or one change of another kind. */
function leading(waiting) {
  const [first] = waiting;
  if (!isClick(first)) return [first];
  const end = waiting.findIndex((change) => !isClick(change) || change.tile !== first.tile);
  return end < 0 ? waiting : waiting.slice(0, end);
}
