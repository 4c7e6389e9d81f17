// Texts for numbers, plans and decisions.

export function bytes(count) {
  if (count == null) return "?";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (count >= 1024 && power < units.length - 1) { count /= 1024; power += 1; }
  return `${count >= 100 || power === 0 ? Math.round(count) : count.toFixed(1)} ${units[power]}`;
}

export function seconds(count) {
  if (count == null) return "?";
  if (count < 10 && !Number.isInteger(count)) return `${count.toFixed(1)} s`;
  if (count < 90) return `${Math.round(count)} s`;
  if (count < 5400) return `${Math.round(count / 60)} min`;
  return `${(count / 3600).toFixed(1)} h`;
}

// A range of seconds, in one unit: "20 to 40 s". Ends that look the same are one number of a known shape.
export function range({ low_seconds: low, high_seconds: high }) {
  const [from, to] = [seconds(Math.floor(low)), seconds(Math.ceil(high))];
  if (from === to) return to;
  const unit = to.slice(to.lastIndexOf(" "));
  return `${from.endsWith(unit) ? from.slice(0, -unit.length) : from} to ${to}`;
}

// What becomes of a photo in the video.
export const framing = (name, { detail }) => `The ${name} of ${detail.replaceAll(/(\d)x(?=\d)/g, "$1 × ")}.`;

// A frame rate is a number, or a fraction such as "24000/1001".
export function rate(fps) {
  const [above, below = 1] = String(fps).split("/").map(Number);
  return above / below;
}

const times = (count) => (count === 1 ? "once" : `${count} times`);

const STRATEGY = {
  batched: "Batched", chunked: "Chunked", per_frame: "Per frame", tiled: "Tiled",
  approximate_chunked: "Independent chunks", approximate_tiled: "Blended tiles",
};

export function short(rung) {
  const tiles = rung.tiles ?? { rows: 1, columns: 1 };
  const name = STRATEGY[rung.strategy] + (rung.dropped_bytes ? ", idle weights offloaded" : "");
  if (rung.strategy.endsWith("chunked")) return `${name} × ${rung.frames_per_chunk}`;
  if (rung.strategy === "tiled") return `${name} × ${tiles.rows}`;
  return rung.strategy === "approximate_tiled" ? `${name} ${tiles.rows} × ${tiles.columns}` : name;
}

export function option(plan) {
  if (plan.strategy === "batched") return "all frames in one call";
  if (plan.strategy === "per_frame") return "one latent frame at a time";
  if (plan.strategy === "tiled") return `one latent frame at a time, in ${plan.tiles.rows} strips`;
  if (plan.strategy === "approximate_tiled") return `in ${plan.tiles.rows} × ${plan.tiles.columns} blended tiles`;
  if (plan.strategy === "approximate_chunked") return `${plan.frames_per_chunk} latent frames at a time, in independent chunks`;
  return `${plan.frames_per_chunk} latent frames at a time`;
}

const REASONS = {
  fastest: "the fastest option, and it fits",
  fastest_that_fits: "the fastest option that fits",
  fits_probably: "it probably fits and is faster on average",
  requested: "as requested",
  nothing_exact_fits: "no exact option fits",
  only_strategy: "the only option for this model",
};

const reason = (plan) => REASONS[plan.reason] || String(plan.reason || "").replaceAll("_", " ");

export function planned(plan, verb) {
  if (!plan) return "";
  if (plan.fits_now === false) return `Does not fit right now (${plan.detail}). It would wait for memory.`;
  if (plan.fits_now == null) return "No device has reported its memory yet. The plan appears when one has.";
  const off = plan.dropped_bytes ? ", with idle weights offloaded" : "";
  return `${verb} ${option(plan)}${off}: ${reason(plan)}.`;
}

export function decided(decode) {
  if (!decode?.strategy) return "";
  const retries = decode.retries ? ` Ran out of memory ${times(decode.retries)} and continued with smaller chunks.` : "";
  const peak = `Peak memory: ${bytes(decode.predicted_peak_bytes)} predicted, ${measured(decode.measured_peak_bytes)}.`;
  const late = decode.regret_seconds > 0 ? ` In hindsight, ${decode.regret}.` : "";
  return `Decoded ${option(decode)}: ${reason(decode)}.${retries} ${peak}${late}`;
}

// Pixels are approximate if the decode or quantized weights changed them.
export const exactness = (decode, weights) =>
  ([decode, weights].some((one) => one?.exact === false) ? "approximate" : "pixel-exact");

// Where a model's files are, and what a download would bring.
export function stored(storage) {
  if (!storage) return "";
  const size = storage.size_bytes == null ? "" : `${storage.size_from === "configuration" ? "about " : ""}${bytes(storage.size_bytes)}`;
  const what = [storage.format, size].filter(Boolean).join(", ");
  if (storage.place === "built_in") return `Comes with Framefit: ${what}.`;
  if (storage.on_disk) return `On this machine: ${what}.`;
  if (storage.place === "nowhere") return `Not on this machine: ${what}, to be converted first.`;
  if (storage.place === "missing") return "Not on this machine: its models file names a path that does not exist.";
  const download = storage.download_bytes;
  const rest = download != null && download < storage.size_bytes ? ` (${bytes(download)} are missing)` : "";
  return `Not on this machine: ${what}${rest}. The first job downloads it.`;
}

const NAMED_PLACEMENT = {
  resident: "all weights on the device", drop_text_encoder: "text encoder dropped after the prompt",
  model_offload: "one component on the device at a time", group_offload: "layers copied in groups, which is slow",
};

export function fitting(fit) {
  if (!fit) return "";
  if (!fit.fits) return `Its default video does not fit here: ${fit.detail}.`;
  return `Fits here: ${NAMED_PLACEMENT[fit.placement]}, ${fit.detail}.`;
}

// Where the weights are while a job runs; "" where all of them stay on the device.
const PLACEMENT = {
  drop_text_encoder: "The text encoder leaves the device after the prompt.",
  model_offload: "One component of the model is on the device at a time.",
  group_offload: "The model's layers pass through the device in groups, which is slow.",
};
export const placed = (placement) => PLACEMENT[placement?.kind] || "";

export const rounded = (weights) =>
  (weights?.exact === false ? `The ${weights.quantized.join(" and ")} in int8 (quantized weights)` : "");

// Pairs of a name and a text about a job's decode, with predictions beside measurements.
export function facts({ denoise, decode, pictures, not_resumable_because: inPlace }) {
  if (!decode?.strategy) return inPlace ? [["Not resumable", inPlace]] : [];
  const rows = inPlace ? [["Not resumable", inPlace]] : [];
  if (pictures.image) rows.push(["Photo", framing("photo", pictures.image)]);
  if (pictures.last_image) rows.push(["Last photo", framing("last photo", pictures.last_image)]);
  const guess = decode.predicted_seconds == null ? "no prediction" : `${seconds(decode.predicted_seconds)} predicted`;
  rows.push(["Decode time", `${guess}, ${seconds(decode.seconds)} taken`]);
  if (decode.free_bytes_at_decision != null) {
    const budget = decode.budget_bytes == null ? "" : `, budget ${bytes(decode.budget_bytes)}`;
    rows.push(["Free memory", `${bytes(decode.free_bytes_at_decision)} on ${decode.device}${budget}`]);
  }
  if (decode.retry) {
    const { from_dtype: from, to_dtype: to, values, of } = decode.retry;
    rows.push(["Precision", `${to}: in ${from}, ${values} of ${of} values were not finite`]);
  }
  if (decode.chunks?.length > 1) rows.push(["Chunks", `${decode.chunks.join(" + ")} latent frames`]);
  rows.push(["Out of memory", decode.retries ? `${times(decode.retries)}; finished chunks were kept` : "never"]);
  if (decode.spills) rows.push(["Spilled to host memory", times(decode.spills)]);
  if (decode.seam_score != null) rows.push(["Seam score", `${decode.seam_score.toFixed(2)}; 0: no visible seam`]);
  if (decode.regret) rows.push(["Regret", decode.regret]);
  if (denoise?.seconds) rows.push(["Denoising", `${denoise.steps} steps in ${seconds(denoise.seconds)}`]);
  if (denoise?.fallbacks) {
    const steps = denoise.fallbacks.map((one) => one.to.replaceAll("_", " ")).join(", ");
    rows.push(["Memory missing", `${steps}; no step was lost`]);
  }
  if (rounded(denoise)) rows.push(["Weights", `${rounded(denoise)}; the full-precision weights did not fit`]);
  return rows;
}

const measured = (count) => (count == null ? "not measured" : `${bytes(count)} measured`);

const FAR = 10000; // the service counts no further

const STAGES = {
  queued: "Queued", denoised: "Waiting for a decode", held: "Held back", downloading: "Downloading the model", loading: "Loading the model", denoising: "Denoising", waiting_for_memory: "Waiting for memory",
  decoding: "Decoding", encoding: "Writing the video", finished: "Done",
};

export function doing(job) {
  if (job.stage === "held") return `Held back: ${job.held_because ?? "its attempts are used up"}.`;
  if (job.status === "queued" && job.stage === "denoised") return "Denoised; waiting for a worker that decodes.";
  if (job.status === "queued") {
    const far = job.queue_position === FAR ? " or later" : "";
    const place = job.queue_position ? `Number ${job.queue_position.toLocaleString("en")}${far} in the queue` : "In the queue";
    const queued = job.eta_range ? `${place}, done in ${range(job.eta_range)}` : place;
    return job.gave_way ? `${job.gave_way[0].toUpperCase()}${job.gave_way.slice(1)}. ${queued}` : queued;
  }
  if (job.status === "running") return running(job);
  if (job.status === "failed") return job.error ? inUnits(job.error.message) : "Failed";
  if (job.expired) return "The video has expired and was deleted.";
  return "";
}

function running(job) {
  if (job.cancel_requested) return "Stopping…";
  if (job.stage === "waiting_for_memory" && job.waiting) return waits(job.waiting);
  if (job.stage === "downloading" && job.download) return downloads(job.download);
  const parts = [STAGES[job.stage] || job.stage, `${Math.round(job.progress * 100)} %`];
  if (job.eta_range) parts.push(`${range(job.eta_range)} left`);
  return parts.join(" · ");
}

function downloads({ done_bytes: done, total_bytes: all, bytes_per_second: each, seconds_left: left }) {
  const parts = [STAGES.downloading, `${bytes(done)} of ${bytes(all)}`];
  if (each) parts.push(`${bytes(each)}/s`);
  if (left != null) parts.push(`about ${seconds(Math.ceil(left))} left`);
  return parts.join(" · ");
}

// How full the bar is. A download is shown as a whole of its own.
export function share({ stage, progress, download }) {
  return stage === "downloading" && download ? download.done_bytes / Math.max(1, download.total_bytes) : progress;
}

function waits(waiting) {
  const held = heldByOthers(waiting.holders ?? []);
  const free = waiting.free_bytes == null ? "" : `, ${bytes(waiting.free_bytes)} are free`;
  return `Waiting for memory: needs at least ${bytes(waiting.needed_bytes)}${free}.${held && ` Other programs hold: ${held}.`}`;
}

export function heldByOthers(holders) {
  const others = holders.filter((one) => !one.own && one.used_bytes);
  return others.map((one) => `${one.name ?? "unknown"} (${bytes(one.used_bytes)})`).join(", ");
}

export const BADGE = { queued: "Queued", running: "Running", succeeded: "Done", failed: "Failed", canceled: "Canceled" };

// Replaces byte counts in the service's messages by GiB or MiB.
export function inUnits(sentence) {
  const started = sentence.charAt(0).toUpperCase() + sentence.slice(1);
  return started.replace(/\d[\d,]* bytes/g, (found) => bytes(Number(found.replace(/\D/g, ""))));
}
