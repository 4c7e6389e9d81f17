// The live memory chart: own, other and free of each device over the last minutes, with the plan's predicted peak.

import { call } from "/static/api.js";
import { bytes } from "/static/words.js";

const EVERY_MS = 2000;
const KEPT = 90;
const SVG = "http://www.w3.org/2000/svg";
const history = new Map();
const charts = new Map();
let predicted = null;

export function showPrediction(plan) {
  predicted = plan && plan.predicted_peak_bytes ? { device: plan.device, bytes: plan.predicted_peak_bytes } : null;
  for (const device of charts.keys()) draw(device);
}

export async function start(root) {
  for (;;) {
    if (!document.hidden) {
      try { update(root, await call("GET", "/devices")); } catch { /* shown by the connection state */ }
    }
    await new Promise((resume) => setTimeout(resume, EVERY_MS));
  }
}

function update(root, report) {
  const alive = report.devices.filter((device) => device.worker_state !== "lost" && device.total_bytes);
  for (const device of alive) {
    const samples = history.get(device.name) || [];
    const gpu = report.gpus.find((one) => one.uuid === device.uuid && one.state === "ok");
    const total = device.total_bytes;
    const free = gpu ? gpu.free_bytes : device.free_bytes;
    const own = Math.min(device.own_bytes || 0, total);
    samples.push({ total, own, free, other: Math.max(0, total - free - own) });
    history.set(device.name, samples.slice(-KEPT));
    if (!charts.has(device.name)) charts.set(device.name, build(root, device));
    draw(device.name);
  }
  for (const [name, chart] of charts) {
    if (!alive.some((device) => device.name === name)) { chart.root.remove(); charts.delete(name); }
  }
  const none = root.querySelector(":scope > p");
  if (none) {
    none.hidden = alive.length > 0;
    none.textContent = "No worker is running.";
  }
}

function build(root, device) {
  const card = document.createElement("article");
  card.className = "device";
  card.innerHTML = '<header><h3></h3><p class="now"></p></header>'
    + '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"></svg>'
    + '<p class="key"><span class="k-own"></span><span class="k-other"></span><span class="k-free"></span>'
    + '<span class="k-peak" hidden></span></p>';
  card.querySelector("h3").textContent = device.product ? `${device.name} · ${device.product}` : device.name === "cpu" ? "CPU, main memory" : device.name;
  const svg = card.querySelector("svg");
  const parts = {};
  for (const [name, kind] of [["base", "rect"], ["other", "path"], ["own", "path"], ["peak", "path"]]) {
    parts[name] = document.createElementNS(SVG, kind);
    parts[name].setAttribute("class", name);
    svg.append(parts[name]);
  }
  parts.base.setAttribute("width", "100");
  parts.base.setAttribute("height", "100");
  root.append(card);
  return { root: card, svg, parts };
}

function area(samples, lower, upper) {
  const x = (index) => 100 - (samples.length - 1 - index) * (100 / (KEPT - 1));
  const y = (sample, value) => (100 - (100 * value) / sample.total).toFixed(2);
  const top = samples.map((sample, index) => `${x(index).toFixed(2)},${y(sample, upper(sample))}`);
  const bottom = samples.map((sample, index) => `${x(index).toFixed(2)},${y(sample, lower(sample))}`).reverse();
  return `M${[...top, ...bottom].join("L")}Z`;
}

function draw(name) {
  const samples = history.get(name);
  const { root, svg, parts } = charts.get(name);
  const now = samples[samples.length - 1];
  const shown = samples.length > 1 ? samples : [now, now];
  parts.own.setAttribute("d", area(shown, () => 0, (sample) => sample.own));
  parts.other.setAttribute("d", area(shown, (sample) => sample.own, (sample) => sample.own + sample.other));
  const peak = predicted && (!predicted.device || predicted.device === name) ? predicted.bytes : null;
  const level = peak == null ? null : Math.max(0, 100 - (100 * (now.own + now.other + peak)) / now.total);
  parts.peak.setAttribute("d", level == null ? "" : `M0,${level.toFixed(2)}H100`);
  const told = { own: `own ${bytes(now.own)}`, other: `other ${bytes(now.other)}`, free: `free ${bytes(now.free)}` };
  for (const part of ["own", "other", "free"]) root.querySelector(`.k-${part}`).textContent = told[part];
  const peakKey = root.querySelector(".k-peak");
  peakKey.hidden = peak == null;
  if (peak != null) peakKey.textContent = `with the planned decode, at most +${bytes(peak)}`;
  root.querySelector(".now").textContent = `${bytes(now.total)} in all`;
  svg.setAttribute("aria-label", `Memory of ${name}: ${told.own}, ${told.other}, ${told.free}, of ${bytes(now.total)}.`);
}
