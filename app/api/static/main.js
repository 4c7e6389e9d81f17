// Starts the page: theme, session, queue, memory chart and form.

import { call, follow, session } from "./api.js";
import * as code from "./code.js";
import * as compose from "./compose.js";
import { byId, say } from "./dom.js";
import * as memory from "./memory.js";
import * as queue from "./queue.js";
import { reuse } from "./reuse.js";
import * as select from "./select.js";

const STATE_MS = 3000;

function chooseTheme() {
  const theme = byId("theme");
  const apply = () => {
    if (theme.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme.value;
  };
  theme.value = localStorage.getItem("theme") || "auto";
  theme.addEventListener("change", () => { localStorage.setItem("theme", theme.value); apply(); });
  apply();
}

async function showState() {
  try {
    const now = await call("GET", "/readyz");
    const workers = now.workers === 1 ? "1 worker" : `${now.workers} workers`;
    const paused = now.devices.length > 0 && now.devices.every((device) => device.state !== "active") ? " (paused)" : "";
    const busy = `${workers}${paused} · ${now.running} running · ${now.queued} queued`;
    say(byId("service-state"), now.ready ? busy : "Waiting for a worker…");
  } catch {
    say(byId("service-state"), "The service does not answer. Retrying…");
  }
}

function offerSignOut(who) {
  const out = byId("sign-out");
  out.hidden = !who.needs_key;
  out.setAttribute("aria-label", `Sign out ${who.key_name ?? ""}`.trim());
  out.addEventListener("click", async () => { await call("DELETE", "/session"); location.reload(); });
}

chooseTheme();
showState();
setInterval(showState, STATE_MS);
const who = await session();
offerSignOut(who);
code.start(who);
select.start(queue);
byId("jobs").addEventListener("click", ({ target }) => {
  const job = queue.job(target.closest(".job")?.dataset.id);
  if (target.closest(".reuse")) reuse(job);
  if (target.closest(".code")) code.open(job);
});
// The decodes of the memory charts lead to the cards of their jobs.
byId("memory").addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#job-']");
  if (!link) return;
  event.preventDefault();
  queue.reveal(link.hash.slice("#job-".length));
});
await queue.start();
// Also after the first connection: what happened between loading the list and opening the stream is in neither.
follow(
  (kind, data) => { queue.onEvent(kind, data); memory.onEvent(kind, data); },
  (connected) => { if (connected) { queue.refreshAll(); memory.refresh(); } },
);
memory.start(byId("memory"), who);
await compose.start(queue.add, who);
