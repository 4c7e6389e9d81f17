"""A loop that ends early gives its pipeline the clean estimate of its last step, and computes no more."""

from collections.abc import Mapping
from typing import Any

import denoise_cases
import pytest
import torch
from torch import nn

from adaptive.denoise.early_end import EarlyEnd
from adaptive.denoise.preview.clean_estimate import clean_estimate
from adaptive.denoise.watch import CallNext, DenoiseHandler, watch
from adaptive.pipelines.capture import capture

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
STEPS, LAST = 4, 2


class Counted(DenoiseHandler):
    """The denoiser calls that are computed, and the estimates of each step, of the video and of sound."""

    def __init__(self) -> None:
        self.computed = 0
        self.estimates: list[torch.Tensor] = []

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        del module
        self.computed += 1
        return call_next(*args, **kwargs)

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        result = call_next(*args, **kwargs)
        self.estimates.append(clean_estimate(scheduler, args, kwargs, result).part(torch.clone))
        return result


class Given(DenoiseHandler):
    """What the pipeline gets from its steps."""

    def __init__(self) -> None:
        self.results: list[torch.Tensor] = []

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        del scheduler
        result = call_next(*args, **kwargs)
        self.results.append(result[0].clone())
        return result


@pytest.mark.parametrize(
    "name", ["cogvideox-dpm", "hunyuanvideo", "i2vgen-xl", "ltx-2", "ltx-condition", "svd", "wan22"]
)
def test_a_loop_that_ends_early_gives_its_clean_estimate(name: str) -> None:
    pipe, counted, given = denoise_cases.built(name), Counted(), Given()
    early = EarlyEnd(pipe)
    computed: list[int] = []

    def after_step() -> None:
        computed.append(counted.computed)
        early.step_done(len(computed))
        if len(computed) == LAST - 1:
            early.end_next()

    generator = torch.Generator().manual_seed(denoise_cases.SEED)
    with capture(pipe) as calls, watch(pipe, [given, early, counted]):
        denoise_cases.called(pipe, name, generator, STEPS, after_step)
    assert early.step == LAST
    assert len(computed) >= STEPS
    assert computed[-1] == computed[LAST - 1] > computed[0]
    assert calls, "the pipeline went on to its decode"
    assert all(call.latents.isfinite().all() for call in calls)
    of_each_step = len(given.results) // len(computed)
    last = counted.estimates[-of_each_step:]
    for step in range(LAST, len(computed) + 1):
        results = given.results[(step - 1) * of_each_step : step * of_each_step]
        assert all(torch.equal(one, other.to(one.dtype)) for one, other in zip(results, last, strict=True))
