// The list of jobs, newest first: loaded once, then updated by the event stream.

import { call } from "./api.js";
import { build, fill } from "./card.js";
import { byId, say } from "./dom.js";
import { BADGE } from "./words.js";

const PAGE = 20;
const AGAIN_MS = 3000;
const list = byId("jobs");
const empty = byId("empty");
const more = byId("more");
const announce = byId("announce");
const cards = new Map();
const jobs = new Map();
const forming = new Map(); // the step that a job's previews show
const due = new Map();
const shown = new Map(); // the request whose answer a card shows, by job: a slower answer to an earlier one is outdated
const dropped = new Set(); // deleted: a late answer does not bring a card back
const QUIET = new Set(["chunk", "downloaded"]); // they change nothing that a card shows
const GONE = new Set([404, 410]);
let requests = 0;
let cursor = null;

export async function start() {
  more.addEventListener("click", () => load(cursor));
  await load(null);
}

async function load(after) {
  const request = ++requests;
  const page = await call("GET", `/jobs?limit=${PAGE}${after ? `&cursor=${after}` : ""}`);
  if (after || cards.size === 0) cursor = page.next_cursor;
  for (const job of page.jobs) showAnswer(request, job);
  more.hidden = !cursor;
  empty.hidden = cards.size > 0;
  return new Set(page.jobs.map((job) => job.id));
}

export function add(job) {
  show(job);
  announce.textContent = "The video is queued.";
  const card = cards.get(job.id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  card.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}

// Progress is shown at once. Other events reload the job from the service a moment later.
export function onEvent(kind, data) {
  if (kind === "deleted") return drop(data.job_id);
  const job = jobs.get(data.job_id);
  if (job && (kind === "progress" || kind === "stage")) {
    const download = data.download ?? job.download;
    show({ ...job, status: "running", stage: data.stage, progress: data.progress, download, eta_range: left(job, data) });
  }
  if (kind === "preview" && data.step) {
    forming.set(data.job_id, { step: data.step, steps: data.steps });
    if (job?.links.previews?.length) return show({ ...job, stage: data.stage });
  }
  if (!QUIET.has(kind) && (kind !== "progress" || !job)) refresh(data.job_id);
  if (kind === "claimed" || kind === "finished" || kind === "canceled") {
    for (const waiting of jobs.values()) if (waiting.status === "queued") refresh(waiting.id, 1000);
  }
}

// Until the service is asked again, at the next stage, the range shrinks with the progress.
function left({ eta_range: range, stage, progress }, now) {
  if (!range || progress >= 1 || now.stage !== stage) return null;
  const share = (1 - now.progress) / (1 - progress);
  return { low_seconds: range.low_seconds * share, high_seconds: range.high_seconds * share };
}

function refresh(id, milliseconds = 150) {
  if (due.has(id)) return;
  due.set(id, setTimeout(async () => {
    due.delete(id);
    const before = jobs.get(id);
    const request = ++requests;
    try {
      const job = await call("GET", `/jobs/${id}`);
      showAnswer(request, job);
      if (before && before.status !== job.status) announce.textContent = `${job.request.prompt}: ${BADGE[job.status]}`;
    } catch (problem) {
      if (GONE.has(problem.status)) drop(id);
      else refresh(id, AGAIN_MS); // there may be no later event to reload it
    }
  }, milliseconds));
}

// After a gap in the stream: cards may be outdated, and new jobs are missing.
export async function refreshAll() {
  const known = [...jobs.keys()];
  const fresh = await load(null).catch(() => new Set());
  for (const id of known) if (!fresh.has(id)) refresh(id, 300);
}

function showAnswer(request, job) {
  if (dropped.has(job.id) || request < (shown.get(job.id) ?? 0)) return;
  shown.set(job.id, request);
  show(job);
}

// Ids increase with time. A job older than the last one loaded is left to "Show older".
function show(job) {
  let card = cards.get(job.id);
  if (!card) {
    const next = [...list.children].find((one) => one.dataset.id < job.id) ?? null;
    if (!next && cursor && job.id < cursor) return;
    card = build(job, act, remove);
    cards.set(job.id, card);
    list.insertBefore(card, next);
    empty.hidden = true;
  }
  jobs.set(job.id, job);
  fill(card, { ...job, forming: forming.get(job.id) });
}

async function act(id, method, path, json) {
  const request = ++requests;
  try {
    showAnswer(request, await call(method, path, { json }));
    cards.get(id)?.querySelector(".problem").setAttribute("hidden", "");
  } catch (error) {
    fail(id, error);
  }
}

function fail(id, error) {
  const problem = cards.get(id)?.querySelector(".problem");
  if (!problem) return;
  problem.textContent = error.message;
  problem.hidden = false;
}

async function remove(id) {
  const { prompt } = jobs.get(id).request;
  if (!(await confirmed(prompt || "(no prompt)"))) return;
  try {
    await call("POST", `/jobs/${id}/delete`);
  } catch (problem) {
    if (!GONE.has(problem.status)) return fail(id, problem);
  }
  drop(id);
  announce.textContent = "The video was deleted.";
  list.focus();
}

function confirmed(prompt) {
  const dialog = byId("delete-dialog");
  say(byId("delete-what"), prompt);
  dialog.returnValue = "keep"; // what the escape key leaves
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "delete"), { once: true });
  });
}

function drop(id) {
  dropped.add(id);
  cards.get(id)?.remove();
  for (const known of [cards, jobs, shown, forming]) known.delete(id);
  clearTimeout(due.get(id));
  due.delete(id);
  empty.hidden = cards.size > 0;
}
