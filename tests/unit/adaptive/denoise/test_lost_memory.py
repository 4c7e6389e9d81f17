"""An out-of-memory anywhere in a denoising loop costs no step, and the result is the same."""

import random
from typing import Any

import pytest
import tiny_pipelines
import torch
from failing_operation import FailingOperation
from PIL import Image
from torch import nn

from adaptive.denoise.randomness import Randomness
from adaptive.denoise.record import DenoiseLoop
from adaptive.denoise.retries import MissingMemory, Retries
from adaptive.denoise.split_batch import can_split, split_call
from adaptive.denoise.watch import denoisers_of, watch

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 2.0}
CALLS: dict[str, dict[str, Any]] = {
    "CogVideoXImageToVideoPipeline": SMALL,
    "LTX2ImageToVideoPipeline": {**SMALL, "stg_scale": 0.0, "audio_stg_scale": 0.0, "frame_rate": 8},
    "LTXImageToVideoPipeline": {**SMALL, "frame_rate": 8},
    "StableVideoDiffusionPipeline": {
        "height": 64,
        "width": 64,
        "num_frames": 3,
        "max_guidance_scale": 2.0,
        "fps": 8,
    },
    "WanImageToVideoPipeline": SMALL,
}
STEPS = 3


CPU = torch.device("cpu")


def run(pipe: Any, generator: torch.Generator | None = None) -> torch.Tensor:
    asked = CALLS[type(pipe).__name__]
    image = Image.linear_gradient("L").resize((asked["width"], asked["height"])).convert("RGB")
    prompt = {} if "max_guidance_scale" in asked else {"prompt": "a cat"}
    generator = (generator or torch.Generator()).manual_seed(5)
    torch.manual_seed(5)
    options = {"num_inference_steps": STEPS, "output_type": "latent", "generator": generator}
    latents: torch.Tensor = pipe(image=image, **prompt, **asked, **options).frames
    return latents


def survived(pipe: Any, kept: DenoiseLoop, retries: Retries, failing: FailingOperation) -> torch.Tensor:
    with failing, watch(pipe, [kept, retries]):
        while True:
            generator = torch.Generator()
            kept.begin(Randomness(CPU, [generator]))
            try:
                return run(pipe, generator)
            except torch.OutOfMemoryError:
                assert failing.failed == 1


def again(_missing: MissingMemory) -> bool:
    return True


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize("name", sorted(set(CALLS) - {"CogVideoXImageToVideoPipeline"}))
def test_an_out_of_memory_at_any_operation_costs_no_step(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    untouched, counted, operations = DenoiseLoop(pipe, CPU), Retries(again), FailingOperation()
    expected = survived(pipe, untouched, counted, operations)
    for at in random.Random(7).sample(range(operations.seen), 2):
        kept, retries, failing = DenoiseLoop(pipe, CPU), Retries(again), FailingOperation(at)
        result = survived(pipe, kept, retries, failing)
        assert failing.failed == 1
        assert torch.equal(result, expected), at
        assert kept.computed == untouched.computed, at


def test_what_runs_between_the_calls_may_fail_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipelines.build("LTXImageToVideoPipeline")
    expected, kept, failures = run(pipe), DenoiseLoop(pipe, CPU), []
    step = type(pipe.scheduler).step

    def step_of_pipeline(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if len(failures) < STEPS and not kept.is_replaying:
            failures.append(kept.finished)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    monkeypatch.setattr(type(pipe.scheduler), "step", step_of_pipeline)
    with watch(pipe, [kept]):
        while True:
            generator = torch.Generator()
            kept.begin(Randomness(CPU, [generator]))
            try:
                result = run(pipe, generator)
                break
            except torch.OutOfMemoryError:
                continue
    assert len(failures) == STEPS
    assert torch.equal(result, expected)
    assert kept.computed == STEPS  # a denoiser call whose step failed is kept, too


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")
@pytest.mark.parametrize("name", sorted(set(CALLS) - {"WanImageToVideoPipeline"}))
def test_guidance_in_two_passes_gives_what_one_gives(name: str) -> None:
    pipe = tiny_pipelines.build(name)
    expected = run(pipe)
    retries = Retries(again)
    retries.splits_batch = True
    batches: list[int] = []
    for module in denoisers_of(pipe).values():
        module.register_forward_pre_hook(_noted(batches), with_kwargs=True)
    with watch(pipe, [retries]):
        result = run(pipe)
    assert set(batches) == {1}
    assert len(batches) >= 2 * STEPS
    assert (result - expected).abs().max() < 1e-5


def _noted(batches: list[int]) -> Any:
    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor))
        batches.append(next(tensors).shape[0])

    return note


def test_only_an_even_batch_is_split() -> None:
    assert not can_split((torch.zeros(3, 2),), {})
    assert not can_split((torch.zeros(()),), {})
    positions, times = torch.arange(6), torch.arange(2)

    def call(x: torch.Tensor, **named: torch.Tensor) -> tuple[torch.Tensor, None]:
        assert named["positions"] is positions
        return x + named["times"][:, None], None

    x = torch.rand(2, 6)
    (both, nothing) = split_call(call, (x,), {"positions": positions, "times": times})
    assert torch.equal(both, x + times[:, None])
    assert nothing is None


def test_a_call_that_never_fits_raises_its_error_when_no_room_can_be_made() -> None:
    pipe = tiny_pipelines.build("LTXImageToVideoPipeline")
    asked: list[MissingMemory] = []

    def make_room(missing: MissingMemory) -> bool:
        asked.append(missing)
        return len(asked) < 4

    def never(_module: nn.Module, _args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has")

    pipe.transformer.register_forward_pre_hook(never)
    with watch(pipe, [Retries(make_room)]), pytest.raises(torch.OutOfMemoryError):
        run(pipe)
    assert len(asked) == 4
    assert asked[0].asked_bytes == 3 * 2**29
    assert (asked[0].module, asked[0].splits) == (pipe.transformer, True)
