"""The sampler against a float64 reference of the published equations, at every step count."""

import inspect
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from app.pipelines.dynamicrafter import DynamiCrafterScheduler
from app.pipelines.dynamicrafter.components import build_scheduler, component_configs
from app.pipelines.dynamicrafter.scheduler import step_coefficients

SHAPE = (1, 4, 2, 3, 5)
RESOLUTIONS = (256, 512, 1024)
EVERY_COUNT = range(1, 1001)


def _scheduler(resolution: int, **changes: Any) -> DynamiCrafterScheduler:
    return build_scheduler(component_configs(resolution, {"scheduler": changes}))


def _published_alphas(zero_snr: bool) -> np.ndarray:
    """Betas linear in their root; with zero SNR by way of rescaled betas, as Algorithm 1 is printed."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    if zero_snr:
        root = np.sqrt(np.cumprod(1 - betas))
        shifted = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        bar = shifted**2
        betas = 1 - np.concatenate([bar[:1], bar[1:] / bar[:-1]])
    return np.cumprod(1 - betas)


def _published_step(
    alphas: np.ndarray, scales: np.ndarray, grid: list[int], index: int, x: Any, out: Any, noise: Any, v: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One DDIM step of eta 1 on ascending tables, as the release writes it; `index` 0 is the least noisy."""
    ascending = grid[::-1]
    table = alphas[ascending]
    previous = np.concatenate([alphas[:1], table[:-1]])[index]
    alpha, scale = table[index], scales[ascending]
    sigma = np.sqrt((1 - previous) / (1 - alpha) * (1 - alpha / previous))
    epsilon = np.sqrt(alpha) * out + np.sqrt(1 - alpha) * x if v else out
    if v:
        clean = np.sqrt(alpha) * x - np.sqrt(1 - alpha) * out
    else:
        clean = (x - np.sqrt(1 - alpha) * epsilon) / np.sqrt(alpha)
    clean = clean * np.concatenate([scale[:1], scale[:-1]])[index] / scale[index]
    direction = np.sqrt(np.maximum(1 - previous - sigma**2, 0)) * epsilon
    return np.sqrt(previous) * clean + direction + sigma * noise, clean


def _rescale_table(base: float) -> np.ndarray:
    return np.concatenate([np.linspace(1.0, base, 400), np.full(1000, base)])


PUBLISHED: Mapping[int, tuple[bool, float]] = MappingProxyType(
    {256: (False, 1.0), 512: (True, 0.7), 1024: (True, 0.3)}
)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("count", [1, 2, 7, 10, 25, 30, 50, 333, 999, 1000])
def test_every_step_equals_the_published_equations_in_float64(resolution: int, count: int) -> None:
    v, base = PUBLISHED[resolution]
    scheduler = _scheduler(resolution)
    scheduler.set_timesteps(count)
    grid = scheduler.timesteps.tolist()
    alphas, scales = _published_alphas(v), _rescale_table(base)
    random = np.random.default_rng(count)
    for position, time in enumerate(grid):
        x, out, noise = random.standard_normal((3, *SHAPE))
        found, clean = scheduler.step(
            torch.from_numpy(out),
            time,
            torch.from_numpy(x),
            eta=1.0,
            variance_noise=torch.from_numpy(noise),
            return_dict=False,
        )
        index = len(grid) - 1 - position
        expected, expected_clean = _published_step(alphas, scales, grid, index, x, out, noise, v)
        # Near zero SNR the published square root of a difference keeps half the digits of float64.
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-7)
        np.testing.assert_allclose(clean.numpy(), expected_clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_coefficient_of_every_step_count_is_finite(resolution: int) -> None:
    scheduler = _scheduler(resolution)
    alphas = scheduler.alphas_cumprod.tolist()
    for count in EVERY_COUNT:
        scheduler.set_timesteps(count)
        grid = scheduler.timesteps.tolist()
        for time, following in itertools.pairwise([*grid, 0]):
            found = step_coefficients(alphas[time], alphas[following], 1.0)
            values = (found.signal, found.noise, found.next_signal, found.direction, found.sigma)
            assert min(values) >= 0, (count, time)
            assert max(values) <= 1, (count, time)
            # Epsilon divides by the signal; only the first step of zero-SNR models has none.
            assert found.signal > 0 or scheduler.config.prediction_type == "v_prediction"
            spread = found.next_signal**2 + found.direction**2 + found.sigma**2
            assert abs(spread - 1) < 1e-12, (count, time)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_whole_runs_are_finite(resolution: int) -> None:
    scheduler = _scheduler(resolution)
    for count in [*range(1, 61), 100, 333, 600, 1000]:
        scheduler.set_timesteps(count)
        one, sample = torch.ones(1), torch.ones(1)
        for time in scheduler.timesteps.tolist():
            sample, clean = scheduler.step(one, time, sample, eta=1.0, variance_noise=one, return_dict=False)
            assert torch.isfinite(sample + clean).all(), (count, time)


@pytest.mark.parametrize("spacing", ["uniform", "uniform_trailing"])
def test_every_grid_falls_within_the_training_steps_without_repeats(spacing: str) -> None:
    scheduler = _scheduler(512, timestep_spacing=spacing)
    for count in EVERY_COUNT:
        scheduler.set_timesteps(count)
        grid = scheduler.timesteps.tolist()
        assert grid == sorted(set(grid), reverse=True)
        assert 0 <= grid[-1] <= grid[0] <= 999
        assert scheduler.num_inference_steps == len(grid)
        if spacing == "uniform_trailing":
            assert len(grid) == count
            assert grid[0] == 999
        else:
            assert len(grid) >= min(count, 999)
            assert grid[-1] == 1


@pytest.mark.parametrize(
    ("count", "first", "length"),
    [
        (50, 981, 50),
        (25, 961, 25),
        (10, 901, 10),
        (30, 991, 31),
        (7, 995, 8),
        (3, 667, 3),
        (1, 1, 1),
        (600, 999, 999),
    ],
)
def test_uniform_grids_are_the_published_ones(count: int, first: int, length: int) -> None:
    scheduler = _scheduler(256)
    scheduler.set_timesteps(count)
    published = [step + 1 for step in range(0, 1000, 1000 // count) if step < 999][::-1]
    assert scheduler.timesteps.tolist() == published
    assert (scheduler.timesteps[0].item(), len(scheduler.timesteps)) == (first, length)


def test_the_last_step_ends_at_the_first_training_step_not_at_no_noise() -> None:
    scheduler = _scheduler(256)
    scheduler.set_timesteps(50)
    x = torch.zeros(SHAPE, dtype=torch.float64)
    found = scheduler.step(torch.ones_like(x), 1, x, eta=0.0).prev_sample
    alpha, last = _published_alphas(zero_snr=False)[[1, 0]]
    expected = -np.sqrt(last) * np.sqrt(1 - alpha) / np.sqrt(alpha) + np.sqrt(1 - last)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_at_zero_signal_to_noise_the_sample_is_replaced_by_the_prediction() -> None:
    scheduler = _scheduler(512)
    scheduler.set_timesteps(50)
    assert scheduler.alphas_cumprod[999] == 0
    out, x, noise = torch.randn(3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = scheduler.step(out, 999, x, eta=1.0, variance_noise=noise)
    alpha = _published_alphas(zero_snr=True)[979]
    torch.testing.assert_close(found.pred_original_sample, -out)
    torch.testing.assert_close(found.prev_sample, -(alpha**0.5) * out + (1 - alpha) ** 0.5 * noise)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_eta_shares_the_noise_between_drawn_and_predicted(eta: float) -> None:
    """Whatever eta, the variance of the noise in the next sample is that of the schedule."""
    scheduler = _scheduler(256)
    scheduler.set_timesteps(10)
    time, following = scheduler.timesteps[3:5].tolist()
    alpha, alpha_next = scheduler.alphas_cumprod[[time, following]].tolist()
    clean, epsilon, noise = torch.randn(
        3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    x = alpha**0.5 * clean + (1 - alpha) ** 0.5 * epsilon
    variance_noise = noise if eta else None
    found = scheduler.step(epsilon, time, x, eta=eta, variance_noise=variance_noise).prev_sample
    sigma = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)) ** 0.5
    rest = (1 - alpha_next - sigma**2) ** 0.5
    torch.testing.assert_close(found, alpha_next**0.5 * clean + rest * epsilon + sigma * noise)


def test_a_step_takes_what_ddims_takes_in_the_same_order() -> None:
    ours, theirs = (
        inspect.signature(kind.step).parameters for kind in (DynamiCrafterScheduler, DDIMScheduler)
    )
    assert list(ours) == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)


@pytest.mark.parametrize("count", [1, 7, 50])
def test_the_1024_model_moves_its_estimate_towards_its_own_base_scale(count: int) -> None:
    scheduler = _scheduler(1024)
    assert scheduler.config.rescale_base == 0.3
    scheduler.set_timesteps(count)
    product = 1.0
    for time in scheduler.timesteps:
        product *= scheduler.coefficients(time, 1.0)[1]
    first, last = scheduler.timesteps[[0, -1]].tolist()
    scales = _rescale_table(0.3)
    assert product == pytest.approx(scales[last] / scales[first], rel=1e-9)


def test_a_generator_makes_the_noise_repeatable() -> None:
    scheduler = _scheduler(512)
    scheduler.set_timesteps(4)
    out, x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))

    def run(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return scheduler.step(out, 749, x, eta=1.0, generator=generator).prev_sample

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_sample_keeps_its_dtype(dtype: torch.dtype) -> None:
    scheduler = _scheduler(512)
    scheduler.set_timesteps(4)
    x = torch.ones(SHAPE, dtype=dtype)
    found = scheduler.step(x, 999, x, eta=1.0, variance_noise=x)
    assert found.prev_sample.dtype == found.pred_original_sample.dtype == dtype


@pytest.mark.parametrize("count", [0, 1001, -1])
def test_step_counts_outside_the_training_steps_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps is {count}"):
        _scheduler(512).set_timesteps(count)


def test_misuse_of_a_step_is_refused() -> None:
    scheduler = _scheduler(512)
    x = torch.ones(SHAPE)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="time step 500 is not one of the 10"):
        scheduler.step(x, 500, x)
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        scheduler.step(x, 999, x, eta=1.5)
    with pytest.raises(ValueError, match="not both"):
        scheduler.step(x, 999, x, eta=1.0, generator=torch.Generator(), variance_noise=x)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"timestep_spacing": "leading"}, "timestep_spacing is 'leading'"),
        ({"prediction_type": "epsilon"}, "zero signal-to-noise"),
    ],
)
def test_configurations_that_cannot_work_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        _scheduler(512, **changes)


def test_a_saved_scheduler_is_the_same_scheduler(tmp_path: Any) -> None:
    _scheduler(1024).save_pretrained(tmp_path)
    loaded = DynamiCrafterScheduler.from_pretrained(tmp_path)
    assert loaded.config.rescale_base == 0.3
    assert loaded.config.timestep_spacing == "uniform_trailing"
    assert loaded.rescale_factors is not None
    assert loaded.rescale_factors[399:].tolist() == [0.3] * 601
    assert len(loaded) == 1000
