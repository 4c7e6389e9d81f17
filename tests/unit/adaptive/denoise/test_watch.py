"""The calls of a real pipeline's denoising loop are seen, changed and repeated, and nothing stays behind."""

import copy
import inspect
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import tiny_pipelines
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image
from torch import nn

from adaptive.denoise.watch import CallNext, DenoiseHandler, denoisers_of, schedulers_of, watch


class Counted(DenoiseHandler):
    def __init__(self) -> None:
        self.denoised: list[nn.Module] = []
        self.stepped: list[Any] = []

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        self.denoised.append(module)
        return call_next(*args, **kwargs)

    def around_step(
        self, call_next: CallNext, scheduler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        self.stepped.append(scheduler)
        return call_next(*args, **kwargs)


class OnceMore(DenoiseHandler):
    """Calls the denoiser again after an error."""

    def around_denoiser(
        self, call_next: CallNext, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        try:
            return call_next(*args, **kwargs)
        except MemoryError:
            remove_hook_from_module(module)
            return call_next(*args, **kwargs)


class OutOfMemoryOnce(ModelHook):  # type: ignore[misc]  # accelerate is untyped
    def pre_forward(self, *_: Any, **__: Any) -> Any:
        raise MemoryError


def run(pipe: Any) -> torch.Tensor:
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    arguments = {"image": image, "prompt": "a cat", "width": 64, "height": 64, "num_frames": 9}
    arguments |= {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 2.0}
    generator = torch.Generator().manual_seed(5)
    latents: torch.Tensor = pipe(**arguments, generator=generator).frames
    return latents


def state(pipe: Any) -> list[Any]:
    """What a watch could have changed of the parts that it watches."""
    parts = [*denoisers_of(pipe).values(), *schedulers_of(pipe).values()]
    return [(type(part), part.__dict__.get("_compiled_call_impl"), "step" in part.__dict__) for part in parts]


@pytest.fixture(scope="module")
def ltx() -> Any:
    return tiny_pipelines.build("LTXImageToVideoPipeline")


def test_each_call_of_the_denoiser_and_each_step_is_seen_and_the_result_is_the_same(ltx: Any) -> None:
    alone, seen, before = run(ltx), Counted(), state(ltx)
    with watch(ltx, [seen]):
        watched = run(ltx)
    assert torch.equal(watched, alone)
    assert seen.denoised == [ltx.transformer] * 3
    assert seen.stepped == [ltx.scheduler] * 3
    run(ltx)
    assert len(seen.denoised) == 3, "nothing is watched outside of the block"
    assert state(ltx) == before


def test_a_scheduler_that_the_pipeline_copies_for_its_sound_is_seen() -> None:
    pipe, seen = tiny_pipelines.build("LTX2ImageToVideoPipeline"), Counted()
    with watch(pipe, [seen]):
        run(pipe)
    assert len(seen.denoised) == 9, "guided, perturbed, and each modality alone"
    assert len(seen.stepped) == 6
    kinds = {type(each) for each in seen.stepped}
    assert kinds == {FlowMatchEulerDiscreteScheduler}, "copies get their own class back, too"
    assert len({id(each) for each in seen.stepped}) == 2


def test_handlers_of_an_inner_block_run_outside_and_all_see_every_call(ltx: Any) -> None:
    order: list[str] = []

    class Named(Counted):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def around_step(self, *call: Any) -> Any:
            order.append(self.name)
            return super().around_step(*call)

        def around_denoiser(self, *call: Any) -> Any:
            order.append(self.name.upper())
            return super().around_denoiser(*call)

    with watch(ltx, [Named("c")]), watch(ltx, [Named("a"), Named("b")]):
        run(ltx)
    assert order == ["A", "B", "C", "a", "b", "c"] * 3


def test_without_handlers_nothing_is_installed(ltx: Any) -> None:
    before = state(ltx)
    with watch(ltx, []):
        assert state(ltx) == before


def test_an_error_leaves_nothing_behind(ltx: Any) -> None:
    class Failing(DenoiseHandler):
        def around_step(self, *_: Any) -> Any:
            raise RuntimeError("no step")

    before = state(ltx)
    with pytest.raises(RuntimeError, match="no step"), watch(ltx, [Failing()]):
        run(ltx)
    assert state(ltx) == before


def test_hooks_of_offloading_run_inside_and_may_change_between_two_attempts(ltx: Any) -> None:
    alone = run(ltx)
    add_hook_to_module(ltx.transformer, OutOfMemoryOnce())
    try:
        with watch(ltx, [OnceMore()]):
            again = run(ltx)
    finally:
        remove_hook_from_module(ltx.transformer)
    assert torch.equal(again, alone)
    assert not hasattr(ltx.transformer, "_hf_hook")


def test_a_watched_scheduler_looks_like_itself() -> None:
    pipe, seen = tiny_pipelines.build("WanImageToVideoPipeline"), Counted()
    own = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    pipe.scheduler = own
    parameters = inspect.signature(own.step).parameters
    with watch(pipe, [seen]):
        assert isinstance(own, UniPCMultistepScheduler)
        assert type(own).__name__ == "UniPCMultistepScheduler"
        assert inspect.signature(own.step).parameters == parameters
        made = [copy.deepcopy(own), copy.copy(own), type(own).from_config(own.config)]
        for each in made:
            each.set_timesteps(2)
            each.step(torch.ones(1, 2, 2), each.timesteps[0], torch.ones(1, 2, 2))
    assert [id(each) for each in seen.stepped] == [id(each) for each in made]
    assert {type(each) for each in [own, *made]} == {UniPCMultistepScheduler}
    pickle.dumps(made)


def test_a_copied_denoiser_is_not_watched(ltx: Any) -> None:
    with watch(ltx, [Counted()]):
        assert copy.deepcopy(ltx.transformer)._compiled_call_impl is None
