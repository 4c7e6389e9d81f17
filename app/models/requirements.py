"""The memory that a whole job needs, stage by stage, and the choice of a weight placement for it.

`app.models.weight_sizes` traces a model's requirements once and stores them beside its memory profile. The
API uses them to refuse jobs that no placement can make fit, and to forecast the placement. Arithmetic on
stored numbers, without torch; must not know how they are traced, devices or HTTP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from adaptive.errors import DoesNotFit
from adaptive.memory.denoise_costs import DenoiseCosts
from adaptive.memory.learned_costs import LearnedCosts
from adaptive.memory.profile import MemoryProfile
from adaptive.planning.weight_placement import ComponentSize, Placement, Stage, plan_weights, smallest_bytes
from adaptive.types import LatentShape, VideoShape
from app.fields.loras import LoraChoice
from app.models.entries import ModelEntry
from app.models.parts.entry_parts import denoiser_labels

FORMAT = 2
MIB = 2**20
TRANSFORMERS = ("transformer", "transformer_2")  # the components that LoRAs change
# A prompt of some hundred tokens; the text encoder's activations are small beside its weights.
PROMPT_ACTIVATION_BYTES = 256 * MIB
# Latent frames a chunk at which chunked decoding is as fast as batched (tests/bench/decode.py).
FULL_SPEED_CHUNK = 4


@dataclass(frozen=True, slots=True)
class DenoiseCurve:
    """Bytes of one denoising step above the weights, as a polynomial of the latent positions.

    Positions are frames x height x width. The curve is affine for fused attention; it has a quadratic term if
    the denoiser makes a mask over all pairs. `guidance_in_batch`: classifier-free guidance doubles the batch.
    """

    constant_bytes: float
    bytes_a_position: float
    bytes_a_pair: float
    guidance_in_batch: bool

    def live_bytes(self, latent: LatentShape, *, guided: bool) -> int:
        """Bytes of the tensors of one step, without workspace."""
        doubled = 2 if guided and self.guidance_in_batch else 1
        positions = latent.frames * latent.area
        square = self.bytes_a_pair * positions**2
        return round(doubled * (self.constant_bytes + self.bytes_a_position * positions + square))


@dataclass(frozen=True, slots=True)
class ModelRequirements:
    """The sizes of a model's components, and the curve of each denoiser (None if unknown).

    `added_frames`: latent frames that a job's pictures add to those of the video in each denoising step.
    """

    components: tuple[ComponentSize, ...]
    denoise: tuple[DenoiseCurve | None, ...]
    added_frames: int = 0

    def denoise_bytes(
        self, latent: LatentShape, *, guided: bool, costs: DenoiseCosts | None = None, key: str = ""
    ) -> int:
        """Bytes of one denoising step above the weights, with the margin learned for `key`."""
        live_bytes = self.least_bytes(latent, 0, guided=guided)[Stage.DENOISE]
        return (costs or DenoiseCosts()).upper_bytes(key, live_bytes)

    def activation_bytes(
        self,
        latent: LatentShape,
        decode_bytes: int,
        *,
        guided: bool,
        costs: DenoiseCosts | None = None,
        key: str = "",
    ) -> dict[Stage, int]:
        """Peak bytes of each stage above the weights; `costs` and `key` as in `denoise_bytes`."""
        return {
            Stage.PROMPT: PROMPT_ACTIVATION_BYTES + self._working_bytes(Stage.PROMPT),
            Stage.DENOISE: self.denoise_bytes(latent, guided=guided, costs=costs, key=key),
            Stage.DECODE: decode_bytes,
        }

    def least_bytes(self, latent: LatentShape, decode_bytes: int, *, guided: bool) -> dict[Stage, int]:
        """As `activation_bytes`, without margins; what is not known counts as 0 bytes."""
        stepped = replace(latent, frames=latent.frames + self.added_frames)
        live = [curve.live_bytes(stepped, guided=guided) for curve in self.denoise if curve is not None]
        return {
            Stage.PROMPT: self._working_bytes(Stage.PROMPT),
            Stage.DENOISE: max(live, default=self._working_bytes(Stage.DENOISE)),
            Stage.DECODE: decode_bytes,
        }

    def with_frames(self, added_frames: int) -> Self:
        """The requirements of a job whose pictures add latent frames."""
        return replace(self, added_frames=added_frames)

    def with_loras(self, loras: Sequence[LoraChoice]) -> Self:
        """The requirements with the bytes of a job's LoRAs added to each transformer that they may change."""
        added = {
            name: sum(each.size_bytes or 0 for each in loras if each.component in (None, name))
            for name in TRANSFORMERS
        }
        if not any(added.values()):
            return self
        components = tuple(
            replace(
                each,
                weight_bytes=each.weight_bytes + added.get(each.name, 0),
                quantized_bytes=each.quantized_bytes and each.quantized_bytes + added.get(each.name, 0),
            )
            for each in self.components
        )
        return replace(self, components=components)

    def _working_bytes(self, stage: Stage) -> int:
        """What dequantizing one layer takes in the stage. The curves of denoisers count it themselves."""
        return max((each.working_bytes for each in self.components if stage in each.stages), default=0)

    def short_of(self, latent: LatentShape, capacity_bytes: int, *, guided: bool) -> tuple[Stage, int] | None:
        """The stage that no placement fits into `capacity_bytes`, and the least bytes that it needs.

        None if every stage before decoding fits. Uses no margins and counts unknown denoisers as 0 bytes, so
        that a job that might fit is not refused.
        """
        activations = self.least_bytes(latent, 0, guided=guided)
        needs = smallest_bytes(self.components, activations, capacity_bytes)
        needs.pop(Stage.DECODE, None)  # the planner checks the decode
        short = {stage: need for stage, need in needs.items() if need > capacity_bytes}
        return max(short.items(), key=lambda each: each[1]) if short else None

    def to_json(self) -> dict[str, Any]:
        """The requirements as JSON values; `from_json` is the inverse."""
        stored = asdict(self)
        del stored["added_frames"]  # of a job
        return {"format": FORMAT, **stored}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises `ValueError` for another format version."""
        if data.get("format") != FORMAT:
            raise ValueError(f"requirements have format {data.get('format')!r}; this version reads {FORMAT}")
        parts = [{**each, "stages": tuple(map(Stage, each["stages"]))} for each in data["components"]]
        components = [ComponentSize(**part) for part in parts]
        curves = [None if each is None else DenoiseCurve(**each) for each in data["denoise"]]
        return cls(tuple(components), tuple(curves))


def choose_placement(
    requirements: ModelRequirements,
    entry: ModelEntry,
    profile: MemoryProfile,
    video: VideoShape,
    *,
    device_budget_bytes: int,
    host_budget_bytes: int,
    exact_only: bool = True,
    on_host: bool = False,
    guided: bool | None = None,
    costs: LearnedCosts | None = None,
    cautious: bool = True,
) -> Placement:
    """The fastest placement for making that video. Raises `DoesNotFit` if none fits.

    Prefers a placement that leaves room for a decode at full speed, even if more weights are offloaded: a
    text encoder is soon reloaded, and a full card leaves nothing to its other users. Only if no placement
    leaves that room is the decode planned at its smallest. Without `exact_only`, an entry with `quantize`
    lets its transformers be quantized if they do not fit whole. `on_host`: the device is the host, so nothing
    can be offloaded. `guided`: whether the job uses guidance; by default as the entry's defaults do.
    `costs` are those learned on the device. If not `cautious`, only tensors count and no margins: for a job
    that would otherwise not run at all.
    """
    latent = profile.traits.latent_shape(video)
    guided = entry.defaults.guidance_scale > 1 if guided is None else guided
    costs = LearnedCosts.none("cuda", "") if costs is None else costs
    key = denoise_key(entry)
    parts = requirements.components
    if entry.quantize is None:
        parts = tuple(replace(each, quantized_bytes=None) for each in parts)

    chunks = [min(FULL_SPEED_CHUNK, latent.frames), 1] if profile.can_stream else [latent.frames]

    def placed(*, may_quantize: bool) -> Placement:
        for position, frames_per_chunk in enumerate(chunks):
            decode = profile.estimate(latent, frames_per_chunk, costs.residuals)
            if cautious:
                activations = requirements.activation_bytes(
                    latent, decode.upper_bytes, guided=guided, costs=costs.denoise, key=key
                )
            else:
                activations = requirements.least_bytes(latent, decode.live_bytes, guided=guided)
            try:
                return plan_weights(
                    parts,
                    activation_bytes=activations,
                    device_budget_bytes=device_budget_bytes,
                    host_budget_bytes=host_budget_bytes,
                    may_quantize=may_quantize,
                    may_offload=not on_host,
                )
            except DoesNotFit:
                if position == len(chunks) - 1:
                    raise
        raise AssertionError("no chunk was tried")

    quantizable = {each.name for each in parts if each.quantized_bytes is not None}
    try:
        exact = placed(may_quantize=False)
    except DoesNotFit:
        if exact_only or not quantizable:
            raise
    else:
        if exact_only or not quantizable & set(exact.group_offloaded):
            return exact
    return placed(may_quantize=True)


def denoise_key(entry: ModelEntry, placement: str | None = None) -> str:
    """The name under which the model's denoise is learned: its memory, and for a `placement` its seconds.

    Transformers of other formats, in files that the entry names, are learned apart.
    """
    placed = [] if placement is None else [placement]
    return "/".join([entry.name, entry.dtype, *denoiser_labels(entry), *placed])


def denoise_positions(
    profile: MemoryProfile, video: VideoShape, *, guided: bool, added_frames: int = 0
) -> int:
    """Latent positions that a step computes for the video, both branches of guidance counted."""
    latent = profile.traits.latent_shape(video)
    return (latent.frames + added_frames) * latent.area * (2 if guided else 1)


def placement_json(placement: Placement) -> dict[str, Any]:
    """The JSON of a placement, as clients see it."""
    return {
        "kind": placement.kind.value,
        "device_bytes": placement.device_bytes,
        "host_bytes": placement.host_bytes,
        "group_offloaded": list(placement.group_offloaded),
        "quantized": list(placement.quantized),
        "exact": placement.exact,
        "reason": placement.reason,
    }
