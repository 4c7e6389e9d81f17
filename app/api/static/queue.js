// The list of jobs: loaded once, then kept up to date by the event stream.

import { call } from "/static/api.js";
import { BADGE, decided, doing, planned, seconds } from "/static/words.js";

const PAGE = 20;
const list = document.getElementById("jobs");
const empty = document.getElementById("empty");
const more = document.getElementById("more");
const announce = document.getElementById("announce");
const template = document.getElementById("job-template");
const cards = new Map();
const jobs = new Map();
const due = new Map();
let cursor = null;

export async function start() {
  more.addEventListener("click", () => load(cursor));
  await load(null);
}

async function load(after) {
  const page = await call("GET", `/jobs?limit=${PAGE}${after ? `&cursor=${after}` : ""}`);
  for (const job of page.jobs) show(job, { last: true });
  cursor = page.next_cursor;
  more.hidden = !cursor;
  empty.hidden = cards.size > 0;
}

export function add(job) {
  show(job, { last: false });
  announce.textContent = "The video is queued.";
}

// Small news is written into the card at once; anything else asks the service how the job stands, a moment later.
export function onEvent(kind, data) {
  const job = jobs.get(data.job_id);
  if (job && (kind === "progress" || kind === "stage")) {
    show({ ...job, status: "running", stage: data.stage, progress: data.progress, eta_seconds: null });
  } else if (kind !== "chunk") {
    refresh(data.job_id);
  }
  if (kind === "claimed" || kind === "finished") {
    for (const waiting of jobs.values()) if (waiting.status === "queued") refresh(waiting.id, 1000);
  }
}

function refresh(id, milliseconds = 150) {
  clearTimeout(due.get(id));
  due.set(id, setTimeout(async () => {
    due.delete(id);
    const before = jobs.get(id);
    const job = await call("GET", `/jobs/${id}`);
    show(job, { last: false });
    if (before && before.status !== job.status) announce.textContent = `${job.request.prompt}: ${BADGE[job.status]}`;
  }, milliseconds));
}

export function refreshAll() {
  for (const id of jobs.keys()) refresh(id, 300);
}

function show(job, { last = false } = {}) {
  jobs.set(job.id, job);
  let card = cards.get(job.id);
  if (!card) {
    card = build(job);
    cards.set(job.id, card);
    if (last) list.append(card); else list.prepend(card);
    empty.hidden = true;
  }
  fill(card, job);
}

function build(job) {
  const card = template.content.firstElementChild.cloneNode(true);
  card.querySelector(".cancel").addEventListener("click", () => act(job.id, "DELETE", `/jobs/${job.id}`));
  const again = card.querySelector(".again");
  again.addEventListener("change", () => {
    act(job.id, "POST", `/jobs/${job.id}/redecode`, { decode_strategy: again.value });
    again.value = "";
  });
  return card;
}

async function act(id, method, path, json) {
  try {
    show(await call(method, path, { json }));
  } catch (error) {
    announce.textContent = error.message;
    cards.get(id).querySelector(".what").textContent = error.message;
  }
}

function fill(card, job) {
  const part = (name) => card.querySelector(`.${name}`);
  const active = job.status === "queued" || job.status === "running";
  card.dataset.status = job.status;
  part("prompt").textContent = job.request.prompt;
  part("badge").textContent = BADGE[job.status];
  set(part("what"), doing(job));
  set(part("decision"), decided(job.decode) || (active ? planned(job.plan, "Will decode") : ""));
  set(part("meta"), meta(job));
  const progress = card.querySelector("progress");
  progress.hidden = job.status !== "running";
  progress.value = job.progress;
  progress.setAttribute("aria-label", `Progress of: ${job.request.prompt}`);
  part("cancel").hidden = !active || job.cancel_requested;
  part("download").hidden = !job.links.video;
  if (job.links.video) part("download").href = job.links.video;
  part("again-label").hidden = !job.links.redecode || job.expired;
  fillMedia(part("media"), job);
}

function set(element, content) {
  if (element.textContent !== content) element.textContent = content;
  element.hidden = !content;
}

function meta(job) {
  const asked = job.request;
  const frames = asked.num_frames - asked.loop;
  const told = [job.model, `${asked.width} × ${asked.height}`, `${frames} frames, ${seconds(frames / asked.fps)}`];
  told.push(`seed ${asked.seed}`);
  if (job.started_at && job.finished_at) told.push(`made in ${seconds((new Date(job.finished_at) - new Date(job.started_at)) / 1000)}`);
  if (job.attempts > 1) told.push(`attempt ${job.attempts}`);
  return told.join(" · ");
}

// The video is put in place once for each time it was made, so that playing is not interrupted by later news.
function fillMedia(media, job) {
  const previews = job.status === "running" ? job.links.previews || [] : [];
  const wanted = previews.length ? `previews ${previews.length}` : job.links.video ? `video ${job.finished_at}` : "image";
  if (media.dataset.shows === wanted || (wanted.startsWith("video") && !job.finished_at)) return;
  media.dataset.shows = wanted;
  media.style.aspectRatio = `${job.request.width} / ${job.request.height}`;
  if (previews.length) return media.replaceChildren(strip(job, previews));
  const element = document.createElement(job.links.video ? "video" : "img");
  if (job.links.video) {
    // Not preloaded: a browser opens few connections to one host, and the queue needs them for news.
    Object.assign(element, { controls: true, loop: true, muted: true, playsInline: true, preload: "none" });
    element.poster = job.links.thumbnail ? `${job.links.thumbnail}?made=${encodeURIComponent(job.finished_at)}` : job.links.image ?? "";
    element.src = `${job.links.video}?made=${encodeURIComponent(job.finished_at)}`;
    element.setAttribute("aria-label", `Video: ${job.request.prompt}`);
  } else {
    element.loading = "lazy";
    element.alt = `Image: ${job.request.prompt}`;
    element.addEventListener("error", () => element.remove());
    if (job.links.image) element.src = job.links.image;
  }
  media.replaceChildren(element);
}

// What is known of the video while it is decoded: single frames, each decoded alone and small.
function strip(job, previews) {
  const element = document.createElement("div");
  element.className = "previews";
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", `Previews of: ${job.request.prompt}`);
  const [first, last, ...between] = previews;
  for (const link of [first, ...between, last].filter(Boolean)) {
    const picture = document.createElement("img");
    picture.alt = "";
    picture.src = `${link}?attempt=${job.attempts}`;
    picture.addEventListener("error", () => picture.remove());
    element.append(picture);
  }
  return element;
}
