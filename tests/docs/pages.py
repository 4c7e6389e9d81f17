"""README and the pages of docs/: their texts, links, commands and code blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"(?P<mark><!-- tested -->\n)?^(?P<fence> *```)(?P<language>[a-z]*)[^\n]*\n(?P<text>.*?)^\s*```$",
    re.DOTALL | re.MULTILINE,
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"!?\[(?:[^\]]|\](?!\())*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code; `tested`: a comment before it says that it runs."""

    page: Path
    language: str
    text: str
    tested: bool


def pages() -> list[Path]:
    """README and every page."""
    return [README, *sorted(DOCS.glob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The page's blocks of code."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(page, match["language"], match["text"], match["mark"] is not None)


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def inline_codes(page: Path) -> list[str]:
    """The texts in backticks, outside code blocks."""
    return INLINE.findall(prose(page))


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    return LINK.findall(INLINE.sub("`", prose(page)))


def codes(page: Path) -> str:
    """All code of a page, in blocks and in the text, one piece a line."""
    return "\n".join([*(block.text for block in blocks(page)), *inline_codes(page)])
