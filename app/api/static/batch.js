// Several photos: one video of each, with the settings of the form. What is refused is said beside its photo.

import { Problem } from "./api.js";
import { button, byId, make, say } from "./dom.js";
import * as sending from "./sending.js";
import { inUnits } from "./words.js";

export const MOST = 100;
const list = byId("batch");
const progress = byId("batch-progress");
const plain = byId("submit").textContent;
const errors = new Map();
let shown = [];

// Shows the photos if there are several. `remove` takes one out. `left` is how many were too many.
export function show(files, remove, left) {
  say(progress, left > 0 ? `Only the first ${MOST} of ${files.length + left} photos are taken.` : "");
  for (const url of shown) URL.revokeObjectURL(url);
  shown = [];
  for (const file of errors.keys()) if (!files.includes(file)) errors.delete(file);
  list.hidden = files.length < 2 && !errors.size;
  byId("submit").textContent = files.length > 1 ? `Make ${files.length} videos` : plain;
  list.replaceChildren(...(list.hidden ? [] : files.map((file) => row(file, remove))));
}

function row(file, remove) {
  const item = make("li");
  const picture = make("img");
  picture.alt = "";
  picture.src = URL.createObjectURL(file);
  picture.addEventListener("error", () => picture.remove());
  shown.push(picture.src);
  const off = button("Remove", () => remove(file));
  off.setAttribute("aria-label", `Remove ${file.name}`);
  const words = make("span", file.name, "name");
  if (errors.has(file)) words.append(make("span", errors.get(file), "error"));
  item.append(picture, words, off);
  return item;
}

// Sends one job for each photo, all with the same other parts. Returns the photos of which none was made, because the service refused them.
export async function send(files, parts, onSubmitted) {
  errors.clear();
  const left = [];
  for (const [index, file] of files.entries()) {
    say(progress, `Sending photo ${index + 1} of ${files.length}…`);
    try {
      onSubmitted(await sending.send(file, parts), true);
    } catch (error) {
      left.push(file);
      errors.set(file, error instanceof Problem ? inUnits(error.message) : "It could not be sent: the service does not answer.");
    }
  }
  return left;
}

export const tell = (made, of) => say(progress, `${made} of ${of} videos are queued.`);
