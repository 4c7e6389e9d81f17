// The memory of each device over the last hour, and the decodes that ran meanwhile: what the service has kept, and
// what the page has read since. Times are in milliseconds by this browser's clock.

import { call } from "./api.js";

export const HOUR_MS = 3_600_000;
const AGAIN_MS = 1000;
const readings = new Map();
const running = new Map();
let due = 0;
let answered = 0;

export const of = (worker) => readings.get(worker) ?? [];

// The decodes of a worker in order of their starts.
export const decodesOf = (worker) =>
  [...running.values()].filter((one) => one.worker === worker).sort((one, other) => one.from - other.from);

export function add(worker, reading) {
  const kept = of(worker).filter((one) => one.at > reading.at - HOUR_MS);
  readings.set(worker, [...kept, reading]);
  for (const [id, all] of readings) if (all[all.length - 1].at < reading.at - HOUR_MS) readings.delete(id); // a worker that is gone
}

// At the start, and when the page is seen again: it reads nothing while it is hidden.
export async function load() {
  const answer = await fetchMemory(60);
  if (!answer) return;
  for (const { worker_id: worker, times, total_bytes: totals, free_bytes: frees, own_bytes: owns } of answer.devices) {
    const kept = times.map((time, index) => reading(answer.clock(time), totals[index], frees[index], owns[index]));
    const last = kept[kept.length - 1]?.at ?? 0;
    readings.set(worker, [...kept, ...of(worker).filter((one) => one.at > last)]);
  }
}

// A decode has begun or ended. Asks for all that has happened since the last answer.
export function refreshDecodes(draw) {
  if (due) return;
  due = setTimeout(async () => {
    due = 0;
    await fetchMemory(Math.min(60, Math.ceil((Date.now() - answered) / 60_000) + 4));
    draw();
  }, AGAIN_MS);
}

async function fetchMemory(minutes) {
  const answer = await call("GET", `/devices/memory?${new URLSearchParams({ minutes })}`).catch(() => null);
  if (!answer) return null;
  const ahead = Date.now() - Date.parse(answer.now);
  answer.clock = (time) => Date.parse(time) + ahead;
  const told = new Set();
  for (const one of answer.decodes) {
    const from = answer.clock(one.started_at);
    // The clocks' difference is not measured alike each time: the service's own time tells a decode from another.
    const key = `${one.worker_id} ${one.started_at}`;
    told.add(key);
    running.set(key, {
      worker: one.worker_id, job: one.job_id, from, to: one.ended_at && answer.clock(one.ended_at),
      predicted: one.predicted_peak_bytes, measured: one.measured_peak_bytes,
    });
  }
  // Every running decode is in an answer: the service no longer knows of the others, and when they ended.
  for (const [key, one] of running) if (!one.to && !told.has(key)) one.to = Math.max(one.from, answered);
  answered = Date.now();
  for (const [key, one] of running) if (one.to && one.to < Date.now() - HOUR_MS) running.delete(key);
  return answer;
}

export function reading(at, total, free, ownBytes) {
  const own = Math.min(ownBytes || 0, total);
  return { at, total, own, free, other: Math.max(0, total - free - own) };
}
