// Pictures of a new video beyond the first: key frames, and the last frame of a video that this one continues.

import { address, call } from "./api.js";
import { button, byId, make, say } from "./dom.js";
import { clear } from "./images.js";

const box = byId("keyframes");
const rows = byId("keyframe-rows");
const add = byId("keyframe-add");
const continued = byId("continuing");
const form = byId("form");
let most = 0;
let onChange = () => {};

// `take` sets values in the form; `changed` plans anew.
export function start(take, changed) {
  onChange = changed;
  add.addEventListener("click", () => { const line = row(); rows.append(line); limit(); line.querySelector("input").focus(); });
  byId("stop-continuing").addEventListener("click", () => { stopContinuing(); onChange(); });
  document.addEventListener("continue-video", async ({ detail: id }) => continueFrom(await call("GET", `/jobs/${id}`), take));
}

// Show the slots of a model. Key frames that it does not take stay in the page, and are not sent.
export function apply(model) {
  most = model.keyframes?.most ?? 0;
  box.hidden = !most;
  if (model.keyframes) say(byId("keyframe-rule"), `Pictures that the video passes through, at ${model.keyframes.rule}; -1 is the last.`);
  limit();
  const needed = model.requires.includes("last_image");
  byId("last-note").textContent = needed ? "The video ends with it." : "Optional: the video ends with it.";
}

function limit() {
  add.disabled = rows.children.length >= most;
  [...rows.children].forEach((line, index) => line.label(index + 1));
}

// Put these key frames in place of those in the form, each with its picture.
export function put(keyframes, pictures) {
  rows.replaceChildren(...keyframes.map(({ frame, strength }, index) => {
    const line = row();
    line.put(frame, strength, pictures[index]);
    return line;
  }));
  limit();
}

function row() {
  const line = make("div", null, "row");
  const file = Object.assign(make("input"), { type: "file", accept: form.elements.image.accept });
  const frame = Object.assign(make("input"), { type: "number", value: -1, step: 1 });
  const strength = Object.assign(make("input"), { type: "number", min: 0.05, max: 1, step: "any", value: 1 });
  const picture = make("label", "Picture ", "field");
  picture.append(file);
  const place = make("label", "Frame ", "field short");
  place.append(frame);
  const how = make("label", "Strength ", "field short");
  how.append(strength);
  const remove = button("Remove", () => { line.remove(); limit(); add.focus(); onChange(); });
  line.append(picture, place, how, remove);
  line.label = (number) => {
    file.setAttribute("aria-label", `Picture of key frame ${number}`);
    frame.setAttribute("aria-label", `Frame of key frame ${number}`);
    strength.setAttribute("aria-label", `Strength of key frame ${number}`);
    remove.setAttribute("aria-label", `Remove key frame ${number}`);
  };
  line.put = (number, closely, picture) => {
    const one = new DataTransfer(); // the way to put a file into a field
    if (picture) one.items.add(picture);
    Object.assign(file, { files: one.files });
    Object.assign(frame, { value: number });
    Object.assign(strength, { value: closely });
  };
  line.given = () => file.files[0] && { file: file.files[0], keyframe: { frame: frame.valueAsNumber, strength: strength.valueAsNumber } };
  return line;
}

const given = () => (box.hidden ? [] : [...rows.children].map((line) => line.given()).filter(Boolean));

// The request's field as JSON text; {} without key frames. A row without a picture does not count.
export function fields() {
  const keyframes = given().map((one) => one.keyframe);
  return keyframes.length ? { keyframes: JSON.stringify(keyframes) } : {};
}

export function appendPictures(body) {
  given().forEach((one, index) => body.append(`keyframe_${index}`, one.file));
}

function continueFrom(job, take) {
  clear("image");
  const { model, request, links } = job;
  form.elements.continue_from.value = job.id;
  say(byId("continuing-what"), `Goes on from the last frame of “${request.prompt || job.id}”.`);
  continued.querySelector("img").src = address(links.last_frame);
  continued.hidden = false;
  take(model, { width: request.width, height: request.height, fps: request.fps });
  form.elements.prompt.focus();
}

// An image that is chosen takes the place of the frame.
export function stopContinuing() {
  form.elements.continue_from.value = "";
  continued.hidden = true;
}
