// The question before videos are deleted.

import { byId, say } from "./dom.js";

export function confirmed(prompts) {
  const dialog = byId("delete-dialog");
  const several = prompts.length > 1;
  say(byId("delete-title"), several ? `Delete these ${prompts.length} videos?` : "Delete this video?");
  say(byId("delete-what"), several ? "" : prompts[0] || "(no prompt)");
  say(byId("delete-hint"), `${several ? "Their photos, prompts, videos" : "Its photo, prompt, video"} and history are deleted for good.`);
  say(byId("delete-keep"), several ? "Keep them" : "Keep it");
  dialog.returnValue = "keep"; // what the escape key leaves
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "delete"), { once: true });
  });
}
