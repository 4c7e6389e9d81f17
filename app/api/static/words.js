// Numbers and decisions as people say them.

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

export const STRATEGY = {
  batched: "Batched", chunked: "Chunked", per_frame: "Per frame", tiled: "Strips",
  approximate_chunked: "Chunks apart", approximate_tiled: "Blended tiles",
};

export function way(plan) {
  if (plan.strategy === "batched") return "all frames in one call";
  if (plan.strategy === "per_frame") return "one latent frame at a time";
  if (plan.strategy === "tiled") return `one latent frame at a time, its picture in ${plan.tiles.rows} strips`;
  if (plan.strategy === "approximate_tiled") return `in ${plan.tiles.rows} × ${plan.tiles.columns} blended tiles`;
  if (plan.strategy === "approximate_chunked") return `${plan.frames_per_chunk} latent frames at a time, each chunk on its own`;
  return `${plan.frames_per_chunk} latent frames at a time`;
}

const REASONS = {
  fastest: "the fastest way, and it fits",
  fastest_that_fits: "the fastest way that fits",
  requested: "as requested",
  nothing_exact_fits: "no exact way fits",
  only_strategy: "the only way this model allows",
};

export function planned(plan, verb) {
  if (!plan) return "";
  if (plan.fits_now === false) return `Does not fit right now (${plan.detail}).`;
  if (plan.fits_now == null) return "No device has reported yet; the plan follows.";
  const reason = REASONS[plan.reason] || plan.reason.replaceAll("_", " ");
  return `${verb} ${way(plan)}: ${reason}.${plan.exact === false ? " Approximate." : ""}`;
}

export function decided(decode) {
  if (!decode || !decode.strategy) return "";
  const reason = REASONS[decode.reason] || String(decode.reason || "").replaceAll("_", " ");
  let text = `Decoded ${way(decode)}: ${reason}.`;
  const told = [];
  if (decode.predicted_peak_bytes) told.push(`${bytes(decode.predicted_peak_bytes)} predicted`);
  if (decode.measured_peak_bytes != null) told.push(`${bytes(decode.measured_peak_bytes)} measured`);
  if (decode.free_bytes_at_decision != null) told.push(`${bytes(decode.free_bytes_at_decision)} were free`);
  if (told.length) text += ` Peak memory: ${told.join(", ")}.`;
  if (decode.retries) text += ` Ran out of memory ${decode.retries === 1 ? "once" : `${decode.retries} times`} and went on with smaller chunks.`;
  text += decode.exact === false ? " Approximate." : " Pixel-exact.";
  if (decode.seam_score != null) text += ` Seam score ${decode.seam_score.toFixed(2)}, 0 where none shows.`;
  return text;
}

const STAGES = {
  queued: "Waiting", loading: "Loading the model", denoising: "Denoising", waiting_for_memory: "Waiting for memory",
  decoding: "Decoding", encoding: "Writing the video", finished: "Done",
};

export function doing(job) {
  if (job.status === "queued") {
    const place = job.queue_position ? `Number ${job.queue_position} in the queue` : "In the queue";
    return job.eta_seconds ? `${place}, done in about ${seconds(Math.ceil(job.eta_seconds))}` : place;
  }
  if (job.status === "running") {
    if (job.cancel_requested) return "Stopping…";
    const share = `${Math.round(job.progress * 100)} %`;
    const stage = STAGES[job.stage] || job.stage;
    return job.eta_seconds ? `${stage} · ${share} · about ${seconds(Math.ceil(job.eta_seconds))} left` : `${stage} · ${share}`;
  }
  if (job.status === "failed") return job.error ? job.error.message : "Failed";
  if (job.expired) return "The video was deleted when its time was over.";
  return "";
}

export const BADGE = { queued: "Queued", running: "Running", succeeded: "Done", failed: "Failed", canceled: "Canceled" };
