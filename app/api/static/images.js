// The images of the form: chosen, dropped anywhere on the page, or pasted; and their sizes.

const files = {};
const sizes = {};
let form = null;
let onChange = () => {};

export const chosen = (name) => files[name];

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
// A browser may have no type for HEIC and TIFF.
const isPicture = (file) => file.type.startsWith("image/") || /\.(heic|heif|avif|tiff?)$/i.test(file.name);
// Another file is taken, too, so that it can be said what is wrong with it.
const pictureIn = (list) => [...list].find(isPicture) ?? list[0];

// undefined changes nothing; null removes the image.
function set(name, file) {
  if (file === undefined) return;
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
    preview.onload = () => { measured(name, { width: preview.naturalWidth, height: preview.naturalHeight }); onChange(); };
    preview.onerror = () => {
      sizes[name] = undefined;
      preview.hidden = true;
      unseen.textContent = `${file.name}: this browser cannot show it. The service can read it if it is a picture.`;
      onChange();
    };
    preview.src = URL.createObjectURL(file);
  }
  onChange();
}
