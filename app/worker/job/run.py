"""Runs one job from claim to video: download, load, denoise, save the latents, decode, encode.

Owns the order of the stages; `app.worker.job.reports` tells the job table of them. Does not decide what
happens to the job afterwards (`app.worker.loop`), how an error becomes a failure (`app.worker.job.failures`)
or how the device does its part (`app.worker.engine`).

Longer than 300 lines: every stage reads and reports the state of one attempt.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import cast

from adaptive.errors import DecodeOutOfMemory, DoesNotFit, NonFiniteValues
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode, Sound, load_clip, save_calls
from adaptive.types import VideoShape
from app.artifacts.local_folder import JobArtifacts, job_artifacts
from app.attempts import Setbacks
from app.config import Settings
from app.fields.roles import Role
from app.frame_rate import rate_as_json
from app.jobs import Claim, Json, Stage
from app.loops import one_line
from app.media.metadata.note import Note
from app.media.thumbnails import write_png
from app.media.video import VideoWriter
from app.models.downloads.download import needs_download
from app.models.entries import ModelEntry
from app.models.former import entry_for_latents
from app.store import JobStore
from app.worker.decoding import Decoding, combined_report
from app.worker.denoise.checkpoints import Checkpoints
from app.worker.denoise.elastic import ElasticDenoise
from app.worker.denoise.room import Limits
from app.worker.denoise.strips import Strips, shown_latents
from app.worker.engine import Engine
from app.worker.finite import check_clip, found_json
from app.worker.frame_transfer import FrameTransfer, samples_of
from app.worker.job.control import (
    CannotDecode,
    JobControl,
    JobHandedOver,
    MemoryTaken,
    WorkerStopping,
)
from app.worker.job.failures import as_job_failures, is_unexpected
from app.worker.job.fetch import fetch_model
from app.worker.job.finishing_early import FinishingEarly
from app.worker.job.float32_retry import Decoder, decode_or_repeat
from app.worker.job.giving_way import GivingWay
from app.worker.job.in_place import InPlaceDecodes
from app.worker.job.own_frames import OwnFrames
from app.worker.job.pictures import (
    add_notes,
    write_asked_frames,
    write_first_pixels,
    write_last_frame,
    write_previews,
    write_thumbnail,
)
from app.worker.job.provenance import note_for
from app.worker.job.reports import AttemptReports
from app.worker.job.steps import StepsOfJob
from app.worker.loaded_model import LoadedModel
from app.worker.roles.handing_over import HandingOver, OwnDevice
from app.worker.roles.helpers import Helpers
from app.worker.roles.loaded_vae import LoadedVae

log = logging.getLogger(__name__)


class JobRun(AttemptReports):
    """One attempt at one job. `durations` (seconds by stage) and `decode` (its report) fill while it runs."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        engine: Engine,
        entry: ModelEntry,
        claim: Claim,
        control: JobControl,
        models: Mapping[str, ModelEntry] | None = None,
        helpers: Helpers | None = None,
    ) -> None:
        """`models` are those that the worker runs; without them the job gives way to its own model's only.

        `helpers` are the other workers that decode.
        """
        helpers = helpers or Helpers(settings, store, claim.job.worker_id or "", engine.role)
        super().__init__(settings, store, engine, claim, control, helpers)
        self.decode: Json | None = None
        self._entry = entry
        self._models = models or {entry.name: entry}
        own = OwnDevice(lambda: engine.device_report(), lambda: engine.claimable_bytes)
        self._handing_over = HandingOver(settings, store, helpers, self._models, own)

    def run(self) -> Json:
        """Do the job and return its result for the job table.

        Raises `JobFailure`, or a subclass of `Interrupted` if the job stops without having failed. Any other
        error means that the process is broken.
        """
        with as_job_failures(), self._faults_reported():
            artifacts = job_artifacts(self._settings.jobs_dir, self._job.id).make()
            only = "vae" if self._engine.role is Role.DECODE else None
            is_loaded = self._engine.loaded_model == self._entry.name
            if not is_loaded and needs_download(self._entry, self._settings, only):
                with self._in_stage(Stage.DOWNLOADING):
                    count = partial(self._store.event, self._job.id, self._token, "downloaded")
                    fetch_model(self._entry, self._settings, self._control, self._report, count, only)
            with self._in_stage(Stage.LOADING):
                saved = self._saved_latents(artifacts)
                current = self._entry
                if saved is not None and saved.calls:  # what is damaged is found when the model is here
                    self._entry = entry_for_latents(current, saved.calls[0].latents.shape[1])
                model = self._load()
                saved = self._fitting(saved, model)
                if saved is None and self._entry is not current:
                    self._entry = current
                    model = self._load()
            try:
                if saved is not None and self._entry.not_resumable_because is None:
                    result = self._resumed(saved, model, artifacts)
                    if result is not None:
                        return result
                if self._engine.role is Role.DECODE:
                    raise CannotDecode
                if self._entry.not_resumable_because is not None:
                    return self._made_in_place(cast(LoadedModel, model), artifacts)
                recorded = self._denoise(cast(LoadedModel, model), artifacts)
                self._hand_over_if_earlier()
                return self._decoded(recorded, model, artifacts)
            except DecodeOutOfMemory as error:
                taken = Setbacks.of(self._job.setbacks).memory_losses
                last = taken + 1 >= self._settings.max_attempts
                is_short = error.free_bytes - self._settings.reserve_bytes < error.needed_bytes
                if last or not error.needed_bytes or not is_short:
                    raise
                raise MemoryTaken from error  # only the decode begins again; in place, the whole run does

    def _hand_over_if_earlier(self) -> None:
        """Leave the decode to another worker if that is to end earlier: then raise `JobHandedOver`."""
        decided = self._handing_over.decided(self._job, self.durations.get(Stage.DENOISING, 0.0))
        if decided is None:
            return
        goes, data = decided
        if not goes:
            self._event("decode_kept", {"stage": Stage.DENOISING, **data})
            return
        self._require_lease(self._handing_over.hand_over(self._claim, data, self.durations))
        raise JobHandedOver

    def _saved_latents(self, artifacts: JobArtifacts) -> RecordedClip | None:
        """The latents that an earlier attempt saved; None if there are none or their file is damaged."""
        if self._job.latents_path is None:
            return None
        try:
            recorded = load_clip(artifacts.latents)
            check_clip(recorded, "latents")
        except Exception as error:
            self._give_up_latents(error)
            return None
        return recorded

    def _fitting(self, recorded: RecordedClip | None, model: LoadedVae) -> RecordedClip | None:
        """The saved latents, or None if they are not of this model and of the job's shape."""
        if recorded is None:
            return None
        try:
            model.check_fits(recorded, self._job.spec)
        except Exception as error:
            self._give_up_latents(error)
            return None
        self._event("resumed_from_latents", {"path": self._job.latents_path, "attempt": self._job.attempts})
        return recorded

    def _resumed(self, saved: RecordedClip, model: LoadedVae, artifacts: JobArtifacts) -> Json | None:
        """The result of decoding the saved latents; None if that fails as no decode of good latents does."""
        try:
            return self._decoded(saved, model, artifacts)
        except Exception as error:
            if not is_unexpected(error):
                raise
            log.exception("resumed_decode_crashed")
            self._give_up_latents(error)
            return None

    def _give_up_latents(self, error: Exception) -> None:
        """Tell that the saved latents cannot be used. Denoising again replaces their file."""
        log.warning("latents_unreadable job_id=%s reason=%s", self._job.id, one_line(error))
        if isinstance(error, NonFiniteValues):
            self._event("nonfinite", found_json(error))
        self._event("latents_unreadable", {"reason": str(error)})

    def _decoded(self, recorded: RecordedClip, model: LoadedVae, artifacts: JobArtifacts) -> Json:
        return decode_or_repeat(partial(self._decode, recorded, artifacts), model, self._event)

    def _load(self) -> LoadedVae:
        spec = self._job.spec
        return self._once_it_fits(
            lambda: self._engine.load(self._entry, self._event, exact_only=spec.exact_only, spec=spec),
            may_yield=False,
        )

    def _denoise(self, model: LoadedModel, artifacts: JobArtifacts) -> RecordedClip:
        spec = self._job.spec
        started = time.monotonic()
        plan = self._fit_denoise(model)
        with self._in_stage(Stage.DENOISING):
            image, last_image = self._store.image(self._job.id), self._store.last_image(self._job.id)
            keyframes = self._store.keyframes(self._job.id)
            checkpoints = self._checkpoints(model, artifacts)
            wait = partial(self._memory_returns, at_poll=checkpoints.give_back_if_asked)
            limits = Limits(self._engine.host_capacity_bytes is not None, wait)
            strips = Strips(model.pipe, artifacts, shown_latents(model, spec), self._event)
            early = FinishingEarly(self._store, self._claim)
            denoise = ElasticDenoise(
                model, spec, limits, self._event, checkpoints.save_steps, strips, early.is_wanted
            )
            recorded = checkpoints.denoise(denoise, spec, image, last_image, self._step, keyframes)
            save_calls(recorded.calls, artifacts.latents, recorded.sound)
        path = str(artifacts.latents.relative_to(self._settings.data_dir))
        seconds = round(time.monotonic() - started, 3)
        data = {
            "steps": spec.num_inference_steps,
            "seconds": seconds,
            **checkpoints.report(),
            "placement": model.placement["kind"],
            **plan,
            **model.encode_plan,
            **model.weights,
            **denoise.report(),
        }
        self._waited_seconds = 0.0
        self._require_lease(self._store.checkpoint(self._job.id, self._token, path, data))
        checkpoints.remove()
        return recorded

    def _made_in_place(self, model: LoadedModel, artifacts: JobArtifacts) -> Json:
        """Run a pipeline that decodes within its own call, and write the frames that it returns."""
        spec = self._job.spec
        reason = self._entry.not_resumable_because
        self._event("not_resumable", {"model": self._entry.name, "reason": reason, "resumable": False})
        plan = self._fit_denoise(model)
        decodes = InPlaceDecodes(
            model,
            spec,
            artifacts,
            partial(self._open_decode, first=False),
            self._in_stage,
            self._frames_decoded,
            self._event,
            partial(self._once_it_fits, model.restore_idle_weights, may_yield=False),
        )
        self._in_place = decodes.done
        limits = Limits(self._engine.host_capacity_bytes is not None, self._memory_returns)
        denoise = ElasticDenoise(model, spec, limits, self._event, in_place=decodes)
        started = time.monotonic()
        with self._in_stage(Stage.DENOISING):
            image, last_image = self._store.image(self._job.id), self._store.last_image(self._job.id)
            keyframes = self._store.keyframes(self._job.id)
            made, sound = denoise.run_in_place(image, last_image, self._step_of_section, keyframes=keyframes)
            video = OwnFrames(made)
        data = {
            "steps": spec.num_inference_steps,
            "seconds": round(time.monotonic() - started - self.durations.get(Stage.DECODING, 0.0), 3),
            "resumed_from_step": 0,
            "steps_computed": decodes.done.steps,
            "steps_since_checkpoint": decodes.done.steps,
            "placement": model.placement["kind"],
            "resumable": False,
            **plan,
            **model.encode_plan,
            **model.weights,
            **denoise.report(),
        }
        self._require_lease(self._store.checkpoint(self._job.id, self._token, None, data, reached=0.0))
        self._note_decode({**combined_report(decodes.reports), "decodes": len(decodes.reports)})
        note = note_for(self._settings, spec, video.shape, self.decode)
        with (
            self._in_stage(Stage.ENCODING),
            VideoWriter(artifacts.video, video.shape, spec.fps, samples_of(sound), note=note) as writer,
        ):
            for pixels in video.parts():
                writer.write(pixels)
                self._control.check()
            write_first_pixels(video.frame(0), artifacts)
            write_png(artifacts.frame("last"), video.frame(-1))
            writer.finish(note)
        artifacts.forget_converted()
        add_notes(note, (), artifacts)
        return self._result(video.shape, artifacts, sound=sound, thumbnail=True, last_frame=True)

    def _frames_decoded(self, share: float) -> None:
        """Frames of a decode in place are done: what comes next may wait for memory anew."""
        self._waited_seconds = 0.0
        self._report(share)

    def _step_of_section(self, _done: int, _total: int) -> None:
        """A step of a pipeline that may denoise several times: it counts within all of them."""
        assert self._in_place is not None
        self._control.check()
        rounds = self._in_place.rounds
        self._in_place.steps += 1
        steps = max(self._in_place.steps, rounds.steps * rounds.sections)
        self._report(self._in_place.step_share, data={"step": self._in_place.steps, "steps": steps})

    def _checkpoints(self, model: LoadedModel, artifacts: JobArtifacts) -> Checkpoints:
        part = self._helpers.part
        giving_way = GivingWay(self._settings, self._store, self._engine, self._claim, self._models, part)
        steps = StepsOfJob(self._store, self._claim, self._control, self._require_lease, giving_way)
        every_seconds = self._settings.checkpoint_seconds
        return Checkpoints(model, artifacts, every_seconds, steps, self._goes_on_after, self._event)

    def _fit_denoise(self, model: LoadedModel) -> Json:
        """Place the weights and plan the denoise, after a wait if needed.

        Predictions are cautious: a job that they refuse runs if its tensors alone fit.
        """
        spec = self._job.spec

        has_waited = False

        def attempt() -> Json:
            nonlocal has_waited
            if has_waited and self._control.goes_back:  # nothing is computed yet
                self._control.interrupt(WorkerStopping)
                self._control.check()
            has_waited = True  # when it is called again
            return model.fit_denoise(spec, self._event)

        try:
            return self._once_it_fits(attempt, may_yield=True)
        except DoesNotFit as refusal:
            log.warning("denoise_tried_without_margins job_id=%s reason=%s", self._job.id, refusal)
        return model.fit_denoise(spec, self._event, cautious=False)

    def _decode(self, recorded: RecordedClip, artifacts: JobArtifacts, model: Decoder) -> Json:
        spec = self._job.spec
        shape = model.video_shape(recorded)
        reports: list[Json] = []
        done, thumbnail, last_frame = 0, False, False
        asked = artifacts.asked_frames()
        with (
            self._in_stage(Stage.DECODING),
            VideoWriter(
                artifacts.video,
                shape,
                spec.fps,
                samples_of(recorded.sound),
                note=note_for(self._settings, spec, shape),
            ) as writer,
        ):
            transfer = FrameTransfer(writer, model.device)
            for call in recorded.calls:
                decoding = self._open_decode(model, call, first=not reports)
                self._report(done / shape.frames, kind="stage", stage=Stage.DECODING)
                if not reports:
                    write_previews(decoding, artifacts, self._event)
                for frames in decoding.frames():
                    if not done:
                        thumbnail = write_thumbnail(frames, artifacts)
                    transfer.send(frames)
                    write_asked_frames(frames, done, asked, artifacts)
                    done += frames.shape[2]
                    if done == shape.frames:
                        last_frame = write_last_frame(frames, artifacts)
                    self._waited_seconds = 0.0
                    self._control.check()
                    self._report(done / shape.frames)
                reports.append(decoding.report())
            self._note_decode(combined_report(reports))
            note = note_for(self._settings, spec, shape, self.decode)
            self._encode_rest(writer, note)
            artifacts.forget_converted()
            add_notes(note, asked, artifacts)
        return self._result(
            shape, artifacts, sound=recorded.sound, thumbnail=thumbnail, last_frame=last_frame
        )

    def _note_decode(self, report: Json) -> None:
        if report["device"] != "cpu":
            report["device"] = self._engine.name
        self.decode = {**report, "vae": self._entry.vae_class}

    def _result(
        self,
        shape: VideoShape,
        artifacts: JobArtifacts,
        *,
        sound: Sound | None,
        thumbnail: bool,
        last_frame: bool,
    ) -> Json:
        """What the job table stores of the video."""
        return {
            "frames": shape.frames,
            "width": shape.width,
            "height": shape.height,
            "fps": rate_as_json(self._job.spec.fps),
            "seed": self._job.spec.seed,
            "audio": None if sound is None else sound.as_json(),
            "thumbnail": thumbnail,
            "first_frame": thumbnail,
            "last_frame": last_frame,
            "bytes": artifacts.video.stat().st_size,
            "video_path": str(artifacts.video.relative_to(self._settings.data_dir)),
        }

    def _open_decode(self, model: Decoder, call: RecordedDecode, *, first: bool) -> Decoding:
        """Plan the decode of one call: on the device, if needed after a wait, else on the CPU if allowed.

        The job yields to a smaller one only before its first decode: later it would lose the frames already
        decoded.
        """
        spec = self._job.spec
        try:
            return self._once_it_fits(
                lambda: model.open_decode(call, spec, self._event, self._memory_returns),
                may_yield=first,
                budget_bytes=spec.memory_budget_bytes,
            )
        except DoesNotFit as refusal:
            if self._engine.host_capacity_bytes is None:
                raise
            data = {"from": "per_frame", "to": "cpu", "needed_bytes": refusal.needed_bytes}
        self._event("fallback", data)
        return model.open_decode_on_host(call, spec, self._event)

    def _encode_rest(self, writer: VideoWriter, note: Note | None) -> None:
        with self._in_stage(Stage.ENCODING):
            writer.finish(note)

    def _goes_on_after(self, step: int, total: int) -> None:
        self._report(step / total, kind="resumed", data={"step": step, "steps": total})

    def _step(self, done: int, total: int) -> None:
        self._control.check()
        self._report(done / total, data={"step": done, "steps": total})
