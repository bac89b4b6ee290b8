// Extraction of a queue: a few texts a request, two requests at once, each result as soon as it is there. A service that
// is busy or does not answer is waited for; a request that is too large is sent again in parts.

import {Failure, postLines} from "./api.js";

const DOCUMENTS = 16;
const CHARACTERS = 40_000;
const REQUESTS = 2;
const LONGEST_WAIT = 15;
const FEW = 3;

// Extract from `documents`. `changed(document)` is called at each result, and `waiting(failure, seconds)` where the
// service is waited for, with null when it goes on. Ends when all are done, or when `signal` is aborted.
export async function extract(documents, {model, signal, changed, waiting}) {
  const batches = batched(documents);
  const work = async () => {
    let tries = 0;
    while (batches.length && !signal.aborted) {
      const batch = batches.shift();
      try {
        await extractBatch(batch, model, signal, changed);
        if (tries) waiting(null, 0);
        tries = 0;
      } catch (error) {
        const left = batch.filter((document) => document.state === "running");
        for (const document of left) document.state = "waiting";
        if (signal.aborted) break;
        if (!(error instanceof Failure)) throw error;
        if (error.kind === "busy" || error.kind === "offline") {
          tries += 1;
          const half = tries > FEW ? left.length >> 1 : 0; // a short queue never has room for many at once
          batches.unshift(left.slice(half));
          if (half) batches.unshift(left.slice(0, half));
          const seconds = Math.max(error.seconds, Math.min(2 ** (tries - 1), LONGEST_WAIT));
          waiting(error, seconds);
          await pause(seconds, signal);
          waiting(null, 0);
        } else if (error.kind === "token") {
          return;
        } else if (left.length > 1) {
          const middle = left.length >> 1;
          batches.unshift(left.slice(0, middle), left.slice(middle));
        } else {
          for (const document of left) document.fail(error.message);
          left.forEach(changed);
        }
      }
    }
  };
  await Promise.all(Array.from({length: REQUESTS}, work));
  for (const document of documents) if (document.state === "running") document.state = "waiting";
}

async function extractBatch(batch, model, signal, changed) {
  for (const document of batch) document.state = "running";
  const texts = batch.map((document) => ({text: document.text.text}));
  const body = {documents: texts, model, all_scores: true};
  for await (const line of postLines("/v1/extract", body, signal)) {
    if (line.error) throw new Failure(`${line.error.message}; ${line.error.remedy}`, kindOf(line.error.code), {seconds: 2});
    const document = batch[line.index];
    document.take(line, model);
    changed(document);
  }
  if (batch.some((document) => document.state === "running")) throw new Failure("", "offline");
}

function kindOf(code) {
  if (code === "deadline_exceeded") return "large";
  return code === "overloaded" || code === "stopping" ? "busy" : "refused";
}

function batched(documents) {
  const batches = [];
  let [batch, characters] = [[], 0];
  for (const document of documents) {
    const {length} = document.text.text;
    if (batch.length === DOCUMENTS || (batch.length && characters + length > CHARACTERS)) {
      batches.push(batch);
      [batch, characters] = [[], 0];
    }
    batch.push(document);
    characters += length;
  }
  if (batch.length) batches.push(batch);
  return batches;
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), {once: true});
  });
}
