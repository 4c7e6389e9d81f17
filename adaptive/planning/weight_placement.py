"""Where a pipeline's weights live between its stages: decided from sizes, before anything is loaded.

Owns the choice among diffusers' own mechanisms, fastest first: all resident, text encoder dropped after the
prompt, model offload, group offload. It also decides whether a denoiser's matrices are quantized to int8.
That changes pixels, so it comes after all placements with the whole unquantized denoiser on the device. This
module does not know torch, pipelines, or how a placement is carried out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from adaptive.errors import DoesNotFit

MIB = 2**20
# Group offload keeps two blocks of layers on the card: one computes while the other is copied on another CUDA
# stream.
GROUPS_ON_DEVICE = 2
HOST_IS_SHORT = "keeping the weights in host memory"  # what does not fit, if it is not the device's memory


class Stage(StrEnum):
    """Phases of an image-to-video pipeline that hold different weights."""

    PROMPT = "prompt"
    DENOISE = "denoise"
    DECODE = "decode"


class PlacementKind(StrEnum):
    """How weights move, fastest first."""

    RESIDENT = "resident"  # everything on the device, always
    DROP_TEXT_ENCODER = "drop_text_encoder"  # text encoder alone for the prompt, then the rest together
    MODEL_OFFLOAD = "model_offload"  # one component on the device at a time
    GROUP_OFFLOAD = "group_offload"  # components too large for the device pass through it in groups of layers


@dataclass(frozen=True, slots=True)
class ComponentSize:
    """Weights of one pipeline component in the dtype it is loaded in.

    `group_bytes` is its largest block of layers (None: it cannot be offloaded in groups). `quantized_bytes`
    is its size with the matrices in int8 (None: it is not quantized). `working_bytes` is what its layers take
    beyond the weights to dequantize one of them. Raises `ValueError` for negative bytes or no stages.
    """

    name: str
    weight_bytes: int
    stages: tuple[Stage, ...]
    group_bytes: int | None = None
    quantized_bytes: int | None = None
    working_bytes: int = 0

    def __post_init__(self) -> None:
        if self.weight_bytes < 0 or not self.stages:
            raise ValueError(f"component {self.name!r}: {self.weight_bytes} bytes in stages {self.stages}")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where weights live.

    `group_offloaded` names the components that are never whole on the device, `quantized` those with matrices
    in int8.
    """

    kind: PlacementKind
    device_bytes: int  # peak on the device, activations included
    host_bytes: int  # weights kept in host memory (or passing through it while loading)
    group_offloaded: tuple[str, ...]
    reason: str
    quantized: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the pixels are those of the weights as published."""
        return not self.quantized

    @property
    def name(self) -> str:
        """The kind, and the quantized components."""
        suffix = f" with {' and '.join(self.quantized)} in int8 (approximate)" if self.quantized else ""
        return f"{self.kind}{suffix}"


def plan_weights(
    components: Sequence[ComponentSize],
    *,
    activation_bytes: Mapping[Stage, int],
    device_budget_bytes: int,
    host_budget_bytes: int,
    may_quantize: bool = False,
    may_offload: bool = True,
) -> Placement:
    """The fastest placement that fits the device and the host.

    `activation_bytes`: peak above weights in each stage; for decoding, that of the smallest rung, so that a
    placement is not refused for a decode that can shrink. `may_quantize`: a denoiser that does not fit whole
    may be quantized, which changes pixels. With `may_offload=False` all weights stay on the device, because
    the device is the host. Raises `DoesNotFit` where no placement fits; it names the memory that is short,
    and says where int8 weights would fit.
    """

    def placements(parts: Sequence[ComponentSize]) -> list[Placement]:
        resident = _resident(parts, activation_bytes)
        if not may_offload:
            return [replace(resident, host_bytes=0)]
        dropped = _drop_text_encoder(parts, activation_bytes)
        return [resident, dropped, _one_at_a_time(parts, activation_bytes, device_budget_bytes)]

    exact = placements(components)
    quantized = _quantized(components, placements)
    candidates = _ranked(exact, quantized) if may_quantize else exact
    refused: list[str] = []
    for each in candidates:
        if each.device_bytes > device_budget_bytes:
            refused.append(f"{each.name} needs {_gib(each.device_bytes)} on the device")
        elif each.host_bytes > host_budget_bytes:
            refused.append(f"{each.name} needs {_gib(each.host_bytes)} of host memory")
        else:
            why = f"{_gib(each.device_bytes)} of {_gib(device_budget_bytes)} at the peak"
            return replace(each, reason="; ".join([f"{each.name}: {why}", *refused]))
    last = candidates[-1]
    fitting = [
        each
        for each in quantized
        if each.device_bytes <= device_budget_bytes and each.host_bytes <= host_budget_bytes
    ]
    hint = " (with exact_only=false and int8 weights they would fit, approximately)" if fitting else ""
    if last.device_bytes > device_budget_bytes:
        raise DoesNotFit(
            f"placing the weights{hint}", needed_bytes=last.device_bytes, budget_bytes=device_budget_bytes
        )
    raise DoesNotFit(
        f"{HOST_IS_SHORT}{hint}",
        needed_bytes=min(each.host_bytes for each in candidates if each.device_bytes <= device_budget_bytes),
        budget_bytes=host_budget_bytes,
    )


def _quantized(
    components: Sequence[ComponentSize], placements: Callable[[Sequence[ComponentSize]], list[Placement]]
) -> list[Placement]:
    """The placements with every denoiser quantized that can be.

    Quantized denoisers stay whole, because quantized layers cannot be offloaded in groups.
    """
    names = tuple(each.name for each in components if each.quantized_bytes is not None)
    smaller = [
        each if each.quantized_bytes is None else replace(each, weight_bytes=each.quantized_bytes)
        for each in components
    ]
    if not names:
        return []
    whole = [each for each in placements(smaller) if not set(names) & set(each.group_offloaded)]
    return [replace(each, quantized=names) for each in whole]


def _ranked(exact: list[Placement], quantized: list[Placement]) -> list[Placement]:
    """All placements in the order of preference.

    Quantized ones come after every placement with the denoiser whole on the device, and before group offload
    of the denoiser, which moves all of its bytes once a step.
    """
    if not quantized:
        return exact
    names = set(quantized[0].quantized)
    whole = [each for each in exact if not names & set(each.group_offloaded)]
    return [*whole, *quantized, *(each for each in exact if each not in whole)]


def _sum(components: Sequence[ComponentSize]) -> int:
    return sum(each.weight_bytes for each in components)


def _peak(components: Sequence[ComponentSize], activations: Mapping[Stage, int]) -> int:
    """Peak bytes with all of `components` on the device in every stage that uses any of them."""
    stages = {stage for each in components for stage in each.stages}
    return _sum(components) + max((activations.get(stage, 0) for stage in stages), default=0)


def _resident(components: Sequence[ComponentSize], activations: Mapping[Stage, int]) -> Placement:
    loading = max((each.weight_bytes for each in components), default=0)  # passes through the host
    return Placement(PlacementKind.RESIDENT, _peak(components, activations), loading, (), "")


def _drop_text_encoder(components: Sequence[ComponentSize], activations: Mapping[Stage, int]) -> Placement:
    text = [each for each in components if each.stages == (Stage.PROMPT,)]
    rest = [each for each in components if each.stages != (Stage.PROMPT,)]
    device = max(_peak(text, activations), _peak(rest, activations))
    return Placement(PlacementKind.DROP_TEXT_ENCODER, device, _sum(components), (), "")


def smallest_bytes(
    components: Sequence[ComponentSize], activation_bytes: Mapping[Stage, int], budget_bytes: int
) -> dict[Stage, int]:
    """Fewest device bytes in each stage: one component at a time, in groups of layers if it does not fit
    whole.
    """
    needed: dict[Stage, int] = {}
    for each in components:
        for stage in each.stages:
            activation = activation_bytes.get(stage, 0)
            whole = each.weight_bytes + activation
            if whole > budget_bytes and each.group_bytes is not None:
                whole = min(each.weight_bytes, GROUPS_ON_DEVICE * each.group_bytes) + activation
            needed[stage] = max(needed.get(stage, 0), whole)
    return needed


def _one_at_a_time(
    components: Sequence[ComponentSize], activations: Mapping[Stage, int], budget_bytes: int
) -> Placement:
    """Model offload, with group offload for components that do not fit whole."""
    grouped: list[str] = []
    device = 0
    for each in components:
        activation = max(activations.get(stage, 0) for stage in each.stages)
        whole = each.weight_bytes + activation
        if whole > budget_bytes and each.group_bytes is not None:
            grouped.append(each.name)
            whole = min(each.weight_bytes, GROUPS_ON_DEVICE * each.group_bytes) + activation
        device = max(device, whole)
    kind = PlacementKind.GROUP_OFFLOAD if grouped else PlacementKind.MODEL_OFFLOAD
    return Placement(kind, device, _sum(components), tuple(grouped), "")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
