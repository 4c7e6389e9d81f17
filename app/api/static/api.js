// Talks to the service: JSON in and out, problem documents as errors, the key asked for once where one is needed.

export class Problem extends Error {
  constructor(body, status) {
    super(body.detail || `The service answered ${status}.`);
    this.code = body.code || "unknown";
    this.status = status;
    this.body = body;
  }
}

export async function call(method, path, { json, form, signal } = {}) {
  const options = { method, signal, headers: {} };
  if (json !== undefined) {
    options.body = JSON.stringify(json);
    options.headers["Content-Type"] = "application/json";
  }
  if (form) options.body = form;
  const answer = await fetch(path, options);
  const text = await answer.text();
  let body = {};
  try { body = text ? JSON.parse(text) : {}; } catch { /* a proxy's page, not ours */ }
  if (answer.status === 401 && path !== "/session") {
    await askForKey();
    return call(method, path, { json, form, signal });
  }
  if (!answer.ok && answer.status !== 503) throw new Problem(body, answer.status);
  if (answer.status === 503 && body.code) throw new Problem(body, 503);
  return body;
}

let asking = null;

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const error = document.getElementById("key-error");
    const submit = async (event) => {
      event.preventDefault();
      try {
        await call("POST", "/session", { json: { key: document.getElementById("key").value } });
      } catch (problem) {
        error.textContent = problem.message;
        error.hidden = false;
        return;
      }
      dialog.close();
      asking = null;
      resolve();
    };
    document.getElementById("key-form").addEventListener("submit", submit);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.showModal();
  });
  return asking;
}

const KINDS = ["accepted", "claimed", "stage", "progress", "denoised", "resumed_from_latents", "plan", "chunk", "replan",
  "oom", "fallback", "waiting_for_memory", "finished", "requeued", "canceled", "cancel_requested", "queued_again", "expired"];

// One stream for every job. The browser reconnects by itself and resumes after the last event it saw.
export function follow(onEvent, onState) {
  const source = new EventSource("/events");
  for (const kind of KINDS) {
    source.addEventListener(kind, (message) => onEvent(kind, JSON.parse(message.data)));
  }
  source.onopen = () => onState(true);
  source.onerror = () => onState(false);
  return source;
}
