"""Reads the header of a GGUF file and checks it against the file's size.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, the numbers of tensors
and of metadata, the metadata, one description a tensor, padding, then the tensors' bytes, each aligned. All
numbers are little-endian. Dimensions are stored with the fastest first, the reverse of torch's order.
"""

import math
import struct
from typing import Any, Final

from app.models.files.sources import ByteSource
from app.models.files.stored import CutShort, DamagedFile, StoredTensor, WeightsHeader, check_count

NAME = "gguf"
MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LONGEST_HEADER = 32_000_000  # a tokenizer of 256,000 words takes 6 MB
_READ_AT_ONCE = 2**20
_MOST_DIMENSIONS = 8
# Longer arrays, such as a tokenizer's words, are passed over: `metadata` holds their length.
_LONGEST_ARRAY = 64
_DEEPEST_ARRAY = 4
_NUMBERS: Final = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
# Code of a type: its name, the values of a block, the bytes of a block (ggml's ggml_type and type_traits).
TYPES: Final = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


def read(source: ByteSource) -> WeightsHeader:
    """The file's header. Raises `DamagedFile`, and `OSError` if it cannot be read."""
    cursor = _Cursor(source)
    if cursor.take(4) != MAGIC:
        raise DamagedFile("is no GGUF file: get it again")
    version = cursor.number("<I")
    if version not in _VERSIONS:
        raise DamagedFile(f"has version {version} of GGUF; versions 2 and 3 can be read")
    tensor_count, metadata_count = cursor.number("<Q"), cursor.number("<Q")
    check_count(tensor_count)
    check_count(metadata_count)
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        name = cursor.string()
        metadata[name] = _value(cursor, cursor.number("<I"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment % 8:
        raise DamagedFile(f"has a damaged header: an alignment of {alignment} bytes: get it again")
    described = {}
    for _ in range(tensor_count):
        name = cursor.string()
        if name in described:
            raise DamagedFile(f"has a damaged header: two tensors are called {name}: get it again")
        described[name] = _tensor(cursor, name, alignment)
    data_starts = math.ceil(cursor.position / alignment) * alignment
    tensors = {
        name: StoredTensor(each.dtype, each.shape, data_starts + each.start, each.size_bytes)
        for name, each in described.items()
    }
    wanted = max((each.start + each.size_bytes for each in tensors.values()), default=cursor.position)
    if source.size < wanted:
        raise CutShort(source.size, wanted, f"{wanted:,}")
    return WeightsHeader(NAME, tensors, metadata)


def _tensor(cursor: "_Cursor", name: str, alignment: int) -> StoredTensor:
    """A tensor whose `start` counts from the beginning of the data."""
    dimensions = cursor.number("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise DamagedFile(f"has a damaged header: {name} has {dimensions} dimensions: get it again")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
    code, start = cursor.number("<I"), cursor.number("<Q")
    if code not in TYPES:
        raise DamagedFile(f"has the tensor {name} of type {code}, which is not known")
    dtype, block, block_bytes = TYPES[code]
    if (shape[-1] if shape else 1) % block:
        raise DamagedFile(
            f"has a damaged header: {name} has rows of {shape[-1]:,} values, "
            f"{dtype} has blocks of {block}: get it again"
        )
    if start % alignment:
        raise DamagedFile(f"has a damaged header: {name} is not aligned: get it again")
    return StoredTensor(dtype, shape, start, math.prod(shape) // block * block_bytes)


def _value(cursor: "_Cursor", code: int, depth: int = 0) -> Any:
    if code in _NUMBERS:
        return cursor.number(_NUMBERS[code])
    if code == _STRING:
        return cursor.string()
    if code != _ARRAY or depth == _DEEPEST_ARRAY:
        raise DamagedFile(f"has a damaged header: a value of type {code}: get it again")
    of, count = cursor.number("<I"), cursor.number("<Q")
    if of in _NUMBERS and count > _LONGEST_ARRAY:
        cursor.skip(count * struct.calcsize(_NUMBERS[of]))
        return count
    kept = []
    for _ in range(count):
        value = _value(cursor, of, depth + 1)
        if count <= _LONGEST_ARRAY:
            kept.append(value)
    return kept if count <= _LONGEST_ARRAY else count


class _Cursor:
    """Reads one value after another, a piece of the file at a time."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._end = min(source.size, _LONGEST_HEADER)
        self._piece = b""
        self._piece_starts = 0
        self.position = 0

    def take(self, length: int) -> bytes:
        start = self.position - self._piece_starts
        if not 0 <= start <= len(self._piece) - length:
            if length > self._end - self.position:
                raise DamagedFile(
                    f"is cut short: it has {self._source.size:,} bytes and ends within its header, "
                    "or the header is damaged: get it again"
                )
            self._piece = self._source.read(self.position, max(length, _READ_AT_ONCE))
            self._piece_starts, start = self.position, 0
            if len(self._piece) < length:
                raise DamagedFile("became shorter while it was read: get it again")
        self.position += length
        return self._piece[start : start + length]

    def skip(self, length: int) -> None:
        self.position += length

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        text = self.take(self.number("<Q"))
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise DamagedFile("has a damaged header: a text is not UTF-8: get it again") from None
