"""Catching a pipeline's decode call: what is recorded, what the pipeline sees, what survives on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload, SequentialHook
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from adaptive.errors import UnsupportedVae
from adaptive.pipelines.capture import kept_frames
from adaptive.pipelines.enable import capture
from adaptive.pipelines.recorded_call import RecordedDecode, load_calls, save_calls
from adaptive.pipelines.vae_method import recorded_arguments


def decoded(vae: Any, call: RecordedDecode) -> Tensor:
    with torch.no_grad():
        video: Tensor = vae.decode(call.latents, *call.args, **call.kwargs, return_dict=False)[0]
    return video


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
def test_the_recorded_call_decodes_to_what_the_pipeline_would_have_made(
    pipe: Any, request_arguments: dict[str, Any], output_type: str
) -> None:
    with capture(pipe) as calls:
        pipe(**request_arguments, output_type=output_type)
    request_arguments["generator"].manual_seed(7)
    expected = pipe(**request_arguments, output_type="pt").frames
    (call,) = calls
    frames = pipe.video_processor.postprocess_video(decoded(pipe.vae, call), output_type="pt")
    assert torch.equal(frames, expected)


# The shape of later LTX decoders: residual upsampling, conditioned on a timestep, drawing noise of its own.
LATER_DECODER = {
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "decoder_inject_noise": (True, True, True, False),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}


def test_a_timestep_conditioned_decoder_that_draws_noise_gives_the_same_video_from_disk(
    pipe: Any, request_arguments: dict[str, Any], tmp_path: Path
) -> None:
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(3)
    config = {**pipe.vae.config, **LATER_DECODER}
    vae = AutoencoderKLLTXVideo.from_config(config).eval().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if "per_channel_scale" in name:  # zero in an untrained decoder: its noise would not show
            parameter.fill_(0.5)
    pipe.register_modules(vae=vae)
    request_arguments |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025, "output_type": "pt"}
    torch.manual_seed(4)
    with capture(pipe) as calls:
        pipe(**request_arguments)
    request_arguments["generator"].manual_seed(7)
    torch.manual_seed(4)
    expected = pipe(**request_arguments).frames
    save_calls(calls, tmp_path / "latents.safetensors")
    (call,) = load_calls(tmp_path / "latents.safetensors")
    with call.replaying_noise():
        frames = pipe.video_processor.postprocess_video(decoded(pipe.vae, call), output_type="pt")
    without = pipe.video_processor.postprocess_video(decoded(pipe.vae, call), output_type="pt")
    assert torch.equal(frames, expected)
    assert not torch.equal(without, expected)


def test_the_placeholder_has_every_frame_and_hardly_a_byte(pipe: Any) -> None:
    with capture(pipe), torch.no_grad():
        sample = pipe.vae.decode(torch.zeros(2, 16, 4, 2, 2)).sample
        (as_tuple,) = pipe.vae.decode(torch.zeros(2, 16, 4, 2, 2), return_dict=False)
    assert sample.shape == as_tuple.shape == (2, 3, 25, 1, 1)
    assert sample.device.type == "cpu"


def test_the_vae_decodes_again_after_the_block_even_where_the_pipeline_raised(pipe: Any) -> None:
    with pytest.raises(ZeroDivisionError), capture(pipe):
        raise ZeroDivisionError
    with torch.no_grad():
        assert pipe.vae.decode(torch.zeros(1, 16, 1, 2, 2)).sample.shape == (1, 3, 1, 64, 64)
    assert "decode" not in pipe.vae.__dict__


def test_a_pipeline_that_needs_real_frames_is_refused_by_name() -> None:
    class CosmosVideoToWorldPipeline:
        vae = None

    with (
        pytest.raises(UnsupportedVae, match=r"CosmosVideoToWorldPipeline.*safety checker"),
        capture(CosmosVideoToWorldPipeline()),
    ):
        pass


def shown(pipe: Any, change: Callable[[Tensor], Tensor]) -> tuple[list[RecordedDecode], Any]:
    """Two decode calls of 9 and 17 frames, and what a pipeline returns that puts them together and changes
    them.
    """
    with capture(pipe) as calls, torch.no_grad():
        parts = [pipe.vae.decode(torch.zeros(1, 16, count, 2, 2)).sample for count in (2, 3)]
    video = change(torch.cat(parts, 2))
    return calls, pipe.video_processor.postprocess_video(video, output_type="pt")


KEPT: list[tuple[Callable[[Tensor], Tensor], list[tuple[int, int]]]] = [
    (lambda video: video, [(0, 9), (0, 17)]),
    (lambda video: video[:, :, 4:], [(4, 9), (0, 17)]),
    (lambda video: video[:, :, 9:-2], [(0, 15)]),
    (lambda video: video[:, :, 2:12], [(2, 9), (0, 3)]),
]


@pytest.mark.parametrize(("change", "kept"), KEPT)
def test_frames_that_the_pipeline_drops_are_known(
    pipe: Any, change: Callable[[Tensor], Tensor], kept: list[tuple[int, int]]
) -> None:
    calls, frames = shown(pipe, change)
    found = kept_frames(calls, frames, "SomePipeline")
    assert [call.keep for call in found] == kept
    assert found[-1].latents is calls[1].latents


CHANGES: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda video: video.flip(2), "reorders"),
    (lambda video: torch.cat([video[:, :, :3], video[:, :, 5:]], 2), "reorders"),
    (lambda video: torch.cat([video[:, :, 9:], video[:, :, :9]], 2), "reorders"),
    (lambda video: (video[:, :, 1:] + video[:, :, :-1]) / 2, "changes"),
    (lambda video: video * 0.9, "changes"),
]


@pytest.mark.parametrize(("change", "verb"), CHANGES)
def test_a_pipeline_that_changes_decoded_frames_is_found_out(
    pipe: Any, change: Callable[[Tensor], Tensor], verb: str
) -> None:
    calls, frames = shown(pipe, change)
    with pytest.raises(UnsupportedVae, match=f"SomePipeline.*{verb} frames"):
        kept_frames(calls, frames, "SomePipeline")


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any) -> None:
    """As `enable_sequential_cpu_offload`, whose device "cpu:0" is not "cpu" to accelerate."""
    for component in (pipe.transformer, pipe.vae):
        cpu_offload(component, torch.device("cpu"), offload_buffers=len(component._parameters) > 0)


@pytest.mark.parametrize(
    ("offload", "hook_class"), [(model_offload, CpuOffload), (sequential_offload, SequentialHook)]
)
def test_offload_hooks_are_called_and_still_there(
    pipe: Any,
    request_arguments: dict[str, Any],
    offload: Callable[[Any], None],
    hook_class: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offload(pipe)
    hooked_before = {name for name, module in pipe.vae.named_modules() if hasattr(module, "_hf_hook")}
    assert hooked_before
    with capture(pipe) as calls:
        pipe(**request_arguments, output_type="pt")
    hooked_after = {name for name, module in pipe.vae.named_modules() if hasattr(module, "_hf_hook")}
    assert hooked_after == hooked_before
    seen = []
    hook = pipe.vae._hf_hook
    assert isinstance(hook, hook_class)
    original = type(hook).pre_forward

    def counted(self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module)
        return original(self, module, *args, **kwargs)

    monkeypatch.setattr(type(hook), "pre_forward", counted)
    assert decoded(pipe.vae, calls[0]).shape == (1, 3, 17, 64, 64)
    assert pipe.vae in seen


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((None,), {}),
    ((torch.tensor([0.05]),), {}),
    ((), {"temb": torch.tensor([0.05], dtype=torch.bfloat16), "num_frames": 14, "flag": True, "name": "x"}),
    (((1.5, [2, (3,)]),), {"nested": {"deep": [torch.arange(3), None]}, "dtype": torch.float16}),
]


@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
def test_a_call_comes_back_from_disk_bit_for_bit(
    args: tuple[Any, ...], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    latents = torch.randn(1, 4, 3, 2, 2).to(torch.bfloat16)
    latents[0, 0, 0, 0, 0] = float("nan")
    save_calls([RecordedDecode(latents, args, kwargs)], tmp_path / "calls")
    (call,) = load_calls(tmp_path / "calls")
    assert torch.equal(call.latents.view(torch.int16), latents.view(torch.int16))
    assert _comparable(call.args) == _comparable(args)
    assert _comparable(call.kwargs) == _comparable(kwargs)


def _comparable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return (type(value).__name__, [_comparable(item) for item in value])
    return value


def test_a_loaded_generator_continues_its_sequence(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    call = RecordedDecode(torch.zeros(1), kwargs={"generator": generator})
    save_calls([call], tmp_path / "calls")
    expected = torch.rand(4, generator=generator)
    (loaded,) = load_calls(tmp_path / "calls")
    assert torch.equal(torch.rand(4, generator=loaded.kwargs["generator"]), expected)


def test_injected_noise_is_the_same_in_a_later_decode_and_outside_noise_is_untouched(
    pipe: Any, tmp_path: Path
) -> None:
    torch.manual_seed(11)
    with capture(pipe) as calls:
        pipe.vae.decode(torch.zeros(1, 16, 1, 2, 2))
    expected = torch.rand(5)
    save_calls(calls, tmp_path / "calls")
    (loaded,) = load_calls(tmp_path / "calls")
    torch.manual_seed(99)
    outside = torch.rand(5)
    torch.manual_seed(99)
    with loaded.replaying_noise():
        assert torch.equal(torch.rand(5), expected)
    assert torch.equal(torch.rand(5), outside)


def test_what_cannot_be_recorded_is_named(tmp_path: Path) -> None:
    call = RecordedDecode(torch.zeros(1), kwargs={"callback": print})
    with pytest.raises(TypeError, match=r"kwargs\.callback"):
        save_calls([call], tmp_path / "calls")
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_not_taken_for_latents(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="no recorded decode calls"):
        load_calls(tmp_path / "other")


def test_the_arguments_of_a_recorded_call_are_named_as_those_of_a_live_one() -> None:
    temb = torch.tensor([0.05])
    latents = torch.zeros(1, 4, 2, 2, 2)
    for args, kwargs in (((temb,), {"return_dict": False}), ((temb, False), {}), ((), {"temb": temb})):
        named = recorded_arguments(AutoencoderKLLTXVideo, RecordedDecode(latents, args, kwargs))
        assert named == {"temb": temb}
    with pytest.raises(TypeError, match=r"AutoencoderKLLTXVideo\.decode does not take"):
        recorded_arguments(AutoencoderKLLTXVideo, RecordedDecode(latents, kwargs={"speed": 3}))
