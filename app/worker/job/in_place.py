"""Decodes a pipeline's calls inside its run, for pipelines that need real frames there.

Each call is planned for the memory that is free then, and falls back as a recorded one does. Nothing of it
is kept: what ends such a job costs the whole run. Owns how far the job is, over all its denoises and
decodes. Must not know the job table.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from torch import Tensor

from adaptive.families import family_of
from adaptive.pipelines.recorded_call import RecordedDecode
from adaptive.pipelines.vae_method import recorded_arguments
from adaptive.stream.offload import execution_device
from app.artifacts.local_folder import JobArtifacts
from app.jobs import STAGE_PROGRESS, JobSpec, Json, Stage
from app.pipelines.calls import call_form
from app.pipelines.rounds import Rounds
from app.pipelines.safety_checker import CHECKED_PIPELINES
from app.worker.decoding import Decoding, OnEvent
from app.worker.device_errors import translated_device_errors
from app.worker.job.float32_retry import Decoder, decode_or_repeat
from app.worker.job.pictures import write_previews
from app.worker.loaded_model import LoadedModel

log = logging.getLogger(__name__)

OpenDecode = Callable[[Decoder, RecordedDecode], Decoding]
InStage = Callable[[Stage], AbstractContextManager[None]]
Report = Callable[[float], None]


class RoundsDone:
    """How far a job is whose pipeline denoises and decodes several times.

    Each section has an equal part of the progress between the beginning of the denoise and the end of the
    decode, divided as that of a whole job. It never goes back.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        self.steps = 0
        self.decodes = 0
        self._reached = 0.0

    def begin(self) -> None:
        """The pipeline starts from its beginning."""
        self.steps = self.decodes = 0

    @property
    def step_share(self) -> float:
        """The share of the section's steps that are done."""
        section = min(self.steps // self.rounds.steps, self._section)
        return min(1.0, (self.steps - section * self.rounds.steps) / self.rounds.steps)

    def decode_share(self, frames_share: float) -> float:
        """The share of the section's decodes that are done, with that share of the running one."""
        return min(1.0, (self.decodes % self.rounds.decodes + frames_share) / self.rounds.decodes)

    def progress(self, stage: Stage, share: float) -> float:
        """The job's progress, 0 to 1, at this share of a stage."""
        begin, end = STAGE_PROGRESS[stage]
        if stage in (Stage.DENOISING, Stage.DECODING):
            first, last = STAGE_PROGRESS[Stage.DENOISING][0], STAGE_PROGRESS[Stage.DECODING][1]
            part = (last - first) / self.rounds.sections
            begin, end = (
                first + part * (self._section + (each - first) / (last - first)) for each in (begin, end)
            )
        self._reached = max(self._reached, begin + share * (end - begin))
        return self._reached

    @property
    def _section(self) -> int:
        """The number of the section that runs; one that was not foreseen counts as the last."""
        return min(self.decodes // self.rounds.decodes, self.rounds.sections - 1)


class InPlaceDecodes:
    """The decodes of one job. `reports` are those of the calls so far; `failed`: one of them has failed."""

    def __init__(
        self,
        model: LoadedModel,
        spec: JobSpec,
        artifacts: JobArtifacts,
        open_decode: OpenDecode,
        in_stage: InStage,
        report: Report,
        on_event: OnEvent,
        restore_weights: Callable[[], None],
    ) -> None:
        """`open_decode` plans a call once it fits, `in_stage` enters a stage, `report` takes its share.

        `restore_weights` brings the weights back that a decode has dropped, once they fit.
        """
        self._model = model
        self._spec = spec
        self._artifacts = artifacts
        self._open_decode = open_decode
        self._in_stage = in_stage
        self._report = report
        self._on_event = on_event
        self._restore_weights = restore_weights
        self.reports: list[Json] = []
        self.failed = False  # not the error itself, whose traceback would keep the frames
        count_rounds = call_form(model.pipe).rounds
        self.done = RoundsDone(count_rounds(spec, model.entry.call, model.entry.temporal_ratio))

    def begin(self) -> None:
        """The pipeline starts from its beginning: earlier decodes are for nothing.

        Raises `DoesNotFit` if weights that one of them dropped find no room.
        """
        self.reports.clear()
        self.failed = False
        self.done.begin()
        self._restore_weights()

    def decode(self, call: RecordedDecode) -> Tensor:
        """The frames of one call. Raises as `LoadedModel.open_decode` and `Decoding.frames` do.

        What runs out of memory beside the chunks, such as joining them, raises `OutOfMemory`, too.
        """
        vae = self._model.pipe.vae
        self.failed = True
        with translated_device_errors("decoding"), self._in_stage(Stage.DECODING):
            video = decode_or_repeat(partial(self._decode, call), self._model, self._on_event)
            video = video.to(execution_device(vae), vae.dtype)  # the pipeline wants it there
            if self.done.rounds.sections > 1:  # the pipeline goes on with its denoise
                self._restore_weights()
        self.done.decodes += 1
        self.failed = False
        return video

    def _decode(self, call: RecordedDecode, model: Decoder) -> Tensor:
        decoding = self._open_decode(model, call)
        self._report(self.done.decode_share(0.0))
        if not self.done.decodes and self._may_show(call):
            write_previews(decoding, self._artifacts, self._on_event)
        video = decoding.video(lambda done, total: self._report(self.done.decode_share(done / total)))
        self.reports.append(decoding.report())
        return video

    def _may_show(self, call: RecordedDecode) -> bool:
        """Whether key frames of the call may be shown: pictures of the video's size, not tiles of them.

        Nothing is shown before a safety checker has seen it, and that one sees whole videos only.
        """
        if type(self._model.pipe).__name__ in CHECKED_PIPELINES:
            return False
        vae = self._model.pipe.vae
        family = family_of(vae)
        ratio = family.traits_of(vae).spatial_ratio
        height, width = family.as_video(call.latents, recorded_arguments(type(vae), call)).shape[3:]
        return (height * ratio, width * ratio) == (self._spec.height, self._spec.width)
