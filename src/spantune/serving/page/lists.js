// A list box whose rows are chosen with the arrow keys or by a click; one stop for the tabulator key, however many rows.

export class ListBox {
  // `choose(key)` is called when the user chooses a row.
  constructor(root, choose) {
    this.root = root;
    this.choose = choose;
    this.rows = new Map(); // key to {row, signature}
    this.keys = [];
    this.chosen = null;
    root.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      if (row) choose(row.dataset.key);
    });
    root.addEventListener("keydown", (event) => this.move(event));
  }

  // Show rows [{key, signature, build}]: `build(row)` fills a row, and is called when its signature is another one.
  show(items, chosen) {
    const rows = new Map();
    for (const {key, signature, build} of items) {
      const known = this.rows.get(key);
      if (known?.signature === signature) {
        rows.set(key, known);
        continue;
      }
      const row = known?.row ?? this.made(key);
      row.replaceChildren();
      build(row);
      rows.set(key, {row, signature});
    }
    const keys = items.map(({key}) => key);
    const isSame = keys.length === this.keys.length && keys.every((key, index) => key === this.keys[index]);
    if (!isSame) this.place(keys.map((key) => rows.get(key).row));
    [this.rows, this.keys] = [rows, keys];
    this.mark(chosen);
  }

  // Put the rows in order, and move as few as one row does.
  place(rows) {
    const wanted = new Set(rows);
    for (const row of [...this.root.children]) if (!wanted.has(row)) row.remove();
    let at = this.root.firstChild;
    for (const row of rows) {
      if (row === at) at = at.nextSibling;
      else this.root.insertBefore(row, at);
    }
  }

  mark(key) {
    const isOther = key !== this.chosen;
    if (isOther) this.rows.get(this.chosen)?.row.setAttribute("aria-selected", "false");
    this.chosen = key;
    const row = this.rows.get(key)?.row;
    if (!row) {
      this.root.removeAttribute("aria-activedescendant");
      return;
    }
    row.setAttribute("aria-selected", "true");
    this.root.setAttribute("aria-activedescendant", row.id);
    if (isOther) this.reveal(row);
  }

  // Scroll the list, and nothing else, to a row.
  reveal(row) {
    const [inner, outer] = [row.getBoundingClientRect(), this.root.getBoundingClientRect()];
    if (inner.top < outer.top) this.root.scrollTop -= outer.top - inner.top;
    else if (inner.bottom > outer.bottom) this.root.scrollTop += inner.bottom - outer.bottom;
  }

  made(key) {
    const row = document.createElement("li");
    row.id = `${this.root.id}-${key}`;
    row.dataset.key = key;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", "false");
    return row;
  }

  move(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || !this.keys.length) return;
    const last = this.keys.length - 1;
    const at = this.keys.indexOf(this.chosen);
    const places = {ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last};
    if (!(event.key in places)) return;
    event.preventDefault();
    this.choose(this.keys[places[event.key]]);
  }
}

// Append an element with a text to `parent`, and return it.
export function made(name, text, parent, className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}
