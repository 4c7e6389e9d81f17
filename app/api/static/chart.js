// Draws the memory of one device over the time in view: own and other memory as areas, decodes as bands with their
// predicted and measured peaks, and the peak of the planned decode as a line.

import { decodesOf, of } from "./timeline.js";
import { view } from "./zoom.js";

const SVG = "http://www.w3.org/2000/svg";
const GAP_MS = 20_000; // without a reading for so long, nothing is drawn
const POINTS = 400;
const LEAST_WIDTH = 0.6; // percent: a short decode is seen in a long view

export function build(svg) {
  const parts = {};
  for (const [name, kind] of [["base", "rect"], ["other", "path"], ["own", "path"], ["bands", "g"], ["peak", "path"], ["span", "rect"]]) {
    parts[name] = element(kind, { class: name });
    svg.append(parts[name]);
  }
  for (const name of ["base", "span"]) parts[name].setAttribute("height", "100");
  parts.base.setAttribute("width", "100");
  return parts;
}

function element(kind, attributes) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Draws the worker's chart; `peak` are the bytes of the planned decode or null. Returns the decodes in view.
export function draw(parts, worker, peak) {
  const { from, to } = view();
  const all = of(worker);
  const x = (at) => (100 * (Math.min(Math.max(at, from), to) - from)) / (to - from);
  const pieces = continuous(thinned(inView(all, from, to)));
  const y = (sample, value) => Math.max(0, 100 - (100 * value) / sample.total);
  parts.own.setAttribute("d", areas(pieces, x, y, () => 0, (one) => one.own));
  parts.other.setAttribute("d", areas(pieces, x, y, (one) => one.own, (one) => one.own + one.other));
  const shown = decodesOf(worker).filter((one) => one.from <= to && (one.to ?? Date.now()) >= from);
  parts.bands.replaceChildren(...shown.flatMap((one) => band(one, all, x, y)));
  const now = all[all.length - 1];
  const level = peak == null || !now ? null : y(now, now.own + now.other + peak);
  parts.peak.setAttribute("d", level == null ? "" : `M0,${level.toFixed(2)}H100`);
  return shown;
}

// The readings in view, and one on each side of it.
function inView(all, from, to) {
  const first = all.findIndex((one) => one.at >= from);
  const after = all.findIndex((one) => one.at > to);
  return first < 0 ? all.slice(-1) : all.slice(Math.max(0, first - 1), after < 0 ? undefined : after + 1);
}

// So many readings are not told apart: of each few, the one with the least free memory is drawn.
function thinned(samples) {
  const each = Math.ceil(samples.length / POINTS);
  if (each <= 1) return samples;
  const kept = [];
  for (let index = 0; index < samples.length; index += each) {
    kept.push(samples.slice(index, index + each).reduce((least, one) => (one.free < least.free ? one : least)));
  }
  return kept;
}

function continuous(samples) {
  const pieces = [];
  samples.forEach((one, index) => {
    if (!index || one.at - samples[index - 1].at > GAP_MS) pieces.push([]);
    pieces[pieces.length - 1].push(one);
  });
  return pieces;
}

function areas(pieces, x, y, lower, upper) {
  return pieces.map((samples) => {
    const points = samples.length > 1 ? samples : [samples[0], { ...samples[0], at: samples[0].at + 1000 }];
    const edge = (value) => points.map((one) => `${x(one.at).toFixed(2)},${y(one, value(one)).toFixed(2)}`);
    return `M${[...edge(upper), ...edge(lower).reverse()].join("L")}Z`;
  }).join("");
}

// A decode's peaks lie above the memory that was in use when it began.
function band(decode, all, x, y) {
  const left = x(decode.from);
  const width = Math.max(LEAST_WIDTH, x(decode.to ?? Date.now()) - left);
  const before = all.findLast((one) => one.at <= decode.from) ?? all[0];
  const made = [element("rect", { class: "band", x: left, width, y: 0, height: 100 })];
  for (const name of ["predicted", "measured"]) {
    if (decode[name] == null || !before) continue;
    const level = y(before, before.own + before.other + decode[name]).toFixed(2);
    made.push(element("path", { class: name, d: `M${left},${level}h${width}` }));
  }
  return made;
}
