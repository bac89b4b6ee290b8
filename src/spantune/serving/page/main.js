// The page: what keys and buttons do. Texts of users go in as text nodes only.

import {getJson, onToken} from "./api.js";
import {PasteKeeper, fromFile, fromPasted} from "./inputs.js";
import {listenToKeys} from "./keys.js";
import {alarm, announce, report} from "./messages.js";
import {Outbox} from "./outbox.js";
import {$, askForToken, offer, showCorrections} from "./panels.js";
import {add, again, clear, open, ordered, showProgress, showQueue, soon, turn} from "./queue.js";
import {isSaved, isUnsaved, state} from "./state.js";
import {chooseLanguage, switchLanguage, t} from "./strings.js";
import {changed, draw, editor, escape, number, onChange, redo, showTask, toLabels, undo} from "./workbench.js";

chooseLanguage();
onChange(showQueue);
const paste = new PasteKeeper($("pasted"));
const outbox = new Outbox(() => showCorrections(outbox, state.model));

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

// ---- what the user does

function save() {
  const {document} = state;
  if (document?.state !== "done") return;
  outbox.add(document.save(state.threshold));
  const order = ordered();
  const later = [...order.slice(order.indexOf(document) + 1), ...order];
  const next = later.find((other) => other.state === "done" && !isSaved(other));
  const left = order.filter((other) => other.state === "done" && !isSaved(other)).length;
  if (next) open(next);
  else changed();
  announce(t("savedOne", {left}));
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

// ---- keys

listenToKeys({
  extract: addPasted,
  help: showHelp,
  label: number,
  labels: toLabels,
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
  $("help-dialog").scrollTop = 0; // the button at its end has the focus
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
