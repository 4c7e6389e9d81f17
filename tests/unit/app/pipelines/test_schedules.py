"""Fixed steps and another scheduler give what the pipeline makes of the same steps as its own arguments."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_pipelines
import torch
from model_parts import frames_of

from app.pipelines.schedules import check_schedule, fixed_schedule, use_scheduler

LTX, WAN = "LTXImageToVideoPipeline", "WanImageToVideoPipeline"
TIMESTEPS = [1000, 993, 725]
SIGMAS = [1.0, 0.9, 0.4]


def scheduled(pipe: Any) -> tuple[list[float], list[float]]:
    """The timesteps and sigmas that the last call took."""
    return pipe.scheduler.timesteps.tolist(), pipe.scheduler.sigmas.tolist()


@pytest.mark.parametrize("pipeline", [LTX, WAN])
def test_sigmas_are_taken_as_they_are_without_a_shift(pipeline: str) -> None:
    pipe = tiny_pipelines.build(pipeline)
    use_scheduler(pipe, None, 1.0)
    with fixed_schedule(pipe, sigmas=SIGMAS):
        frames_of(pipe)
    timesteps, sigmas = scheduled(pipe)
    assert sigmas == pytest.approx([*SIGMAS, 0.0])
    assert timesteps == pytest.approx([1000 * sigma for sigma in SIGMAS])


def test_timesteps_are_taken_as_they_are() -> None:
    pipe = tiny_pipelines.build(LTX)
    use_scheduler(pipe, None, 1.0)
    with fixed_schedule(pipe, timesteps=TIMESTEPS):
        frames_of(pipe)
    timesteps, sigmas = scheduled(pipe)
    assert timesteps == TIMESTEPS
    assert sigmas == pytest.approx([each / 1000 for each in TIMESTEPS] + [0.0])


def test_the_scheduler_is_as_before_after_the_call() -> None:
    pipe = tiny_pipelines.build(LTX)
    plain = frames_of(pipe)
    with fixed_schedule(pipe, sigmas=SIGMAS):
        fixed = frames_of(pipe)
    assert not torch.equal(fixed, plain)
    assert torch.equal(frames_of(pipe), plain)


def test_a_flow_model_gets_another_scheduler_with_its_shift() -> None:
    pipe = tiny_pipelines.build(WAN)
    use_scheduler(pipe, "UniPCMultistepScheduler", 5.0)
    assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
    config = pipe.scheduler.config
    assert (config.flow_shift, config.prediction_type, config.use_flow_sigmas) == (
        5.0,
        "flow_prediction",
        True,
    )
    assert torch.isfinite(frames_of(pipe)).all()


@pytest.mark.parametrize(
    ("class_name", "shift", "reason"),
    [
        ("NoSuchScheduler", None, "diffusers has no scheduler"),
        ("LTXVideoTransformer3DModel", None, "diffusers has no scheduler"),
        ("DDIMScheduler", 3.0, "DDIMScheduler has no shift"),
    ],
)
def test_a_scheduler_that_cannot_be_used_is_refused(
    class_name: str, shift: float | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        use_scheduler(tiny_pipelines.build(LTX), class_name, shift)


def test_a_scheduler_that_takes_no_sigmas_is_refused() -> None:
    pipe = tiny_pipelines.build(LTX)
    use_scheduler(pipe, "DDIMScheduler", None)
    with pytest.raises(ValueError, match="DDIMScheduler takes no sigmas"):
        check_schedule(pipe, "sigmas")
