// The texts of the queue: what was predicted for each, what a person made of it, and how sure the model is of it.
// An entity is {start, end, label, score, below}: offsets in code points; `score` is null for one that a person set,
// and `below` says that the run's own threshold leaves it out.

import {Text} from "./text.js";

let made = 0;

export class TextDocument {
  constructor(text, id = null) {
    this.key = `d${(made += 1)}`;
    this.id = id;
    this.text = new Text(text);
    this.order = made;
    this.state = "waiting"; // then running, done or failed
    this.model = null;
    this.failure = "";
    this.problems = [];
    this.clear();
  }

  // Forget the entities, for another extraction.
  clear() {
    this.predicted = [];
    this.steps = [null]; // null: what was predicted, under the threshold; then a list of entities for each change
    this.step = 0;
    this.saved = null;
  }

  take(result, model) {
    this.clear();
    const below = (result.below_threshold ?? []).map((entity) => ({...plain(entity), below: true}));
    this.predicted = [...result.entities.map((entity) => ({...plain(entity), below: false})), ...below].sort(byPlace);
    this.problems = result.problems ?? [];
    this.model = model;
    const refused = ["failed", "refused", "unreadable"].includes(result.status);
    this.state = refused ? "failed" : "done";
    this.failure = refused ? this.problems.map((problem) => problem.found).join("; ") || result.status : "";
  }

  fail(message) {
    this.state = "failed";
    this.failure = message;
  }

  get isTouched() {
    return this.step > 0;
  }

  entities(threshold) {
    return this.steps[this.step] ?? this.predicted.filter((entity) => passes(entity, threshold));
  }

  // Make a change: `entities` is the whole new list.
  change(entities) {
    this.steps.splice(this.step + 1);
    this.steps.push([...entities].sort(byPlace));
    this.step += 1;
  }

  undo() {
    if (this.step === 0) return false;
    this.step -= 1;
    return true;
  }

  redo() {
    if (this.step + 1 === this.steps.length) return false;
    this.step += 1;
    return true;
  }

  get canRedo() {
    return this.step + 1 < this.steps.length;
  }

  // Whether what is shown was saved, or has been changed and not saved.
  isSaved(threshold) {
    return this.saved !== null && this.saved === signature(this.entities(threshold));
  }

  isUnsaved(threshold) {
    return this.saved === null ? this.isTouched : !this.isSaved(threshold);
  }

  // Hold what is shown, so that the slider does not change what was saved, and return it as the service takes it.
  save(threshold) {
    if (!this.isTouched) this.change(this.entities(threshold));
    const entities = this.steps[this.step];
    this.saved = signature(entities);
    const predicted = this.predicted.filter((entity) => !entity.below);
    return {
      model: this.model,
      document: {...(this.id === null ? {} : {id: this.id}), text: this.text.text, entities: entities.map(place)},
      predicted: predicted.map((entity) => ({...place(entity), score: entity.score})),
    };
  }

  // The lowest score of an entity that the run kept; problems come before all others, what cannot be corrected last.
  get certainty() {
    if (this.state === "failed") return 3;
    if (this.state !== "done") return 2;
    if (this.problems.length) return -1;
    return this.predicted.reduce((least, {below, score}) => (below ? least : Math.min(least, score ?? 1)), 1);
  }
}

export function passes(entity, threshold) {
  if (entity.score === null) return !entity.below;
  return threshold === null ? !entity.below : entity.score >= threshold;
}

export const entityKey = (entity) => `${entity.start}-${entity.end}-${entity.label}`;

export function byPlace(first, second) {
  return first.start - second.start || second.end - first.end || (first.label < second.label ? -1 : 1);
}

export function sorted(documents, order) {
  const byOrder = (first, second) => first.order - second.order;
  if (order === "given") return [...documents].sort(byOrder);
  const certainties = new Map(documents.map((document) => [document, document.certainty]));
  return [...documents].sort(
    (first, second) => certainties.get(first) - certainties.get(second) || byOrder(first, second),
  );
}

const plain = ({start, end, label, score}) => ({start, end, label, score: score ?? null});
const place = ({start, end, label}) => ({start, end, label});
const signature = (entities) => entities.map(entityKey).join(" ");
