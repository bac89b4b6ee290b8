// Corrections on their way to the service. Each is kept in localStorage until the service has it, so that neither a
// closed page nor a stopped service loses one; where this browser keeps nothing, they are held by the page, which says so.

import {Failure, postJson, request} from "./api.js";
import {browser} from "./storage.js";

const PREFIX = "spantune.correction.";
const FIRST_WAIT = 2;
const LONGEST_WAIT = 30;

export class Outbox {
  // `changed()` is called whenever a property is another one.
  constructor(changed) {
    this.changed = changed;
    this.sent = 0; // by this page
    this.failure = null; // why the last try failed
    this.hasFolder = true; // false where the service keeps no corrections
    this.timer = null;
    this.isSending = false;
    this.isAsked = false; // for a round after the present one
    this.wait = FIRST_WAIT;
    addEventListener("storage", changed);
    addEventListener("online", () => this.send());
  }

  get waiting() {
    return this.keys().length;
  }

  get isKept() {
    return this.keys().length === 0 || browser.isKept;
  }

  // Of what waits, the oldest first.
  keys() {
    return browser.keys().filter((key) => key.startsWith(PREFIX)).sort();
  }

  forgetAll() {
    for (const key of this.keys()) browser.remove(key);
    this.changed();
  }

  // Keep a correction, and send it.
  add(correction) {
    const random = crypto.getRandomValues(new Uint32Array(2)).join("");
    browser.set(`${PREFIX}${Date.now()}.${random}`, JSON.stringify(correction));
    this.changed();
    return this.send();
  }

  // Send all that wait, the oldest first; one page of this browser at a time.
  async send() {
    this.isAsked = true;
    if (this.isSending) return;
    this.isSending = true;
    clearTimeout(this.timer);
    try {
      while (this.isAsked) {
        this.isAsked = false;
        if (navigator.locks) await navigator.locks.request("spantune.corrections", () => this.sendAll());
        else await this.sendAll();
      }
      this.failure = null;
      this.wait = FIRST_WAIT;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      this.failed(error);
    } finally {
      this.isSending = false;
      this.changed();
    }
  }

  async sendAll() {
    let refused = null;
    for (const key of this.keys()) {
      const correction = browser.get(key);
      if (correction === null) continue; // another page has sent it
      try {
        await postJson("/v1/corrections", JSON.parse(correction));
      } catch (error) {
        if (!(error instanceof Failure) || error.kind !== "refused" || isForAll(error)) throw error;
        refused = error; // this one only: the others are not held up
        continue;
      }
      this.hasFolder = true;
      browser.remove(key);
      this.sent += 1;
      this.changed();
    }
    if (refused) throw refused;
  }

  failed(error) {
    this.failure = error;
    if (error.kind === "refused" || error.kind === "token" || error.kind === "large") {
      this.hasFolder = !isForAll(error);
      return;
    }
    this.timer = setTimeout(() => this.send(), 1000 * Math.max(error.seconds, this.wait));
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
  }

  // The lines of all corrections: the service's file where it keeps one, else those of this browser.
  async download() {
    if (this.hasFolder) {
      try {
        return await (await request("/v1/corrections")).text();
      } catch (error) {
        if (!(error instanceof Failure) || !isForAll(error)) throw error;
      }
    }
    return this.keys().map((key) => line(JSON.parse(browser.get(key)))).join("");
  }
}

// Whether the service keeps no corrections at all.
function isForAll({code}) {
  return code === "no_corrections_folder";
}

// A correction as a line of native JSONL.
function line({model, document, predicted}) {
  const points = Array.from(document.text);
  const withText = (entity) => ({...entity, text: points.slice(entity.start, entity.end).join("")});
  const entities = document.entities.map(withText);
  const meta = {model, predicted: predicted.map(withText)};
  return `${JSON.stringify({...(document.id === undefined ? {} : {id: document.id}), text: document.text, entities, meta})}\n`;
}
