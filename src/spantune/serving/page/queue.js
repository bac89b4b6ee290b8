// The queue of texts: they are added, extracted from, and opened one after the other.

import {TextDocument, sorted} from "./documents.js";
import {extract} from "./extraction.js";
import {ListBox} from "./lists.js";
import {alarm, announce, report} from "./messages.js";
import {$, say} from "./panels.js";
import {queueRows} from "./rows.js";
import {isUnsaved, state, taskOf} from "./state.js";
import {t} from "./strings.js";
import {showOpened} from "./workbench.js";

const SLOW = 150; // milliseconds between two drawings of the queue while results come in

const list = new ListBox($("queue"), (key) => open(state.documents.find((document) => document.key === key)));
let timer = null;

export function add(given) {
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
    showOpened(true);
  } else if (state.document?.state !== "done" && document.state === "done" && !state.document?.failure) {
    open(document);
  }
  soon();
}

function waiting(failure, seconds) {
  state.note = failure && (() => (failure.kind === "busy" ? t("busy", {n: seconds}) : t("offline", {n: seconds})));
  showProgress();
}

// Show the queue a little later, once for all results that come in meanwhile.
export function soon() {
  timer ??= setTimeout(() => {
    timer = null;
    showQueue();
    showProgress();
  }, SLOW);
}

export function open(document) {
  if (!document) return;
  const isOtherTask = taskOf(document) !== taskOf(state.document);
  state.document = document;
  $("bench").hidden = false;
  showOpened(isOtherTask);
  showQueue();
}

// Open the next (1) or previous (-1) text of the queue.
export function turn(direction) {
  const order = ordered();
  const at = order.indexOf(state.document) + direction;
  if (order[at]) open(order[at]);
}

export function clear() {
  if (state.documents.some(isUnsaved) && !confirm(t("clearAsk"))) return;
  state.work?.abort();
  [state.documents, state.document] = [[], null];
  $("bench").hidden = true;
  $("adding").open = true;
  showProgress();
  $("pasted").focus();
}

export function showQueue() {
  const order = ordered();
  list.show(queueRows(order), state.document?.key ?? null);
  $("queue-count").textContent = String(order.length);
  const at = order.indexOf(state.document);
  $("place").textContent = at < 0 ? "" : t("place", {at: at + 1, n: order.length});
  $("document-id").textContent = state.document?.id ?? "";
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === order.length - 1;
}

export function showProgress() {
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

// Extract again from some texts.
export function again(which) {
  for (const document of state.documents) {
    if (which(document)) Object.assign(document, {state: "waiting", failure: ""});
  }
  alarm("");
  run();
}

// The texts as the queue shows them.
export function ordered() {
  return sorted(state.documents, $("order").value);
}
