// The parts of the page around the text: labels, filter, corrections, and the two dialogs.

import {made} from "./lists.js";
import {t} from "./strings.js";

export const $ = (id) => document.getElementById(id);

// Set the text of an element where it is another one, so that a live region says it once.
export function say(element, words) {
  if (element.textContent !== words) element.textContent = words;
  if (element.id !== "said") element.hidden = !words;
}

// The colours of the labels of all tasks, as classes `label-…`, in light and dark.
export class Colors {
  constructor() {
    this.sheet = new CSSStyleSheet();
    this.known = new Map();
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, this.sheet];
  }

  // The class of a label.
  name([light, dark]) {
    const pair = `${light} ${dark}`;
    if (!/^#[0-9a-f]{6} #[0-9a-f]{6}$/i.test(pair)) return "entity-other";
    if (!this.known.has(pair)) {
      const name = `label-${this.known.size}`;
      this.known.set(pair, name);
      this.sheet.insertRule(`.${name}{--colour:${light}}`, this.sheet.cssRules.length);
      this.sheet.insertRule(`@media (prefers-color-scheme:dark){.${name}{--colour:${dark}}}`, this.sheet.cssRules.length);
    }
    return this.known.get(pair);
  }
}

// The labels as buttons: one stop for the tabulator key, moved through with the arrow keys.
export class Labels {
  constructor(press) {
    this.root = $("labels");
    this.buttons = [];
    this.root.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) press(button.value);
    });
    this.root.addEventListener("keydown", (event) => this.move(event));
  }

  show(task, colorOf) {
    this.buttons = task.labels.map((label, index) => {
      const button = document.createElement("button");
      Object.assign(button, {type: "button", value: label.code, className: colorOf(label.code), title: label.description, tabIndex: index ? -1 : 0});
      if (index < 9) {
        made("kbd", String(index + 1), button).setAttribute("aria-hidden", "true");
        button.setAttribute("aria-keyshortcuts", String(index + 1));
      }
      made("b", label.code, button);
      if (label.name && label.name !== label.code) made("span", label.name, button);
      return button;
    });
    this.root.replaceChildren(...this.buttons);
  }

  press(code) {
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.value === code));
  }

  focus() {
    this.buttons.find((button) => button.tabIndex === 0)?.focus();
  }

  move(event) {
    const at = this.buttons.indexOf(document.activeElement);
    const count = this.buttons.length;
    const places = {ArrowRight: (at + 1) % count, ArrowDown: (at + 1) % count, ArrowLeft: (at - 1 + count) % count, ArrowUp: (at - 1 + count) % count, Home: 0, End: count - 1};
    if (at < 0 || !(event.key in places)) return;
    event.preventDefault();
    this.buttons[at].tabIndex = -1;
    const button = this.buttons[places[event.key]];
    button.tabIndex = 0;
    button.focus();
  }
}

// The labels that are shown, with the number of entities of each.
export class Filter {
  constructor(changed) {
    this.root = $("filter");
    this.hidden = new Set();
    this.chips = new Map(); // label to the element of its count
    this.root.addEventListener("change", (event) => {
      const {value, checked} = event.target;
      if (checked) this.hidden.delete(value);
      else this.hidden.add(value);
      changed();
    });
  }

  show(task, colorOf) {
    this.chips.clear();
    const chips = task.labels.map(({code, name}) => {
      const chip = document.createElement("label");
      chip.className = `chip ${colorOf(code)}`;
      const box = made("input", "", chip);
      Object.assign(box, {type: "checkbox", value: code, checked: !this.hidden.has(code)});
      made("b", code, chip).title = name;
      this.chips.set(code, made("span", "0", chip));
      return chip;
    });
    this.root.replaceChildren(this.root.querySelector("legend"), ...chips);
  }

  count(entities) {
    const counts = new Map();
    for (const {label} of entities) counts.set(label, (counts.get(label) ?? 0) + 1);
    for (const [label, element] of this.chips) element.textContent = String(counts.get(label) ?? 0);
  }

  // Show a label again.
  reveal(label) {
    if (!this.hidden.delete(label)) return;
    for (const box of this.root.querySelectorAll("input")) box.checked = !this.hidden.has(box.value);
  }
}

// What became of the corrections.
export function showCorrections(outbox, model) {
  const {waiting, sent, failure} = outbox;
  const parts = [];
  if (sent) parts.push(t("sent", {n: sent}));
  if (waiting) parts.push(t("unsent", {n: waiting}));
  if (waiting && !outbox.isKept) parts.push(t("unsentPage"));
  if (waiting && !outbox.hasFolder) parts.push(t("noFolder"));
  say($("corrections"), parts.join(" ") || t("correctionsNone"));
  const message = failure && (failure.kind === "offline" ? t("noService") : failure.kind === "token" ? t("noToken") : failure.message);
  say($("corrections-failure"), waiting && message && outbox.hasFolder ? t("sendFailed", {message}) : "");
  $("send-now").hidden = !waiting || outbox.isSending;
  $("forget").hidden = !waiting;
  $("download").disabled = !waiting && !outbox.hasFolder;
  const name = /^[\w.-]+$/.test(model) ? model : "RUN";
  $("train-command").textContent =
    `spantune train runs/${name}/config.yaml 'data.train=[TRAIN, corrections.jsonl]' train.from=runs/${name} train.learning_rate=null run.name=${name}-2`;
}

// Give the user a file.
export function offer(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], {type: "application/x-ndjson"}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Ask for the token; null where the user gives none.
export function askForToken(wasRefused) {
  const dialog = $("token-dialog");
  $("token-wrong").hidden = !wasRefused;
  $("token").value = "";
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => resolve(dialog.returnValue === "send" ? $("token").value.trim() : null);
    dialog.addEventListener("close", closed, {once: true});
  });
}
