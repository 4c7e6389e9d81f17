// The images of the form: chosen, dropped anywhere on the page, or pasted; and their sizes.

import * as batch from "./batch.js";

const files = {};
let more = []; // photos beside the first one, of which a video each is made
const sizes = {};
let form = null;
let onChange = () => {};

export const chosen = (name) => files[name];
export const all = () => [files.image, ...more].filter(Boolean);

// WIDTHxHEIGHT of an upright image; null while the browser reads it; undefined without an image, or with one that the
// browser cannot show: the service has to measure it.
export const size = (name) => sizes[name];
export const measured = (name, { width, height }) => { sizes[name] = `${width}x${height}`; };

// Shows why the service does not take the chosen file; only for one that the browser cannot show either.
export function refused(name, reason) {
  if (!files[name] || sizes[name] !== undefined) return;
  const said = form.elements[name].closest(".drop").querySelector(".unseen");
  said.classList.add("error");
  said.textContent = `${files[name].name}: ${reason}`;
}

export function start(theForm, changed) {
  form = theForm;
  onChange = changed;
  for (const name of ["image", "last_image"]) accept(name);
  document.addEventListener("paste", (event) => put("image", ...picturesIn("image", event.clipboardData.files)));
  // Without this, the browser would leave the page to open a photo dropped beside the field.
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    put("image", ...picturesIn("image", event.dataTransfer.files));
  });
}

// Takes the image of a field away.
export function clear(name) {
  put(name, null);
  form.elements[name].value = "";
}

function accept(name) {
  const field = form.elements[name];
  const drop = field.closest(".drop");
  field.addEventListener("change", () => put(name, field.files[0], [...field.files].slice(1)));
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, () => drop.classList.add("over"));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    drop.classList.remove("over");
    put(name, ...picturesIn(name, event.dataTransfer.files));
  });
  removeButton(name)?.addEventListener("click", () => { put(name, null); field.value = ""; field.focus(); });
}

const removeButton = (name) => form.elements[name].closest(".picture").querySelector(".remove");
// A browser may have no type for HEIC and TIFF.
const isPicture = (file) => file.type.startsWith("image/") || /\.(heic|heif|avif|tiff?)$/i.test(file.name);
// Another file is taken, too, so that it can be said what is wrong with it.
function picturesIn(name, list) {
  const [first, ...others] = [...list].filter(isPicture);
  return [first ?? list[0], name === "image" ? others : []];
}

// Takes an image, and others of which a video each is made. undefined changes nothing; null removes the image.
export function put(name, file, others = []) {
  if (file === undefined) return;
  if (name === "image") {
    more = others.slice(0, batch.MOST - 1);
    batch.show([file, ...more].filter(Boolean), takeOut, others.length - more.length);
  }
  set(name, file);
}

function takeOut(file) {
  const [first, ...others] = all().filter((one) => one !== file);
  put("image", first ?? null, others);
  form.elements.image.focus();
}

function set(name, file) {
  const drop = form.elements[name].closest(".drop");
  const preview = drop.querySelector("img");
  preview.onload = preview.onerror = null; // an image that is replaced or removed may still be read
  if (files[name]) URL.revokeObjectURL(preview.src);
  files[name] = file ?? undefined;
  sizes[name] = file ? null : undefined;
  preview.hidden = !file;
  const unseen = drop.querySelector(".unseen");
  unseen.textContent = "";
  unseen.classList.remove("error");
  drop.classList.toggle("filled", Boolean(file));
  const remove = removeButton(name);
  if (remove) remove.hidden = !file;
  if (file) {
    preview.alt = `The chosen ${name.replace("_", " ")}, ${file.name || "pasted"}`;
    preview.onload = () => { measured(name, { width: preview.naturalWidth, height: preview.naturalHeight }); onChange(false); };
    preview.onerror = () => {
      sizes[name] = undefined;
      preview.hidden = true;
      unseen.textContent = `${file.name}: this browser cannot show it. The service can read it if it is a picture.`;
      onChange(false);
    };
    preview.src = URL.createObjectURL(file);
  }
  onChange(true);
}
