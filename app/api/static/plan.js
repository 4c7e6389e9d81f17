// The plan of the job in the form: the chosen decode option and why, the time it would finish, and the other options.

import { Problem, call } from "./api.js";
import { button, byId, make, say } from "./dom.js";
import { measured, refused } from "./images.js";
import { allPaused, showPrediction } from "./memory.js";
import { bytes, exactness, framing, inUnits, placed, planned, range, rounded, seconds, short } from "./words.js";

const SHOWN = 5;
const IMAGE_CODES = /^(?!missing_keyframe).*image/; // not_an_image, broken_image and others: of the picture, not of a field
const form = byId("form");
const lead = byId("plan-lead");
const rungList = byId("rungs");
const every = byId("all-rungs");
let asking = null;
let beside = ""; // what the form says of its own beside the plan: it is not said twice

export function saidBeside(sentence) {
  beside = sentence;
  leadWith(lead.textContent);
}

function leadWith(sentence) {
  say(lead, sentence);
  if (sentence === beside) lead.hidden = true;
}

// Plans the fields, as an object or as a form with the photo.
export async function show(fields, use) {
  asking?.abort();
  asking = new AbortController();
  try {
    const body = fields instanceof FormData ? { form: fields } : { json: fields };
    const answer = await call("POST", "/plan", { ...body, signal: asking.signal });
    if (body.form) measured("image", answer.pictures.image);
    showAnswer(answer);
    showPrediction(answer.plan);
  } catch (error) {
    if (error.name === "AbortError") return;
    showPrediction(null);
    showProblem(error, use);
  }
}

function showAnswer({ plan, rungs, largest, eta_range: eta, request, pictures }) {
  mark(null);
  const { image, last_image: last } = pictures;
  const framed = [image && framing("photo", image), last && framing("last photo", last)].filter(Boolean).join(" ");
  say(byId("size"), framed && `The video is ${request.width} × ${request.height}. ${framed}`);
  lead.classList.remove("error");
  leadWith(planned(plan, "Would decode"));
  const sentences = [];
  if (allPaused()) sentences.push("Every device is paused: the video is made when one is resumed.");
  if (eta) sentences.push(`Done in ${range(eta)}, including the queue.`);
  if (plan.strategy) {
    const time = plan.predicted_seconds == null ? "" : ` and about ${seconds(plan.predicted_seconds)}`;
    sentences.push(`The decode takes at most ${bytes(plan.predicted_peak_bytes)}${time}, ${exactness(plan)}.`);
  }
  if (plan.denoise_seconds != null) sentences.push(`The steps take about ${seconds(plan.denoise_seconds)}.`);
  if (placed(plan.placement)) sentences.push(placed(plan.placement));
  if (rounded(plan.weights)) sentences.push(`${rounded(plan.weights)}. Pixels are approximate.`);
  if (plan.free_bytes != null) sentences.push(`${bytes(plan.free_bytes)} are free on ${plan.device}.`);
  if (largest) sentences.push(`The largest video that fits now: ${largest.width} × ${largest.height}, ${largest.frames} frames.`);
  byId("plan-facts").textContent = sentences.join(" ");
  byId("plan-fixes").replaceChildren();
  const most = Math.max(...rungs.map((rung) => rung.predicted_peak_bytes));
  rungList.replaceChildren(...shortened(rungs.filter(isUseful)).map((rung) => row(rung, most)));
  every.querySelector("ul").replaceChildren(...rungs.map(reasoned));
  every.hidden = rungs.length === 0;
}

function row(rung, most) {
  const item = make("li", null, `rung${rung.fits_now ? " fits" : ""}${rung.chosen ? " chosen" : ""}`);
  item.title = rung.why;
  item.append(make("span", short(rung)), bar(rung.predicted_peak_bytes / most), make("span", bytes(rung.predicted_peak_bytes), "size"));
  if (!rung.exact) item.append(make("span", "approximate", "chip approximate"));
  if (!rung.fits_now) item.append(make("span", "does not fit now", "visually-hidden"));
  if (rung.chosen) item.append(make("span", "chosen", "visually-hidden"));
  return item;
}

// Whether no faster option needs less memory. Chunks keep the state of the layers between them, so that large chunks
// may need more than all frames in one call; a bar of them would only confuse. The full list has them, with this reason.
const isUseful = (rung, index, rungs) =>
  rung.chosen || !rungs.slice(0, index).some((faster) => !faster.dropped_bytes && faster.predicted_peak_bytes <= rung.predicted_peak_bytes);

function reasoned(rung, index, rungs) {
  const item = make("li", null, rung.chosen ? "chosen" : "");
  const time = rung.predicted_seconds == null ? "" : `, ${seconds(rung.predicted_seconds)}`;
  item.append(make("strong", short(rung)), ` ${bytes(rung.predicted_peak_bytes)}${time}: ${rung.why}`);
  if (!isUseful(rung, index, rungs)) item.append("; a faster option needs no more memory: the state kept between chunks counts, too");
  if (!rung.exact) item.append(" ", make("span", "approximate", "chip approximate"));
  return item;
}

function shortened(rungs) {
  if (rungs.length <= SHOWN) return rungs;
  const keep = new Set([0, Math.floor(rungs.length / 3), Math.floor((2 * rungs.length) / 3), rungs.length - 1]);
  return rungs.filter((rung, index) => keep.has(index) || rung.chosen);
}

function bar(share) {
  const outer = make("span", null, "bar");
  const inner = make("i");
  inner.style.width = `${Math.max(2, Math.min(100, share * 100))}%`;
  outer.append(inner);
  return outer;
}

function showProblem(error, use) {
  const pending = error.code === "profile_pending";
  lead.classList.toggle("error", !pending);
  leadWith(inUnits(error.message));
  mark(fieldOf(error));
  if (IMAGE_CODES.test(error.code)) refused(fieldOf(error).name, inUnits(error.message));
  byId("plan-facts").textContent = "";
  byId("plan-fixes").replaceChildren(...fixes(error).map(([label, values]) => button(label, () => use(values))));
  rungList.replaceChildren();
  every.hidden = true;
}

// Corrections offered as buttons: a label, and the values that a click sets.
function fixes(error) {
  const { code, field, nearest, width, height, shapes = [], largest_shape_that_fits: shape, fits_with_exact_only_false: approximately } =
    error instanceof Problem ? error.body : {};
  const found = [];
  if (nearest) found.push([`Use ${nearest}`, { [field]: nearest }]);
  for (const one of shapes) {
    const [width, height, num_frames] = one.split("x").map(Number);
    found.push([`Use ${width} × ${height}, ${num_frames} frames`, { width, height, num_frames }]);
  }
  if (code === "over_model_limit" && width) found.push([`Use ${width} × ${height}`, { width, height }]);
  if (shape) found.push([`Use ${shape.width} × ${shape.height}, ${shape.num_frames} frames`, shape]);
  if (approximately) found.push(["Allow approximate decoding", { exact_only: "false" }]);
  return found;
}

// The form's field that a problem document names, or null.
export function fieldOf(error) {
  if (IMAGE_CODES.test(error.code)) return form.elements[/^last_image:|'last_image'/.test(error.message) ? "last_image" : "image"];
  const name = error instanceof Problem ? error.body.field ?? error.body.errors?.[0]?.field : null;
  return form.elements[name?.split(" ")[0]] ?? null;
}

function mark(field) {
  for (const one of form.querySelectorAll("[aria-invalid]")) {
    one.removeAttribute("aria-invalid");
    one.removeAttribute("aria-describedby");
  }
  if (!field || field.id === "model" || field.type === "file") return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", "plan-lead");
  const folded = field.closest("details");
  if (folded) folded.open = true;
}
