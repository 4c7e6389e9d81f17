"""The linear layer that computes with fp8 weights: exact, and safe from what is done to modules."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from app.models.parts.scaled import Fp8Linear, ScaledTensor, scale_of


def stored(rows: int = 6, columns: int = 4) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [None, float(torch.tensor(0.3))])  # files hold scales in float32
def test_it_computes_with_the_weights_rounded_once(dtype: torch.dtype, scale: float | None) -> None:
    weight, bias = stored(), torch.randn(6)
    layer = Fp8Linear(weight, bias, dtype, scale)
    plain = (weight.double() * (1 if scale is None else scale)).to(dtype)
    assert torch.equal(layer.weight, plain)
    inputs = torch.randn(3, 4).to(dtype)
    assert torch.equal(layer(inputs), nn.functional.linear(inputs, plain, bias.to(dtype)))


def test_casts_of_a_module_leave_the_stored_weight_alone() -> None:
    layer = Fp8Linear(stored(), torch.randn(6), torch.float32, 0.3)
    before = layer.weight.clone()
    module = nn.Sequential(layer).to(torch.bfloat16).half().float()
    assert layer.stored.dtype == torch.uint8
    assert torch.equal(layer.weight, before)
    assert next(module.parameters()).dtype == torch.float32  # what diffusers takes for a module's dtype
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (4, 6)


def test_its_state_dict_restores_weight_and_scale() -> None:
    layer = Fp8Linear(stored(), None, torch.float32, 0.3)
    file = io.BytesIO()
    torch.save(nn.Sequential(layer).state_dict(), file)
    file.seek(0)
    other = Fp8Linear(torch.zeros(6, 4).to(torch.float8_e4m3fn), None, torch.float32)
    nn.Sequential(other).load_state_dict(torch.load(file, weights_only=True))
    assert (other.scale, other.fp8_dtype) == (0.3, torch.float8_e4m3fn)
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


def test_pieces_of_a_scaled_tensor_have_its_scale_and_different_scales_are_not_joined() -> None:
    one, other = ScaledTensor.of(stored(), 0.5), ScaledTensor.of(stored(), 0.25)
    assert [scale_of(each) for each in one.chunk(3)] == [0.5] * 3
    assert scale_of(torch.cat([one[:2], one[2:]])) == 0.5
    assert scale_of(torch.randn(2)) is None
    with pytest.raises(ValueError, match="different scales"):
        torch.cat([one, other])
