"""Which of torch's two ways computes a convolution over few frames, and that both give the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive.stream.layers.convolution import convolutions_for

CPU = torch.device("cpu")
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], bool]] = {
    "few frames of a middling picture": ((1, 16, 4, 12, 16), (8, 16, 3, 3, 3), {"padding": (0, 1, 1)}, True),
    "strides": ((1, 16, 5, 24, 32), (8, 16, 3, 3, 3), {"stride": (2, 2, 2), "padding": 1}, True),
    "gaps": ((1, 8, 6, 16, 16), (4, 8, 3, 3, 3), {"dilation": (1, 2, 2)}, True),
    "few results": ((1, 16, 3, 4, 6), (8, 16, 3, 3, 3), {"padding": (0, 1, 1)}, False),
    "a kernel of one": ((1, 16, 4, 12, 16), (8, 16, 1, 1, 1), {}, False),
    "groups": ((1, 16, 4, 12, 16), (8, 8, 3, 3, 3), {"groups": 2}, False),
    "a batch": ((2, 16, 4, 12, 16), (8, 16, 3, 3, 3), {}, False),
    "more than torch unrolls": ((1, 64, 18, 24, 8), (8, 64, 3, 3, 3), {}, False),
}


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_the_faster_way_is_taken_where_torch_would_not_and_gives_the_same(name: str) -> None:
    sides, kernel, options, chosen = CASES[name]
    generator = torch.Generator().manual_seed(0)
    frames, weight = (torch.randn(shape, generator=generator) for shape in (sides, kernel))
    bias = torch.randn(kernel[0], generator=generator)
    arguments = [options.get(key, usual) for key, usual in _USUAL.items()]
    expected = F.conv3d(frames, weight, bias, *arguments)
    with convolutions_for(CPU), _Operators() as seen:
        got = F.conv3d(frames, weight, bias, *arguments)
    assert ("aten.mkldnn_convolution.default" in seen.names) == chosen
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_double_precision_and_keywords_are_left_to_torch() -> None:
    frames, weight = torch.randn(1, 16, 4, 12, 16), torch.randn(8, 16, 3, 3, 3)
    with convolutions_for(CPU), _Operators() as seen:
        F.conv3d(frames.double(), weight.double(), None)
        F.conv3d(frames, weight, bias=None, padding=1)
    assert "aten.mkldnn_convolution.default" not in seen.names


_USUAL = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
