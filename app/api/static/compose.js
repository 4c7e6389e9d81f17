// The form for a new video: images, prompt, model rules, and the request that is sent.

import { call } from "./api.js";
import * as batch from "./batch.js";
import { byId, debounced, say } from "./dom.js";
import * as find from "./find.js";
import * as frames from "./frames.js";
import * as images from "./images.js";
import * as loras from "./loras.js";
import * as plan from "./plan.js";
import * as sending from "./sending.js";
import { fitting, inUnits, stored } from "./words.js";

const MIB = 2 ** 20;
const REPLAN_MS = 10_000;
const form = byId("form");
const errorBox = byId("form-error");
const showField = byId("show-field");
let models = [];
let model = null;

export async function start(onSubmitted, { embed_metadata: mayTell }) {
  byId("embed").hidden = !mayTell;
  models = (await call("GET", "/models")).models;
  find.offer(models);
  await loras.start();
  form.elements.model.replaceChildren(...models.map(choice));
  applyModel();
  const replan = () => plan.show(asked(), use);
  images.start(form, (isNew) => {
    if (isNew) fail("");
    if (isNew && images.chosen("image")) frames.stopContinuing();
    if (images.size("image") !== null) replan();
  });
  frames.start(takeOver, replan);
  form.elements.model.addEventListener("change", () => { applyModel(); replan(); });
  form.elements.exact_only.addEventListener("change", allowApproximate);
  form.addEventListener("input", debounced(replan, 300));
  form.addEventListener("input", () => fail(""));
  keepFieldsInView();
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(onSubmitted); });
  replan();
  setInterval(() => { if (!document.hidden) { replan(); refresh(); } }, REPLAN_MS);
}

const choice = (one) => new Option(one.available ? one.name : `${one.name} (unavailable)`, one.name, one.is_default);

// What was downloaded or freed meanwhile.
async function refresh() {
  const answer = await call("GET", "/models").catch(() => null);
  if (!answer) return;
  models = answer.models;
  model = models.find((one) => one.name === form.elements.model.value) ?? model;
  showStorage();
}

function showStorage() {
  say(byId("model-storage"), [stored(model.storage), fitting(model.fits_here)].filter(Boolean).join(" "));
  const broken = model.available ? "" : `This model cannot be used: ${model.unavailable_because}.`;
  say(byId("notice"), broken || model.notice || "");
}

function applyModel() {
  model = models.find((one) => one.name === form.elements.model.value);
  const { limits, size_multiple: multiple } = model;
  for (const [name, value] of Object.entries(model.defaults)) form.elements[name].value = value;
  // What the model's recipe fixes is shown and cannot be changed. A field that is off is not sent.
  for (const name of ["num_inference_steps", "guidance_scale", "negative_prompt"]) {
    form.elements[name].disabled = name in model.fixed;
    form.elements[name].title = name in model.fixed ? "Fixed by the model" : "";
    if (name in model.fixed) form.elements[name].value = model.fixed[name];
  }
  loras.apply(model, form.elements.loras);
  frames.apply(model);
  for (const name of ["width", "height"]) Object.assign(form.elements[name], { step: multiple, min: multiple, value: "" });
  const least = model.first_frame_alone ? 1 : model.frames_step;
  Object.assign(form.elements.num_frames, { step: model.frames_step, min: least, max: limits.max_frames });
  form.elements.num_inference_steps.max = limits.max_steps;
  form.elements.prompt.required = model.uses_prompt;
  for (const part of document.querySelectorAll("[data-input]")) {
    part.hidden = !model.inputs.includes(part.dataset.input);
    form.elements[part.dataset.input].disabled = part.hidden;
  }
  say(byId("model-hint"), model.description);
  showStorage();
  const sides = `Width and height must be multiples of ${multiple}, with at most ${limits.max_pixels.toLocaleString("en")} pixels in total.`;
  const rule = model.frames_step === 1 ? "Any number of frames" : `Frames must be ${model.frame_rule}`;
  const only = model.shapes.map((shape) => shape.replaceAll("x", " × ")).join(" or ");
  const free = `${sides} ${rule}, up to ${limits.max_frames}.`;
  byId("limits").textContent = only ? `Width × height × frames can only be ${only}.` : free;
}

function allowApproximate() {
  const exact = form.elements.exact_only.value === "true";
  const strategy = form.elements.decode_strategy;
  for (const option of strategy.querySelectorAll("[data-approximate]")) option.disabled = exact;
  if (exact && strategy.value.startsWith("approximate")) strategy.value = "auto";
}

// Takes over the request and the pictures of a job. Returns why that cannot be, or "".
export function take({ request, seed }, photos) {
  if (!models.some((one) => one.name === request.model)) return `This service has no model ${request.model} any more.`;
  form.elements.model.value = request.model;
  applyModel();
  const budget = request.memory_budget_bytes == null ? "" : request.memory_budget_bytes / MIB;
  for (const [name, value] of Object.entries({ ...request, seed, memory_budget_mib: budget })) {
    const field = form.elements[name];
    if (!field || field.disabled || ["loras", "model", "continue_from"].includes(name)) continue;
    if (field.type === "checkbox") field.checked = value;
    else if (name === "loop") field.value = value ? "true" : "";
    else field.value = value ?? "";
  }
  loras.choose(model, form.elements.loras, request.loras);
  frames.stopContinuing(); // its first frame is the job's image
  // One at the end stays there if the length changes.
  frames.put(request.keyframes.map((one) => (one.frame === request.num_frames - 1 ? { ...one, frame: -1 } : one)), photos.keyframes);
  for (const name of ["image", "last_image"]) {
    if (photos[name]) images.put(name, photos[name]);
    else images.clear(name); // no picture of another job
  }
  use({});
  return "";
}

// Set values in the form as if the user had typed them.
function use(values) {
  for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
  allowApproximate();
  form.dispatchEvent(new Event("input"));
}

// Use a job's model, if it is offered, and its values.
function takeOver(name, values) {
  if (models.some((one) => one.name === name)) {
    form.elements.model.value = name;
    applyModel();
  }
  use(values);
}

function fields() {
  const given = frames.fields();
  for (const element of form.elements) {
    const counts = element.name && element.type !== "file" && !element.disabled;
    const value = element.type === "checkbox" ? String(element.checked) : element.value;
    if (counts && value !== "") given[element.name] = value;
  }
  if (given.memory_budget_mib) given.memory_budget_bytes = Math.round(given.memory_budget_mib * MIB);
  delete given.memory_budget_mib;
  return given;
}

// What to plan. The photo gives the video its shape: its size is enough, unless only the service can read it.
function asked() {
  const given = fields();
  const photo = images.chosen("image");
  if (images.size("last_image") && !form.elements.last_image.disabled) given.last_image_size = images.size("last_image");
  if (!photo || images.size("image") === null) return given;
  if (images.size("image")) return { ...given, image_size: images.size("image") };
  const body = new FormData();
  for (const [name, value] of Object.entries({ ...given, image: photo })) body.append(name, value);
  return body;
}

async function submit(onSubmitted) {
  const prompt = form.elements.prompt;
  const goesOn = Boolean(form.elements.continue_from.value);
  if (!images.chosen("image") && !goesOn) return fail("Choose an image first.", form.elements.image);
  if (model.requires.includes("last_image") && !images.chosen("last_image")) {
    return fail("Choose a last image first.", form.elements.last_image);
  }
  if (model.uses_prompt && !prompt.value.trim()) return fail("Write a prompt first.", prompt);
  byId("submit").disabled = true;
  for (const said of ["batch-progress", "reused"]) say(byId(said), "");
  try {
    const [photos, parts] = [images.all(), partsBesideThePhoto()];
    if (photos.length > 1) {
      const left = await batch.send(photos, parts, onSubmitted);
      leave(photos.filter((photo) => !left.includes(photo)));
      batch.tell(photos.length - left.length, photos.length);
      fail(left.length ? `${left.length} of ${photos.length} photos were refused: see why beside each.` : "");
    } else {
      onSubmitted(await sending.send(photos[0], parts));
      fail("");
    }
  } catch (error) {
    fail(inUnits(error.message), plan.fieldOf(error));
  } finally {
    byId("submit").disabled = false;
  }
}

// Takes out the photos that were sent. The form may have others by now; the first of them stays if there are no others.
function leave(sent) {
  const now = images.all();
  const unsent = now.filter((photo) => !sent.includes(photo));
  const [first, ...others] = unsent.length ? unsent : now.slice(0, 1);
  images.put("image", first, others);
}

// The request of a video as pairs of a name and a value, without the photo: the form may change while photos are sent.
function partsBesideThePhoto() {
  const body = new FormData();
  if (images.chosen("last_image") && !form.elements.last_image.disabled) body.append("last_image", images.chosen("last_image"));
  frames.appendPictures(body);
  for (const [name, value] of Object.entries(fields())) body.append(name, value);
  return [...body];
}

// Says why nothing was sent, beside the button: the field may be far away, so that a button leads to it.
function fail(message, field) {
  say(errorBox, message);
  plan.saidBeside(message);
  showField.hidden = !field;
  showField.onclick = () => {
    const folded = field.closest("details");
    if (folded) folded.open = true;
    field.focus();
  };
  if (message) errorBox.focus({ preventScroll: true }); // it is in view, as the button is
}

// A field that takes the focus does not come to lie behind the button and what is said beside it.
function keepFieldsInView() {
  const send = document.querySelector(".send");
  new ResizeObserver(() => {
    for (const scrolled of [document.documentElement, document.querySelector(".new")]) {
      scrolled.style.scrollPaddingBottom = `${send.offsetHeight + 12}px`;
    }
  }).observe(send);
  // A browser brings the line with the cursor into view, but not the whole field.
  for (const area of form.querySelectorAll("textarea")) area.addEventListener("focus", () => area.scrollIntoView({ block: "nearest" }));
}
