// Several videos at once: those with a tick are downloaded as one zip file, or deleted.

import { address } from "./api.js";
import { confirmed } from "./confirm.js";
import { byId, say } from "./dom.js";

const MOST = 100; // videos in a zip file
const list = byId("jobs");
const bar = byId("chosen");
const said = byId("chosen-said");
let queue = null;

const ticks = (rest = "") => [...list.querySelectorAll(`.job .choose:not([hidden]) .pick${rest}`)];
const chosen = () => ticks(":checked").map((tick) => tick.closest(".job").dataset.id);

export function start(theQueue) {
  queue = theQueue;
  list.addEventListener("change", (event) => { if (event.target.matches(".pick")) { say(said, ""); show(); } });
  list.addEventListener("listed", show);
  byId("chosen-all").addEventListener("click", () => tick(ticks(), true));
  byId("chosen-none").addEventListener("click", () => { tick(ticks(), false); list.focus(); });
  byId("chosen-download").addEventListener("click", download);
  byId("chosen-delete").addEventListener("click", remove);
}

function tick(boxes, value) {
  for (const one of boxes) one.checked = value;
  say(said, "");
  show();
}

function show() {
  const count = chosen().length;
  bar.hidden = !count && !said.textContent;
  byId("chosen-count").textContent = `${count} selected`;
  byId("chosen-download").disabled = byId("chosen-delete").disabled = !count;
}

async function download() {
  const ids = chosen().filter((id) => queue.job(id).links.video);
  if (!ids.length) return tell("None of these has a video.");
  if (ids.length > MOST) return tell(`At most ${MOST} videos come in one file; ${ids.length} are selected.`);
  const link = address(`/jobs/videos.zip?${new URLSearchParams({ ids: ids.join(",") })}`);
  // Asks first whether the service would refuse: a browser would save the refusal as the file. HEAD sends no video.
  const answer = await fetch(link, { method: "HEAD" }).catch(() => null);
  if (!answer?.ok) return tell(answer ? await reason(link) : "The service does not answer.");
  const anchor = document.createElement("a");
  Object.assign(anchor, { href: link, download: "framefit-videos.zip" });
  anchor.click();
  const without = chosen().length - ids.length;
  tell(`${ids.length === 1 ? "1 video is" : `${ids.length} videos are`} downloaded${without ? `; ${without} without a video left out` : ""}.`);
}

async function reason(link) {
  const answer = await fetch(link).catch(() => null);
  const problem = answer && !answer.ok ? await answer.json().catch(() => ({})) : {};
  return problem.detail || "The videos cannot be downloaded now.";
}

async function remove() {
  const ids = chosen();
  if (!(await confirmed(ids.map((id) => queue.job(id).request.prompt)))) return;
  let deleted = 0;
  const refused = [];
  for (const id of ids) {
    tell(`Deleting ${deleted + refused.length + 1} of ${ids.length}…`);
    const problem = await queue.erase(id);
    if (problem) refused.push(problem.message);
    else deleted += 1;
  }
  const done = deleted === 1 ? "1 video was deleted." : `${deleted} videos were deleted.`;
  tell(refused.length ? `${done} ${refused.length} could not be: ${[...new Set(refused)].join("; ")}.` : done);
  list.focus();
}

function tell(sentence) {
  say(said, sentence);
  show();
}
