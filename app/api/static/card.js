// The card of one job: its video or image, status, decode decision, and actions.

import { address } from "./api.js";
import { fromTemplate, make, say } from "./dom.js";
import { downloadAs, offer } from "./formats.js";
import { BADGE, decided, doing, exactness, facts, planned, rate, seconds, share } from "./words.js";

export function build(job, act, remove) {
  const card = fromTemplate("job-template");
  card.dataset.id = job.id;
  card.id = `job-${job.id}`;
  const on = (name, kind, action) => card.querySelector(`.${name}`).addEventListener(kind, action);
  on("cancel", "click", () => act(job.id, "DELETE", `/jobs/${job.id}`));
  on("finish", "click", ({ target }) => {
    target.dataset.asked = "yes";
    target.disabled = true;
    act(job.id, "POST", `/jobs/${job.id}/finish-early`);
  });
  on("retry", "click", () => act(job.id, "POST", `/jobs/${job.id}/retry`));
  on("delete", "click", () => remove(job.id));
  on("as", "change", ({ target }) => {
    const name = target.value;
    target.value = "";
    downloadAs(card, name);
  });
  on("continue", "click", () => document.dispatchEvent(new CustomEvent("continue-video", { detail: job.id })));
  on("again", "change", ({ target }) => {
    const strategy = target.value;
    target.value = "";
    act(job.id, "POST", `/jobs/${job.id}/redecode`, { decode_strategy: strategy, exact_only: !strategy.startsWith("approximate") });
  });
  for (const [name, what] of [["cancel", "Cancel"], ["finish", "Stop early: keep"], ["retry", "Try again"], ["download", "Download"], ["continue", "Continue this video"], ["delete", "Delete"], ["reuse", "Reuse"], ["code", "Code"], ["pick", "Select"]]) {
    card.querySelector(`.${name}`).setAttribute("aria-label", `${what}: ${job.request.prompt}`);
  }
  return card;
}

export function fill(card, job) {
  const part = (name) => card.querySelector(`.${name}`);
  const active = job.status === "queued" || job.status === "running";
  card.dataset.status = job.expired ? "expired" : job.status;
  say(part("prompt"), job.request.prompt || "(no prompt)");
  say(part("badge"), job.expired ? "Expired" : BADGE[job.status]);
  say(part("what"), doing(job));
  showDecision(part("decision"), job, active);
  say(part("meta"), meta(job));
  showFacts(part("facts"), job);
  const progress = card.querySelector("progress");
  progress.hidden = job.status !== "running";
  progress.value = share(job);
  progress.setAttribute("aria-label", `Progress of: ${job.request.prompt}`);
  part("cancel").hidden = !active || job.cancel_requested;
  part("finish").hidden = !job.links.finish_early || job.cancel_requested;
  part("finish").disabled = Boolean(job.links.finish_early && part("finish").dataset.asked);
  if (!active) delete part("finish").dataset.asked;
  part("retry").hidden = !job.links.retry;
  part("download").hidden = !job.links.video;
  if (job.links.video) part("download").href = address(job.links.video);
  offer(card, job);
  part("delete").hidden = active;
  part("choose").hidden = active;
  if (active) part("pick").checked = false;
  part("continue").hidden = active || !job.links.last_frame;
  part("again-label").hidden = !job.links.redecode;
  showAgain(part("again"), job);
  fillMedia(part("media"), job);
}

// A job that ended before its denoising did has no latents: it starts from the beginning.
function showAgain(select, job) {
  const action = job.denoise ? "Decode again" : "Run again";
  say(select.options[0], `${action}…`);
  select.setAttribute("aria-label", `${action}: ${job.request.prompt}`);
}

function showDecision(element, job, active) {
  const outcome = decided(job.decode);
  const waits = job.stage === "waiting_for_memory"; // the earlier plan does not fit now
  const sentence = outcome || (active && !waits ? planned(job.plan, "Will decode") : "");
  const [plan, weights] = outcome ? [job.decode, job.denoise] : [job.plan, job.plan?.weights];
  const label = sentence && plan?.strategy ? exactness(plan, weights) : "";
  if (element.dataset.shown === sentence + label) return;
  element.dataset.shown = sentence + label;
  element.hidden = !sentence;
  element.replaceChildren(...(label ? [make("span", label, `chip ${label}`), " "] : []), sentence);
}

function showFacts(element, job) {
  const rows = facts(job);
  element.hidden = rows.length === 0;
  const list = element.querySelector("dl");
  if (list.dataset.shown === JSON.stringify(rows)) return;
  list.dataset.shown = JSON.stringify(rows);
  list.replaceChildren(...rows.flatMap(([name, sentence]) => [make("dt", name), make("dd", sentence)]));
}

function meta(job) {
  const { request } = job;
  const frames = request.num_frames - request.loop;
  const parts = [job.model, `${request.width} × ${request.height}`, `${frames} frames, ${seconds(frames / rate(request.fps))}`];
  const { cut_share: cut, bars, stretch } = job.pictures.image ?? {};
  if (cut >= 0.005) parts.push(`photo cropped by ${Math.round(100 * cut)} %`);
  if (bars && Object.values(bars).some(Boolean)) parts.push("photo between bars");
  if (stretch && stretch !== 1) parts.push("photo stretched");
  parts.push(`seed ${job.seed}`); // text: the number in `request` is rounded beyond 2**53
  if (job.denoise?.stopped_at_step) parts.push(`stopped early after step ${job.denoise.stopped_at_step} of ${job.denoise.steps}`);
  if (job.continued_from) parts.push("continues another video");
  if (request.keyframes?.length) parts.push(`key frames at ${request.keyframes.map((one) => one.frame).join(", ")}`);
  if (request.priority) parts.push(`priority ${request.priority}`);
  if (job.started_at && job.finished_at) parts.push(`took ${seconds((new Date(job.finished_at) - new Date(job.started_at)) / 1000)}`);
  if (job.attempts > 1) parts.push(`attempt ${job.attempts}`);
  return parts.join(" · ");
}

// Replaces the video only when a new one was made, so that later events do not interrupt playback.
function fillMedia(media, job) {
  const previews = job.status === "running" ? job.links.previews || [] : [];
  const forming = job.stage === "denoising" ? job.forming : null; // the step that the previews show
  const wanted = previews.length ? `previews ${previews.length} ${job.attempts} ${job.stage === "denoising" ? forming?.step ?? "" : "decoding"}`
    : job.links.video ? `video ${job.finished_at}` : "image";
  if (media.dataset.shows === wanted || (wanted.startsWith("video") && !job.finished_at)) return;
  media.dataset.shows = wanted;
  media.style.aspectRatio = `${job.request.width} / ${job.request.height}`;
  if (previews.length) showStrip(media, job, previews, forming);
  else media.replaceChildren(job.links.video ? video(job) : picture(job));
}

function video(job) {
  const made = `?made=${encodeURIComponent(job.finished_at)}`;
  const element = make("video");
  // Not preloaded: a browser opens few connections to one host, and the queue needs them for events.
  Object.assign(element, { controls: true, loop: true, muted: true, playsInline: true, preload: "none" });
  const { thumbnail, image } = job.links;
  element.poster = thumbnail ? address(thumbnail) + made : image ? address(image) : "";
  element.src = address(job.links.video) + made;
  element.setAttribute("aria-label", `Video: ${job.request.prompt}`);
  return element;
}

function picture(job) {
  if (!job.links.image) return make("span"); // it expired with its job
  const element = make("img");
  element.loading = "lazy";
  element.alt = `Image: ${job.request.prompt}`;
  element.addEventListener("error", () => element.remove());
  element.src = address(job.links.image);
  return element;
}

// The previews of a video that forms, and those before its decode. One is large, all are in a row below it. Later ones
// take the place of earlier ones in the same elements, so that nothing flickers.
function showStrip(media, job, previews, forming) {
  const [first, last, ...between] = previews;
  const links = [first, ...between, last].filter(Boolean);
  const made = job.stage === "denoising" ? `step-${forming?.step ?? 0}` : "decoding";
  const sources = [links[Math.floor(links.length / 2)], ...links].map((link) => `${address(link)}?attempt=${job.attempts}&made=${made}`);
  let element = media.querySelector(".previews");
  if (element?.querySelectorAll("img").length !== sources.length) {
    element = emptyStrip(job, sources.length);
    media.replaceChildren(element);
  }
  element.querySelectorAll("img").forEach((frame, index) => { frame.src = sources[index]; });
  say(element.querySelector(".forming"), forming ? `Step ${forming.step} of ${forming.steps}` : "");
}

function emptyStrip(job, count) {
  const element = make("div", null, "previews");
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", `Previews of: ${job.request.prompt}`);
  const frames = Array.from({ length: count }, () => {
    const frame = make("img");
    frame.alt = "";
    frame.addEventListener("error", () => frame.remove());
    return frame;
  });
  const row = make("div");
  row.append(...frames.slice(1));
  element.append(frames[0], make("span", "", "forming"), row);
  return element;
}
