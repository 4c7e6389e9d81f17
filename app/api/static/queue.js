// The list of jobs, newest first: loaded once, then updated by the event stream.

import { call } from "./api.js";
import { build, fill } from "./card.js";
import { confirmed } from "./confirm.js";
import { byId } from "./dom.js";
import * as find from "./find.js";
import { BADGE } from "./words.js";

const PAGE = 20;
const LOOKS = 25; // a search asks so often until it has found something: each time the service looks at many jobs
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
let filter = {}; // what is looked for: with words, a status or a model the list has only what was found
let searches = 0;
let fresh = true; // the next page is the first one

export const job = (id) => jobs.get(id);
const filtered = () => Object.values(filter).some(Boolean);

export async function start() {
  more.addEventListener("click", () => (filtered() ? look(searches) : load(cursor)));
  find.start(search);
  await load(null);
}

// Shows what the filter selects instead of what is shown now.
async function search(wanted) {
  const own = ++searches;
  filter = wanted;
  cursor = null;
  fresh = true;
  for (const id of [...cards.keys()]) forget(id);
  find.tell(0, true, true);
  return look(own);
}

async function look(own) {
  try {
    let found = 0;
    for (let asked = 0; asked < (filtered() ? LOOKS : 1) && !found; asked += 1) {
      found = (await load(cursor, own)).size;
      if (own !== searches) return;
      if (!cursor) break;
    }
    find.tell(cards.size, Boolean(cursor));
  } catch (error) {
    if (own === searches) find.failed(error);
  }
}

async function load(after, own = searches) {
  const request = ++requests;
  const given = Object.entries({ ...filter, cursor: after }).filter(([, value]) => value);
  const page = await call("GET", `/jobs?limit=${PAGE}&${new URLSearchParams(given)}`);
  if (own !== searches) return new Set();
  if (after || fresh || cards.size === 0) cursor = page.next_cursor;
  fresh = false;
  for (const one of page.jobs) showAnswer(request, one, true);
  more.hidden = !cursor;
  more.textContent = filtered() ? "Search older" : "Show older";
  changed();
  return new Set(page.jobs.map((one) => one.id));
}

function changed() {
  empty.hidden = cards.size > 0 || filtered();
  list.dispatchEvent(new Event("listed"));
}

// Brings the card of a job into view, by a search if it is not in the list.
export async function reveal(id) {
  if (!cards.has(id)) await find.fill(id);
  const card = cards.get(id);
  card?.scrollIntoView({ block: "center" });
  card?.focus({ preventScroll: true });
}

// `isOneOfMany`: the form tells of it.
export function add(added, isOneOfMany = false) {
  if (filtered()) find.fill("");
  show(added);
  if (isOneOfMany) return;
  announce.textContent = "The video is queued.";
  const card = cards.get(added.id);
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
  if (due.has(id) || (filtered() && !cards.has(id))) return;
  due.set(id, setTimeout(async () => {
    due.delete(id);
    const before = jobs.get(id);
    const request = ++requests;
    try {
      const now = await call("GET", `/jobs/${id}`);
      showAnswer(request, now);
      if (before && before.status !== now.status) announce.textContent = `${now.request.prompt}: ${BADGE[now.status]}`;
    } catch (problem) {
      if (GONE.has(problem.status)) drop(id);
      else refresh(id, AGAIN_MS); // there may be no later event to reload it
    }
  }, milliseconds));
}

// After a gap in the stream: cards may be outdated, and new jobs are missing.
export async function refreshAll() {
  const known = [...jobs.keys()];
  const fresh = filtered() ? new Set() : await load(null).catch(() => new Set());
  for (const id of known) if (!fresh.has(id)) refresh(id, 300);
}

// With a filter, only what was found becomes a card.
function showAnswer(request, job, found = false) {
  if (dropped.has(job.id) || request < (shown.get(job.id) ?? 0)) return;
  if (filtered() && !found && !cards.has(job.id)) return;
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
  list.dispatchEvent(new Event("listed"));
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
  if (!(await confirmed([jobs.get(id).request.prompt]))) return;
  if (await erase(id)) return;
  announce.textContent = "The video was deleted.";
  list.focus();
}

// Deletes a job. Returns the problem if the service refuses, which its card says, too.
export async function erase(id) {
  try {
    await call("POST", `/jobs/${id}/delete`);
  } catch (problem) {
    if (!GONE.has(problem.status)) {
      fail(id, problem);
      return problem;
    }
  }
  drop(id);
  return null;
}

function drop(id) {
  dropped.add(id);
  forget(id);
  changed();
}

function forget(id) {
  cards.get(id)?.remove();
  for (const known of [cards, jobs, shown, forming]) known.delete(id);
  clearTimeout(due.get(id));
  due.delete(id);
}
