"""Where LTX-Video's published weights go on real card sizes. Sizes in bf16; activations are of 49x512x768."""

import pytest

from adaptive.errors import DoesNotFit
from adaptive.placement import ComponentSize, PlacementKind, Stage, plan_weights

GB = 10**9
GIB = 2**30
LTX = (
    ComponentSize("text_encoder", 9_520_000_000, (Stage.PROMPT,), group_bytes=260_000_000),  # T5-XXL encoder
    ComponentSize(
        "transformer", 3_850_000_000, (Stage.DENOISE,), group_bytes=140_000_000
    ),  # 1.92 B parameters
    ComponentSize("vae", 840_000_000, (Stage.PROMPT, Stage.DECODE), group_bytes=60_000_000),
)
ACTIVATIONS = {Stage.PROMPT: GIB // 4, Stage.DENOISE: GIB, Stage.DECODE: GIB}


@pytest.mark.parametrize(
    ("card_gb", "kind", "grouped"),
    [
        (24, PlacementKind.RESIDENT, ()),
        (16, PlacementKind.DROP_TEXT_ENCODER, ()),
        (12, PlacementKind.DROP_TEXT_ENCODER, ()),
        (8, PlacementKind.GROUP_OFFLOAD, ("text_encoder",)),
        (6, PlacementKind.GROUP_OFFLOAD, ("text_encoder",)),
    ],
)
def test_ltx_is_placed_on_every_usual_card_with_32_gb_of_host_memory(
    card_gb: int, kind: PlacementKind, grouped: tuple[str, ...]
) -> None:
    budget = card_gb * GB - GIB  # context and reserve
    placed = plan_weights(
        LTX, activation_bytes=ACTIVATIONS, device_budget_bytes=budget, host_budget_bytes=32 * GB
    )
    assert (placed.kind, placed.group_offloaded) == (kind, grouped)
    assert placed.device_bytes <= budget
    assert placed.host_bytes <= 32 * GB
    assert placed.reason.startswith(kind)


def test_a_big_card_with_little_host_memory_keeps_everything_on_the_card() -> None:
    placed = plan_weights(
        LTX, activation_bytes=ACTIVATIONS, device_budget_bytes=24 * GB, host_budget_bytes=10 * GB
    )
    assert placed.kind is PlacementKind.RESIDENT
    assert placed.host_bytes == 9_520_000_000


@pytest.mark.parametrize(
    ("card_gb", "host_gb", "needed_of"),
    [(12, 12, "host"), (1, 64, "device")],
)
def test_what_is_short_is_named_with_both_numbers(card_gb: int, host_gb: int, needed_of: str) -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan_weights(
            LTX,
            activation_bytes=ACTIVATIONS,
            device_budget_bytes=card_gb * GB - GIB // 2,
            host_budget_bytes=host_gb * GB,
        )
    assert ("host" in str(refused.value)) == (needed_of == "host")
    assert refused.value.needed_bytes > refused.value.budget_bytes


def test_without_layer_groups_a_component_must_fit_whole() -> None:
    whole = (ComponentSize("text_encoder", 9 * GB, (Stage.PROMPT,)),)
    with pytest.raises(DoesNotFit) as refused:
        plan_weights(whole, activation_bytes={}, device_budget_bytes=8 * GB, host_budget_bytes=32 * GB)
    assert refused.value.needed_bytes == 9 * GB
