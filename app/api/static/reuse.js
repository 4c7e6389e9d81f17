// Fills the form with the settings, the seed and the pictures of an earlier job.

import { address } from "./api.js";
import * as compose from "./compose.js";
import { byId, say } from "./dom.js";

export async function reuse(job) {
  const said = byId("reused");
  say(said, "Fetching the photo…");
  const photos = {};
  let lost = "";
  for (const name of ["image", "last_image"]) {
    if (!job.links[name]) continue;
    const photo = await fetchPhoto(job, name).catch(() => null);
    if (photo) photos[name] = photo;
    else lost = " Its photo could not be fetched: choose one.";
  }
  if (!job.links.image) lost = " Its photo has expired: choose one.";
  const problem = compose.take(job, photos);
  say(said, problem || `Settings, seed ${job.seed}${photos.image ? " and photo" : ""} of an earlier video.${lost}`);
  said.classList.toggle("error", Boolean(problem));
  byId("prompt").focus();
}

async function fetchPhoto(job, name) {
  const answer = await fetch(`${address(job.links[name])}?${new URLSearchParams({ original: true })}`);
  if (!answer.ok) throw new Error(answer.statusText);
  const kind = answer.headers.get("content-type") ?? "";
  return new File([await answer.blob()], `${name}-${job.id.slice(-6)}.${kind.split("/")[1]?.split(";")[0] ?? "jpg"}`, { type: kind });
}
