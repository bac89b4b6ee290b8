// The text that is open: it is drawn with its entities and their lists, and corrected.

import {Editor} from "./editor.js";
import {ListBox, made} from "./lists.js";
import {announce, later} from "./messages.js";
import {$, Filter, Labels, say} from "./panels.js";
import {entityRows, look} from "./rows.js";
import {colorOf, currentEntities, isSaved, state, taskOf} from "./state.js";
import {t} from "./strings.js";

const filter = new Filter(() => draw());
const labels = new Labels((code) => pressed(code));
const entities = new ListBox($("entities"), (key) => editor.choose(key));
export const editor = new Editor({
  get document() {
    return state.document;
  },
  get armed() {
    return state.armed;
  },
  entities: currentEntities,
  isShown: (entity) => !filter.hidden.has(entity.label),
  look,
  reveal: (label) => filter.reveal(label),
  changed: () => changed(),
  targeted: () => targeted(),
  say: announce,
});
let listener = () => {};

// `called()` is called after each change of entities by the user.
export function onChange(called) {
  listener = called;
}

// Show the text that was opened, from its beginning.
export function showOpened(isOtherTask) {
  editor.reset();
  if (isOtherTask) showTask();
  else draw();
}

export function showTask() {
  const task = taskOf(state.document);
  const byCode = (code) => colorOf(code, task);
  labels.show(task, byCode);
  showFinds(task, byCode);
  filter.show(task, byCode);
  state.armed = task.labels.some(({code}) => code === state.armed) ? state.armed : null;
  if (state.document) draw();
}

// Say in the form which entities the model finds.
function showFinds(task, byCode) {
  const items = task.labels.map(({code, name, description}) => {
    const item = document.createElement("li");
    item.title = description;
    made("b", code, item, byCode(code));
    if (name && name !== code) made("span", ` ${name}`, item);
    return item;
  });
  $("finds").replaceChildren(...items);
}

// A change of entities by the user.
export function changed() {
  draw();
  listener();
}

export function draw() {
  const {document} = state;
  if (!document) return;
  editor.render();
  const failure = document.state === "failed" ? document.failure : document.problems.map(({found}) => found).join("\n");
  say($("problems"), failure);
  const all = currentEntities();
  filter.count(all);
  showThreshold();
  targeted();
}

function showEntities() {
  const {shown} = editor;
  entities.show(entityRows(shown, (entity) => editor.surface(entity)), editor.key);
  const hidden = currentEntities().length - shown.length;
  $("entities-count").textContent = t("shown", {n: shown.length}) + (hidden ? ` · ${t("hiddenSome", {n: hidden})}` : "");
  $("entities-empty").hidden = shown.length > 0;
  $("entities").hidden = shown.length === 0;
}

function showThreshold() {
  const {document, threshold} = state;
  const scores = document.predicted.filter(({score, below}) => score !== null && !below).map(({score}) => score);
  const hasScores = document.predicted.some(({score}) => score !== null);
  const own = Math.floor(100 * Math.min(1, ...scores)) / 100;
  const slider = $("threshold");
  slider.disabled = document.state === "done" && document.predicted.length > 0 && !hasScores;
  if (threshold === null) slider.value = String(scores.length ? own : 0.5);
  const isFixed = document.isTouched;
  $("threshold-value").textContent = threshold === null ? t("ownThreshold") : threshold.toFixed(2);
  $("own-threshold").hidden = threshold === null;
  say($("threshold-note"), slider.disabled ? t("noScores") : isFixed ? t("fixed") : "");
}

// Another target: show what it is, and which buttons do something.
function targeted() {
  const {entity, range} = editor;
  let words = t("nothing");
  if (entity) {
    const score = entity.score === null ? "" : t("score", {score: entity.score.toFixed(3)});
    words = t("entityIs", {label: entity.label, text: editor.surface(entity), start: entity.start, end: entity.end, score});
  } else if (range) {
    words = t("selection", {text: editor.surface({start: range[0], end: range[1]}), start: range[0], end: range[1]});
  } else if (state.armed) words = t("armed", {label: state.armed});
  say($("target"), words);
  if (entity || range) later(words);
  labels.press(entity?.label ?? (range ? null : state.armed));
  for (const id of ["start-left", "start-right", "end-left", "end-right", "delete"]) enable(id, entity !== null);
  enable("undo", state.document?.isTouched ?? false);
  enable("redo", state.document?.canRedo ?? false);
  $("save-words").textContent = t(state.document && isSaved(state.document) ? "isSaved" : "saveNext");
  $("save").disabled = state.document?.state !== "done";
  showEntities();
}

function enable(id, isOn) {
  $(id).setAttribute("aria-disabled", String(!isOn));
}

// ---- what the user does

function pressed(code) {
  if (!state.document) return;
  if (editor.label(code)) {
    $("text").focus({preventScroll: true});
    return;
  }
  state.armed = state.armed === code ? null : code;
  targeted();
  if (state.armed) announce(t("armed", {label: code}));
}

export function undo() {
  if (!state.document) return;
  const isDone = state.document.undo();
  if (isDone) changed();
  announce(t(isDone ? "undone" : "nothingToUndo"));
}

export function redo() {
  if (!state.document) return;
  const isDone = state.document.redo();
  if (isDone) changed();
  announce(t(isDone ? "redone" : "nothingToRedo"));
}

export function number(place) {
  const label = taskOf(state.document).labels[place - 1];
  if (label) pressed(label.code);
  else announce(t("noLabel", {n: place}));
}

export function escape() {
  state.armed = null;
  editor.drop();
  if (labels.root.contains(globalThis.document.activeElement)) $("text").focus({preventScroll: true});
}

export function toLabels() {
  labels.focus();
}
