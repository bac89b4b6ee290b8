// Texts that the user gives: pasted, typed, or from files. Nothing is changed: line ends stay as they were pasted.

import {t} from "./strings.js";

const MOST = 5000;
const LARGEST = 20_000_000;

// The documents [{id, text}] of a pasted text.
export function fromPasted(text, byLine) {
  const texts = byLine ? text.split(/\r\n|\n|\r/) : [text];
  return checked(texts.filter((line) => line.trim()).map((line) => ({id: null, text: line})), "");
}

// The documents of a file: of .jsonl a JSON object each line, of another one a text each line.
export async function fromFile(file) {
  if (file.size > LARGEST) throw new Error(t("fileLarge", {name: file.name, n: LARGEST / 1e6}));
  const content = decoded(await file.arrayBuffer(), file.name);
  const lines = content.split(/\r\n|\n|\r/);
  const isJson = /\.(jsonl|ndjson)$/i.test(file.name);
  const documents = lines.flatMap((line, index) => {
    if (!line.trim()) return [];
    return [isJson ? fromJson(line, file.name, index + 1) : {id: null, text: line}];
  });
  if (!documents.length) throw new Error(t("fileEmpty", {name: file.name}));
  return checked(documents, file.name);
}

function decoded(bytes, name) {
  try {
    return new TextDecoder("utf-8", {fatal: true}).decode(bytes);
  } catch {
    throw new Error(t("fileEncoding", {name}));
  }
}

function fromJson(line, name, number) {
  let record;
  try {
    record = JSON.parse(line);
  } catch {
    throw new Error(t("fileJson", {name, n: number}));
  }
  if (typeof record?.text !== "string" || !record.text.trim()) throw new Error(t("fileText", {name, n: number}));
  const {id} = record;
  if (id !== undefined && typeof id !== "string" && typeof id !== "number") {
    throw new Error(t("fileId", {name, n: number}));
  }
  return {id: id === undefined ? null : String(id), text: record.text};
}

function checked(documents, name) {
  if (documents.length > MOST) throw new Error(t("tooMany", {name, n: documents.length, most: MOST}));
  const halved = documents.find(({text}) => /\p{Surrogate}/u.test(text));
  if (halved) throw new Error(t("halfCharacter", {text: halved.text.slice(0, 40)}));
  return documents;
}

// A text area turns CRLF into LF. This keeps what was pasted into an empty one, until something else is typed.
export class PasteKeeper {
  constructor(area) {
    this.area = area;
    this.pasted = null;
    area.addEventListener("paste", (event) => {
      const text = event.clipboardData?.getData("text/plain") ?? "";
      const isAll = area.selectionStart === 0 && area.selectionEnd === area.value.length;
      this.pasted = isAll && text.includes("\r") ? text : null;
    });
  }

  get text() {
    const {value} = this.area;
    return this.pasted !== null && this.pasted.replace(/\r\n?/g, "\n") === value ? this.pasted : value;
  }
}
