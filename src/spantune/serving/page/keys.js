// Which key does what. Keys of one character work in the queue, the text and the list of entities, and can be turned off
// for screen readers and dictation; those with Ctrl always work.

import {browser} from "./storage.js";

const KEPT = "spantune.keys";

// Listen to keys; `commands` has a function for each name below, `label(place)` and `extract()`.
export function listenToKeys(commands) {
  const box = document.getElementById("keys-on");
  box.checked = browser.get(KEPT) !== "off";
  box.addEventListener("change", () => browser.set(KEPT, box.checked ? "on" : "off"));
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
    const command = commandOf(event, box.checked);
    if (!command) return;
    event.preventDefault();
    commands[command[0]](...command.slice(1));
  });
}

const NAMES = {
  j: ["turn", 1],
  k: ["turn", -1],
  n: ["step", 1],
  p: ["step", -1],
  o: ["outer"],
  l: ["labels"],
  s: ["save"],
  x: ["remove"],
  "[": ["stretch", "start", -1],
  "{": ["stretch", "start", 1],
  "]": ["stretch", "end", 1],
  "}": ["stretch", "end", -1],
};

// The command of a key as [name, ...arguments]; null for a key that has none here.
function commandOf(event, isOn) {
  const key = event.key.toLowerCase();
  const isControl = event.ctrlKey || event.metaKey;
  if (isControl && key === "enter" && event.target.id === "pasted") return ["extract"];
  if (event.altKey || event.target.matches("textarea, select, input:not([type=checkbox], [type=range])")) return null;
  if (isControl) return controlled(key, event.shiftKey);
  if (key === "?" && isOn) return ["help"];
  if (!event.target.closest("#bench") && event.target !== document.body) return null;
  if (key === "escape") return ["escape"];
  if (key === "delete" || key === "backspace") return ["remove"];
  if (!isOn) return null;
  if (/^[1-9]$/.test(key)) return ["label", Number(key)];
  // A keyboard may give other signs for Shift and a bracket.
  const brace = event.shiftKey ? {BracketLeft: "{", BracketRight: "}"}[event.code] : undefined;
  return NAMES[brace ?? key] ?? null;
}

function controlled(key, isShifted) {
  if (key === "z") return [isShifted ? "redo" : "undo"];
  if (key === "y") return ["redo"];
  return key === "enter" ? ["save"] : null;
}
