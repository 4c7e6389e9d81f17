"""A slice of the corpus of pictures: each is read right or refused with the right code.

`tests/bench/pictures.py` runs all of it.
"""

import random

import independent_reader
import picture_corpus
import pytest

SLOW = ("HEIC", "AVIF", "TIFF")  # decoded in a process of their own, which takes a while to start
CASES = picture_corpus.cases()


def _slice() -> list[picture_corpus.Case]:
    """Sixty of all, the same ones each time: every kind of refusal, and few that are slow."""
    drawn = random.Random(3).sample(CASES, len(CASES))
    refused = [case for case in drawn if case.code is not None]
    read = [case for case in drawn if case.code is None]
    slow = [case for case in read if any(name in case.name for name in SLOW)]
    quick = [case for case in read if not any(name in case.name for name in SLOW)]
    return [*quick[:42], *slow[:6], *refused[:12]]


def test_the_corpus_has_more_than_three_hundred_pictures_of_every_format() -> None:
    assert len(CASES) > 300
    for format_ in ("JPEG", "PNG", "WebP", "HEIC", "AVIF", "TIFF", "BMP", "GIF"):
        assert sum(case.name.startswith(format_) for case in CASES) >= 9, format_


@pytest.mark.parametrize("case", _slice(), ids=lambda case: case.name)
def test_a_picture_is_read_right_or_refused_with_the_right_code(case: picture_corpus.Case) -> None:
    if independent_reader.missing():
        pytest.skip(f"{', '.join(independent_reader.missing())} is not installed: the independent reader")
    assert independent_reader.fault(case) is None
