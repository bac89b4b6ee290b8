// What the page says: beside what is shown, for screen readers, and in the line of alarms.

import {Failure} from "./api.js";
import {$, say} from "./panels.js";
import {t} from "./strings.js";

const PAUSE = 400; // milliseconds that something stays selected before it is said

let speaking = null;

export function announce(words) {
  clearTimeout(speaking);
  say($("said"), words);
}

// Say what is selected, once it stays so for a moment.
export function later(words) {
  clearTimeout(speaking);
  speaking = setTimeout(() => say($("said"), words), PAUSE);
}

export function alarm(words) {
  say($("alert"), words);
}

export function report(error) {
  if (!(error instanceof Failure)) {
    alarm(t("unexpected", {message: error.message}));
    throw error;
  }
  alarm(error.kind === "offline" ? t("noService") : error.kind === "token" ? t("noToken") : error.message);
}
