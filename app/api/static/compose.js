// The form: an image, a prompt, the plan before it is submitted.

import { call, Problem } from "/static/api.js";
import { showPrediction } from "/static/memory.js";
import { STRATEGY, bytes, planned } from "/static/words.js";

const MIB = 2 ** 20;
const form = document.getElementById("form");
const input = document.getElementById("image");
const optional = document.querySelectorAll("[data-input]");
const planBox = document.getElementById("plan");
const lead = document.getElementById("plan-lead");
const errorBox = document.getElementById("form-error");
const images = {};
let models = [];

export async function start(onSubmitted) {
  await loadModels();
  for (const name of ["image", "last_image"]) acceptImage(name);
  document.addEventListener("paste", (event) => setImage("image", pictureIn(event.clipboardData.files)));
  form.elements.model.addEventListener("change", () => { applyModel(); plan(); });
  form.addEventListener("input", debounced(plan, 300));
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(onSubmitted); });
  plan();
  setInterval(() => { if (!document.hidden) plan(); }, 10_000);
}

async function loadModels() {
  models = (await call("GET", "/models")).models;
  form.elements.model.replaceChildren(...models.map((model) => new Option(model.name, model.name, model.is_default)));
  applyModel();
}

function applyModel() {
  const model = models.find((one) => one.name === form.elements.model.value);
  for (const [name, value] of Object.entries(model.defaults)) form.elements[name].value = value;
  for (const name of ["width", "height"]) {
    form.elements[name].step = model.size_multiple;
    form.elements[name].min = model.size_multiple;
  }
  form.elements.num_frames.step = model.frames_step;
  form.elements.num_frames.min = model.first_frame_alone ? 1 : model.frames_step;
  form.elements.prompt.required = model.uses_prompt;
  for (const part of optional) {
    part.hidden = !model.inputs.includes(part.dataset.input);
    form.elements[part.dataset.input].disabled = part.hidden;
  }
  const notice = document.getElementById("notice");
  notice.textContent = model.notice || "";
  notice.hidden = !model.notice;
}

function acceptImage(name) {
  const field = form.elements[name];
  const drop = field.closest(".drop");
  field.addEventListener("change", () => setImage(name, field.files[0]));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    setImage(name, event.dataTransfer.files[0]);
  });
}

function pictureIn(files) {
  return [...files].find((file) => file.type.startsWith("image/"));
}

function setImage(name, file) {
  if (!file) return;
  const drop = form.elements[name].closest(".drop");
  const preview = drop.querySelector("img");
  if (images[name]) URL.revokeObjectURL(preview.src);
  images[name] = file;
  preview.src = URL.createObjectURL(file);
  preview.alt = `The chosen ${name.replace("_", " ")}, ${file.name || "pasted"}`;
  preview.hidden = false;
  drop.classList.add("filled");
  fail(null);
}

function fields() {
  const given = {};
  for (const element of form.elements) {
    const counts = element.name && element.type !== "file" && !element.disabled;
    if (counts && element.value !== "") given[element.name] = element.value;
  }
  if (given.memory_budget_mib) given.memory_budget_bytes = Math.round(given.memory_budget_mib * MIB);
  delete given.memory_budget_mib;
  return given;
}

let planning = null;

async function plan() {
  planning?.abort();
  planning = new AbortController();
  try {
    const answer = await call("POST", "/plan", { json: fields(), signal: planning.signal });
    showPlan(answer);
    showPrediction(answer.plan);
  } catch (error) {
    if (error.name === "AbortError") return;
    showPrediction(null);
    showProblem(error);
  }
}

function showPlan({ plan: now, rungs }) {
  const largest = Math.max(...rungs.map((rung) => rung.predicted_peak_bytes));
  const list = document.createElement("ul");
  list.className = "rungs";
  for (const rung of shortened(rungs, now)) {
    const item = document.createElement("li");
    const chosen = now.fits_now && same(rung, now);
    item.className = `rung${rung.fits_now ? " fits" : ""}${chosen ? " chosen" : ""}`;
    const label = STRATEGY[rung.strategy] + size(rung);
    item.append(text("span", label), bar(rung.predicted_peak_bytes / largest), text("span", bytes(rung.predicted_peak_bytes), "size"));
    if (!rung.exact) item.append(text("span", "approximate", "size"));
    if (!rung.fits_now) item.append(text("span", "does not fit now", "visually-hidden"));
    if (chosen) item.append(text("span", "would be chosen", "visually-hidden"));
    list.append(item);
  }
  say(planned(now, "Would decode"), false);
  const parts = [list];
  if (now.free_bytes != null) parts.push(text("p", `${bytes(now.free_bytes)} are free on ${now.device}.`, "muted"));
  planBox.replaceChildren(...parts);
}

function size(rung) {
  if (rung.strategy.endsWith("chunked")) return ` × ${rung.frames_per_chunk}`;
  if (rung.strategy === "tiled") return ` × ${rung.tiles.rows}`;
  return rung.strategy === "approximate_tiled" ? ` ${rung.tiles.rows} × ${rung.tiles.columns}` : "";
}

function same(rung, plan) {
  if (!plan.tiles || rung.strategy !== plan.strategy || rung.frames_per_chunk !== plan.frames_per_chunk) return false;
  return rung.tiles.rows === plan.tiles.rows && rung.tiles.columns === plan.tiles.columns;
}

function shortened(rungs, now) {
  if (rungs.length <= 5) return rungs;
  const keep = new Set([0, Math.floor(rungs.length / 3), Math.floor((2 * rungs.length) / 3), rungs.length - 1]);
  return rungs.filter((rung, index) => keep.has(index) || same(rung, now));
}

function showProblem(error) {
  say(error.message, error.code !== "profile_pending");
  const parts = [];
  const body = error instanceof Problem ? error.body : {};
  const better = body.largest_shape_that_fits || (body.nearest && { [body.field]: body.nearest });
  if (better) {
    const button = text("button", body.nearest ? `Use ${body.nearest}` : `Use ${better.width} × ${better.height}`, "quiet");
    button.type = "button";
    button.addEventListener("click", () => {
      for (const [name, value] of Object.entries(better)) form.elements[name].value = value;
      plan();
    });
    parts.push(button);
  }
  planBox.replaceChildren(...parts);
}

// Said aloud by screen readers, so only touched when it changes.
function say(sentence, isError) {
  if (lead.textContent !== sentence) lead.textContent = sentence;
  lead.classList.toggle("error", isError);
}

async function submit(onSubmitted) {
  if (!images.image) { fail("Choose an image first."); input.focus(); return; }
  if (!form.elements.prompt.value.trim()) { fail("Write a prompt first."); form.elements.prompt.focus(); return; }
  const body = new FormData();
  for (const [name, image] of Object.entries(images)) {
    if (!form.elements[name].disabled) body.append(name, image);
  }
  for (const [name, value] of Object.entries(fields())) body.append(name, value);
  const button = document.getElementById("submit");
  button.disabled = true;
  try {
    onSubmitted(await call("POST", "/generate", { form: body }));
    fail(null);
  } catch (error) {
    fail(error.message);
  } finally {
    button.disabled = false;
  }
}

function fail(message) {
  errorBox.textContent = message || "";
  errorBox.hidden = !message;
}

function text(tag, content, name) {
  const element = document.createElement(tag);
  element.textContent = content;
  if (name) element.className = name;
  return element;
}

function bar(share) {
  const outer = document.createElement("span");
  const inner = document.createElement("i");
  outer.className = "bar";
  inner.style.width = `${Math.max(2, Math.min(100, share * 100))}%`;
  outer.append(inner);
  return outer;
}

function debounced(action, milliseconds) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(action, milliseconds); };
}
