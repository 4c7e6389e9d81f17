"""Tensors written part by part make the file that safetensors would have written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from app.latents.tensor_file import TensorFile, TensorSpec

SHAPE = (2, 3, 7, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("lengths", [(7,), (1, 5, 1), (1,) * 7])
def test_parts_become_one_tensor(tmp_path: Path, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    tensor = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * 50).abs().to(dtype)
    path = tmp_path / "file.safetensors"
    with TensorFile(path, {"a": TensorSpec(SHAPE, dtype)}, {"what": "this"}) as file:
        for part in tensor.split(lengths, 2):
            file.write("a", part)
        file.finish()
    assert torch.equal(load_file(path)["a"], tensor)
    with safe_open(path, framework="pt") as read:
        assert read.metadata() == {"what": "this"}


def test_tensors_may_take_turns(tmp_path: Path) -> None:
    a, b = torch.randn(1, 2, 4, 3, 3), torch.randn(1, 1, 4, 2, 2).to(torch.bfloat16)
    path = tmp_path / "file.safetensors"
    specs = {"a": TensorSpec(tuple(a.shape), a.dtype), "b": TensorSpec(tuple(b.shape), b.dtype)}
    with TensorFile(path, specs, {}) as file:
        for start in (0, 2):
            file.write("a", a[:, :, start : start + 2])
            file.write("b", b[:, :, start : start + 2])
        file.finish()
    found = load_file(path)
    assert torch.equal(found["a"], a)
    assert torch.equal(found["b"], b)


def test_nothing_is_there_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with TensorFile(path, {"a": TensorSpec(SHAPE, torch.float32)}, {}) as file:
        file.write("a", torch.zeros(2, 3, 6, 4, 5))
        assert not path.exists()
        with pytest.raises(ValueError, match="7 frames, 6 were written"):
            file.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "words"), [((2, 3, 1, 4, 4), r"part of \(2, 3, 1, 4, 4\)"), ((2, 3, 8, 4, 5), "got 8")]
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    with (
        TensorFile(tmp_path / "f", {"a": TensorSpec(SHAPE, torch.float32)}, {}) as file,
        pytest.raises(ValueError, match=words),
    ):
        file.write("a", torch.zeros(shape))
