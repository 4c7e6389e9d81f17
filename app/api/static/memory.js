// The memory chart of each device, live and over the last hour, with the decodes in it and the predicted peak of the
// current plan. Also the button that pauses a device.

import { call } from "./api.js";
import * as chart from "./chart.js";
import { fromTemplate, make, say } from "./dom.js";
import * as timeline from "./timeline.js";
import { bytes, heldByOthers, seconds } from "./words.js";
import * as zoom from "./zoom.js";

const EVERY_MS = 2000;
const STATES = { paused: "Paused", draining: "Finishing its job, then paused" };
const charts = new Map();
let predicted = null;
let states = [];

// Whether jobs wait although there are devices. A device that finishes its job first takes no other one.
export const allPaused = () => states.length > 0 && states.every((state) => state !== "active");

export function showPrediction(plan) {
  predicted = plan?.predicted_peak_bytes ? { device: plan.device, bytes: plan.predicted_peak_bytes } : null;
  drawAll();
}

const ENDS = ["finished", "requeued", "preempted", "held", "handed_over"]; // also of a decode

export function onEvent(kind, data) {
  if ((kind === "stage" && (data.stage === "decoding" || data.stage === "encoding")) || ENDS.includes(kind)) refresh();
}

// Also when events may have been missed.
export const refresh = () => timeline.refreshDecodes(drawAll);

export async function start(root, { admin }) {
  zoom.start(drawAll);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) timeline.load().then(drawAll); });
  await timeline.load();
  for (;;) {
    if (!document.hidden) {
      try { update(root, await call("GET", "/devices"), admin); } catch { /* the connection state shows it */ }
    }
    await new Promise((resume) => setTimeout(resume, EVERY_MS));
  }
}

function update(root, report, admin) {
  const alive = report.devices.filter((device) => device.worker_state !== "lost" && device.total_bytes);
  states = alive.map((device) => device.worker_state);
  const hosts = new Set(alive.map((device) => device.host)).size;
  for (const device of alive) {
    const gpu = report.gpus.find((one) => one.uuid === device.uuid && one.state === "ok");
    const free = gpu ? gpu.free_bytes : device.free_bytes;
    timeline.add(device.worker_id, timeline.reading(Date.now(), device.total_bytes, free, device.own_bytes));
    if (!charts.has(device.worker_id)) charts.set(device.worker_id, build(root, device, admin));
    describe(charts.get(device.worker_id).root, device, gpu, hosts > 1);
  }
  for (const [id, one] of charts) {
    if (!alive.some((device) => device.worker_id === id)) { one.root.remove(); charts.delete(id); }
  }
  zoom.known(Math.min(Date.now(), ...[...charts.keys()].map((id) => timeline.of(id)[0].at)));
  drawAll();
  const none = root.querySelector(":scope > p");
  const unused = worthAWarning(report.unused_gpus, alive);
  const told = new Set([...alive, ...unused].map((one) => one.uuid));
  const broken = report.gpus.filter((gpu) => gpu.state !== "ok" && !told.has(gpu.uuid));
  say(none, [
    ...(alive.length ? [] : ["No worker is running."]),
    ...(allPaused() ? ["Every device is paused: jobs wait until one is resumed."] : []),
    ...broken.map((gpu) => `${gpu.name || gpu.uuid}: ${gpu.state}.`),
    ...unused.map((gpu) => `${gpu.name || gpu.uuid || "A GPU"} is not used: ${gpu.detail || gpu.reason}. ${gpu.advice}`),
  ].join(" "));
  none.classList.toggle("error", unused.length > 0);
}

// GPUs without a worker, but those that somebody left out. A hidden one counts if only the CPU works.
function worthAWarning(gpus, alive) {
  const onCpu = alive.every((device) => device.kind === "cpu");
  return gpus.filter((gpu) => gpu.reason !== "not_selected" && (onCpu || gpu.reason !== "hidden"));
}

function build(root, device, admin) {
  const card = fromTemplate("device-template");
  const plot = card.querySelector(".plot");
  const parts = chart.build(card.querySelector("svg"));
  zoom.follow(plot, parts.span);
  const pause = card.querySelector(".pause");
  pause.hidden = !admin;
  pause.addEventListener("click", async () => {
    const action = card.dataset.state === "active" ? "pause" : "resume";
    try {
      await call("POST", `/devices/${encodeURIComponent(device.worker_id)}/${action}`);
      update(root, await call("GET", "/devices"), admin);
    } catch (error) {
      say(card.querySelector(".holders"), error.message);
    }
  });
  root.append(card);
  return { root: card, parts, name: device.name };
}

function title(device, severalHosts) {
  const name = device.product ? `${device.name} · ${device.product}` : device.name === "cpu" ? "CPU, host memory" : device.name;
  return severalHosts ? `${device.host} · ${name}` : name;
}

function describe(card, device, gpu, severalHosts) {
  say(card.querySelector("h3"), title(device, severalHosts));
  card.dataset.state = device.worker_state;
  say(card.querySelector(".badge"), STATES[device.worker_state] ?? "");
  const resumes = device.worker_state !== "active";
  const pause = card.querySelector(".pause");
  pause.textContent = resumes ? "Resume" : "Pause";
  pause.setAttribute("aria-label", `${pause.textContent} ${device.name}`);
  const loaded = device.loaded_model ? `${device.loaded_model} loaded, ` : "";
  card.querySelector(".now").textContent = `${loaded}${bytes(device.total_bytes)} in total`;
  const others = heldByOthers(gpu?.holders ?? []);
  say(card.querySelector(".holders"), others && `Other programs hold: ${others}.`);
}

function drawAll() {
  for (const id of charts.keys()) draw(id);
}

function draw(id) {
  const { root, parts, name } = charts.get(id);
  const all = timeline.of(id);
  const now = all[all.length - 1];
  const peak = predicted && (!predicted.device || predicted.device === name) ? predicted.bytes : null;
  const decodes = chart.draw(parts, id, peak);
  const texts = { own: `own ${bytes(now.own)}`, other: `other ${bytes(now.other)}`, free: `free ${bytes(now.free)}` };
  for (const part of ["own", "other", "free"]) root.querySelector(`.k-${part}`).textContent = texts[part];
  say(root.querySelector(".k-peak"), peak == null ? "" : `peak of the planned decode, at most +${bytes(peak)}`);
  root.querySelector(".k-decode").hidden = !decodes.length;
  const { from, to } = zoom.view();
  root.querySelectorAll(".axis span").forEach((one, index) => { one.textContent = zoom.clock(from + ((to - from) * index) / 2); });
  root.querySelector("svg").setAttribute("aria-label", `Memory of ${name}: ${texts.own}, ${texts.other}, ${texts.free}, of ${bytes(now.total)}.`);
  root.querySelector(".plot").setAttribute("aria-label", `Chart of ${name}. Plus, minus and the arrow keys zoom and move it, Home shows all.`);
  listDecodes(root.querySelector(".decodes"), decodes);
}

// The newest decodes in view, each with a link to the card of its job.
const LISTED = 8;

function listDecodes(box, decodes) {
  const rows = decodes.slice(-LISTED).reverse().map((one) => [one.job, decodeText(one)]);
  const shown = JSON.stringify([decodes.length, rows]);
  box.hidden = !rows.length;
  if (box.dataset.shown === shown) return;
  box.dataset.shown = shown;
  const count = decodes.length === 1 ? "1 decode in view" : `${decodes.length} decodes in view`;
  say(box.querySelector("summary"), decodes.length > LISTED ? `${count}, the newest ${LISTED} here` : count);
  box.querySelector("ul").replaceChildren(...rows.map(([job, sentence]) => {
    const item = make("li");
    const link = job ? make("a", `job ${job.slice(-6)}`) : make("span", "another key's job");
    if (job) link.href = `#job-${job}`;
    item.append(link, ` ${sentence}`);
    return item;
  }));
}

function decodeText({ from, to, predicted: guess, measured }) {
  const took = to ? `took ${seconds((to - from) / 1000)}` : "runs";
  const peaks = [guess != null && `${bytes(guess)} predicted`, measured != null && `${bytes(measured)} measured`].filter(Boolean);
  return `${zoom.clock(from)}, ${took}${peaks.length ? `, peak ${peaks.join(", ")}` : ""}`;
}
