// The time that all memory charts show: the last hour as far as it is known, or a part of it that a person chose by
// dragging over a chart, by the wheel, by keys or by the buttons.

import { byId, say } from "./dom.js";
import { HOUR_MS } from "./timeline.js";

const LEAST_MS = 10_000;
const FIRST_MS = 180_000; // so much is shown before more is known
const DRAGGED = 6; // pixels: less is a click
let chosen = null;
let begin = Date.now();
let redraw = () => {};

export function view() {
  if (chosen) return chosen;
  const to = Date.now();
  return { from: Math.max(to - HOUR_MS, Math.min(begin, to - FIRST_MS)), to };
}

// When the first reading of all devices was.
export function known(first) { begin = first; }

export function start(draw) {
  redraw = draw;
  byId("zoom-in").addEventListener("click", () => scale(0.5));
  byId("zoom-out").addEventListener("click", () => scale(2));
  byId("zoom-reset").addEventListener("click", reset);
  showButtons();
}

function reset() {
  chosen = null;
  showButtons();
  redraw();
}

function choose(from, to) {
  const now = Date.now();
  const least = now - HOUR_MS;
  const span = Math.max(LEAST_MS, to - from);
  if (span >= HOUR_MS) return reset();
  const end = Math.min(now, Math.max(from + span, least + span));
  chosen = { from: end - span, to: end };
  showButtons();
  redraw();
}

// Makes the view longer or shorter around a place in it, from 0 to 1: by default its end, which is the newest.
function scale(factor, place = 1) {
  const { from, to } = view();
  const span = Math.max(LEAST_MS, (to - from) * factor);
  const at = from + (to - from) * place;
  choose(at - span * place, at + span * (1 - place));
}

function move(share) {
  const { from, to } = view();
  choose(from + (to - from) * share, to + (to - from) * share);
}

function showButtons() {
  byId("zoom-reset").disabled = !chosen;
  say(byId("zoom-range"), chosen ? `${clock(chosen.from)} to ${clock(chosen.to)}` : "");
}

export const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

const KEYS = {
  "+": () => scale(0.5), "=": () => scale(0.5), "-": () => scale(2), ArrowLeft: () => move(-0.25),
  ArrowRight: () => move(0.25), Home: reset, Escape: reset, 0: reset,
};

// Lets a person zoom in a chart. A wheel turns the page, unless the chart has the focus or Ctrl is held.
export function follow(plot, span) {
  plot.addEventListener("keydown", (event) => {
    if (event.target !== plot || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  const place = (event) => {
    const { left, width } = plot.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - left) / width));
  };
  plot.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== plot) return;
    event.preventDefault();
    scale(event.deltaY > 0 ? 1.25 : 0.8, place(event));
  }, { passive: false });
  let first = null;
  const mark = (to) => {
    span.setAttribute("x", 100 * Math.min(first ?? 0, to));
    span.setAttribute("width", first == null ? 0 : 100 * Math.abs(to - first));
  };
  const end = () => { first = null; mark(0); };
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    first = place(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => { if (first != null) mark(place(event)); });
  plot.addEventListener("pointercancel", end);
  plot.addEventListener("pointerup", (event) => {
    if (first == null) return;
    const [low, high] = [first, place(event)].sort((one, other) => one - other);
    end();
    if ((high - low) * plot.clientWidth < DRAGGED) return;
    const { from, to } = view();
    choose(from + (to - from) * low, from + (to - from) * high);
  });
}
