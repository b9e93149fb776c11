// Turns pointers and keys into what they mean: mark here, move this mark, pan, zoom. Knows nothing of storage.

const SLOP_PX = { mouse: 4, pen: 6, touch: 9 };

export class Input {
  /** `actions`: hit(place, touch) -> mark or null, tap(place, touch), moveTo(mark, place, final), key(name, event) -> handled. */
  constructor(view, actions) {
    this.view = view;
    this.actions = actions;
    this.pointers = new Map();
    this.gesture = null;
    const element = view.element;
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("pointercancel", (event) => this.cancel(event));
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    document.addEventListener("keydown", (event) => this.key(event));
  }

  down(event) {
    if (event.pointerType === "mouse" && event.button !== 0) return;
    this.view.element.focus({ preventScroll: true });
    this.view.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (this.pointers.size > 1) {
      // A second finger: no mark was meant.
      this.view.hideLoupe();
      this.drop();
      this.gesture = { kind: "pinch", ...this.span() };
      return;
    }
    const touch = event.pointerType === "touch";
    const place = this.view.place(event.clientX, event.clientY);
    const mark = this.actions.hit(place, touch);
    this.gesture = { kind: "press", touch, mark, startX: event.clientX, startY: event.clientY, slop: SLOP_PX[event.pointerType] ?? 4 };
    if (touch) this.view.showLoupe(event.clientX, event.clientY, place);
  }

  move(event) {
    const known = this.pointers.get(event.pointerId);
    if (!known) return;
    const dx = event.clientX - known.x, dy = event.clientY - known.y;
    known.x = event.clientX;
    known.y = event.clientY;
    const g = this.gesture;
    if (!g) return;
    if (g.kind === "pinch") {
      const { x, y, distance } = this.span();
      this.view.pan(x - g.x, y - g.y);
      if (g.distance > 0 && distance > 0) this.view.zoomBy(distance / g.distance, x, y);
      Object.assign(g, { x, y, distance });
      return;
    }
    if (g.kind === "press" && Math.hypot(event.clientX - g.startX, event.clientY - g.startY) > g.slop) {
      g.kind = g.mark ? "drag" : g.touch ? "aim" : "pan";
      this.view.element.classList.toggle("drag", g.kind !== "aim");
    }
    const place = this.view.place(event.clientX, event.clientY);
    if (g.kind === "drag") this.actions.moveTo(g.mark, place, false);
    if (g.kind === "pan") this.view.pan(dx, dy);
    if (g.touch) this.view.showLoupe(event.clientX, event.clientY, place);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const g = this.gesture;
    this.view.hideLoupe();
    this.view.element.classList.remove("drag");
    if (!g) return;
    const place = this.view.place(event.clientX, event.clientY);
    if (g.kind === "pinch") {
      // The finger that is left must not leave a mark.
      this.gesture = this.pointers.size ? { kind: "over" } : null;
      return;
    }
    this.gesture = null;
    if (g.kind === "press" || g.kind === "aim") this.actions.tap(place, g.touch);
    if (g.kind === "drag") this.actions.moveTo(g.mark, place, true);
  }

  cancel(event) {
    this.pointers.delete(event.pointerId);
    this.view.hideLoupe();
    this.drop();
    this.gesture = null;
  }

  drop() {
    if (this.gesture?.kind === "drag") this.actions.moveTo(this.gesture.mark, null, false);
    this.view.element.classList.remove("drag");
  }

  span() {
    const [a, b] = [...this.pointers.values()];
    if (!b) return { x: a.x, y: a.y, distance: 0 };
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, distance: Math.hypot(a.x - b.x, a.y - b.y) };
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.view.zoomBy(Math.exp(-event.deltaY * lines * 0.0016), event.clientX, event.clientY);
  }

  key(event) {
    const target = event.target;
    // Keys of one letter are for the image alone; elsewhere they may mean something to the browser's user.
    if (target !== this.view.element && target !== document.body) return;
    if (event.altKey || (event.metaKey && event.key.toLowerCase() !== "z")) return;
    const name = event.ctrlKey || event.metaKey ? (event.key.toLowerCase() === "z" ? "undo" : null) : event.key;
    if (name && this.actions.key(name, event)) event.preventDefault();
  }
}
