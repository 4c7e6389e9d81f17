"""Says in a job's files how they were made, if the service and the request allow it."""

from typing import Any

from adaptive.types import VideoShape
from adaptive.version import __version__
from app.config import Settings
from app.frame_rate import rate_as_json
from app.jobs import JobSpec, Json
from app.media.metadata.note import OURS, Note, note_of

_OF_SPEC = ("model", "prompt", "negative_prompt", "num_inference_steps", "guidance_scale")
_OF_DECODE = ("strategy", "frames_per_chunk", "tiles", "exact", "dtype", "vae")


def note_for(settings: Settings, spec: JobSpec, shape: VideoShape, decode: Json | None = None) -> Note | None:
    """Return the note of a job's files; None if they must hold none. `decode` is the report of the decode."""
    if not (settings.embed_metadata and spec.embed_metadata):
        return None
    facts: dict[str, Any] = {
        OURS: __version__,
        **{name: value for name in _OF_SPEC if (value := getattr(spec, name)) != ""},
        "seed": str(spec.seed),  # as text: many readers round numbers beyond 2**53
        "width": shape.width,
        "height": shape.height,
        "num_frames": shape.frames,
        "fps": rate_as_json(spec.fps),
    }
    if spec.loras:
        facts["loras"] = [{"name": each.name, "scale": each.scale} for each in spec.loras]
    if decode is not None:
        facts["decode"] = {name: decode[name] for name in _OF_DECODE if name in decode}
    return note_of(spec.prompt, facts)
