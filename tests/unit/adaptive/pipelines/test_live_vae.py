"""`adaptive.enable(pipe)` on a VAE that its owner offloads, casts or compiles later, or that is not known."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from accelerate import cpu_offload_with_hook
from stream_vaes import CONFIGS, build, latents_of, relative_error
from torch import Tensor, nn

import adaptive
from adaptive.decoding import decoder, live_device
from adaptive.families import family_of, family_of_type
from adaptive.testing import ScriptedProbe

GIB = 2**30
TILED = adaptive.Policy(strategy="tiled")
CLIP = (1, 3, 17, 32, 32)


class Denoiser(nn.Linear):
    """Its card is torch's meta device, which keeps no values to bring back."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    @property
    def on_card(self) -> bool:
        return self.weight.device.type == "meta"

    def to(self, device: Any) -> Denoiser:
        return self.to_empty(device=device)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Pipelines decode so, and a call that needs gradients is left to the VAE."""
    with torch.no_grad():
        yield


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make every probe that is opened read these free bytes."""

    def scripted(free_bytes: Any) -> ScriptedProbe:
        probe = ScriptedProbe(free_bytes)
        monkeypatch.setattr(live_device, "open_probe", lambda _device, **_options: probe)
        return probe

    return scripted


def piped(vae: Any) -> Any:
    return SimpleNamespace(vae=vae)


@pytest.fixture
def offloaded(free: Any) -> tuple[Any, Denoiser]:
    """A VAE and a denoiser under model offload; memory is free once the denoiser has left the card."""
    vae, denoiser = build("ltx-0.9.0"), Denoiser()
    _, hook = cpu_offload_with_hook(denoiser, torch.device("meta"))
    cpu_offload_with_hook(vae, torch.device("cpu"), prev_module_hook=hook)
    free(lambda _reads: 0 if denoiser.on_card else GIB)
    return vae, denoiser


def test_memory_is_read_after_model_offload_has_moved_the_denoiser(offloaded: tuple[Any, Denoiser]) -> None:
    vae, denoiser = offloaded
    latents = latents_of(vae, 3)
    attachment = adaptive.enable(piped(vae))
    denoiser(torch.zeros(1, 1))
    assert denoiser.on_card
    vae.decode(latents)
    assert attachment.report.plan.free_bytes == GIB
    assert attachment.report.plan.reason == "fastest"
    denoiser(torch.zeros(1, 1))
    vae.encode(torch.zeros(CLIP))
    assert attachment.encode_plan is not None
    assert attachment.encode_plan.free_bytes == GIB


def test_a_plan_by_itself_also_reads_memory_after_the_offload_hook(offloaded: tuple[Any, Denoiser]) -> None:
    vae, denoiser = offloaded
    denoiser(torch.zeros(1, 1))
    assert adaptive.plan(vae, latents_of(vae, 3).shape).free_bytes == GIB


def test_a_vae_that_is_cast_after_enable_is_planned_in_its_new_dtype() -> None:
    vae = build("ltx-0.9.0", torch.bfloat16)
    attachment = adaptive.enable(piped(vae))
    nn.Module.to(vae, torch.float32)  # as the upcast of an image pipeline's VAE
    latents = latents_of(vae, 3)
    video = vae.decode(latents).sample
    expected = adaptive.predict_peak(vae, latents.shape, frames_per_chunk=3).live_bytes
    assert attachment.report.plan.predicted.live_bytes == pytest.approx(expected, rel=0.01)
    attachment.detach()
    assert relative_error(video, vae.decode(latents).sample) < 1e-5


@pytest.fixture
def _no_compiling() -> Any:
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.usefixtures("_no_compiling")
def test_a_vae_that_is_compiled_after_enable_decodes_in_its_own_call(free: Any) -> None:
    vae = build("ltx-0.9.0")
    latents = latents_of(vae, 4)
    with torch.no_grad():
        expected = vae.decode(latents).sample
    free([0])
    attachment = adaptive.enable(piped(vae), reserve_bytes=0)
    vae.decode(latents)
    assert attachment.report.strategy in ("per_frame", "tiled")  # nothing fits, so it takes what needs least
    vae.decoder.compile(backend="eager")
    with torch.no_grad():
        assert relative_error(vae.decode(latents).sample, expected) < 1e-5
    assert attachment.report.strategy == "batched"


def test_what_is_not_predicted_to_fit_is_decoded_all_the_same_unless_a_budget_is_set(free: Any) -> None:
    vae = build("wan-2.1")
    latents = latents_of(vae, 3)
    expected = vae.decode(latents).sample
    free([0])
    attachment = adaptive.enable(piped(vae))
    assert relative_error(vae.decode(latents).sample, expected) < 1e-4
    assert attachment.report.plan.reason == "nothing_fits"
    vae.enable_tiling()
    assert relative_error(vae.decode(latents).sample, expected) < 1e-4
    assert attachment.own_call_reason is not None
    assert "needs" in attachment.own_call_reason
    adaptive.enable(piped(vae), budget_bytes=1)
    with pytest.raises(adaptive.DoesNotFit):
        vae.decode(latents)


def allegro() -> tuple[Any, Tensor]:
    vae = diffusers.AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4
    )
    vae.kernel, vae.stride = (24, 64, 64), (16, 40, 48)
    vae.tile_overlap_h, vae.tile_overlap_w = 24, 16
    vae.enable_tiling()
    return vae, torch.randn(1, 4, 6, 8, 8)


def kvae() -> tuple[Any, Tensor]:
    vae = diffusers.AutoencoderKLKVAEVideo(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)
    return vae, torch.randn(1, 4, 3, 4, 4)


class CroppedLTX(diffusers.AutoencoderKLLTXVideo):
    """Gives other frames than the class that it extends."""

    def _decode(self, z: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        video = super()._decode(z, *args, return_dict=False, **kwargs)[0][:, :, 1:]
        return diffusers.models.autoencoders.vae.DecoderOutput(sample=video) if return_dict else (video,)


def cropped() -> tuple[Any, Tensor]:
    vae = CroppedLTX(**CONFIGS["ltx-0.9.0"][1])
    return vae, latents_of(vae, 3)


@pytest.mark.parametrize("make", [allegro, kvae, cropped])
def test_a_vae_that_is_not_known_stays_as_it_was(make: Any) -> None:
    vae, latents = make()
    vae.eval()
    assert not family_of(vae).is_known
    with torch.no_grad():
        expected = vae.decode(latents).sample
        attachment = adaptive.enable(piped(vae))
        assert torch.equal(vae.decode(latents).sample, expected)
        assert relative_error(adaptive.decode(vae, latents), expected) < 1e-5
    assert attachment.own_call_reason is not None
    with pytest.raises(RuntimeError, match=f"{type(vae).__name__} is not a VAE that the library knows"):
        _ = attachment.report


class ExtendedLTX(diffusers.AutoencoderKLLTXVideo):
    """Adds a method, and changes nothing that a decode relies on."""

    def describe(self) -> str:
        return "extended"


def test_a_subclass_belongs_to_the_family_of_the_class_that_it_extends() -> None:
    vae = ExtendedLTX(**CONFIGS["ltx-0.9.0"][1]).eval()
    latents = latents_of(vae, 4)
    with torch.no_grad():
        expected = vae.decode(latents).sample
    adaptive.enable(piped(vae), frames_per_chunk=1)
    assert relative_error(vae.decode(latents).sample, expected) < 2e-5
    assert family_of(vae).name == "ltx"


def test_a_class_that_only_shares_its_name_with_one_of_diffusers_is_not_known() -> None:
    namesake = type("AutoencoderKLWan", (nn.Module,), {})
    assert not family_of_type(namesake).is_known
    assert family_of_type(diffusers.AutoencoderKLWan).name == "wan"


@pytest.mark.parametrize("name", ["AutoencoderTiny", "VQModel", "AutoencoderDC"])
def test_the_peak_of_a_vae_that_decodes_no_video_is_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        vae = getattr(diffusers, name)()
    with pytest.raises(adaptive.UnsupportedVae, match=f"{name} does not support predicting its memory"):
        adaptive.predict_peak(vae, (1, 4, 3, 4, 4), dtype="float32", frames_per_chunk=3)


@pytest.mark.parametrize("frames_per_chunk", [None, 1])
def test_an_argument_that_is_none_is_no_argument(frames_per_chunk: int | None) -> None:
    vae = build("kl")
    latents = latents_of(vae, 2)[0].transpose(0, 1)
    with torch.no_grad():
        expected = vae.decode(latents).sample
    adaptive.enable(piped(vae), frames_per_chunk=frames_per_chunk)
    assert relative_error(vae.decode(latents, generator=None).sample, expected) < 1e-5
    video = adaptive.decode(vae, latents.transpose(0, 1)[None], strategy="tiled", generator=None)
    assert relative_error(video[0].transpose(0, 1), expected) < 1e-5


def test_what_an_argument_makes_impossible_is_not_planned() -> None:
    vae = build("kl")
    latents = latents_of(vae, 2)
    generator = torch.Generator()
    begin = adaptive.AdaptiveDecoder(vae, probe=ScriptedProbe([GIB]), policy=TILED).begin
    assert begin().plan(decoder.shape_of(latents)).strategy == "tiled"
    with pytest.raises(adaptive.UnsupportedVae, match="tiled decoding"):
        begin(generator=generator).plan(decoder.shape_of(latents))
    with pytest.raises(adaptive.UnsupportedVae, match="tiled decoding"):
        adaptive.decode(vae, latents, strategy="tiled", generator=generator)
