// The images of the form: chosen, dropped anywhere on the page, or pasted; and the video size that fits the first image.

const files = {};
const sizes = {};
let form = null;
let onChange = () => {};

export const chosen = (name) => files[name];

export function start(theForm, changed) {
  form = theForm;
  onChange = changed;
  for (const name of ["image", "last_image"]) accept(name);
  document.addEventListener("paste", (event) => set("image", pictureIn(event.clipboardData.files)));
  // Without this, the browser would leave the page to open a photo dropped beside the field.
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    set("image", pictureIn(event.dataTransfer.files));
  });
}

function accept(name) {
  const field = form.elements[name];
  const drop = field.closest(".drop");
  field.addEventListener("change", () => set(name, field.files[0]));
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, () => drop.classList.add("over"));
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    drop.classList.remove("over");
    set(name, pictureIn(event.dataTransfer.files));
  });
  removeButton(name)?.addEventListener("click", () => { set(name, null); field.value = ""; field.focus(); });
}

const removeButton = (name) => form.elements[name].closest(".picture").querySelector(".remove");
const pictureIn = (list) => [...list].find((file) => file.type.startsWith("image/"));

// undefined changes nothing; null removes the image.
function set(name, file) {
  if (file === undefined) return;
  const drop = form.elements[name].closest(".drop");
  const preview = drop.querySelector("img");
  if (files[name]) URL.revokeObjectURL(preview.src);
  files[name] = file ?? undefined;
  sizes[name] = undefined;
  preview.hidden = !file;
  drop.classList.toggle("filled", Boolean(file));
  const remove = removeButton(name);
  if (remove) remove.hidden = !file;
  if (file) {
    preview.alt = `The chosen ${name.replace("_", " ")}, ${file.name || "pasted"}`;
    preview.onload = () => { sizes[name] = [preview.naturalWidth, preview.naturalHeight]; onChange(); };
    preview.src = URL.createObjectURL(file);
  }
  onChange();
}

// Width and height in the photo's aspect ratio with about the requested number of pixels; null if that changes little.
export function shapeFor(model, { elements }) {
  if (!sizes.image || model.shapes.length) return null;
  const [wide, high] = sizes.image;
  const given = elements.width.value * elements.height.value;
  const pixels = Math.min(model.limits.max_pixels, given || model.defaults.width * model.defaults.height);
  const multiple = model.size_multiple;
  const rounded = (side) => Math.max(multiple, Math.round(side / multiple) * multiple);
  const shape = { width: rounded(Math.sqrt(pixels * wide / high)), height: rounded(Math.sqrt(pixels * high / wide)) };
  while (shape.width * shape.height > model.limits.max_pixels) shape[shape.width > shape.height ? "width" : "height"] -= multiple;
  const ratio = (one) => one.width / one.height;
  const now = { width: Number(elements.width.value), height: Number(elements.height.value) };
  const closer = Math.abs(Math.log(ratio(shape) / (wide / high))) < Math.abs(Math.log(ratio(now) / (wide / high))) - 0.02;
  return closer ? shape : null;
}
