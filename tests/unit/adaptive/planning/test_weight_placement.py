"""Where LTX-Video's published weights go on real card sizes. Sizes in bf16; activations are of 49x512x768."""

from dataclasses import replace

import pytest

from adaptive.errors import DoesNotFit
from adaptive.planning.weight_placement import ComponentSize, PlacementKind, Stage, plan_weights

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


# As above, and what torchao leaves of the transformer with its matrices in int8.
ROUNDABLE = (LTX[0], replace(LTX[1], quantized_bytes=1_930_000_000), LTX[2])
WITH_INT8 = [
    (24, PlacementKind.RESIDENT, ()),
    (15, PlacementKind.DROP_TEXT_ENCODER, ()),  # all in int8 would stay on the card: it fits without that
    (6, PlacementKind.GROUP_OFFLOAD, ()),  # the text encoder passes through, the transformer is whole
    (5, PlacementKind.GROUP_OFFLOAD, ("transformer",)),
    (3, PlacementKind.GROUP_OFFLOAD, ()),  # not even in int8
]


@pytest.mark.parametrize(("card_gb", "kind", "quantized"), WITH_INT8)
def test_weights_are_rounded_only_where_that_brings_a_transformer_onto_the_card(
    card_gb: int, kind: PlacementKind, quantized: tuple[str, ...]
) -> None:
    budgets = {"device_budget_bytes": card_gb * GB - GIB // 2, "host_budget_bytes": 32 * GB}
    exact = plan_weights(ROUNDABLE, activation_bytes=ACTIVATIONS, **budgets)
    assert exact.exact
    placed = plan_weights(ROUNDABLE, activation_bytes=ACTIVATIONS, **budgets, may_quantize=True)
    assert (placed.kind, placed.quantized, placed.exact) == (kind, quantized, not quantized)
    assert placed.device_bytes <= budgets["device_budget_bytes"]
    assert ("approximate" in placed.reason.split(";")[0]) == bool(quantized)
    if quantized:
        assert "transformer" in exact.group_offloaded
        assert "transformer" not in placed.group_offloaded
    else:
        assert placed.group_offloaded == exact.group_offloaded


def test_a_transformer_of_unknown_int8_size_is_not_quantized() -> None:
    placed = plan_weights(
        LTX,
        activation_bytes=ACTIVATIONS,
        device_budget_bytes=5 * GB - GIB // 2,
        host_budget_bytes=32 * GB,
        may_quantize=True,
    )
    assert placed.exact
    assert "transformer" in placed.group_offloaded


def test_a_refusal_says_where_rounded_weights_would_have_fitted() -> None:
    parts = ROUNDABLE[1:]
    budgets = {"device_budget_bytes": 4 * GB, "host_budget_bytes": 4 * GB}
    with pytest.raises(DoesNotFit, match="with exact_only=false and int8 weights they would fit"):
        plan_weights(parts, activation_bytes=ACTIVATIONS, **budgets)
    placed = plan_weights(parts, activation_bytes=ACTIVATIONS, **budgets, may_quantize=True)
    assert placed.quantized == ("transformer",)


@pytest.mark.parametrize(("budget_gb", "quantized"), [(16, ()), (15, ("transformer",))])
def test_on_the_host_itself_everything_stays(budget_gb: int, quantized: tuple[str, ...]) -> None:
    options = {"device_budget_bytes": budget_gb * GB, "host_budget_bytes": 0}
    placed = plan_weights(
        ROUNDABLE, activation_bytes=ACTIVATIONS, **options, may_quantize=True, may_offload=False
    )
    assert (placed.kind, placed.quantized) == (PlacementKind.RESIDENT, quantized)
    with pytest.raises(DoesNotFit):
        plan_weights(
            ROUNDABLE,
            activation_bytes=ACTIVATIONS,
            device_budget_bytes=12 * GB,
            host_budget_bytes=0,
            may_quantize=True,
            may_offload=False,
        )
