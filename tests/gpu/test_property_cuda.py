"""The property of streams on a real card, in the precisions that models run in.

    python -m pytest tests/gpu

Skips where torch finds no card.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from stream_property import DECODED, HALF_SHARE, half_errors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


@pytest.fixture(autouse=True, scope="module")
def single_precision_is_single_precision() -> Iterator[None]:
    """Without TF32, which would hide what half precision adds."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in DECODED if name != "ltx-noise"])
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(frames=st.integers(2, 7), schedule=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_streams_are_as_close_to_single_precision_as_one_call_in_half_is(
    name: str, dtype: torch.dtype, frames: int, schedule: list[int]
) -> None:
    for what, (own, ours) in half_errors(name, dtype, frames, schedule, "cuda").items():
        assert ours <= HALF_SHARE * own, what
