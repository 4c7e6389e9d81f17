"""What a job is: its specification, its states and the legal changes between them.

`JobSpec` is one model for three uses: the body of a request (after the model's defaults are filled in), the
stored column, and the worker's input. Nothing here knows HTTP, SQL or torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

PROMPT_MAX_CHARACTERS = 4000
PRIORITY_LIMIT = 10

Json = dict[str, Any]


class JobStatus(StrEnum):
    """Where a job stands; the only states a client must know."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether no worker will touch the job again unless someone asks for it."""
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED})

# running -> queued is a lost worker or a drain; out of the terminal states leads only an explicit redecode or
# retry.
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, *TERMINAL}),
    JobStatus.SUCCEEDED: frozenset({JobStatus.QUEUED}),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELED: frozenset({JobStatus.QUEUED}),
}


class Stage(StrEnum):
    """What is being done for a job right now; finer than its status."""

    QUEUED = "queued"
    LOADING = "loading"
    DENOISING = "denoising"
    WAITING_FOR_MEMORY = "waiting_for_memory"
    DECODING = "decoding"
    ENCODING = "encoding"
    FINISHED = "finished"


class DecodeStrategy(StrEnum):
    """What a client may ask for; `auto` lets the planner choose by free memory."""

    AUTO = "auto"
    BATCHED = "batched"
    CHUNKED = "chunked"
    PER_FRAME = "per_frame"
    TILED = "tiled"
    APPROXIMATE_CHUNKED = "approximate_chunked"
    APPROXIMATE_TILED = "approximate_tiled"


Prompt = Annotated[str, StringConstraints(max_length=PROMPT_MAX_CHARACTERS)]


class JobSpec(BaseModel):
    """Everything that decides a job's result, apart from its image.

    Sizes are pixels, `num_frames` are video frames, `memory_budget_bytes` caps what the decode may use above
    the weights. Numbers that depend on the model have no default here:
    `app.models.entries.ModelEntry.defaults` fills them in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: Annotated[Prompt, StringConstraints(strip_whitespace=True)] = Field(
        "",
        description="What should happen in the video; most models need it.",
        examples=["the camera pans slowly to the left"],
    )
    negative_prompt: Prompt = Field("", description="What should not be seen.")
    model: str = Field(description="Name from GET /models.", max_length=100)
    width: int = Field(ge=1, le=16384, description="Pixels; a multiple of the model's size_multiple.")
    height: int = Field(ge=1, le=16384, description="Pixels; a multiple of the model's size_multiple.")
    num_frames: int = Field(ge=1, le=100_000, description="Video frames; 8k+1 for the LTX family.")
    fps: int = Field(ge=1, le=120)
    num_inference_steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=0, le=100)
    seed: int = Field(ge=0, lt=2**63, description="Chosen at random and reported where none is given.")
    fs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Motion, where the model takes it: a frame stride or frames a second.",
    )
    loop: bool = Field(False, description="End where it began, where the model takes it: one frame less.")
    priority: int = Field(
        0, ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT, description="Higher runs earlier; waiting counts too."
    )
    decode_strategy: DecodeStrategy = DecodeStrategy.AUTO
    frames_per_chunk: int | None = Field(
        None, ge=1, description="Latent frames a chunk, with chunked, approximate_chunked or auto."
    )
    exact_only: bool = Field(
        True,
        description="Refuse decode plans that are not pixel-exact. False lets an approximate one be taken "
        "where no exact one fits, and approximate strategies be asked for; and weights be rounded to int8 "
        "where the model's entry says quantize and a transformer does not fit.",
    )
    memory_budget_bytes: int | None = Field(None, ge=1, lt=2**63)
    webhook_url: str | None = Field(None, max_length=2000)

    @model_validator(mode="after")
    def _chunk_size_needs_chunks(self) -> "JobSpec":
        sized = (DecodeStrategy.AUTO, DecodeStrategy.CHUNKED, DecodeStrategy.APPROXIMATE_CHUNKED)
        if self.frames_per_chunk is not None and self.decode_strategy not in sized:
            raise ValueError(f"frames_per_chunk contradicts decode_strategy {self.decode_strategy}")
        return self

    @model_validator(mode="after")
    def _approximate_is_agreed_to(self) -> "JobSpec":
        if self.exact_only and self.decode_strategy.startswith("approximate"):
            raise PydanticCustomError(
                "approximate_not_allowed",
                "decode_strategy {strategy} changes pixels: it must come with exact_only=false",
                {"strategy": self.decode_strategy.value},
            )
        return self

    @property
    def video_frames(self) -> int:
        """Frames of the finished video: a loop does not show its first frame again at the end."""
        return self.num_frames - self.loop

    def fingerprint(self, image: bytes, last_image: bytes | None = None) -> str:
        """Digest of the request as a whole; two requests with equal digests ask for the same work.

        A field at its default is left out: a version with more fields knows an earlier one's requests again.
        """
        asked = self.model_dump(mode="json", exclude_defaults=True)
        canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"))
        images = b"".join(hashlib.sha256(data).digest() for data in (image, last_image) if data is not None)
        return hashlib.sha256(images + canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: a stable code, a sentence for people, and the numbers behind it."""

    code: str
    message: str
    data: Json | None = None

    def as_json(self) -> Json:
        """The error as it is stored and sent."""
        return {"code": self.code, "message": self.message, **({"data": self.data} if self.data else {})}


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the job table. Times are seconds since the epoch, `progress` goes from 0 to 1.

    `token` counts claims: a worker that holds an older one is fenced out. `latents_path` is set once
    denoising is done and its result is safe on disk, so that only the decode has to be run again; `denoise`
    says how it was done.
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


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that a worker now owns, until its lease ends, under a fencing token."""

    job: Job
    token: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker learns when it reports: stop this job, or: it is not yours any more. `paused`: claim
    nothing new.
    """

    cancel_requested: bool
    lost: bool
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the append-only history; `seq` only grows."""

    seq: int
    job_id: str
    kind: str
    at: float
    data: Json


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """What a worker last said of itself. `device` is described in `app.store.workers`."""

    id: str
    device: Json
    job_id: str | None
    state: Literal["active", "paused"]
    started_at: float
    heartbeat_at: float
