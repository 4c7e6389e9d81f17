// "Download as": the video in another format, which the service makes when it is asked for the first time.

import { address, Problem } from "./api.js";
import { make } from "./dom.js";

const NAMES = { webm: "WebM", gif: "GIF", webp: "WebP", "png.zip": "PNG files" };

// The choice on the card of a finished job; hidden while there is no video.
export function offer(card, job) {
  const [label, select] = [card.querySelector(".as-label"), card.querySelector(".as")];
  const links = job.links.formats ?? {};
  label.hidden = Object.keys(links).length === 0;
  select.setAttribute("aria-label", `Download as: ${job.request.prompt}`);
  const shown = JSON.stringify(links);
  if (select.dataset.links === shown) return;
  select.dataset.links = shown;
  select.replaceChildren(select.options[0], ...Object.keys(links).map((name) => {
    const option = make("option", NAMES[name] ?? name);
    option.value = name;
    return option;
  }));
}

// Asks for the headers first: they come when the file is made, and a refusal is shown instead of saved.
export async function downloadAs(card, name) {
  const [select, problem] = [card.querySelector(".as"), card.querySelector(".problem")];
  const href = address(JSON.parse(select.dataset.links)[name]);
  const first = select.options[0];
  const choice = first.textContent;
  select.disabled = true;
  first.textContent = `Making ${NAMES[name] ?? name}…`;
  problem.hidden = true;
  try {
    const made = await fetch(href, { method: "HEAD" });
    if (!made.ok) throw new Problem(await (await fetch(href)).json().catch(() => ({})), made.status);
    const link = make("a");
    Object.assign(link, { href, download: `${card.dataset.id}.${name}` });
    link.click();
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
  } finally {
    first.textContent = choice;
    select.disabled = false;
  }
}
