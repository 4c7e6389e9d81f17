// Puts the page together.

import { call, follow } from "/static/api.js";
import * as compose from "/static/compose.js";
import * as memory from "/static/memory.js";
import * as queue from "/static/queue.js";

const state = document.getElementById("service-state");

function chooseTheme() {
  const theme = document.getElementById("theme");
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
    state.textContent = now.ready ? `${workers} · ${now.running} running · ${now.queued} queued` : "Waiting for a worker…";
  } catch {
    state.textContent = "The service does not answer. Trying again…";
  }
}

chooseTheme();
showState();
setInterval(showState, 3000);
await queue.start();
let lost = false;
follow(queue.onEvent, (connected) => {
  if (connected && lost) queue.refreshAll();
  lost = !connected;
});
memory.start(document.getElementById("memory"));
await compose.start(queue.add);
