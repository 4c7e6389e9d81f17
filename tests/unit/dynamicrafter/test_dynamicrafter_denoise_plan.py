"""Fitting the denoising into memory: the choice as arithmetic, and bytes traced without weights."""

import pytest
import torch

from adaptive.errors import DoesNotFit
from adaptive.trace import trace_peak
from app.pipelines.dynamicrafter import DynamiCrafterPipeline
from app.pipelines.dynamicrafter.components import component_configs
from app.pipelines.dynamicrafter.denoise_plan import (
    GUIDED,
    UNGUIDED,
    DenoiseRung,
    DenoiseShape,
    plan_denoise,
    traced_peaks,
)

NEEDS = {
    DenoiseRung(1, 1): 600,
    DenoiseRung(1, 2): 400,
    DenoiseRung(1, 4): 300,
    DenoiseRung(2, 2): 200,
    DenoiseRung(2, 4): 150,
}
GIB = 2**30


@pytest.mark.parametrize(
    ("budget", "guided", "passes", "slices", "reason"),
    [
        (10_000, True, 1, 1, "fastest way"),
        (600, True, 1, 1, "fastest way"),
        (599, True, 1, 2, "the way before needs 600 bytes"),
        (399, True, 1, 4, "the way before needs 400 bytes"),
        (299, True, 2, 2, "the way before needs 300 bytes"),
        (150, True, 2, 4, "the way before needs 200 bytes"),
        (300, False, 1, 4, "the way before needs 400 bytes"),
    ],
)
def test_the_fastest_way_that_fits_is_taken(
    budget: int, guided: bool, passes: int, slices: int, reason: str
) -> None:
    plan = plan_denoise(NEEDS.__getitem__, guided=guided, budget_bytes=budget)
    assert plan.as_json() == {
        "guidance_passes": passes,
        "slices": slices,
        "predicted_bytes": NEEDS[DenoiseRung(passes, slices)],
        "budget_bytes": budget,
        "reason": reason,
    }


@pytest.mark.parametrize(("guided", "needed"), [(True, 150), (False, 300)])
def test_what_fits_no_way_is_refused_with_the_least_it_needs(guided: bool, needed: int) -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan_denoise(NEEDS.__getitem__, guided=guided, budget_bytes=needed - 1)
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (needed, needed - 1)


def test_no_more_ways_are_traced_than_needed() -> None:
    asked: list[DenoiseRung] = []

    def needs(rung: DenoiseRung) -> int:
        asked.append(rung)
        return NEEDS[rung]

    plan_denoise(needs, guided=True, budget_bytes=450)
    assert asked == list(GUIDED[:2])


def test_each_way_of_the_full_size_model_needs_less_than_the_one_before() -> None:
    """The 512 model: slices save more than half, a second guidance pass half again."""
    config = component_configs(512)["unet"]
    peaks = traced_peaks(config, DenoiseShape(16, 40, 64), torch.float16, guided=True)
    found = [peaks(rung) for rung in GUIDED]
    assert found == sorted(found, reverse=True)
    assert found[2] < 0.5 * found[0]
    assert found[4] == pytest.approx(found[2] / 2, rel=0.01)
    assert found[0] / 1.3 / GIB == pytest.approx(1.617, abs=0.02)


def test_a_trace_counts_what_a_real_step_holds(tiny: DynamiCrafterPipeline) -> None:
    """The same accounting of real tensors at work gives the same bytes."""
    shape = DenoiseShape(16, 8, 16)
    peaks = traced_peaks(tiny.unet.config, shape, torch.float32, guided=False)
    sample, context = torch.randn(1, 8, 16, 8, 16), torch.randn(1, 333, 16)
    for rung in (UNGUIDED[0], UNGUIDED[-1]):
        tiny.unet.set_attention_slice(rung.slices)
        with torch.no_grad():
            real = trace_peak(lambda: tiny.unet(sample, 5, context, fs=24, return_dict=False))
        assert peaks(rung) == pytest.approx(real.peak_bytes * 1.3, rel=0.01)


def test_a_plan_sets_up_the_model(tiny: DynamiCrafterPipeline) -> None:
    plan = plan_denoise(NEEDS.__getitem__, guided=True, budget_bytes=299)
    assert plan.apply(tiny.unet) == {"guidance_passes": 2}
    attention = tiny.unet.mid_block.attentions[0].transformer_blocks[0]
    assert (attention.attn1.processor.parts, attention.attn2.processor.parts, attention.ff.parts) == (2, 2, 2)
    assert tiny.unet.transformer_in.transformer_blocks[0].ff.parts == 2
