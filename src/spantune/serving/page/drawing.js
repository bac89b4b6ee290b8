// Draws a text with its entities as the reports do (core/drawing.py): a line under each entity, inner ones nearer to the
// text, and its label behind it. All characters go in as text nodes, and the text of the drawing is that of the document.

const JOINER = "\u200d";

export class Drawing {
  constructor(root) {
    this.root = root;
    this.parts = []; // [{start, node}], the text nodes with their UTF-16 offsets
    this.elements = new Map(); // entity key to the elements that draw it
  }

  // `entities` have `key`, `start` and `end` in UTF-16 units, `color`, `tag` and `hint`.
  draw(text, entities) {
    const levels = levelsOf(entities);
    const places = new Map(entities.map((entity) => [entity, tagPlace(text, entity.end)]));
    const edges = new Set([0, text.length]);
    for (const entity of entities) edges.add(entity.start).add(entity.end).add(places.get(entity));
    const cuts = [...edges].sort((first, second) => first - second);
    const starting = groups(entities, (entity) => entity.start);
    const ending = groups(entities, (entity) => places.get(entity));
    const depth = Math.max(-1, ...levels.values()) + 1;
    this.parts = [];
    this.elements = new Map();
    const fragment = document.createDocumentFragment();
    let active = [];
    for (const [index, begin] of cuts.entries()) {
      const tagged = (ending.get(begin) ?? []).sort((first, second) => levels.get(first) - levels.get(second));
      for (const [place, entity] of tagged.entries()) {
        const later = tagged.slice(place + 1).filter((outer) => outer.end === begin);
        const above = [...active.filter((outer) => outer.start < begin && begin < outer.end), ...later];
        fragment.append(this.under(this.tag(entity), above, levels));
      }
      active = [...active.filter((entity) => entity.end > begin), ...(starting.get(begin) ?? [])];
      const end = cuts[index + 1];
      if (end === undefined || end === begin) continue;
      const node = document.createTextNode(text.slice(begin, end));
      this.parts.push({start: begin, node});
      fragment.append(this.under(node, active, levels));
    }
    this.root.replaceChildren(fragment);
    this.root.style.setProperty("--depth", String(depth));
  }

  // Show which entity is the current one.
  mark(key) {
    for (const element of this.root.querySelectorAll(".current")) element.classList.remove("current");
    for (const element of this.elements.get(key) ?? []) element.classList.add("current");
  }

  // The UTF-16 offset of a place in the drawing.
  offset(node, offset) {
    const range = document.createRange();
    range.setStart(this.root, 0);
    range.setEnd(node, offset);
    return range.toString().length;
  }

  // The Range of [start, end) in UTF-16 units.
  range(start, end) {
    const range = document.createRange();
    range.setStart(...this.place(start, false));
    range.setEnd(...this.place(end, true));
    return range;
  }

  place(offset, atEnd) {
    if (!this.parts.length) return [this.root, 0];
    let low = 0;
    let high = this.parts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (atEnd ? this.parts[middle].start < offset : this.parts[middle].start <= offset) low = middle;
      else high = middle - 1;
    }
    const {start, node} = this.parts[low];
    return [node, Math.min(Math.max(offset - start, 0), node.length)];
  }

  under(content, covering, levels) {
    let outer = content;
    for (const entity of [...covering].sort((first, second) => levels.get(first) - levels.get(second))) {
      const line = document.createElement("span");
      line.className = `under ${entity.color}`;
      line.style.setProperty("--level", String(levels.get(entity)));
      line.title = entity.hint;
      this.remember(line, entity);
      line.append(outer);
      outer = line;
    }
    return outer;
  }

  tag(entity) {
    const tag = document.createElement("i");
    tag.className = `tag ${entity.color}`;
    tag.dataset.tag = entity.tag;
    tag.title = entity.hint;
    this.remember(tag, entity);
    return tag;
  }

  remember(element, entity) {
    element.dataset.key = entity.key;
    const elements = this.elements.get(entity.key);
    if (elements) elements.push(element);
    else this.elements.set(entity.key, [element]);
  }
}

function levelsOf(entities) {
  const levels = new Map();
  const placed = []; // for each level its entities
  const shortestFirst = [...entities].sort(
    (first, second) =>
      first.end - first.start - (second.end - second.start) ||
      first.start - second.start ||
      (first.key < second.key ? -1 : 1),
  );
  for (const entity of shortestFirst) {
    const isFree = (others) => others.every((other) => other.end <= entity.start || entity.end <= other.start);
    let level = placed.findIndex(isFree);
    if (level < 0) level = placed.push([]) - 1;
    placed[level].push(entity);
    levels.set(entity, level);
  }
  return levels;
}

function groups(entities, placeOf) {
  const found = new Map();
  for (const entity of entities) {
    const place = placeOf(entity);
    if (found.has(place)) found.get(place).push(entity);
    else found.set(place, [entity]);
  }
  return found;
}

// The first offset from `offset` on that is not inside a letter with marks or a joined emoji.
function tagPlace(text, offset) {
  let place = offset;
  while (place > 0 && place < text.length) {
    const character = String.fromCodePoint(text.codePointAt(place));
    if (!/^\p{M}$/u.test(character) && character !== JOINER && text[place - 1] !== JOINER) break;
    place += character.length;
  }
  return place;
}
