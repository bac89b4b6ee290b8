// The rows of the two lists, and how an entity is drawn in the text.

import {byPlace, entityKey} from "./documents.js";
import {made} from "./lists.js";
import {colorOf, isPredicted, isSaved, isUnsaved, nameOf, state} from "./state.js";
import {t} from "./strings.js";

// The rows of the queue for a list box.
export function queueRows(documents) {
  return documents.map((document) => ({
    key: document.key,
    signature: [
      t("language"),
      document.state,
      document.certainty,
      document.problems.length,
      isSaved(document),
      isUnsaved(document),
    ].join(" "),
    build: (row) => buildDocument(row, document),
  }));
}

function buildDocument(row, document) {
  made("span", document.text.text.slice(0, 120).replace(/\s+/g, " "), row, "words").dir = "auto";
  const what = made("span", "", row, "what");
  if (document.state === "failed") made("span", t("failed"), what, "wrong");
  else if (document.state !== "done") made("span", t(document.state), what);
  else if (document.problems.length) made("span", t("problem"), what, "wrong");
  else addCertainty(what, document);
  if (isSaved(document)) made("b", `✓ ${t("saved")}`, what);
  else if (isUnsaved(document)) made("b", `● ${t("changed")}`, what);
}

function addCertainty(what, document) {
  const kept = document.predicted.filter((entity) => !entity.below);
  if (!kept.length) made("span", t("noEntities"), what);
  if (!kept.some((entity) => entity.score !== null)) return;
  const {certainty} = document;
  made("i", "", made("span", "", what, "meter")).style.setProperty("transform", `scaleX(${certainty})`);
  made("span", certainty.toFixed(2), what);
  what.title = t("certaintyOf", {score: certainty.toFixed(2)});
}

// The rows of the entities for a list box; `surface(entity)` is its text.
export function entityRows(entities, surface) {
  return [...entities].sort(byPlace).map((entity) => ({
    key: entityKey(entity),
    signature: [t("language"), state.document.key, entity.score, isPredicted(entity)].join(" "),
    build: (row) => {
      row.className = `${colorOf(entity.label)}${entity.below ? " below" : ""}`;
      made("span", surface(entity), row, "surface").dir = "auto";
      made("span", scoreOf(entity), row, "score");
      const label = made("span", entity.label, row, "label");
      if (nameOf(entity.label)) made("span", ` ${nameOf(entity.label)}`, label);
      made("span", `${entity.start}–${entity.end}`, row, "offsets");
    },
  }));
}

function scoreOf(entity) {
  if (entity.score !== null) return entity.score.toFixed(3);
  return isPredicted(entity) ? "–" : t("byYou");
}

// How an entity is drawn: the class of its colour, its tag and its tooltip.
export function look(entity) {
  const words = [entity.label, nameOf(entity.label)].join(" ").trim();
  const score = entity.score === null ? scoreOf(entity) : t("score", {score: scoreOf(entity)});
  const hint = `${words} · ${score} · [${entity.start}, ${entity.end})`;
  return {color: colorOf(entity.label), tag: entity.label, hint};
}
