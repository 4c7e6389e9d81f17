"""Decodes a recorded call in the memory that is free: plan, frames, report.

Owns how a recorded call is passed to the library's decoder, and the file that keeps a device's learned costs
between runs. Must not know jobs or where frames go.

Longer than 300 lines: one decode, those of a clip and those in place share plan and report.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptive.decoding.decoder import AdaptiveDecoder, DecodeEvent
from adaptive.decoding.previews import make_previews, plan_previews
from adaptive.denoise.preview.pixel_map import PixelMap
from adaptive.device.probe import MemoryProbe, build_name, device_name
from adaptive.families import family_of
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.memory.profile import MemoryProfile
from adaptive.pipelines.recorded_call import RecordedClip, RecordedDecode
from adaptive.pipelines.vae_method import recorded_arguments
from adaptive.planning.planner import PlanInputs, Policy
from adaptive.planning.policy import refuse_one_chunk
from adaptive.stream import join_chunks, video_frames_of
from adaptive.stream.engines.noise import noise_kept_at_failure
from adaptive.stream.finite import is_finite
from adaptive.stream.offload import execution_device, run_offload_hook
from adaptive.types import Cut, DecodePlan, LatentShape, SpatialTiles, Strategy, VideoShape
from app.config import Settings
from app.jobs import Json
from app.models.profiles import make_folder_of
from app.worker.device_errors import DeviceFault as DeviceFault
from app.worker.device_errors import OutOfMemory as OutOfMemory
from app.worker.device_errors import translated_device_errors as translated_device_errors
from app.worker.finite import dtype_name
from app.worker.idle_weights import IdleWeights

OnEvent = Callable[[str, Mapping[str, Any]], None]
WaitForMemory = Callable[[int], bool]  # whether the bytes that are missing are free now


@dataclass(frozen=True, slots=True)
class DecodeContext:
    """What a decode needs to know: the device's probe, the VAE's profile, the device's learned costs."""

    probe: MemoryProbe
    profile: MemoryProfile | None
    learned_costs: LearnedCosts
    idle: IdleWeights | None = None  # weights that may leave the device while decoding
    retry: Json | None = None  # the decode that this one repeats in float32, and what it found
    pixel_map: PixelMap | None = None  # shows latents without a decode


class Decoding:
    """One planned decode. The constructor plans it and raises `DoesNotFit` if nothing fits now.

    `keeps_output`: see `AdaptiveDecoder`.
    """

    def __init__(
        self,
        vae: Any,
        recorded: RecordedDecode,
        policy: Policy,
        context: DecodeContext,
        on_event: OnEvent,
        wait_for_memory: WaitForMemory | None = None,
        *,
        keeps_output: bool = False,
    ) -> None:
        # Pipelines of image VAEs fold a video's frames into the batch.
        self._kwargs = recorded_arguments(type(vae), recorded)
        self._latents = family_of(vae).as_video(recorded.latents, self._kwargs)
        run_offload_hook(vae)  # offloaded weights come first: what they take is not free for decoding
        self._vae = vae
        self._recorded = recorded
        self._on_event = on_event
        self._idle = context.idle
        self._retry = context.retry
        self._pixel_map = context.pixel_map
        self._speeds = context.learned_costs.speeds
        idle_bytes = 0 if context.idle is None else context.idle.droppable_bytes
        self._decoder = AdaptiveDecoder(
            vae,
            profile=context.profile,
            probe=context.probe,
            policy=replace(_policy_of_call(policy, self._latents.shape[2]), require_finite=True),
            inputs=PlanInputs(
                residuals=context.learned_costs.residuals,
                droppable_bytes=idle_bytes,
                reload_seconds=context.idle.reload_seconds if context.idle is not None else 0.0,
            ),
            speeds=self._speeds,
            on_event=self._forward_event,
            keeps_output=keeps_output,
            wait_for_memory=wait_for_memory,
        )
        self.plan: DecodePlan = self._decoder.plan(self._latents, **self._kwargs)

    @property
    def device(self) -> torch.device:
        """The device of the decoded frames."""
        return execution_device(self._vae)

    def video(self, on_frames: Callable[[int, int], None]) -> Tensor:
        """All frames `[1, 3, F, H, W]`; `on_frames(done, total)` is called after each chunk. See `frames`."""
        total = video_frames_of(self._vae, self._latents.shape[2])

        def counted() -> Iterator[Tensor]:
            done = 0
            for frames in self.frames():
                done += frames.shape[2]
                yield frames
                del frames  # else they would occupy memory while the next chunk decodes
                on_frames(done, total or done)

        with noise_kept_at_failure(self.device):
            return join_chunks(counted(), total)

    def previews(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of a frame and its preview `[3, H, W]` in the VAE's range, for some frames.

        A map from latents to pixels makes them at once. Without one they are decoded, bounded in time; see
        `adaptive.decoding.previews`. Values that are not finite are left out. Raises `DeviceFault`.
        """
        first, _ = self._recorded.keep or (0, None)
        made = self._decoded_previews() if self._pixel_map is None else self._mapped_previews(self._pixel_map)
        for frame, picture in made:
            if is_finite(picture):  # the decode says so, and by how many values
                yield max(0, frame - first), picture

    def _mapped_previews(self, pixel_map: PixelMap) -> Iterator[tuple[int, Tensor]]:
        with torch.no_grad(), translated_device_errors("decoding"):
            yield from pixel_map.video(self._decoder.profile.traits, self._latents[0])

    def _decoded_previews(self) -> Iterator[tuple[int, Tensor]]:
        profile = self._decoder.profile
        speed = self._speeds.model(profile)
        shape = LatentShape(*self._latents.shape)
        plan = plan_previews(profile.traits, shape, speed, self.plan.frames_per_chunk)
        if plan is not None:
            with torch.no_grad(), translated_device_errors("decoding"):
                yield from make_previews(self._vae, self._latents, plan, self._kwargs)

    def frames(self) -> Iterator[Tensor]:
        """Yield decoded frames `[1, 3, f, H, W]` in the VAE's range, in order.

        Leaves out the frames that the pipeline discards. Raises `OutOfMemory`, `DeviceFault`, and
        `NonFiniteValues` before it yields a chunk with NaN or infinite values.
        """
        start, stop = self._recorded.keep or (0, None)
        position = 0
        if self._idle is not None and self.plan.dropped_bytes:
            self._idle.drop()
        with torch.no_grad(), self._recorded.replaying_noise(), translated_device_errors("decoding"):
            for frames in self._decoder.frames(self._latents, resume_plan=self.plan, **self._kwargs):
                ends = None if stop is None else max(0, stop - position)
                kept = frames[:, :, max(0, start - position) : ends]
                position += frames.shape[2]
                if kept.shape[2]:
                    yield kept
                del frames, kept  # else they would occupy memory while the next chunk decodes

    def report(self) -> Json:
        """What the decode did, as JSON for the job table. Call it after `frames` is exhausted."""
        done = self._decoder.report
        return {
            "strategy": done.strategy.value,
            "planned_strategy": done.plan.strategy.value,
            "frames_per_chunk": done.frames_per_chunk,
            "tiles": {"rows": done.tiles.rows, "columns": done.tiles.columns},
            "exact": done.exact,
            "seam_score": None if done.seam_score is None else round(done.seam_score, 4),
            "reason": done.plan.reason,
            "detail": done.plan.detail,
            "device": str(self.device),
            "dtype": dtype_name(self._vae.dtype),
            "retry": self._retry,
            "predicted_seconds": done.plan.predicted_seconds,
            "dropped_bytes": done.plan.dropped_bytes,
            "regret_seconds": done.regret_seconds,
            "regret": done.regret_detail,
            "predicted_peak_bytes": done.predicted_peak_bytes,
            "measured_peak_bytes": done.measured_peak_bytes,
            "free_bytes_at_decision": done.plan.free_bytes,
            "budget_bytes": done.plan.budget_bytes,
            "seconds": round(done.seconds, 4),
            "retries": done.retries,
            "spills": done.spills,
            "chunks": list(done.chunk_frames),
        }

    def _forward_event(self, event: DecodeEvent) -> None:
        data = {**event.data, "stage": "decoding"} if event.kind == "oom" else event.data
        self._on_event(event.kind, data)


def _policy_of_call(policy: Policy, latent_frames: int) -> Policy:
    """The policy for one call of a clip. A call that is no longer than a forced chunk decodes as one chunk.

    Admission has refused clips that are no longer than the forced chunk.
    """
    size = policy.frames_per_chunk
    if policy.strategy == Strategy.CHUNKED and size is not None and size >= latent_frames:
        return replace(policy, strategy="auto")
    return policy


class ClipDecoding:
    """All decodes of a recorded clip, one after another; each is planned when it starts.

    The constructor raises `UnsupportedVae` if the forced chunks would hold all frames of the longest call.
    """

    def __init__(self, vae: Any, clip: RecordedClip, policy: Policy, context: DecodeContext) -> None:
        refuse_one_chunk(type(vae).__name__, _longest_call(vae, clip), policy)
        self.video_shape = video_shape(vae, clip)
        self.dtype: torch.dtype = vae.dtype
        self.sound = clip.sound
        self._open = partial(
            Decoding, vae, policy=policy, context=context, on_event=lambda _kind, _data: None
        )
        self._calls = clip.calls
        self._reports: list[Json] = []

    def frames(self) -> Iterator[Tensor]:
        """See `Decoding.frames`; each call's plan may raise `DoesNotFit`."""
        for call in self._calls:
            decoding = self._open(call)
            yield from decoding.frames()
            self._reports.append(decoding.report())

    def report(self) -> Json:
        """See `Decoding.report`."""
        return combined_report(self._reports)


def video_shape(vae: Any, clip: RecordedClip) -> VideoShape:
    """The shape of the video that the clip's calls decode to, one after another."""
    family = family_of(vae)
    traits = family.traits(type(vae).__name__, vae.config)
    frames = height = width = 0
    for call in clip.calls:
        latents = family.as_video(call.latents, recorded_arguments(type(vae), call))
        _, _, count, height, width = latents.shape
        start, stop = call.keep or (0, family.video_frames(traits, count))
        frames += stop - start
    return VideoShape(frames, height * traits.spatial_ratio, width * traits.spatial_ratio)


def check_fits(vae: Any, clip: RecordedClip, wanted: VideoShape) -> None:
    """Raise `ValueError` unless the VAE decodes the clip's calls to a video of that shape."""
    if not clip.calls:
        raise ValueError("the file holds no decode call")
    family = family_of(vae)
    channels = family.traits(type(vae).__name__, vae.config).latent_channels
    for call in clip.calls:
        found = family.as_video(call.latents, recorded_arguments(type(vae), call)).shape
        if found[1] != channels:
            raise ValueError(f"the latents have {found[1]} channels, and the model's VAE takes {channels}")
    shape = video_shape(vae, clip)
    if shape != wanted:
        raise ValueError(
            f"the latents decode to {shape.frames} frames of {shape.width}x{shape.height}, and the job asks "
            f"for {wanted.frames} of {wanted.width}x{wanted.height}"
        )


def _longest_call(vae: Any, clip: RecordedClip) -> int:
    """The number of latent frames of the clip's longest call."""
    family = family_of(vae)
    shapes = [family.as_video(call.latents, recorded_arguments(type(vae), call)).shape for call in clip.calls]
    return max((shape[2] for shape in shapes), default=0)


def combined_report(reports: Sequence[Json]) -> Json:
    """Merge the reports of a clip's decodes into one.

    It has the rung that comes last in the fallback order, the highest peaks, the seam score of largest
    magnitude, and the sums of seconds and retries.
    """
    if len(reports) == 1:
        return reports[0]
    slowest = max(reports, key=lambda report: _cut(report).order)
    seams = [report["seam_score"] for report in reports if report["seam_score"] is not None]
    measured = [report["measured_peak_bytes"] for report in reports]
    return {
        **slowest,
        "exact": all(report["exact"] for report in reports),
        "seam_score": max(seams, key=abs, default=None),
        "predicted_peak_bytes": max(report["predicted_peak_bytes"] for report in reports),
        "measured_peak_bytes": None if None in measured else max(measured),
        "seconds": round(sum(report["seconds"] for report in reports), 4),
        "retries": sum(report["retries"] for report in reports),
        "regret_seconds": sum(report["regret_seconds"] for report in reports),
        "chunks": [size for report in reports for size in report["chunks"]],
    }


def _cut(report: Json) -> Cut:
    return Cut(report["frames_per_chunk"], SpatialTiles(**report["tiles"]), report["exact"])


def load_learned_costs(settings: Settings, device: torch.device) -> LearnedCosts:
    """The learned costs that earlier runs saved for this kind of device and this build of torch."""
    name, build = device_name(device), build_name()
    return LearnedCosts.load(learned_costs_path(settings, name), device=name, build=build)


def save_learned_costs(settings: Settings, learned_costs: LearnedCosts) -> None:
    """Save the learned costs to their device's file."""
    path = learned_costs_path(settings, learned_costs.device)
    make_folder_of(path)
    learned_costs.save(path)


def learned_costs_path(settings: Settings, device_name: str) -> Path:
    """The file of a device's learned costs."""
    return settings.profiles_dir / f"learned-{re.sub('[^a-z0-9]+', '-', device_name.lower())}.json"
