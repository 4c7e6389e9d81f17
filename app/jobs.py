"""The types of a job: its specification, its states and the legal transitions between them.

`JobSpec` serves three purposes: the body of a request (completed with the model's defaults), the stored
column, and the worker's input. This file knows no HTTP, SQL or torch.

Longer than 300 lines: every field of a request is declared and described here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from app.fields.keyframes import Keyframes
from app.fields.loras import Loras
from app.frame_rate import FrameRate

PROMPT_MAX_CHARACTERS = 4000
PRIORITY_LIMIT = 10
SEEDS = 2**64  # torch's generators take 64 bits

Json = dict[str, Any]


class JobStatus(StrEnum):
    """The status of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended. Only a redecode or retry queues it again."""
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED})

# running -> queued happens when a worker is lost or drains, when the job yields to a smaller one or to one of
# higher priority, or when its decode is left to another worker. Only an explicit redecode or retry leaves a
# terminal state.
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, *TERMINAL}),
    JobStatus.SUCCEEDED: frozenset({JobStatus.QUEUED}),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELED: frozenset({JobStatus.QUEUED}),
}


class Stage(StrEnum):
    """The current step of a job; finer than its status."""

    QUEUED = "queued"
    DENOISED = "denoised"  # queued, its latents saved: it waits for a worker that decodes
    HELD = "held"  # queued behind the others, because its attempts are used up
    DOWNLOADING = "downloading"
    LOADING = "loading"
    DENOISING = "denoising"
    WAITING_FOR_MEMORY = "waiting_for_memory"
    DECODING = "decoding"
    ENCODING = "encoding"
    FINISHED = "finished"


# The job's progress (0..1) at the start and at the end of each stage of its work.
STAGE_PROGRESS = {
    Stage.DOWNLOADING: (0.0, 0.01),
    Stage.LOADING: (0.01, 0.02),
    Stage.DENOISING: (0.02, 0.8),
    Stage.DENOISED: (0.8, 0.8),
    Stage.WAITING_FOR_MEMORY: (0.8, 0.8),
    Stage.DECODING: (0.8, 0.97),
    Stage.ENCODING: (0.97, 1.0),
}


class DecodeStrategy(StrEnum):
    """The strategies a client may request; `auto` lets the planner choose by the memory that is free."""

    AUTO = "auto"
    BATCHED = "batched"
    CHUNKED = "chunked"
    PER_FRAME = "per_frame"
    TILED = "tiled"
    APPROXIMATE_CHUNKED = "approximate_chunked"
    APPROXIMATE_TILED = "approximate_tiled"


ImageSize = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}x[1-9][0-9]{0,5}$")]
# Measured by the service, not asked for by the client.
MEASURED = frozenset({"image_size", "last_image_size", "keyframe_sizes"})
Prompt = Annotated[str, StringConstraints(max_length=PROMPT_MAX_CHARACTERS)]


def sides_of(size: str) -> tuple[int, int]:
    """Return (width, height) of a text such as 1080x1920."""
    width, _, height = size.partition("x")
    return int(width), int(height)


_LIKE = "Without it the shape follows the image."


class JobSpec(BaseModel):
    """All parameters of a job except its images.

    Sizes are in pixels and `num_frames` in video frames. `memory_budget_bytes` limits the memory that the
    decode uses above the weights. Values that depend on the model have no default here;
    `app.models.entries.ModelEntry.defaults` provides them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: Annotated[Prompt, StringConstraints(strip_whitespace=True)] = Field(
        "",
        description="What should happen in the video. Most models require it.",
        examples=["the camera pans slowly to the left"],
    )
    negative_prompt: Prompt = Field("", description="What the video should not show.")
    model: str = Field(description="A model's name from GET /models.", max_length=100)
    width: int = Field(
        ge=1, le=16384, description=f"Pixels; a multiple of the model's size_multiple. {_LIKE}"
    )
    height: int = Field(
        ge=1, le=16384, description=f"Pixels; a multiple of the model's size_multiple. {_LIKE}"
    )
    num_frames: int = Field(ge=1, le=100_000, description="Video frames; 8k+1 for the LTX family.")
    fit: Literal["cover", "contain", "stretch"] = Field(
        "cover",
        description="How an image of another aspect ratio fills the video: cover cuts what is left over, "
        "contain shows it whole between black bars, stretch distorts it.",
    )
    gravity: Literal[
        "center", "north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest"
    ] = Field("center", description="The part of the image that cover keeps; where contain places it.")
    image_size: ImageSize | None = Field(
        None,
        description="WIDTHxHEIGHT of the upright image in pixels. The service measures the image; POST /plan "
        "takes this field instead of one.",
        examples=["1080x1920"],
    )
    last_image_size: ImageSize | None = Field(None, description="The same of the last image.")
    keyframe_sizes: tuple[ImageSize, ...] = Field((), description="The same of the key frames' pictures.")
    fps: FrameRate
    num_inference_steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=0, le=100)
    seed: int = Field(
        ge=0,
        lt=SEEDS,
        description="-1, or none, draws one. The job's `seed` tells it as text, so that no reader rounds it. "
        "On a CPU, torch uses the lower 32 bits.",
    )
    loras: Loras = Field(
        (),
        description="LoRAs to apply, from GET /loras; a form sends them as JSON text.",
        examples=[[{"name": "my-style", "scale": 0.8}]],
    )
    keyframes: Keyframes = Field(
        (),
        description="Frames that pictures give, for models whose inputs list it. In JSON each has its "
        "picture as `image`; a form sends the list as JSON text and the pictures as files keyframe_0, "
        "keyframe_1 and so on.",
        examples=[[{"frame": 24, "strength": 0.8}]],
    )
    continue_from: str | None = Field(
        None,
        max_length=64,
        description="A job's id: its last frame is the first image of this one, in place of `image`. Model, "
        "size and rate are that job's unless they are given.",
    )
    fs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Motion, for models that support it: a frame stride or frames per second.",
    )
    loop: bool = Field(
        False, description="End with the first image, for models that support it: one frame less."
    )
    priority: int = Field(
        0,
        ge=-PRIORITY_LIMIT,
        le=PRIORITY_LIMIT,
        description="A higher priority runs earlier. Waiting time counts too.",
    )
    decode_strategy: DecodeStrategy = DecodeStrategy.AUTO
    frames_per_chunk: int | None = Field(
        None, ge=1, description="Latent frames per chunk, with chunked, approximate_chunked or auto."
    )
    exact_only: bool = Field(
        True,
        description="Allow only pixel-exact decode plans. False allows approximate strategies, on request or "
        "if no exact plan fits. It also allows int8 weights if the model's entry sets quantize and a "
        "transformer does not fit.",
    )
    memory_budget_bytes: int | None = Field(None, ge=1, lt=2**63)
    embed_metadata: bool = Field(
        True,
        description="Say in the video and its frames how they were made: prompt, seed, model, decode. False "
        "leaves it out; true adds nothing where the operator has switched it off.",
    )
    webhook_url: str | None = Field(None, max_length=2000)

    @model_validator(mode="after")
    def _chunk_size_needs_chunks(self) -> "JobSpec":
        sized = (DecodeStrategy.AUTO, DecodeStrategy.CHUNKED, DecodeStrategy.APPROXIMATE_CHUNKED)
        if self.frames_per_chunk is not None and self.decode_strategy not in sized:
            raise ValueError(
                f"frames_per_chunk contradicts decode_strategy {self.decode_strategy}: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _approximate_needs_consent(self) -> "JobSpec":
        if self.exact_only and self.decode_strategy.startswith("approximate"):
            raise PydanticCustomError(
                "approximate_not_allowed",
                "decode_strategy {strategy} changes pixels: it requires exact_only=false",
                {"strategy": self.decode_strategy.value},
            )
        return self

    @property
    def video_frames(self) -> int:
        """Frames of the finished video. A loop does not repeat its first frame at the end."""
        return self.num_frames - self.loop

    def fingerprint(
        self, image: bytes, last_image: bytes | None = None, keyframes: Sequence[bytes] = ()
    ) -> str:
        """Return a SHA-256 digest of the request; requests with equal digests ask for the same work.

        Fields at their default are left out, so the digest of an old request stays the same when fields are
        added. The measured sizes are left out because the images' digests cover them. The first image is left
        out if it is the last frame of another job: the request names that job, whose frame may change.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude=set(MEASURED))
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        given = (None if self.continue_from else image, last_image, *keyframes)
        images = b"".join(hashlib.sha256(data).digest() for data in given if data is not None)
        return hashlib.sha256(images + canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: a stable code, a message for people, and the numbers behind it."""

    code: str
    message: str
    data: Json | None = None

    def as_json(self) -> Json:
        """Return the JSON that is stored and sent."""
        return {"code": self.code, "message": self.message, **({"data": self.data} if self.data else {})}


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the job table. Times are seconds since the epoch; `progress` goes from 0 to 1.

    `token` is the fencing token: it increases with every claim, and reports with an older one are rejected.
    `latents_path` is set when the denoised latents are on disk; from then on only the decode can be lost.
    `denoise` describes the denoising run. `remixed_from` is the id of the job whose images and fields it
    took. `deleted_at` is when its deletion was requested, `erased_at` when its files, images and texts were
    gone. `attempts` are those that count, this one included, and `setbacks` how earlier ones ended
    (`app.attempts`). `webhook` tells how the newest delivery of its webhook goes, `preempted` how many
    `times` it gave way to a job of higher priority, the last time after `step` of `steps`, and `download` how
    far the download of its model came, if there was one. `handover` tells which worker denoised it and left
    the decode to another one (`app.store.backfill`). `kept_from_decoders`: a worker that only decodes gave it
    back, and no other such one takes it.
    """

    id: str
    status: JobStatus
    stage: Stage
    progress: float
    spec: JobSpec
    plan: Json | None
    needed_bytes: int | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    expired: bool
    attempts: int
    token: int
    worker_id: str | None
    lease_until: float | None
    cancel_requested: bool
    latents_path: str | None
    denoise: Json | None
    decode: Json | None
    result: Json | None
    error: Json | None
    owner: str | None
    has_last_image: bool
    queue_position: int | None
    remixed_from: str | None = None
    deleted_at: float | None = None
    erased_at: float | None = None
    setbacks: Json | None = None
    webhook: Json | None = None
    preempted: Json | None = None
    download: Json | None = None
    handover: Json | None = None
    kept_from_decoders: bool = False

    @property
    def delete_requested(self) -> bool:
        """Whether the job was deleted: nothing of it is served, and it is erased once it has ended."""
        return self.deleted_at is not None


@dataclass(frozen=True, slots=True)
class Claim:
    """A job leased to a worker, and the fencing token of the lease."""

    job: Job
    token: int


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the append-only event history; `seq` strictly increases."""

    seq: int
    job_id: str
    kind: str
    at: float
    data: Json


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker's last report. `app.store.workers` describes the fields of `device`."""

    id: str
    device: Json
    job_id: str | None
    state: Literal["active", "paused"]
    started_at: float
    heartbeat_at: float

    @property
    def host(self) -> str:
        """The host that the worker runs on."""
        return host_of(self.id)


def host_of(worker_id: str) -> str:
    """Return the host in a worker's id, `host/device/instance`."""
    return worker_id.partition("/")[0]
