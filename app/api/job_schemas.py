"""Schemas of a job's `plan`, `download`, `denoise`, `decode`, `result` and `webhook`.

Few fields are required: a job may be of an earlier version, which wrote fewer.
"""

from app.api.schema_terms import BYTES, NUMBER, SECONDS, TEXT, WHOLE, YES_OR_NO, list_of, object_of, or_null
from app.api.schema_terms import TIME as MOMENT
from app.jobs import DecodeStrategy, Json

_STRATEGY: Json = {"type": "string", "enum": [each for each in DecodeStrategy if each != "auto"]}
TILES = object_of({"rows": WHOLE, "columns": WHOLE})
_KIND: Json = {
    "type": "string",
    "enum": ["resident", "drop_text_encoder", "model_offload", "group_offload"],
}
PLACEMENT = object_of(
    {},
    kind=_KIND,
    device_bytes=BYTES,
    host_bytes=BYTES,
    group_offloaded=list_of(TEXT),
    quantized=list_of(TEXT),
    exact=YES_OR_NO,
    reason=TEXT,
)

RUNG = object_of(
    {"fits_now": YES_OR_NO, "exact": YES_OR_NO, "chosen": YES_OR_NO, "why": TEXT},
    strategy=_STRATEGY,
    frames_per_chunk=WHOLE,
    tiles=TILES,
    dropped_bytes=BYTES,
    predicted_peak_bytes=BYTES,
    predicted_seconds=or_null(SECONDS),
)
DECODE_PLAN = object_of(
    {
        "fits_now": {
            **or_null(YES_OR_NO),
            "description": "Whether a decode would fit the memory that is free; null if no device is known.",
        },
        "reason": {**TEXT, "description": "A stable code for programs."},
    },
    detail={**TEXT, "description": "A sentence with the numbers."},
    needed_bytes=BYTES,
    device=TEXT,
    strategy=_STRATEGY,
    frames_per_chunk={**WHOLE, "description": "Latent frames per chunk."},
    latent_frames=WHOLE,
    tiles=TILES,
    exact=YES_OR_NO,
    predicted_peak_bytes=BYTES,
    predicted_live_bytes=BYTES,
    parked_host_bytes=BYTES,
    predicted_seconds=or_null(SECONDS),
    dropped_bytes=BYTES,
    budget_bytes=BYTES,
    free_bytes=BYTES,
    placement=PLACEMENT,
    denoise_seconds={
        **or_null(SECONDS),
        "description": "Predicted for all steps; null before the device has timed some.",
    },
    weights=PLACEMENT,
)
DOWNLOAD = object_of(
    {"done_bytes": BYTES, "total_bytes": BYTES},
    bytes_per_second={**or_null(NUMBER), "description": "Over the last ten seconds."},
    seconds_left={**or_null(SECONDS), "description": "At this rate; null if nothing comes."},
)
DENOISE = object_of(
    {},
    steps=WHOLE,
    resumed_from_step={**WHOLE, "description": "Steps that an earlier attempt computed; 0 for none."},
    steps_computed={**WHOLE, "description": "Steps that the last attempt computed."},
    steps_since_checkpoint={**WHOLE, "description": "Of these, steps after its last checkpoint."},
    resumable={**YES_OR_NO, "description": "False where the pipeline decoded within its call."},
    stopped_at_step={**WHOLE, "description": "The last step, of a job that was finished early."},
    seconds=SECONDS,
    exact={**YES_OR_NO, "description": "False with rounded weights."},
    placement={**_KIND, "description": "Where the weights were at the end."},
    retries={**WHOLE, "description": "Calls made again after an out-of-memory."},
    fallbacks=list_of(
        object_of(
            {"from": TEXT, "to": TEXT},
            step={**WHOLE, "description": "Finished steps."},
            needed_bytes=or_null(BYTES),
            free_bytes=BYTES,
        )
    ),
    same_arithmetic={
        **YES_OR_NO,
        "description": "Whether numbers were added in the order of a run that nothing was missing for.",
    },
    guidance_passes=WHOLE,
    slices=WHOLE,
    predicted_bytes=BYTES,
    budget_bytes=BYTES,
    reason=TEXT,
)
RETRY = object_of({}, from_dtype=TEXT, to_dtype=TEXT, values=WHOLE, of=WHOLE)
DECODE = object_of(
    {"strategy": _STRATEGY},
    planned_strategy=_STRATEGY,
    frames_per_chunk={**WHOLE, "description": "Latent frames per chunk at the end."},
    tiles=TILES,
    exact=YES_OR_NO,
    seam_score=or_null(NUMBER),
    reason=TEXT,
    detail=TEXT,
    device=TEXT,
    dtype=TEXT,
    vae=TEXT,
    retry=or_null(RETRY),
    predicted_seconds=or_null(SECONDS),
    predicted_peak_bytes=BYTES,
    measured_peak_bytes=or_null(BYTES),
    free_bytes_at_decision=BYTES,
    budget_bytes=BYTES,
    dropped_bytes=BYTES,
    seconds=SECONDS,
    regret_seconds=SECONDS,
    regret={**TEXT, "description": "What a faster option would have needed."},
    retries=WHOLE,
    spills=WHOLE,
    chunks=list_of(WHOLE),
    decodes={**WHOLE, "description": "How often the pipeline decoded, of one that decodes within its call."},
)
SOUND = object_of({"channels": WHOLE, "sample_rate": WHOLE})
RESULT = object_of(
    {"frames": WHOLE},
    width=WHOLE,
    height=WHOLE,
    fps={"anyOf": [NUMBER, TEXT], "description": 'A number, or a fraction such as "24000/1001".'},
    seed={**WHOLE, "description": "Up to 2**64 - 1: the job's `seed` has it as text."},
    audio=or_null(SOUND),
    bytes={**WHOLE, "description": "Size of the file."},
)
WEBHOOK = object_of(
    {
        "state": {"type": "string", "enum": ["pending", "failed", "delivered", "given_up"]},
        "attempts": {"type": "integer", "minimum": 0},
        "last_error": or_null(TEXT),
        "next_attempt_at": or_null(MOMENT),
    }
)
