"""Pictures that a decoder would read wrong without an error: each comes out right, or is refused by name."""

import independent_reader
import picture_corpus
import pytest

RARE = (
    "JPEG, a video behind",
    "JPEG, orientation 6 as a byte",
    "HEIC, no box behind",
    "AVIF, no box behind",
    "BMP, runs of 8 bits",
    "BMP, runs of 4 bits",
    "BMP, runs that leave lines out",
    "BMP, two million moves",
    "BMP, runs cut",
    "TIFF, RGB of 16 bits in planes",
    "TIFF, YCbCr 4:2:0",
    "TIFF, grey of 12 bits",
    "TIFF, 16 bits, white is zero",
)
CASES = {case.name: case for case in picture_corpus.cases()}


@pytest.mark.parametrize("name", RARE)
def test_a_rare_picture_is_read_right_or_refused(name: str) -> None:
    assert independent_reader.fault(CASES[name], with_reader=False) is None
