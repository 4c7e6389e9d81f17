// Calls the service: JSON in and out, problem documents as errors. Asks for an API key once if the service requires one.

import { byId } from "./dom.js";

// The page may lie under a path, /framefit/ for example, that a proxy takes off or that the service puts before links.
const BASE = new URL(".", document.baseURI).pathname;

const route = (path) => BASE + path.slice(1);
export const address = (link) => (link.startsWith(BASE) ? link : route(link));

export class Problem extends Error {
  constructor(body, status) {
    super(body.detail || `The service answered ${status}.`);
    this.code = body.code || "unknown";
    this.status = status;
    this.body = body;
  }
}

export async function call(method, path, { json, form, signal, headers } = {}) {
  const options = { method, signal, headers: { ...headers } };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers["Content-Type"] = "application/json";
  }
  if (form) options.body = form;
  const answer = await fetch(route(path), options);
  const text = await answer.text();
  let body = {};
  try { body = text ? JSON.parse(text) : {}; } catch { /* not JSON: an error page of a proxy */ }
  if (answer.status === 401 && path !== "/session") {
    await askForKey();
    return call(method, path, { json, form, signal, headers });
  }
  if (!answer.ok && (answer.status !== 503 || body.code)) throw new Problem(body, answer.status);
  return body;
}

// The browser's session; asks for an API key if the service requires one.
export async function session() {
  for (;;) {
    try {
      return await call("GET", "/session");
    } catch (problem) {
      if (problem.status !== 401) throw problem;
      await askForKey();
    }
  }
}

let asking = null;

function askForKey() {
  asking ??= new Promise((resolve) => {
    const [dialog, form, error, key] = ["key-dialog", "key-form", "key-error", "key"].map(byId);
    form.onsubmit = async (event) => {
      event.preventDefault();
      try {
        await call("POST", "/session", { json: { key: key.value } });
      } catch (problem) {
        error.textContent = problem.message;
        error.hidden = false;
        return;
      }
      key.value = "";
      error.hidden = true;
      dialog.close();
      asking = null;
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.showModal();
  });
  return asking;
}

const KINDS = ["accepted", "claimed", "stage", "progress", "loaded", "placed", "denoise_plan", "denoise_fallback", "denoised",
  "resumed_from_latents", "checkpoint", "resumed", "checkpoint_unusable", "not_resumable",
  "latents_unreadable", "plan", "preview", "chunk", "replan", "oom", "spill", "fallback", "waiting_for_memory", "finished",
  "requeued", "preempted", "handed_over", "decode_kept", "decode_given_back", "held", "finish_early_requested", "canceled", "cancel_requested", "queued_again", "expired", "deleted"];
const REOPEN_MS = 3000;

// One event stream for all jobs. The browser reconnects by itself and resumes after the last event it received. If the
// service refused the stream, for example while it starts, the browser gives up and the stream is opened again here.
export function follow(onEvent, onState) {
  const source = new EventSource(route("/events"));
  for (const kind of KINDS) {
    source.addEventListener(kind, (message) => onEvent(kind, JSON.parse(message.data)));
  }
  source.onopen = () => onState(true);
  source.onerror = () => {
    onState(false);
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(onEvent, onState), REOPEN_MS);
  };
}
