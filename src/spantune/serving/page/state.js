// What the page holds, and what follows from it for the text that is open.

import {Colors} from "./panels.js";

export const state = {
  documents: [],
  document: null,
  model: "",
  tasks: new Map(), // model to task
  threshold: null, // null: as the run decides
  armed: null, // the label that every selection is marked with
  work: null, // the AbortController of the extraction
  more: false, // whether texts were added since it began
  note: null, // why it waits: a function that says it in the language of now
};

const colors = new Colors();

export function taskOf(document) {
  return state.tasks.get(document?.model ?? state.model) ?? {labels: []};
}

export function labelOf(code, task = taskOf(state.document)) {
  return task.labels.find((label) => label.code === code);
}

// The class that has the colour of a label.
export function colorOf(code, task) {
  const label = labelOf(code, task);
  return label ? colors.name(label.colour) : "entity-other";
}

// The name of a label where it has another one than its code, else nothing.
export function nameOf(code) {
  const name = labelOf(code)?.name;
  return name && name !== code ? name : "";
}

// The entities of the text that is open, under the threshold.
export function currentEntities() {
  return state.document ? state.document.entities(state.threshold) : [];
}

// Whether an entity without a score is the model's.
export function isPredicted(entity) {
  return entity.score === null && state.document.predicted.includes(entity);
}

export const isSaved = (document) => document.isSaved(state.threshold);
export const isUnsaved = (document) => document.isUnsaved(state.threshold);
