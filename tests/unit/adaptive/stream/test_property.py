"""Streamed equals one call: any family, length, batch and schedule of chunks, in single and double precision.

The same few cases each time. `PROPERTY_EXAMPLES=50 pytest tests/unit/adaptive/stream/test_property.py` looks
at that many new ones of every kind.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_property import DECODED, ENCODED, HALF_SHARE, TOLERANCE, decode_error, encode_error, half_errors

MANY = os.environ.get("PROPERTY_EXAMPLES")
some = settings(
    max_examples=int(MANY or 2), deadline=None, derandomize=MANY is None, database=None, print_blob=True
)
batches = st.integers(1, 2)
LONGEST = {"mochi": 3}  # latent frames to encode, where that is slow
# What the first draws depends on the precision; the CPU lacks an operator of the others in half precision.
NOT_IN_HALF = ("ltx-noise", "cosmos", "cosmos-rearrange")
HALF = [(name, torch.bfloat16) for name in DECODED if name not in NOT_IN_HALF]
HALF += [(name, torch.float16) for name in ("ltx-0.9.5", "wan-2.1", "svd", "kl")]  # slower, and alike


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", DECODED)
@some
@given(frames=st.integers(1, 9), batch=batches, schedule=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_streamed_decode_is_the_batched_one(
    name: str, dtype: torch.dtype, frames: int, batch: int, schedule: list[int]
) -> None:
    assert decode_error(name, dtype, frames, batch, schedule) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ENCODED)
@some
@given(data=st.data(), batch=batches, schedule=st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_a_streamed_encode_is_the_batched_one(
    name: str, dtype: torch.dtype, data: st.DataObject, batch: int, schedule: list[int]
) -> None:
    frames = data.draw(st.integers(1, LONGEST.get(name, 5)), "frames")
    assert encode_error(name, dtype, frames, batch, schedule) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("name", "dtype"), HALF, ids=str)
def test_streaming_adds_no_error_in_half_precision(name: str, dtype: torch.dtype) -> None:
    for what, (own, ours) in half_errors(name, dtype, 4, [1, 2]).items():
        assert ours <= HALF_SHARE * own, what
