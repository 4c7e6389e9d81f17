"""A pipeline that is interrupted after a step goes on in a fresh object with the bits of the whole run."""

import zlib
from typing import Any

import pytest
import torch
from denoise_cases import CASES, CPU, built, called, denoised, same_bits

from adaptive.denoise.record import ReplayDiverged
from adaptive.denoise.self_test import STEPS, NotResumable, Recording, check_resumes

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:__array__ implementation")


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_resumed_run_has_the_bits_of_the_whole_one_and_computes_no_step_twice(name: str) -> None:
    steps = 3
    after = 1 + zlib.crc32(name.encode()) % 2
    whole = denoised(name, steps)
    part = denoised(name, steps, record_after=after)
    assert part.steps == after
    rest = denoised(name, steps, resume=part)
    assert same_bits(rest, whole)
    assert part.denoiser_calls + rest.denoiser_calls == whole.denoiser_calls
    assert (whole.encoder_calls > 0, rest.encoder_calls) == (True, 0)


def test_a_run_that_was_resumed_is_recorded_and_resumed_once_more() -> None:
    whole = denoised("wan21-unipc", 4)
    first = denoised("wan21-unipc", 4, record_after=1)
    second = denoised("wan21-unipc", 4, record_after=3, resume=first)
    assert second.encoder_calls == 0
    rest = denoised("wan21-unipc", 4, resume=second)
    assert same_bits(rest, whole)
    computed = [run.denoiser_calls for run in (first, second, rest)]
    assert sum(computed) == whole.denoiser_calls


def test_a_run_recorded_after_its_last_step_computes_nothing_when_it_is_resumed() -> None:
    part = denoised("ltx", 2, record_after=2)
    rest = denoised("ltx", 2, resume=part)
    assert rest.denoiser_calls == 0
    assert same_bits(rest, denoised("ltx", 2))


def test_a_pipeline_that_makes_other_calls_than_recorded_says_so() -> None:
    part = denoised("ltx-2-all-guidance", 3, record_after=2)
    with pytest.raises(ReplayDiverged, match="call 2 is one of 0"):
        denoised("ltx-2", 3, resume=part)


def self_tested(pipe: Any, name: str) -> None:
    def call(recording: Recording) -> None:
        generator = torch.Generator().manual_seed(1)
        with recording(pipe, CPU, [generator]) as after_step:
            called(pipe, name, generator, STEPS, after_step)

    check_resumes(call)


@pytest.mark.parametrize("name", ["ltx-2", "svd", "wan22"])
def test_the_self_test_passes_a_pipeline_whose_steps_go_through_the_scheduler(name: str) -> None:
    self_tested(built(name), name)


def test_the_self_test_runs_the_denoiser_once_for_each_kind_of_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = built("ltx")
    forward, runs = pipe.transformer.forward, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", counted)
    self_tested(pipe, "ltx")
    assert len(runs) == 1


def test_the_self_test_finds_what_passes_from_step_to_step_outside_the_scheduler() -> None:
    import diffusers

    class Momentum(diffusers.LTXImageToVideoPipeline):  # type: ignore[misc]
        """Its prediction is smoothed over steps: state of its own that no scheduler sees."""

        last = None

        @property
        def guidance_scale(self) -> float:
            return 2.0

        def _unpack_latents(self, latents: torch.Tensor, *args: Any) -> torch.Tensor:  # type: ignore[override]
            unpacked = diffusers.LTXImageToVideoPipeline._unpack_latents(latents, *args)
            before, self.last = self.last, unpacked
            return unpacked if before is None else 0.9 * unpacked + 0.1 * before

    pipe = built("ltx")
    smoothed = Momentum(**pipe.components)
    smoothed.set_progress_bar_config(disable=True)
    with pytest.raises(NotResumable, match=r"outside of scheduler\.step"):
        self_tested(smoothed, "ltx")


def test_the_self_test_names_what_a_scheduler_keeps_that_cannot_be_stored() -> None:
    pipe = built("ltx")
    pipe.scheduler.noise_sampler = object()
    with pytest.raises(NotResumable, match=r"FlowMatchEulerDiscreteScheduler keeps a builtins\.object"):
        self_tested(pipe, "ltx")


def test_nothing_of_the_recording_stays_behind() -> None:
    pipe = built("ltx")
    kind = type(pipe.scheduler)
    self_tested(pipe, "ltx")
    assert type(pipe.scheduler) is kind
    assert not {"encode_prompt", "encode"} & (vars(pipe).keys() | vars(pipe.vae).keys())
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert [module._compiled_call_impl for module in modules] == [None] * len(modules)
