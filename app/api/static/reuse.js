// Fills the form with the settings, the seed and the pictures of an earlier job.

import { address } from "./api.js";
import * as compose from "./compose.js";
import { byId, say } from "./dom.js";

export async function reuse(job) {
  const said = byId("reused");
  say(said, "Fetching the photo…");
  const photos = { keyframes: [] };
  let lost = "";
  const fetchOne = async (link, name) => {
    const photo = await fetchPhoto(link, `${name}-${job.id.slice(-6)}`).catch(() => null);
    if (!photo) lost = " Its photo could not be fetched: choose one.";
    return photo;
  };
  for (const name of ["image", "last_image"]) {
    const photo = job.links[name] && await fetchOne(job.links[name], name);
    if (photo) photos[name] = photo;
  }
  for (const [number, link] of (job.links.keyframes ?? []).entries()) {
    photos.keyframes.push(await fetchOne(link, `keyframe-${number + 1}`));
  }
  if (!job.links.image) lost = " Its photo has expired: choose one.";
  const problem = compose.take(job, photos);
  say(said, problem || `Settings, seed ${job.seed}${photos.image ? " and photo" : ""} of an earlier video.${lost}`);
  said.classList.toggle("error", Boolean(problem));
  byId("prompt").focus();
}

async function fetchPhoto(link, name) {
  const answer = await fetch(`${address(link)}?${new URLSearchParams({ original: true })}`);
  if (!answer.ok) throw new Error(answer.statusText);
  const kind = answer.headers.get("content-type") ?? "";
  return new File([await answer.blob()], `${name}.${kind.split("/")[1]?.split(";")[0] ?? "jpg"}`, { type: kind });
}
