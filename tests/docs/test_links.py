"""Links of README and the documentation lead somewhere."""

import re
from pathlib import Path

import pytest
from pages import links, pages

PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs makes them."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            text = re.sub(r"[^\w\s-]", "", re.sub(r"^#+\s*", "", line)).strip().lower()
            found.add(re.sub(r"[\s-]+", "-", text))
    return found


@PAGES
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link
