// The live memory chart of each device: own, other and free memory of the last minutes, with the predicted peak of the
// current plan. Also the button that pauses a device.

import { call } from "./api.js";
import { fromTemplate, say } from "./dom.js";
import { bytes, heldByOthers } from "./words.js";

const EVERY_MS = 2000;
const KEPT = 90;
const SVG = "http://www.w3.org/2000/svg";
const STATES = { paused: "Paused", draining: "Finishing its job, then paused" };
const history = new Map();
const charts = new Map();
let predicted = null;
let states = [];

// Whether jobs wait although there are devices. A device that finishes its job first takes no other one.
export const allPaused = () => states.length > 0 && states.every((state) => state !== "active");

export function showPrediction(plan) {
  predicted = plan?.predicted_peak_bytes ? { device: plan.device, bytes: plan.predicted_peak_bytes } : null;
  for (const id of charts.keys()) draw(id);
}

export async function start(root, { admin }) {
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
    remember(device, gpu);
    if (!charts.has(device.worker_id)) charts.set(device.worker_id, build(root, device, admin));
    draw(device.worker_id);
    describe(charts.get(device.worker_id).root, device, gpu, hosts > 1);
  }
  for (const [id, chart] of charts) {
    if (!alive.some((device) => device.worker_id === id)) { chart.root.remove(); charts.delete(id); }
  }
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

function remember(device, gpu) {
  const total = device.total_bytes;
  const free = gpu ? gpu.free_bytes : device.free_bytes;
  const own = Math.min(device.own_bytes || 0, total);
  const samples = [...(history.get(device.worker_id) || []), { total, own, free, other: Math.max(0, total - free - own) }];
  history.set(device.worker_id, samples.slice(-KEPT));
}

function build(root, device, admin) {
  const card = fromTemplate("device-template");
  const svg = card.querySelector("svg");
  const parts = {};
  for (const [name, kind] of [["base", "rect"], ["other", "path"], ["own", "path"], ["peak", "path"]]) {
    parts[name] = document.createElementNS(SVG, kind);
    parts[name].setAttribute("class", name);
    svg.append(parts[name]);
  }
  parts.base.setAttribute("width", "100");
  parts.base.setAttribute("height", "100");
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
  return { root: card, svg, parts, name: device.name };
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

function area(samples, lower, upper) {
  const x = (index) => 100 - (samples.length - 1 - index) * (100 / (KEPT - 1));
  const y = (sample, value) => (100 - (100 * value) / sample.total).toFixed(2);
  const top = samples.map((sample, index) => `${x(index).toFixed(2)},${y(sample, upper(sample))}`);
  const bottom = samples.map((sample, index) => `${x(index).toFixed(2)},${y(sample, lower(sample))}`).reverse();
  return `M${[...top, ...bottom].join("L")}Z`;
}

function draw(id) {
  const samples = history.get(id);
  const { root, svg, parts, name } = charts.get(id);
  const now = samples[samples.length - 1];
  const shown = samples.length > 1 ? samples : [now, now];
  parts.own.setAttribute("d", area(shown, () => 0, (sample) => sample.own));
  parts.other.setAttribute("d", area(shown, (sample) => sample.own, (sample) => sample.own + sample.other));
  const peak = predicted && (!predicted.device || predicted.device === name) ? predicted.bytes : null;
  const level = peak == null ? null : Math.max(0, 100 - (100 * (now.own + now.other + peak)) / now.total);
  parts.peak.setAttribute("d", level == null ? "" : `M0,${level.toFixed(2)}H100`);
  const texts = { own: `own ${bytes(now.own)}`, other: `other ${bytes(now.other)}`, free: `free ${bytes(now.free)}` };
  for (const part of ["own", "other", "free"]) root.querySelector(`.k-${part}`).textContent = texts[part];
  say(root.querySelector(".k-peak"), peak == null ? "" : `peak of the planned decode, at most +${bytes(peak)}`);
  svg.setAttribute("aria-label", `Memory of ${name}: ${texts.own}, ${texts.other}, ${texts.free}, of ${bytes(now.total)}.`);
}
