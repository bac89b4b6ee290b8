// The text with its entities: what is selected in it, by mouse and by keys, and the changes of its entities.
// What a change is made to is the target: an entity, or a range of characters [start, end) in code points.

import {entityKey} from "./documents.js";
import {Drawing} from "./drawing.js";
import {t} from "./strings.js";

export class Editor {
  // `app` has: document, entities() under the threshold, isShown(entity), look(entity) with color, tag and hint,
  // armed (a label or null), changed() after a change, targeted() after another choice, and say(words).
  constructor(app) {
    this.app = app;
    this.root = document.getElementById("text");
    this.around = this.root.parentElement;
    this.grips = {start: document.getElementById("grip-start"), end: document.getElementById("grip-end")};
    this.drawing = new Drawing(this.root);
    this.key = null; // of the entity that is the target
    this.range = null; // or the range
    this.anchor = 0; // the characters at which a selection by keys begins and is
    this.cell = 0;
    this.listen();
  }

  get text() {
    return this.app.document.text;
  }

  get shown() {
    return this.app.entities().filter((entity) => this.app.isShown(entity));
  }

  get entity() {
    return this.key === null ? null : (this.app.entities().find((entity) => entityKey(entity) === this.key) ?? null);
  }

  // Draw the text anew, and keep the target where it is still there.
  render() {
    if (!this.app.document) return;
    const {text} = this;
    const drawn = this.shown.map((entity) => ({
      key: entityKey(entity),
      start: text.toUnit(entity.start),
      end: text.toUnit(entity.end),
      ...this.app.look(entity),
    }));
    this.drawing.draw(text.text, drawn);
    if (this.key !== null && !this.drawing.elements.has(this.key)) this.key = null;
    this.showTarget(false);
  }

  // Begin with another document.
  reset() {
    [this.key, this.range, this.anchor, this.cell] = [null, null, 0, 0];
    this.around.scrollTop = 0;
  }

  choose(key) {
    [this.key, this.range] = [key, null];
    const {entity} = this;
    if (entity) this.anchor = this.cell = this.text.previousCharacter(entity.end);
    this.showTarget(true);
    this.app.targeted();
  }

  select(start, end) {
    [this.key, this.range] = [null, [start, end]];
    this.showTarget(true);
    this.app.targeted();
  }

  drop() {
    [this.key, this.range] = [null, null];
    this.showTarget(false);
    this.app.targeted();
  }

  showTarget(scrolls) {
    this.drawing.mark(this.key);
    const selection = getSelection();
    if (this.range) {
      const range = this.domRange(...this.range);
      this.highlight(range);
      const isHere = selection.rangeCount && this.root.contains(selection.anchorNode);
      if (document.activeElement === this.root && !(isHere && same(selection.getRangeAt(0), range))) {
        selection.setBaseAndExtent(range.startContainer, range.startOffset, range.endContainer, range.endOffset);
      }
      if (scrolls) this.reveal(range);
    } else {
      this.highlight(null);
      if (selection.rangeCount && this.root.contains(selection.anchorNode)) selection.removeAllRanges();
      const {entity} = this;
      if (entity && scrolls) this.reveal(this.domRange(entity.start, entity.end));
    }
    this.placeGrips();
  }

  domRange(start, end) {
    return this.drawing.range(this.text.toUnit(start), this.text.toUnit(end));
  }

  // Keep the selection visible also while another element has the focus.
  highlight(range) {
    if (!globalThis.CSS?.highlights) return;
    if (range) CSS.highlights.set("marking", new Highlight(range));
    else CSS.highlights.delete("marking");
  }

  reveal(range) {
    const box = range.getBoundingClientRect();
    const isScrolled = this.around.scrollHeight > this.around.clientHeight + 1;
    const top = isScrolled ? this.around.getBoundingClientRect().top : document.querySelector(".tools").getBoundingClientRect().bottom;
    const bottom = isScrolled ? this.around.getBoundingClientRect().bottom : innerHeight;
    const away = box.top < top + 8 ? box.top - top - 24 : box.bottom > bottom - 8 ? box.bottom - bottom + 24 : 0;
    if (away) (isScrolled ? this.around : window).scrollBy(0, away);
  }

  // ---- changes

  // Mark the selection, or give the entity another label. False where there is neither.
  label(code) {
    const {entity} = this;
    if (this.app.document.state !== "done" && this.range) {
      this.app.say(t("notExtracted"));
      return true;
    }
    if (entity) {
      if (entity.label !== code) this.replace(entity, {...entity, label: code}, "relabelled");
      return true;
    }
    if (!this.range) return false;
    const trimmed = this.text.trimmed(...this.range);
    if (!trimmed) return true;
    this.replace(null, {start: trimmed[0], end: trimmed[1], label: code}, "marked");
    return true;
  }

  // Move an edge, "start" or "end", by one character, to the left (-1) or to the right (1).
  stretch(edge, direction) {
    const {entity, text} = this;
    if (!entity) return;
    const step = (at) => (direction < 0 ? text.previousCharacter(at) : text.nextCharacter(at));
    const isBlank = (at) => text.isBlank(edge === "start" ? at : at - 1);
    let point = step(entity[edge]);
    while (point > 0 && point < text.length && isBlank(point)) point = step(point); // no white space at an edge
    this.moveEdge(entity, edge, point);
  }

  moveEdge(entity, edge, point) {
    const moved = {...entity, [edge]: point};
    const trimmed = moved.start < moved.end ? this.text.trimmed(moved.start, moved.end) : null;
    if (trimmed) [moved.start, moved.end] = trimmed;
    if (!trimmed || moved[edge] === entity[edge]) this.app.say(t("atEdge"));
    else this.replace(entity, moved, "moved");
  }

  remove() {
    const {entity} = this;
    if (!entity) return;
    const others = this.app.entities().filter((other) => other !== entity);
    this.anchor = this.cell = this.text.characterStart(entity.start);
    this.key = null;
    this.app.document.change(others);
    this.app.changed();
    this.app.say(t("deleted", {label: entity.label, text: this.surface(entity)}));
  }

  replace(before, {start, end, label}, message) {
    const entity = {start, end, label, score: null, below: false};
    const key = entityKey(entity);
    const others = this.app.entities().filter((other) => other !== before);
    if (others.some((other) => entityKey(other) === key)) {
      this.app.say(t("exists"));
      return;
    }
    this.app.document.change([...others, entity]);
    this.app.reveal(label);
    [this.key, this.range] = [key, null];
    this.anchor = this.cell = this.text.previousCharacter(end);
    this.app.changed();
    this.app.say(t(message, {label, text: this.surface(entity), start, end}));
  }

  surface({start, end}) {
    const surface = this.text.slice(start, end).replace(/\r\n|\n|\r/g, "↵").replace(/\s+/g, " ");
    return surface.length > 80 ? `${surface.slice(0, 79)}…` : surface;
  }

  // ---- moving

  // Choose the next (1) or previous (-1) entity of the text.
  step(direction) {
    const {shown} = this;
    if (!shown.length) return;
    const at = shown.findIndex((entity) => entityKey(entity) === this.key);
    let index = at + direction;
    if (at < 0) {
      const after = shown.findIndex((entity) => entity.start >= this.cell);
      index = direction > 0 ? (after < 0 ? 0 : after) : (after < 0 ? shown.length : after) - 1;
    }
    this.choose(entityKey(shown[(index + shown.length) % shown.length]));
  }

  // Choose the smallest entity around this one, or around the selection.
  outer() {
    const inner = this.entity ?? (this.range && {start: this.range[0], end: this.range[1], label: ""});
    if (!inner) return;
    const around = this.shown.filter((other) => other.start <= inner.start && inner.end <= other.end && other !== inner);
    around.sort((first, second) => first.end - first.start - (second.end - second.start));
    const wider = around.filter((other) => other.start < inner.start || inner.end < other.end || !this.entity);
    const chosen = wider[0] ?? around[0];
    if (chosen) this.choose(entityKey(chosen));
  }

  keydown(event) {
    if (!this.app.document || event.metaKey) return;
    const moved = this.moved(event.key, event.ctrlKey || event.altKey);
    if (moved === null) return;
    const next = Math.min(moved, this.text.previousCharacter(this.text.length));
    event.preventDefault();
    if (!event.shiftKey) this.anchor = next;
    this.cell = next;
    const [first, last] = this.anchor <= next ? [this.anchor, next] : [next, this.anchor];
    this.select(first, this.text.nextCharacter(last));
  }

  // The character to which a key moves; null for a key that does not.
  moved(key, byWord) {
    const {text, cell, entity} = this;
    const isRight = getComputedStyle(this.root).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
    const last = text.previousCharacter(text.length);
    if (key === "ArrowRight" || key === "ArrowLeft") {
      if (!this.range && !entity) return cell; // the first key shows where the cursor is
      if (key === isRight) return Math.min(byWord ? text.nextWord(cell) : text.nextCharacter(cell), last);
      return byWord ? text.previousWord(cell) : text.previousCharacter(entity && !byWord ? entity.start : cell);
    }
    if (key === "Home") return byWord ? 0 : this.lineEdge(-1);
    if (key === "End") return byWord ? last : this.lineEdge(1);
    if (key === "ArrowUp" || key === "ArrowDown") return this.vertical(key === "ArrowUp" ? -1 : 1);
    return null;
  }

  // The character above or below, in the lines as they are shown.
  vertical(direction) {
    const range = this.domRange(this.cell, this.text.nextCharacter(this.cell));
    this.reveal(range);
    const box = range.getClientRects()[0] ?? range.getBoundingClientRect();
    const height = parseFloat(getComputedStyle(this.root).lineHeight);
    const x = box.left + Math.min(box.width / 2, 4);
    for (const lines of [1, 1.5, 2]) {
      const unit = this.unitAt(x, box.top + box.height / 2 + direction * height * lines);
      if (unit === null) continue;
      const point = this.text.characterStart(this.text.toPoint(unit));
      if (direction > 0 ? point > this.cell : point < this.cell) return point;
    }
    return this.cell;
  }

  // The first or last character of the line as it is shown.
  lineEdge(direction) {
    const box = this.domRange(this.cell, this.text.nextCharacter(this.cell)).getBoundingClientRect();
    const inside = this.root.getBoundingClientRect();
    const isRight = direction > 0 === (getComputedStyle(this.root).direction !== "rtl");
    const unit = this.unitAt(isRight ? inside.right - 12 : inside.left + 9, box.top + box.height / 2);
    if (unit === null) return this.cell;
    const point = this.text.toPoint(unit);
    return direction > 0 ? this.text.previousCharacter(Math.max(point, 1)) : this.text.characterStart(point);
  }

  // The UTF-16 offset at a place of the window; null outside the text.
  unitAt(x, y) {
    const caret = document.caretPositionFromPoint
      ? document.caretPositionFromPoint(x, y)
      : document.caretRangeFromPoint?.(x, y);
    const node = caret?.offsetNode ?? caret?.startContainer;
    if (!node || !this.root.contains(node)) return null;
    return this.drawing.offset(node, caret.offset ?? caret.startOffset);
  }

  // ---- mouse and touch

  listen() {
    this.root.addEventListener("keydown", (event) => this.keydown(event));
    this.root.addEventListener("click", (event) => this.clicked(event));
    document.addEventListener("selectionchange", () => this.selected());
    document.addEventListener("pointerup", () => setTimeout(() => this.markArmed()));
    new ResizeObserver(() => this.placeGrips()).observe(this.root);
    for (const edge of ["start", "end"]) {
      this.grips[edge].addEventListener("pointerdown", (event) => this.drag(event, edge));
    }
  }

  // Take over what is selected in the browser.
  selected() {
    const selection = getSelection();
    if (!this.app.document || selection.isCollapsed || !selection.rangeCount) return;
    const range = selection.getRangeAt(0);
    if (!this.root.contains(range.startContainer) || !this.root.contains(range.endContainer)) return;
    const start = this.text.toPoint(this.drawing.offset(range.startContainer, range.startOffset));
    const endUnit = this.drawing.offset(range.endContainer, range.endOffset);
    const end = this.text.toPoint(endUnit);
    const whole = this.text.toUnit(end) < endUnit ? end + 1 : end; // a surrogate pair is whole
    if (whole <= start || (this.range?.[0] === start && this.range[1] === whole)) return;
    [this.key, this.range] = [null, [start, whole]];
    this.anchor = this.text.characterStart(start);
    this.cell = this.text.previousCharacter(whole);
    this.drawing.mark(null);
    this.highlight(this.domRange(start, whole));
    this.placeGrips();
    this.app.targeted();
  }

  markArmed() {
    if (this.range && this.app.armed && !getSelection().isCollapsed) this.label(this.app.armed);
  }

  clicked(event) {
    if (this.app.document && getSelection().isCollapsed) this.pointed(event.target, event.clientX, event.clientY);
  }

  // Choose the entity at a place; where it is the target already, the one around it.
  pointed(target, x, y) {
    const keys = [];
    let element = target.closest("[data-key]");
    const isTag = element?.classList.contains("tag");
    for (; element && this.root.contains(element); element = element.parentElement.closest("[data-key]")) {
      keys.push(element.dataset.key);
    }
    if (keys.length) {
      this.choose(isTag ? keys[0] : keys[(keys.indexOf(this.key) + 1) % keys.length]);
      return;
    }
    const unit = this.unitAt(x, y);
    if (unit !== null) this.anchor = this.cell = this.text.characterStart(this.text.toPoint(unit));
    this.drop();
  }

  // Show the handles at the edges of the entity that is the target.
  placeGrips() {
    const {entity} = this;
    const box = this.around.getBoundingClientRect();
    for (const [edge, grip] of Object.entries(this.grips)) {
      grip.hidden = !entity;
      if (!entity) continue;
      const inside = edge === "start" ? [entity.start, this.text.nextCharacter(entity.start)] : [this.text.previousCharacter(entity.end), entity.end];
      const rects = this.domRange(...inside).getClientRects();
      const rect = edge === "start" ? rects[0] : rects[rects.length - 1];
      if (!rect) continue;
      const isRight = (edge === "end") === (getComputedStyle(this.root).direction !== "rtl");
      grip.style.setProperty("left", `${(isRight ? rect.right : rect.left) - box.left + this.around.scrollLeft}px`);
      grip.style.setProperty("top", `${rect.top - box.top + this.around.scrollTop}px`);
    }
  }

  // Follow the pointer with an edge of the entity, and change it when the pointer is lifted.
  drag(event, edge) {
    const {entity} = this;
    if (!entity || event.button > 0) return;
    event.preventDefault();
    let point = entity[edge];
    let isMoved = false;
    const move = (moved) => {
      isMoved ||= Math.abs(moved.clientX - event.clientX) + Math.abs(moved.clientY - event.clientY) > 3;
      const unit = this.unitAt(moved.clientX, moved.clientY);
      if (unit === null) return;
      point = nearest(this.text, this.text.toPoint(unit));
      const [start, end] = edge === "start" ? [point, entity.end] : [entity.start, point];
      this.highlight(start < end ? this.domRange(start, end) : null);
    };
    const stop = (stopped) => {
      for (const [name, listener] of listeners) document.removeEventListener(name, listener);
      const beneath = document.elementFromPoint(stopped.clientX, stopped.clientY);
      for (const grip of Object.values(this.grips)) grip.style.removeProperty("pointer-events");
      this.highlight(null);
      if (stopped.type === "pointercancel") return;
      if (!isMoved && this.root.contains(beneath)) this.pointed(beneath, stopped.clientX, stopped.clientY);
      else if (point !== entity[edge]) this.moveEdge(entity, edge, point);
    };
    for (const grip of Object.values(this.grips)) grip.style.setProperty("pointer-events", "none");
    const listeners = [["pointermove", move], ["pointerup", stop], ["pointercancel", stop]];
    for (const [name, listener] of listeners) document.addEventListener(name, listener);
  }
}

// The edge between two characters at or before a code point, or the end of the text.
function nearest(text, point) {
  return point >= text.length ? text.length : text.characterStart(point);
}

function same(first, second) {
  return (
    first.compareBoundaryPoints(Range.START_TO_START, second) === 0 &&
    first.compareBoundaryPoints(Range.END_TO_END, second) === 0
  );
}
