"""NaN and infinite values are found in one reduction, in every layout, without a mask or a copy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive.errors import NonFiniteValues
from adaptive.memory.live_bytes import LiveBytes
from adaptive.stream.finite import check_finite, count_nonfinite, is_finite

SHAPE = (1, 3, 4, 6, 8)
LAYOUTS = {
    "dense": lambda whole: whole,
    "channels_last": lambda whole: whole.contiguous(memory_format=torch.channels_last_3d),
    "frames_first": lambda whole: whole.transpose(1, 2).contiguous().transpose(1, 2),
    "some_frames": lambda whole: torch.cat([whole, whole], 2)[:, :, 1:5],
    "cropped": lambda whole: torch.cat([whole, whole], 4)[..., 2:10],
    "every_second": lambda whole: torch.stack([whole, whole], -1).flatten(-2)[..., ::2],
    "repeated": lambda whole: whole[:, :, :1].expand(-1, -1, 4, -1, -1),
    "one_number": lambda whole: whole[0, 0, 0, 0, 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_broken_value_is_found_wherever_it_lies(layout: str, dtype: torch.dtype, value: float) -> None:
    generator = torch.Generator().manual_seed(3)
    values = LAYOUTS[layout](torch.randn(SHAPE, generator=generator).to(dtype))
    assert is_finite(values)
    assert count_nonfinite(values) == 0
    for place in range(0, values.numel(), 97):
        at = tuple(int(each) for each in torch.unravel_index(torch.tensor(place), values.shape))
        before = values[at].clone()
        values[at] = value
        assert not is_finite(values)
        assert count_nonfinite(values) == int((~values.isfinite()).sum())
        values[at] = before
    assert is_finite(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_largest_values_of_a_dtype_are_finite(dtype: torch.dtype) -> None:
    numbers = torch.finfo(dtype)
    assert is_finite(torch.tensor([numbers.max, numbers.min, numbers.tiny], dtype=dtype))


def test_whole_numbers_and_nothing_at_all_are_finite() -> None:
    assert is_finite(torch.zeros(3, dtype=torch.uint8))
    assert is_finite(torch.zeros(1, 3, 0, 4, 4))


def test_the_error_has_the_stage_and_both_numbers() -> None:
    values = torch.zeros(1, 3, 4, 6, 8)
    values[0, 1, 2, :2] = math.nan
    with pytest.raises(NonFiniteValues, match="16 of 576 values of the latents are not finite") as caught:
        check_finite(values, "denoising", "the latents")
    assert (caught.value.stage, caught.value.values, caught.value.of) == ("denoising", 16, 576)


class _Operators(TorchDispatchMode):
    """The names of the operators that ran, and the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["dense", "channels_last", "frames_first"])
def test_a_chunk_without_gaps_takes_one_reduction_and_no_memory(layout: str) -> None:
    values: Tensor = LAYOUTS[layout](torch.randn(1, 3, 8, 64, 64))
    operators, live = _Operators(), LiveBytes()
    with operators:
        assert is_finite(values)
    assert operators.names.count("aminmax") == 1
    assert not {"isfinite", "isnan", "isinf", "clone", "ne", "abs"} & set(operators.names)
    with live.active():
        assert is_finite(values)
    assert live.peak_bytes < 64


@pytest.mark.parametrize("layout", ["some_frames", "cropped"])
def test_a_chunk_with_gaps_takes_the_memory_of_one_plane_at_most(layout: str) -> None:
    values: Tensor = LAYOUTS[layout](torch.randn(1, 3, 8, 64, 64))
    live = LiveBytes()
    with live.active():
        assert is_finite(values)
    assert live.peak_bytes < 2 * 64 * 64 * 4
