// Draws a tile: its picture, the dimmed surroundings of the window, marks, the cross, practice feedback, the loupe.
// Places are tile pixels, 0 = centre of the first one; `left`, `top` is the place at the element's corner.

const MARGIN_PX = 12;
const INK = { mark: "#3df0d0", other: "#9fd8ff", chosen: "#ffd166", dark: "#000000b0", found: "#7ee081", missed: "#ffd166", extra: "#ff9c8f" };
const ZOOM = [0.2, 12];
const LOUPE_ZOOM = 2.2;

export class View {
  constructor(element, picture, marks, loupe) {
    Object.assign(this, { element, picture, marks, loupe });
    this.zoom = Math.min(Math.max(Number(localStorage.getItem("zoom")) || 1, ZOOM[0]), ZOOM[1]);
    this.tile = null;
    this.image = null;
    this.window = null;
    this.state = { chosen: null, hidden: false, cross: null, feedback: null, ghost: null };
    this.centre = { x: 0, y: 0 };
    this.fit = 1;
    new ResizeObserver(() => this.resize()).observe(element);
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.element.getBoundingClientRect();
    for (const canvas of [this.picture, this.marks]) {
      canvas.width = Math.max(1, Math.round(width * ratio));
      canvas.height = Math.max(1, Math.round(height * ratio));
    }
    if (this.window) this.refit();
    this.draw();
  }

  async show(tile) {
    const image = tile.image ? await createImageBitmap(tile.image) : null;
    this.image?.close();
    this.tile = tile;
    this.image = image;
  }

  showWindow(window) {
    this.window = window;
    this.centre = { x: window.x + (window.width - 1) / 2, y: window.y + (window.height - 1) / 2 };
    this.refit();
    this.draw();
  }

  refit() {
    const { width, height } = this.element.getBoundingClientRect();
    const side = { x: this.window.width + 2 * MARGIN_PX, y: this.window.height + 2 * MARGIN_PX };
    this.fit = Math.max(0.1, Math.min(width / side.x, height / side.y));
  }

  /** CSS pixels for one tile pixel. */
  get scale() { return this.fit * this.zoom; }

  get corner() {
    const { width, height } = this.element.getBoundingClientRect();
    return { x: this.centre.x - width / 2 / this.scale, y: this.centre.y - height / 2 / this.scale };
  }

  /** Tile place of a point given in CSS pixels of the browser's window. */
  place(clientX, clientY) {
    const box = this.element.getBoundingClientRect(), corner = this.corner;
    return { x: corner.x + (clientX - box.left) / this.scale, y: corner.y + (clientY - box.top) / this.scale };
  }

  pan(dx, dy) {
    this.centre.x = clamp(this.centre.x - dx / this.scale, 0, this.tile.width - 1);
    this.centre.y = clamp(this.centre.y - dy / this.scale, 0, this.tile.height - 1);
    this.draw();
  }

  /** Zoom so that the place under a point of the browser's window stays there. */
  zoomBy(factor, clientX, clientY) {
    const box = this.element.getBoundingClientRect();
    const [px, py] = clientX === undefined ? [box.left + box.width / 2, box.top + box.height / 2] : [clientX, clientY];
    const before = this.place(px, py);
    this.zoom = clamp(this.zoom * factor, ...ZOOM);
    localStorage.setItem("zoom", String(this.zoom));
    const after = this.place(px, py);
    this.centre.x = clamp(this.centre.x + before.x - after.x, 0, this.tile.width - 1);
    this.centre.y = clamp(this.centre.y + before.y - after.y, 0, this.tile.height - 1);
    this.draw();
  }

  resetZoom() {
    this.zoom = 1;
    localStorage.removeItem("zoom");
    this.showWindow(this.window);
  }

  /** Contrast and brightness change the canvas that shows the picture, and nothing else. */
  filter(brightness, contrast) {
    this.picture.style.filter = `brightness(${brightness}) contrast(${contrast})`;
    this.loupe.style.filter = this.picture.style.filter;
  }

  draw() {
    if (!this.tile || !this.window) return;
    const corner = this.corner;
    // What programs need to know to click at a place.
    this.element.dataset.scale = String(1 / this.scale);
    this.element.dataset.x = String(corner.x);
    this.element.dataset.y = String(corner.y);
    this.element.dataset.tile = this.tile.tile;
    this.element.dataset.subtile = String(this.window.index);
    const ratio = this.picture.width / Math.max(1, this.element.getBoundingClientRect().width);
    const scale = this.scale * ratio;
    for (const canvas of [this.picture, this.marks]) {
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.setTransform(scale, 0, 0, scale, -corner.x * scale, -corner.y * scale);
    }
    const picture = this.picture.getContext("2d");
    picture.imageSmoothingEnabled = true;
    picture.imageSmoothingQuality = "high";
    if (this.image) picture.drawImage(this.image, -0.5, -0.5, this.tile.width, this.tile.height);
    this.drawMarks(this.marks.getContext("2d"), 1 / this.scale);
  }

  /** `unit`: tile pixels of one CSS pixel, so that lines are as thick at any zoom. */
  drawMarks(context, unit) {
    const w = this.window, s = this.state;
    const box = [w.x - 0.5, w.y - 0.5, w.width, w.height];
    context.fillStyle = "#000000a0";
    context.beginPath();
    context.rect(-1e4, -1e4, 2e4, 2e4);
    context.rect(...box);
    context.fill("evenodd");
    context.lineWidth = 1.5 * unit;
    context.strokeStyle = "#8fa3b0";
    context.strokeRect(...box);
    if (!s.hidden) {
      for (const click of this.tile.clicks) {
        const ink = click.id === s.chosen ? INK.chosen : click.subtile === w.index ? INK.mark : INK.other;
        ring(context, click, unit, ink);
      }
    }
    if (s.feedback) {
      for (const cell of s.feedback.cells) (cell.found ? circle : diamond)(context, cell, unit, cell.found ? INK.found : INK.missed);
      for (const mark of s.feedback.extra) slash(context, mark, unit, INK.extra);
    }
    if (s.cross) cross(context, s.cross, unit);
    if (s.ghost) ring(context, s.ghost, unit, INK.chosen);
  }

  /** The loupe above a finger shows what the finger hides; it moves aside where there is no room above. */
  showLoupe(clientX, clientY, place) {
    const stage = this.loupe.parentElement.getBoundingClientRect();
    const side = 120, gap = 34;
    let x = clientX - stage.left - side / 2, y = clientY - stage.top - side - gap;
    if (y < 0) {
      y = Math.max(0, clientY - stage.top - side / 2);
      x = clientX - stage.left + (clientX - stage.left > stage.width / 2 ? -side - gap : gap);
    }
    this.loupe.hidden = false;
    this.loupe.style.left = `${clamp(x, 0, stage.width - side)}px`;
    this.loupe.style.top = `${y}px`;
    const context = this.loupe.getContext("2d"), scale = this.scale * LOUPE_ZOOM * 2;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, 240, 240);
    context.setTransform(scale, 0, 0, scale, 120 - place.x * scale, 120 - place.y * scale);
    if (this.image) context.drawImage(this.image, -0.5, -0.5, this.tile.width, this.tile.height);
    const unit = 2 / scale;
    if (!this.state.hidden) for (const click of this.tile.clicks) ring(context, click, unit, INK.mark);
    cross(context, place, unit);
  }

  hideLoupe() { this.loupe.hidden = true; }

  async flash() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    this.marks.animate([{ opacity: 0.3 }, { opacity: 1 }], { duration: 150 });
  }
}

export const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

function path(context, unit, ink, width, draw) {
  // Twice: a dark line below a bright one is seen on any picture.
  for (const [style, line] of [[INK.dark, width + 2], [ink, width]]) {
    context.strokeStyle = style;
    context.lineWidth = line * unit;
    context.beginPath();
    draw();
    context.stroke();
  }
}

function ring(context, { x, y }, unit, ink) {
  path(context, unit, ink, 2, () => context.arc(x, y, 8 * unit, 0, 2 * Math.PI));
  context.fillStyle = ink;
  context.beginPath();
  context.arc(x, y, 1.4 * unit, 0, 2 * Math.PI);
  context.fill();
}

function circle(context, { x, y }, unit, ink) {
  path(context, unit, ink, 2.5, () => context.arc(x, y, 13 * unit, 0, 2 * Math.PI));
}

function diamond(context, { x, y }, unit, ink) {
  const r = 14 * unit;
  path(context, unit, ink, 2.5, () => {
    context.moveTo(x, y - r); context.lineTo(x + r, y); context.lineTo(x, y + r); context.lineTo(x - r, y);
    context.closePath();
  });
}

function slash(context, { x, y }, unit, ink) {
  const r = 12 * unit;
  path(context, unit, ink, 2.5, () => {
    context.moveTo(x - r, y - r); context.lineTo(x + r, y + r);
    context.moveTo(x + r, y - r); context.lineTo(x - r, y + r);
  });
}

function cross(context, { x, y }, unit) {
  path(context, unit, INK.chosen, 1.5, () => {
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * unit * dx, y + 4 * unit * dy);
      context.lineTo(x + 14 * unit * dx, y + 14 * unit * dy);
    }
  });
}
