"""The prose of the documentation."""

from pathlib import Path

import pytest
from pages import pages, prose

REPEATING = ("benchmarks.md", "http-api.md")  # written by a program; alike things get the same words
WRITTEN = [page for page in pages() if page.name not in REPEATING]
START = 60  # characters: a line may have been changed at its end


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_no_line_of_prose_occurs_twice_in_a_page(page: Path) -> None:
    lines = [line[:START] for line in prose(page).splitlines() if len(line) >= START and line[0] != "|"]
    assert [line for line in dict.fromkeys(lines) if lines.count(line) > 1] == []
