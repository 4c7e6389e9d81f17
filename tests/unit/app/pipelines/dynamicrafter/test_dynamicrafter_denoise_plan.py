"""Fitting the denoising into memory: the choice as arithmetic, and bytes traced without weights."""

import pytest
import torch
from PIL import Image

from adaptive.errors import DoesNotFit
from adaptive.memory.live_bytes import trace_peak
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
        (10_000, True, 1, 1, "fastest option"),
        (600, True, 1, 1, "fastest option"),
        (599, True, 1, 2, "the next faster option needs 600 bytes"),
        (399, True, 1, 4, "the next faster option needs 400 bytes"),
        (299, True, 2, 2, "the next faster option needs 300 bytes"),
        (150, True, 2, 4, "the next faster option needs 200 bytes"),
        (300, False, 1, 4, "the next faster option needs 400 bytes"),
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


@pytest.mark.slow
def test_the_full_size_model_gets_along_with_a_quarter_of_the_memory() -> None:
    """The 512 model: slices save more than half, a second guidance pass half again."""
    config = component_configs(512)["unet"]
    peaks = traced_peaks(config, DenoiseShape(16, 40, 64), torch.float16, guided=True)
    whole, sliced, least = (peaks(GUIDED[index]) for index in (0, 2, 4))
    assert sliced < 0.5 * whole
    assert least == pytest.approx(sliced / 2, rel=0.01)
    assert whole / 1.3 / GIB == pytest.approx(1.617, abs=0.02)


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


def test_a_fitted_pipeline_generates_the_same_in_less_memory(tiny: DynamiCrafterPipeline) -> None:
    def generate() -> torch.Tensor:
        frames = tiny(
            Image.new("RGB", (64, 64), (200, 30, 90)),
            height=64,
            width=64,
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).frames
        assert isinstance(frames, torch.Tensor)
        return frames

    shape = {"num_frames": 16, "height": 64, "width": 64}
    whole = generate()
    assert tiny.fit_denoise(GIB, **shape).rung == DenoiseRung(1, 1)
    with pytest.raises(DoesNotFit) as caught:
        tiny.fit_denoise(1, **shape)
    plan = tiny.fit_denoise(caught.value.needed_bytes, **shape)
    assert plan.rung == DenoiseRung(2, 4)
    attention = tiny.unet.mid_block.attentions[0].transformer_blocks[0]
    assert (attention.attn1.processor.parts, attention.attn2.processor.parts, attention.ff.parts) == (4, 4, 4)

    batches: list[int] = []
    handle = tiny.unet.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
    # Untrained weights and a guidance of 7.5 amplify the last bits.
    assert (generate() - whole).abs().max() < 1e-3
    handle.remove()
    assert batches == [1, 1]
    tiny.fit_denoise(GIB, **shape)
    assert torch.equal(generate(), whole)
