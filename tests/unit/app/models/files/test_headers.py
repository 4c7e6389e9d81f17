"""Headers of weight files say what the formats' own libraries say; a damaged file is refused."""

import json
import struct
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from app.models.files.gguf import TYPES
from app.models.files.header import read_header
from app.models.files.stored import DamagedFile

ROWS, COLUMNS = 3, 512


class Bytes:
    """A file that exists in memory only."""

    name = "memory"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def read(self, start: int, length: int) -> bytes:
        return self.content[start : start + length]


def gguf_file(path: Path) -> Path:
    """A tensor of each type that can be stored, its blocks filled with zeros, and a long list of words."""
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_array("tokenizer.ggml.tokens", [f"word {number}" for number in range(1000)])
    writer.add_array("comfy.gguf.orig_shape.Q8_0", [ROWS, 2, COLUMNS // 2])
    for name, _, _ in TYPES.values():
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        row_bytes = numpy.zeros((ROWS, COLUMNS // block * size), numpy.uint8)
        writer.add_tensor(name, row_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def safetensors_file(path: Path) -> Path:
    dtypes = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool)
    save_file({str(dtype): torch.zeros(2, 3, dtype=dtype) for dtype in dtypes}, path, {"format": "pt"})
    return path


def test_sizes_of_types_are_those_of_the_gguf_package() -> None:
    known = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {name: (block, size) for name, block, size in TYPES.values()} == {
        name: known[name] for name, _, _ in TYPES.values()
    }
    assert {code: name for code, (name, _, _) in TYPES.items()} == {
        code: gguf.GGMLQuantizationType(code).name for code in TYPES
    }


def test_a_gguf_header_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "model.gguf")
    header = read_header(path)
    reader = gguf.GGUFReader(path)
    assert header.format == "gguf"
    assert {
        name: (tensor.dtype, tensor.start, tensor.size_bytes) for name, tensor in header.tensors.items()
    } == {each.name: (each.tensor_type.name, each.data_offset, each.n_bytes) for each in reader.tensors}
    assert {tensor.shape for tensor in header.tensors.values()} == {(ROWS, COLUMNS)}
    assert header.metadata["general.architecture"] == "wan"
    assert header.metadata["comfy.gguf.orig_shape.Q8_0"] == [ROWS, 2, COLUMNS // 2]
    assert header.metadata["tokenizer.ggml.tokens"] == 1000


def test_a_safetensors_header_tells_dtypes_shapes_and_bytes(tmp_path: Path) -> None:
    header = read_header(safetensors_file(tmp_path / "model.safetensors"))
    assert header.format == "safetensors"
    assert header.metadata == {"format": "pt"}
    assert header.bytes_by_dtype == {"F32": 24, "BF16": 12, "F8_E4M3": 6, "I8": 6, "BOOL": 6}
    assert {tensor.shape for tensor in header.tensors.values()} == {(2, 3)}


@pytest.mark.parametrize("make", [gguf_file, safetensors_file])
def test_a_file_that_is_cut_short_is_refused_wherever_it_was_cut(make: object, tmp_path: Path) -> None:
    content = make(tmp_path / "whole").read_bytes()  # type: ignore[operator]
    for length in {*range(64), *range(0, len(content), max(1, len(content) // 200))}:
        with pytest.raises(DamagedFile):
            read_header(Bytes(content[:length]))


@pytest.mark.parametrize("make", [gguf_file, safetensors_file])
def test_a_file_with_wrong_bytes_is_read_or_refused(
    make: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = make(tmp_path_factory.mktemp("model") / "whole").read_bytes()  # type: ignore[operator]

    @settings(max_examples=200, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, min(len(content), 4096) - 1), st.integers(0, 255)), max_size=8))
    def damaged(changes: list[tuple[int, int]]) -> None:
        wrong = bytearray(content)
        for place, value in changes:
            wrong[place] = value
        try:
            header = read_header(Bytes(bytes(wrong)))
        except DamagedFile:
            return
        assert all(each.start + each.size_bytes <= len(wrong) for each in header.tensors.values())

    damaged()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04" + bytes(60), "PyTorch pickle"),
        (b"\x80\x02" + bytes(60), "PyTorch pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer"),
        (b"GGUF\x01\x00\x00\x00" + bytes(60), "version 1 of GGUF"),
        (b"<!doctype html><title>not found</title>", "no safetensors file"),
        (b"", "has 0 bytes"),
    ],
)
def test_what_is_no_file_of_weights_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(DamagedFile, match=reason):
        read_header(Bytes(content))


def safetensors_header(forms: dict[str, object]) -> Bytes:
    text = json.dumps(forms).encode()
    return Bytes(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize(
    "content",
    [
        Bytes(b"GGUF" + struct.pack("<IQQ", 3, 10**6, 0) + bytes(2**20)),
        Bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 10**6) + bytes(2**20)),
        safetensors_header(dict.fromkeys(map(str, range(100_001)), 0)),
    ],
)
def test_a_header_of_more_tensors_than_any_model_has_is_refused_before_they_are_read(content: Bytes) -> None:
    with pytest.raises(DamagedFile, match="tensors or values, the most that are read are 100,000"):
        read_header(content)


@pytest.mark.parametrize("shape", [[1] * 10_000, [-1, *[1] * 15], ["x" * 10_000]])
def test_a_shape_that_is_none_is_refused_in_a_short_message(shape: list[object]) -> None:
    with pytest.raises(DamagedFile, match="damaged header") as refusal:
        read_header(safetensors_header({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, 1]}}))
    assert len(str(refusal.value)) < 250
