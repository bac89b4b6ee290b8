// Draws a text with its entities as the reports do (core/drawing.py): a line under each entity, inner ones nearer to the
// text, and its label behind it. All characters go in as text nodes, and the text of the drawing is that of the document.

const JOINER = "\u200d";

export class Drawing {
  constructor(root) {
    this.root = root;
    this.text = null;
    this.lines = []; // [{signature, element, parts, elements}], each as it was drawn last
    this.parts = []; // [{start, node}], the text nodes with their UTF-16 offsets
    this.elements = new Map(); // entity key to the elements that draw it
  }

  // Draw; `entities` have `key`, `start` and `end` in UTF-16 units, `color`, `tag` and `hint`. A line of the text that is
  // drawn as before keeps its elements, so that a change costs little in a long text.
  draw(text, entities) {
    const levels = levelsOf(entities);
    const placed = entities.map((entity) => ({...entity, level: levels.get(entity), place: tagPlace(text, entity.end)}));
    const begins = lineBegins(text);
    const groups = byLine(placed, begins);
    const known = text === this.text ? this.lines : [];
    this.lines = begins.map((begin, index) => {
      const end = begins[index + 1] ?? text.length;
      const signature = groups[index].map(({key, level, color, hint}) => `${key} ${level} ${color} ${hint}`).join("\n");
      return known[index]?.signature === signature ? known[index] : {signature, ...drawnLine(text, begin, end, groups[index])};
    });
    if (known.length) {
      for (const [index, {element}] of this.lines.entries()) {
        if (element !== known[index].element) known[index].element.replaceWith(element);
      }
    } else this.root.replaceChildren(...this.lines.map(({element}) => element));
    this.text = text;
    this.parts = this.lines.flatMap(({parts}) => parts);
    this.elements = new Map();
    for (const [key, element] of this.lines.flatMap(({elements}) => elements)) {
      if (this.elements.has(key)) this.elements.get(key).push(element);
      else this.elements.set(key, [element]);
    }
    this.root.style.setProperty("--depth", String(Math.max(-1, ...levels.values()) + 1));
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
}

// Draw the line [begin, end) of a text with the entities that touch it.
function drawnLine(text, begin, end, entities) {
  const line = {element: document.createElement("div"), parts: [], elements: []};
  const edges = new Set([begin, end]);
  for (const entity of entities) {
    for (const edge of [entity.start, entity.end, entity.place]) if (begin < edge && edge < end) edges.add(edge);
  }
  const cuts = [...edges].sort((first, second) => first - second);
  const waiting = [...entities].sort((first, second) => second.start - first.start);
  let active = [];
  for (let index = 0; index + 1 < cuts.length; index += 1) {
    const [first, last] = [cuts[index], cuts[index + 1]];
    active = active.filter((entity) => entity.end > first);
    while (waiting.length && waiting[waiting.length - 1].start <= first) active.push(waiting.pop());
    const covering = active.filter((entity) => entity.end > first);
    const node = document.createTextNode(text.slice(first, last));
    line.parts.push({start: first, node});
    line.element.append(under(node, covering, line));
    const tagged = entities.filter((entity) => entity.place === last).sort(byLevel);
    for (const [place, entity] of tagged.entries()) {
      const later = tagged.slice(place + 1).filter((outer) => outer.end === last);
      const above = [...entities.filter((outer) => outer.start < last && last < outer.end), ...later];
      line.element.append(under(tag(entity, line), above, line));
    }
  }
  return line;
}

// Put `content` inside the lines of the entities that cover it, the nearest to the text first.
function under(content, covering, line) {
  let outer = content;
  for (const entity of [...covering].sort(byLevel)) {
    const element = document.createElement("span");
    element.className = `under ${entity.color}`;
    element.style.setProperty("--level", String(entity.level));
    element.title = entity.hint;
    remember(element, entity, line);
    element.append(outer);
    outer = element;
  }
  return outer;
}

function tag(entity, line) {
  const element = document.createElement("i");
  element.className = `tag ${entity.color}`;
  element.dataset.tag = entity.tag;
  element.title = entity.hint;
  remember(element, entity, line);
  return element;
}

function remember(element, entity, line) {
  element.dataset.key = entity.key;
  line.elements.push([entity.key, element]);
}

function byLevel(first, second) {
  return first.level - second.level;
}

// Where the lines of a text begin; one that is empty has one line.
function lineBegins(text) {
  const begins = [0];
  for (let at = text.indexOf("\n"); at >= 0 && at + 1 < text.length; at = text.indexOf("\n", at + 1)) begins.push(at + 1);
  return begins;
}

// The entities that touch each line, or have their tag at its end.
function byLine(entities, begins) {
  const groups = begins.map(() => []);
  for (const entity of entities) {
    const last = lineOf(begins, Math.max(entity.end, entity.place) - 1);
    for (let index = lineOf(begins, entity.start); index <= last; index += 1) groups[index].push(entity);
  }
  return groups;
}

function lineOf(begins, offset) {
  let low = 0;
  let high = begins.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (begins[middle] <= offset) low = middle;
    else high = middle - 1;
  }
  return low;
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
