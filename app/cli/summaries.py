"""What became of a job, in sentences for a terminal."""

from typing import Any

from app.units import format_bytes


def framing_sentences(job: dict[str, Any]) -> list[str]:
    """Return a sentence for each image of the job: the video's size, and what is cut from the image."""
    pictures = job.get("pictures") or {}
    named = [("Image", pictures.get("image")), ("Last image", pictures.get("last_image"))]
    named += [(f"Key frame {n}", each) for n, each in enumerate(pictures.get("keyframes", []), 1)]
    return [f"{name}: {each['detail']}." for name, each in named if each]


def stopped_summary(denoise: dict[str, Any]) -> str:
    """Return a sentence about a job that was finished early, an empty text for others."""
    if "stopped_at_step" not in denoise:
        return ""
    return f" Stopped early, after step {denoise['stopped_at_step']} of {denoise['steps']}."


def weights_summary(denoise: dict[str, Any]) -> str:
    """Return a sentence about weights that were not the published ones, an empty text for others."""
    if denoise.get("exact", True):
        return ""
    parts = " and ".join(denoise["quantized"])
    return (
        f" Denoised with {parts} in {denoise['weights']} (approximate), because the full weights did not fit."
    )


def decode_summary(decode: dict[str, Any]) -> str:
    """Return sentences about a job's decode: the chosen option, its reason and the measurements."""
    how = {
        "batched": "all latent frames in one call",
        "chunked": f"{decode['frames_per_chunk']} latent frames at a time",
        "per_frame": "one latent frame at a time",
        "tiled": f"one latent frame at a time, in {decode['tiles']['rows']} strips",
        "approximate_chunked": f"{decode['frames_per_chunk']} latent frames at a time, in independent chunks",
        "approximate_tiled": "in {rows} x {columns} blended tiles".format(**decode["tiles"]),
    }[decode["strategy"]]
    exactness = "exact" if decode["exact"] else "approximate"
    text = f"Decoded {how} ({exactness}) in {decode['seconds']:.1f} s: {decode['detail']}."
    if retry := decode.get("retry"):
        numbers = f"{retry['values']:,} of {retry['of']:,} values"
        text += (
            f" Decoded in {retry['to_dtype']}, because in {retry['from_dtype']} {numbers} were not finite."
        )
    if decode.get("seam_score") is not None:
        text += f" Seam score {decode['seam_score']:.2f} (0: no visible seam)."
    measured = decode.get("measured_peak_bytes")
    if measured is not None:
        text += f" Measured peak {format_bytes(measured)}."
    if decode["retries"]:
        text += f" Ran out of memory {decode['retries']} times and continued with smaller chunks."
    return text
