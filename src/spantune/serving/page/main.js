// The page: its state, what is shown of it, and what keys and buttons do. Texts of users go in as text nodes only.

import {Failure, getJson, onToken} from "./api.js";
import {TextDocument, sorted} from "./documents.js";
import {Editor} from "./editor.js";
import {extract} from "./extraction.js";
import {PasteKeeper, fromFile, fromPasted} from "./inputs.js";
import {listenToKeys} from "./keys.js";
import {ListBox, made} from "./lists.js";
import {Outbox} from "./outbox.js";
import {$, Filter, Labels, askForToken, offer, say, showCorrections} from "./panels.js";
import {entityRows, look, queueRows} from "./rows.js";
import {colorOf, currentEntities, isSaved, isUnsaved, state, taskOf} from "./state.js";
import {chooseLanguage, switchLanguage, t} from "./strings.js";

const SLOW = 150; // milliseconds between two drawings of the queue while results come in

chooseLanguage();
const paste = new PasteKeeper($("pasted"));
const outbox = new Outbox(() => showCorrections(outbox, state.model));
const filter = new Filter(() => draw());
const labels = new Labels((code) => pressed(code));
const queue = new ListBox($("queue"), (key) => open(state.documents.find((document) => document.key === key)));
const entities = new ListBox($("entities"), (key) => editor.choose(key));
const editor = new Editor({
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

// ---- the tasks of the models

async function start() {
  onToken(askForToken);
  try {
    const models = (await getJson("/v1/models")).data.map(({id}) => id);
    $("model").replaceChildren(...models.map((name) => new Option(name, name)));
    await chooseModel(models[0]);
    alarm("");
  } catch (error) {
    report(error);
  }
  outbox.send();
}

async function chooseModel(name) {
  state.model = name;
  if (!state.tasks.has(name)) state.tasks.set(name, await getJson(`/v1/task?model=${encodeURIComponent(name)}`));
  showTask();
  showCorrections(outbox, name);
  showProgress();
}

function showTask() {
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

// ---- the queue

function add(given) {
  const fresh = given.map(({id, text}) => new TextDocument(text, id));
  state.documents.push(...fresh);
  $("adding").open = false;
  if (!state.document) open(fresh[0]);
  showQueue();
  announce(t("added", {n: fresh.length}));
  run();
}

// Extract from all texts that have no entities yet.
async function run() {
  if (state.work) {
    state.more = true;
    return;
  }
  state.work = new AbortController();
  showProgress();
  try {
    do {
      state.more = false;
      const left = state.documents.filter((document) => document.state === "waiting");
      await extract(left, {model: state.model, signal: state.work.signal, changed: arrived, waiting});
    } while (state.more && !state.work.signal.aborted);
  } catch (error) {
    report(error);
  } finally {
    [state.work, state.note] = [null, null];
    showQueue();
    showProgress();
    announce($("progress-text").textContent);
  }
}

function arrived(document) {
  if (!state.documents.includes(document)) return; // the queue was cleared
  if (document === state.document) {
    editor.reset();
    showTask();
  } else if (state.document?.state !== "done" && document.state === "done" && !state.document?.failure) {
    open(document);
  }
  soon();
}

function waiting(failure, seconds) {
  state.note = failure && (() => (failure.kind === "busy" ? t("busy", {n: seconds}) : t("offline", {n: seconds})));
  showProgress();
}

let timer = null;

// Show the queue a little later, once for all results that come in meanwhile.
function soon() {
  timer ??= setTimeout(() => {
    timer = null;
    showQueue();
    showProgress();
  }, SLOW);
}

function open(document) {
  if (!document) return;
  const isOtherTask = taskOf(document) !== taskOf(state.document);
  state.document = document;
  editor.reset();
  $("bench").hidden = false;
  if (isOtherTask) showTask();
  else draw();
  showQueue();
}

// Open the next (1) or previous (-1) text of the queue.
function turn(direction) {
  const order = sorted(state.documents, $("order").value);
  const at = order.indexOf(state.document) + direction;
  if (order[at]) open(order[at]);
}

function clear() {
  if (state.documents.some(isUnsaved) && !confirm(t("clearAsk"))) return;
  state.work?.abort();
  [state.documents, state.document] = [[], null];
  $("bench").hidden = true;
  $("adding").open = true;
  showProgress();
  $("pasted").focus();
}

function showQueue() {
  const order = sorted(state.documents, $("order").value);
  queue.show(queueRows(order), state.document?.key ?? null);
  $("queue-count").textContent = String(order.length);
  const at = order.indexOf(state.document);
  $("place").textContent = at < 0 ? "" : t("place", {at: at + 1, n: order.length});
  $("document-id").textContent = state.document?.id ?? "";
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === order.length - 1;
}

function showProgress() {
  const {documents} = state;
  $("adding-title").textContent = t(documents.length ? "addTexts" : "input");
  $("progress").hidden = !documents.length;
  const [done, failed] = ["done", "failed"].map((name) => documents.filter((document) => document.state === name).length);
  const [n, isAtWork] = [documents.length, state.work !== null];
  $("progress-bar").hidden = !isAtWork;
  Object.assign($("progress-bar"), {max: Math.max(n, 1), value: done + failed});
  const isWhole = done + failed === n;
  const words = t(isAtWork ? "working" : isWhole ? "progress" : "stopped", {done, n});
  say($("progress-text"), failed ? `${words} · ${t("progressFailed", {failed})}` : words);
  const others = documents.some((document) => document.state === "done" && document.model !== state.model);
  say($("progress-note"), state.note?.() ?? (others && !isAtWork ? t("otherModel") : ""));
  $("stop").hidden = !isAtWork;
  $("go-on").hidden = isAtWork || (isWhole && !failed);
  $("go-on").textContent = t(isWhole ? "tryAgain" : "goOn");
  $("again").hidden = isAtWork || !others;
}

// ---- the text

// A change of entities by the user.
function changed() {
  draw();
  showQueue();
}

function draw() {
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

function undo() {
  if (!state.document) return;
  const isDone = state.document.undo();
  if (isDone) changed();
  announce(t(isDone ? "undone" : "nothingToUndo"));
}

function redo() {
  if (!state.document) return;
  const isDone = state.document.redo();
  if (isDone) changed();
  announce(t(isDone ? "redone" : "nothingToRedo"));
}

function save() {
  const {document} = state;
  if (document?.state !== "done") return;
  outbox.add(document.save(state.threshold));
  const order = sorted(state.documents, $("order").value);
  const later = [...order.slice(order.indexOf(document) + 1), ...order];
  const next = later.find((other) => other.state === "done" && !isSaved(other));
  const left = order.filter((other) => other.state === "done" && !isSaved(other)).length;
  if (next) open(next);
  else changed();
  announce(t("savedOne", {left}));
}

function announce(words) {
  clearTimeout(speaking);
  say($("said"), words);
}

let speaking = null;

// Say what is selected, once it stays so for a moment.
function later(words) {
  clearTimeout(speaking);
  speaking = setTimeout(() => say($("said"), words), 400);
}

function alarm(words) {
  say($("alert"), words);
}

function report(error) {
  if (!(error instanceof Failure)) {
    alarm(t("unexpected", {message: error.message}));
    throw error;
  }
  alarm(error.kind === "offline" ? t("noService") : error.kind === "token" ? t("noToken") : error.message);
}

async function addFiles(files) {
  const problems = [];
  const given = [];
  for (const file of files) {
    try {
      given.push(...(await fromFile(file)));
    } catch (error) {
      problems.push(error.message);
    }
  }
  alarm(problems.join("\n"));
  if (given.length) add(given);
}

function addPasted() {
  try {
    const given = fromPasted(paste.text, $("by-line").checked);
    alarm(given.length ? "" : t("noText"));
    if (!given.length) return;
    const first = state.documents.length;
    add(given);
    open(state.documents[first]);
    $("pasted").value = "";
    $("text").focus({preventScroll: true});
  } catch (error) {
    alarm(error.message);
  }
}

async function download() {
  try {
    const content = await outbox.download();
    if (content) offer("corrections.jsonl", content);
    alarm(content ? "" : t("downloadEmpty"));
  } catch (error) {
    report(error);
  }
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("train-command").textContent);
    announce(t("copied"));
    $("copy").textContent = t("copied");
    setTimeout(() => ($("copy").textContent = t("copy")), 2000);
  } catch {
    getSelection().selectAllChildren($("train-command"));
    alarm(t("copyFailed"));
  }
}

function again(which) {
  for (const document of state.documents) {
    if (which(document)) Object.assign(document, {state: "waiting", failure: ""});
  }
  alarm("");
  run();
}

// ---- keys

function number(place) {
  const label = taskOf(state.document).labels[place - 1];
  if (label) pressed(label.code);
  else announce(t("noLabel", {n: place}));
}

function escape() {
  state.armed = null;
  editor.drop();
  if (labels.root.contains(globalThis.document.activeElement)) $("text").focus({preventScroll: true});
}

listenToKeys({
  extract: addPasted,
  help: showHelp,
  label: number,
  labels: () => labels.focus(),
  outer: () => editor.outer(),
  remove: () => editor.remove(),
  step: (direction) => editor.step(direction),
  stretch: (edge, direction) => editor.stretch(edge, direction),
  escape,
  redo,
  save,
  turn,
  undo,
});

function showHelp() {
  $("help-dialog").showModal();
}

// ---- wiring

const CLICKS = {
  language: () => {
    switchLanguage();
    if (state.document) changed();
    showProgress();
    showCorrections(outbox, state.model);
  },
  help: showHelp,
  open: () => $("files").click(),
  stop: () => state.work?.abort(),
  "go-on": () => again(({state: name}) => name === "failed"),
  again: () => again((document) => document.state === "done" && document.model !== state.model && !document.isTouched),
  clear,
  previous: () => turn(-1),
  next: () => turn(1),
  undo,
  redo,
  save,
  "start-left": () => editor.stretch("start", -1),
  "start-right": () => editor.stretch("start", 1),
  "end-left": () => editor.stretch("end", -1),
  "end-right": () => editor.stretch("end", 1),
  delete: () => editor.remove(),
  "own-threshold": () => moveThreshold(null),
  "send-now": () => outbox.send(),
  download,
  forget: () => confirm(t("forgetAsk")) && outbox.forgetAll(),
  copy,
};

function moveThreshold(value) {
  state.threshold = value;
  draw();
  soon();
}

for (const [id, click] of Object.entries(CLICKS)) $(id).addEventListener("click", click);
$("paste-form").addEventListener("submit", (event) => {
  event.preventDefault();
  addPasted();
});
$("files").addEventListener("change", async (event) => {
  await addFiles([...event.target.files]);
  event.target.value = "";
});
$("threshold").addEventListener("input", (event) => moveThreshold(Number(event.target.value)));
$("order").addEventListener("change", showQueue);
$("model").addEventListener("change", (event) => chooseModel(event.target.value).catch(report));
addEventListener("beforeunload", (event) => {
  if (!outbox.isKept || state.documents.some(isUnsaved)) event.preventDefault();
});

// Files may be dropped anywhere.
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
addEventListener("drop", (event) => {
  $("drop").hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  addFiles([...event.dataTransfer.files]);
});

if (matchMedia("(max-width: 48rem)").matches) $("queue-details").open = false;
start();
