"""Counting live bytes at the dispatcher, on real and on meta tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adaptive.memory.live_bytes import LiveBytes, trace_peak

KB = 1000  # bytes of 250 float32 numbers


def numbers(count: int, device: str) -> Tensor:
    return torch.zeros(count, device=device)


def keeps_both(x: Tensor) -> Tensor:
    doubled = x * 2
    return doubled + 1


def drops_the_first(x: Tensor) -> Tensor:
    x = x * 2
    x = x + 1
    return x + 1


def works_in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.add_(1)
    return y.view(2, -1)[0]


def only_views(x: Tensor) -> Tensor:
    return x.view(2, -1)[1]


def attends(x: Tensor) -> Tensor:
    q = x.view(1, 1, 25, 10)
    return torch.nn.functional.scaled_dot_product_attention(q, q, q)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("call", "peak_bytes", "left_bytes"),
    [
        (keeps_both, 2 * KB, KB),
        (drops_the_first, 2 * KB, KB),
        (works_in_place, KB, KB),
        (only_views, 0, 0),
        (attends, KB + 25 * 4, KB),  # fused kernels keep one float32 a row, not 25 x 25 scores
    ],
)
def test_live_bytes_are_counted_from_birth_to_death(
    device: str, call: Callable[[Tensor], Tensor], peak_bytes: int, left_bytes: int
) -> None:
    x = numbers(250, device)
    trace = trace_peak(lambda: call(x))
    assert (trace.peak_bytes, trace.left_bytes) == (peak_bytes, left_bytes)


def test_a_peak_can_be_counted_anew_from_what_is_alive() -> None:
    live = LiveBytes()
    with live.active():
        kept = numbers(250, "meta")
        numbers(1000, "meta")
        assert live.peak_bytes == 5 * KB
        live.reset_peak()
        assert live.peak_bytes == KB
        del kept
        numbers(250, "meta")
    assert live.peak_bytes == KB
