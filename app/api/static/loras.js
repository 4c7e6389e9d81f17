// The LoRAs of a new video: one row for each that the chosen model takes, with its scale.

import { call } from "./api.js";
import { byId, make } from "./dom.js";

const box = byId("loras");
const rows = byId("lora-rows");
let known = [];

export async function start() {
  known = (await call("GET", "/loras")).loras.filter((one) => !one.unusable_because);
}

// Show the rows of a model. Those of its recipe come first, and are chosen; fixed ones cannot be changed.
export function apply(model, field) {
  const fixed = "loras" in model.fixed;
  const own = new Set(model.loras.map((one) => one.name));
  const fits = (one) => !own.has(one.name) && (one.models.includes(model.name) || !one.models.length);
  const offered = fixed ? [] : known.filter(fits).map((one) => ({ name: one.name }));
  const listed = [...model.loras.map((one) => ({ ...one, chosen: true })), ...offered];
  rows.replaceChildren(...listed.map((one) => row(one, fixed, () => write(model, field))));
  box.hidden = !listed.length;
  field.disabled = fixed || !listed.length;
  field.value = "";
}

// Ticks the rows of a request's LoRAs.
export function choose(model, field, wanted) {
  for (const line of rows.children) line.take(wanted.find((one) => one.name === line.dataset.name && (one.component ?? "") === line.component));
  write(model, field);
}

function row(lora, fixed, onChange) {
  const line = make("div", null, "row");
  const choice = make("label", null, "field");
  const box = Object.assign(make("input"), { type: "checkbox", checked: Boolean(lora.chosen), disabled: fixed });
  const place = lora.component ? ` (${lora.component})` : "";
  choice.append(box, ` ${lora.name}${place}`);
  const scale = make("label", "Scale ", "field short");
  const number = Object.assign(make("input"), { type: "number", min: -4, max: 4, step: "any", value: lora.scale ?? 1, disabled: fixed });
  number.setAttribute("aria-label", `Scale of ${lora.name}${place}`);
  scale.append(number);
  line.append(choice, scale);
  line.lora = () => box.checked && { name: lora.name, scale: number.valueAsNumber, ...(lora.component && { component: lora.component }) };
  line.take = (one) => {
    if (fixed) return;
    box.checked = Boolean(one);
    number.value = one?.scale ?? lora.scale ?? 1;
  };
  Object.assign(line, { component: lora.component ?? "" });
  line.dataset.name = lora.name;
  line.addEventListener("input", onChange);
  return line;
}

// The form's field as JSON. An empty one means the recipe's, so that none of them is an empty list.
function write(model, field) {
  const chosen = [...rows.children].map((line) => line.lora()).filter(Boolean);
  field.value = chosen.length || model.loras.length ? JSON.stringify(chosen) : "";
}
