// The search above the list: words, status and model.

import { byId, debounced, say } from "./dom.js";

const WAIT_MS = 300;
const [q, status, model, found] = ["find-q", "find-status", "find-model", "found"].map(byId);
let search = () => {};
let asked = "";

export function start(searched) {
  search = searched;
  byId("find").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  q.addEventListener("input", debounced(run, WAIT_MS));
  for (const choice of [status, model]) choice.addEventListener("change", run);
  byId("find-clear").addEventListener("click", () => { fill(""); q.focus(); });
}

export function offer(models) {
  const names = models.map((one) => one.name);
  model.replaceChildren(new Option("All", ""), ...names.map((name) => new Option(name, name)));
}

// Looks for one thing alone.
export function fill(words) {
  q.value = words;
  status.value = model.value = "";
  return run();
}

function run() {
  const filter = { q: q.value.trim(), status: status.value, model: model.value };
  const key = JSON.stringify(filter);
  if (key === asked) return null;
  asked = key;
  byId("find-clear").hidden = !Object.values(filter).some(Boolean);
  return search(filter);
}

// What a search has found so far; `more` is whether there may be others.
export function tell(count, more, searching) {
  if (searching) return say(found, "Searching…");
  const videos = count === 1 ? "1 video" : `${count} videos`;
  say(found, byId("find-clear").hidden ? "" : `${count ? videos : "No video"} found${more ? " so far" : ""}.`);
}

export const failed = (error) => say(found, error.message);
