"""An enabled VAE is used as diffusers' own: with gradients, arguments by position, copies, other dtypes."""

import copy
import io
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stream_vaes import build, kwargs_of, latents_of, shared

import adaptive
from adaptive.errors import DtypeMismatch
from adaptive.pipelines.enable import Attachment

CLIP = (1, 3, 9, 32, 32)


def frozen(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return build(name, dtype).requires_grad_(False)


def enabled(vae: Any, **policy: Any) -> Attachment:
    return adaptive.enable(types.SimpleNamespace(vae=vae), **policy)


@pytest.mark.parametrize("name", ["ltx-causal", "wan-2.1"])
@pytest.mark.parametrize("needed_by", ["input", "weight"])
def test_gradients_are_those_of_the_untouched_vae(name: str, needed_by: str) -> None:
    vae = frozen(name)
    weight = next(vae.decoder.parameters())
    inputs = [latents_of(vae, 3), torch.rand(CLIP) * 2 - 1]
    wanted = [weight, next(vae.encoder.parameters())] if needed_by == "weight" else inputs
    for tensor in wanted:
        tensor.requires_grad_(True)

    def gradients() -> list[torch.Tensor]:
        for tensor in wanted:
            tensor.grad = None
        vae.decode(inputs[0]).sample.sum().backward()
        vae.encode(inputs[1]).latent_dist.mean.sum().backward()
        return [tensor.grad.clone() for tensor in wanted if tensor.grad is not None]

    expected = gradients()
    attachment = enabled(vae)
    found = gradients()
    assert len(found) == 2
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)
    with torch.no_grad():
        vae.decode(inputs[0])
    assert attachment.report.exact, "without gradients it is planned"


def test_the_flags_of_a_call_with_gradients_are_the_users_own() -> None:
    vae = frozen("wan-2.1")
    vae.enable_tiling()
    enabled(vae)
    seen: list[bool] = []
    vae.decoder.register_forward_pre_hook(lambda *_: seen.append(vae.use_tiling))
    vae.decode(latents_of(vae, 2).requires_grad_(True))
    assert set(seen) == {True}


@pytest.mark.parametrize(
    "call",
    [
        lambda vae, z, _: adaptive.decode(vae, z),
        lambda vae, z, _: adaptive.stream_decode(vae, z, frames_per_chunk=1),
        lambda vae, z, _: adaptive.stream_decode(vae, z, frames_per_chunk=9),
        lambda vae, _, clip: adaptive.encode(vae, clip),
        lambda vae, _, clip: adaptive.stream_encode(vae, clip, frames_per_chunk=4),
        lambda vae, _, clip: adaptive.AdaptiveEncoder(vae).encode(clip),
    ],
)
def test_the_librarys_functions_refuse_an_input_that_requires_a_gradient(call: Callable[..., Any]) -> None:
    vae = shared("wan-2.1")
    z, clip = latents_of(vae, 3).requires_grad_(True), torch.rand(CLIP, requires_grad=True)
    with pytest.raises(ValueError, match=r"requires a gradient.*call vae\.(decode|encode) instead"):
        call(vae, z, clip)
    with torch.no_grad():
        call(vae, z, clip)


@pytest.mark.parametrize(
    ("name", "positional"),
    [("ltx-causal", (None, False)), ("wan-2.1", (False,)), ("ltx2", (None, None, False))],
)
def test_return_dict_may_be_given_by_position_and_the_input_by_name(
    name: str, positional: tuple[Any, ...]
) -> None:
    vae = frozen(name)
    z, clip = latents_of(vae, 3), torch.rand(CLIP) * 2 - 1
    expected, encoded = vae.decode(z, *positional)[0], vae.encode(clip, return_dict=False)[0].parameters
    attachment = enabled(vae)
    found = vae.decode(z, *positional)
    assert isinstance(found, tuple)
    assert torch.allclose(found[0], expected, atol=1e-4)
    assert attachment.report.exact
    assert torch.allclose(vae.decode(z=z).sample, expected, atol=1e-4)
    if name != "ltx2":  # whose encode takes another argument before it
        found = vae.encode(clip, False)
        assert isinstance(found, tuple)
        assert torch.allclose(found[0].parameters, encoded, atol=1e-4)
    assert torch.allclose(vae.encode(x=clip).latent_dist.parameters, encoded, atol=1e-4)


def test_a_captured_call_may_give_return_dict_by_position() -> None:
    vae = frozen("ltx-causal")
    with adaptive.capture(types.SimpleNamespace(vae=vae)) as calls:
        placeholder = vae.decode(latents_of(vae, 3), None, False)
    assert isinstance(placeholder, tuple)
    assert dict(calls[0].kwargs) == {"temb": None}


def test_arguments_that_the_vae_does_not_take_raise_its_own_error() -> None:
    vae = frozen("wan-2.1")
    enabled(vae)
    for arguments, named in (((), {}), ((latents_of(vae, 2),), {"speed": 3})):
        with pytest.raises(TypeError, match="decode"):
            vae.decode(*arguments, **named)


def pickled(vae: Any) -> Any:
    return pickle.loads(pickle.dumps(vae))


def saved(vae: Any) -> Any:
    file = io.BytesIO()
    torch.save(vae, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [pickled, saved, copy.deepcopy])
@pytest.mark.parametrize("name", ["wan-2.1", "ltx-causal", "kl"])
def test_a_copy_of_an_enabled_vae_is_a_vae_of_its_own(name: str, way: Callable[[Any], Any]) -> None:
    vae = frozen(name)
    z = latents_of(vae, 3) if name != "kl" else latents_of(vae, 3)[0].transpose(0, 1)
    attachment = enabled(vae)
    expected = vae.decode(z).sample
    twin = way(vae)
    assert not {"decode", "encode", "__getstate__"} & vars(twin).keys()
    for weight in vae.parameters():
        weight.zero_()
    assert torch.allclose(twin.decode(z).sample, expected, atol=1e-4), "it has its own weights"
    assert {"decode", "encode"} <= vars(vae).keys(), "the original is still enabled"
    attachment.detach()
    assert not {"decode", "encode", "__getstate__"} & vars(vae).keys()


@pytest.mark.parametrize("name", ["wan-2.1", "ltx-causal", "kl", "cosmos"])
def test_a_vae_in_float64_decodes_in_float64(name: str) -> None:
    vae = frozen(name, torch.float64)
    latents = latents_of(vae, 3)
    whole = adaptive.decode(vae, latents, strategy="batched")
    for wanted in ({}, {"frames_per_chunk": 1}):
        found = adaptive.decode(vae, latents, **wanted)
        assert found.dtype == torch.float64
        assert (found - whole).abs().max() < 1e-6
    attachment = enabled(vae)
    z = latents[0].transpose(0, 1) if name == "kl" else latents
    assert vae.decode(z).sample.dtype == torch.float64
    assert attachment.report.exact


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize(
    "call",
    [
        lambda vae, z, _: adaptive.decode(vae, z),
        lambda vae, z, _: list(adaptive.stream_decode(vae, z, frames_per_chunk=1)),
        lambda vae, z, _: vae.decode(z),
        lambda vae, _, clip: adaptive.encode(vae, clip),
        lambda vae, _, clip: vae.encode(clip),
    ],
)
def test_an_input_of_another_dtype_than_the_vaes_is_told_with_both_dtypes(
    call: Callable[..., Any], dtype: torch.dtype
) -> None:
    vae = frozen("wan-2.1")
    enabled(vae)
    z, clip = latents_of(vae, 3).to(dtype), torch.rand(CLIP).to(dtype)
    with pytest.raises(DtypeMismatch, match=rf"have dtype {dtype} and the VAE has torch\.float32"):
        call(vae, z, clip)


def test_autocast_may_take_latents_of_another_dtype() -> None:
    vae = frozen("ltx-causal")
    latents = latents_of(vae, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = vae.decode(latents.bfloat16(), **kwargs_of(vae)).sample
        enabled(vae)
        found = vae.decode(latents.bfloat16(), **kwargs_of(vae)).sample
    assert (found.float() - expected.float()).abs().max() < 0.1
