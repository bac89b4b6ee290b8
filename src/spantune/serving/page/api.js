// Requests to the service. Each failure is a Failure with a sentence for the user; a 401 asks for the token once.

import {tab} from "./storage.js";

const TOKEN = "spantune.token";

export class Failure extends Error {
  // `kind` is "busy" (ask again after `seconds`), "offline", "large", "token" or "refused".
  constructor(message, kind, {seconds = 0, status = 0, code = ""} = {}) {
    super(message);
    Object.assign(this, {kind, seconds, status, code});
  }
}

let asking = null;
let askForToken = async () => null;

// Name the function that asks the user for the token, and returns null where there is none to be had.
export function onToken(ask) {
  askForToken = ask;
}

export async function getJson(path) {
  return (await request(path)).json();
}

export async function postJson(path, body, signal) {
  return (await request(path, {body, signal})).json();
}

// Yield each line of a streamed answer as an object.
export async function* postLines(path, body, signal) {
  const response = await request(path, {body, signal, accept: "application/x-ndjson"});
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await read(reader);
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) if (line.trim()) yield JSON.parse(line);
    if (done) return;
  }
}

export async function request(path, {body, signal, accept} = {}) {
  for (;;) {
    const used = tab.get(TOKEN);
    const response = await send(path, body, signal, accept, used);
    if (response.ok) return response;
    const error = (await response.json().catch(() => null))?.error ?? {};
    if (response.status !== 401) throw failure(response, error);
    if (tab.get(TOKEN) === used) await login(used !== null);
  }
}

async function send(path, body, signal, accept, token) {
  const headers = {};
  if (accept) headers.Accept = accept;
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const content = body === undefined ? undefined : JSON.stringify(body);
  const method = body === undefined ? "GET" : "POST";
  try {
    // Without credentials of the browser's own, which would ask for a name and a password at a 401.
    return await fetch(path, {method, headers, body: content, signal, credentials: "omit", cache: "no-store"});
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("", "offline");
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("", "offline");
  }
}

function failure(response, {message = `HTTP ${response.status}`, remedy = "", code = ""}) {
  const {status} = response;
  const said = remedy ? `${message}; ${remedy}` : message;
  const wait = response.headers.get("Retry-After");
  const seconds = Math.min(Math.max(Number(wait) || 2, 1), 60);
  if (status === 429 || (status === 503 && wait !== null && code !== "deadline_exceeded")) {
    return new Failure(said, "busy", {seconds, status, code});
  }
  const isLarge = status === 413 || status === 408 || code === "deadline_exceeded";
  return new Failure(said, isLarge ? "large" : "refused", {status, code});
}

// Ask for the token; requests that fail at the same time wait for the same answer.
async function login(wasRefused) {
  asking ??= Promise.resolve(askForToken(wasRefused)).finally(() => (asking = null));
  const token = await asking;
  if (token === null) throw new Failure("", "token", {status: 401});
  tab.set(TOKEN, token);
}
