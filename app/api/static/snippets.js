// A job as a program: the request, the photo and the video, for a shell with curl and for Python's standard library.
// Everything that a person typed is quoted, and no key is in it.

import { address } from "./api.js";

// A job that continues another has its own copy of that one's last frame, as its image.
const LEFT_OUT = new Set(["image_size", "last_image_size", "keyframe_sizes", "continue_from", "webhook_url"]);
const PHOTOS = ["image", "last_image"];
const KEY = "FRAMEFIT_API_KEY";

// The fields that a client sends: what has no value is left out, and the seed is not rounded.
function fieldsOf(job) {
  const given = Object.entries(job.request).filter(([name, value]) =>
    !LEFT_OUT.has(name) && value !== null && value !== "" && !(Array.isArray(value) && !value.length));
  return { ...Object.fromEntries(given), seed: BigInt(job.seed) };
}

const service = () => (location.origin + address("/")).replace(/\/$/, "");
const photosOf = (job) => PHOTOS.filter((name) => job.links[name]);
const keyframesOf = (job) => (job.links.keyframes ?? []).map((_, number) => number);
const missing = (job) => (photosOf(job).length ? "" : "# The photo of this job was deleted: put one at the file's place.\n");
const hook = (job) => (job.request.webhook_url ? "# The webhook of the job is left out.\n" : "");

export function curl(job, needsKey) {
  const key = needsKey ? ` -H "Authorization: Bearer $${KEY}"` : "";
  const names = photosOf(job).length ? photosOf(job) : ["image"];
  const file = (name) => `${name}-${job.id}`;
  const fetched = (name, path) => `curl -fsS${key} -o ${file(name)} ${quoted(`${service()}/jobs/${job.id}/${path}?original=true`)}\n`;
  const keyframes = keyframesOf(job).map((number) => `keyframe_${number}`);
  const photos = [...photosOf(job).map((name) => fetched(name, name)), ...keyframes.map((name, number) => fetched(name, `keyframes/${number}`))];
  const sent = Object.entries(fieldsOf(job)).map(([name, value]) =>
    `--form-string ${quoted(`${name}=${typeof value === "object" ? JSON.stringify(value) : value}`)}`);
  const parts = [...[...names, ...keyframes].map((name) => `-F ${name}=@${file(name)}`), ...sent];
  return [
    "# For bash or zsh.", needsKey ? ` First: export ${KEY}=..., an API key of this service.` : "", "\n", hook(job), missing(job), ...photos,
    `curl -fsS${key} ${quoted(`${service()}/generate`)} \\\n  `, parts.join(" \\\n  "), "\n",
    `# The answer has the new job's id. Its video, once it has succeeded:\n# curl -fsS${key} -o video.mp4 ${service()}/jobs/ID/video\n`,
  ].join("");
}

// In single quotes nothing has a meaning but their end. Control characters, which a terminal may act on, are written out.
function quoted(text) {
  const code = (each) => each.charCodeAt(0).toString(16);
  // eslint-disable-next-line no-control-regex
  if (!/[\x00-\x09\x0b-\x1f\x7f-\x9f]/.test(text)) return `'${text.replaceAll("'", String.raw`'\''`)}'`;
  const escaped = text.replaceAll("\\", "\\\\").replaceAll("'", "\\'");
  return `$'${escaped.replace(/[\x00-\x1f\x7f-\x9f]/g, (each) => `\\u${code(each).padStart(4, "0")}`)}'`;
}

export function python(job, needsKey) {
  const photos = photosOf(job).length ? photosOf(job) : ["image"];
  const images = photos.map((name) => (job.links[name]
    ? `    "${name}": photo("/jobs/${job.id}/${name}?original=true"),\n`
    : `    "${name}": data_url(open("${name}.jpg", "rb").read()),\n`));
  const fields = Object.entries(fieldsOf(job)).map(([name, value]) => `    ${literal(name)}: ${literal(value)},\n`);
  return `${needsKey ? `# First: export ${KEY}=..., an API key of this service.\n` : ""}${hook(job)}${missing(job)}import base64
import json
import os
import time
import urllib.request

SERVICE = ${literal(service())}


def call(path, fields=None):
    headers = {"Content-Type": "application/json"} if fields else {}
${needsKey ? `    headers["Authorization"] = "Bearer " + os.environ["${KEY}"]\n` : ""}    body = json.dumps(fields).encode() if fields else None
    with urllib.request.urlopen(urllib.request.Request(SERVICE + path, body, headers)) as answer:
        return answer.read()


def data_url(image):
    return "data:application/octet-stream;base64," + base64.b64encode(image).decode()


def photo(path):
    return data_url(call(path))


fields = {
${images.join("")}${fields.join("")}}
${keyframesOf(job).length ? `for number, keyframe in enumerate(fields["keyframes"]):
    keyframe["image"] = photo(f"/jobs/${job.id}/keyframes/{number}?original=true")
` : ""}job = json.loads(call("/generate", fields))
while job["status"] in ("queued", "running"):
    time.sleep(2)
    job = json.loads(call("/jobs/" + job["id"]))
if job["status"] != "succeeded":
    raise SystemExit(str(job["error"] or job["status"]))
with open(job["id"] + ".mp4", "wb") as file:
    file.write(call("/jobs/" + job["id"] + "/video"))
print(job["id"] + ".mp4")
`;
}

// A text of JSON is one of Python, too; the other values are not.
function literal(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${literal(name)}: ${literal(one)}`).join(", ")}}`;
  if (typeof value !== "string") return String(value);
  return JSON.stringify(value).replace(/[\x7f-\x9f\u2028\u2029]/g, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
