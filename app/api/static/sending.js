// Sends requests for videos. One whose answer was lost is sent again under its own idempotency key: it makes one video.

import { Problem, call } from "./api.js";

const unanswered = new Map(); // photo -> the parts and the key of its last request without an answer

// `parts` are pairs of a name and a value. Raises `Problem` if the service refuses the request.
export async function send(photo, parts) {
  const body = new FormData();
  if (photo) body.append("image", photo); // none if another video is continued
  for (const [name, value] of parts) body.append(name, value);
  const before = unanswered.get(photo);
  const key = before && isSame(before.parts, parts) ? before.key : newKey();
  unanswered.set(photo, { parts, key });
  const post = () => call("POST", "/generate", { form: body, headers: { "Idempotency-Key": key } });
  const again = (error) => { if (error instanceof Problem) throw error; return post(); };
  try {
    const job = await post().catch(again);
    unanswered.delete(photo);
    return job;
  } catch (error) {
    if (error instanceof Problem) unanswered.delete(photo);
    throw error;
  }
}

const isSame = (some, others) =>
  some.length === others.length && some.every(([name, value], index) => name === others[index][0] && value === others[index][1]);

// Not crypto.randomUUID: browsers offer that only over HTTPS.
const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
