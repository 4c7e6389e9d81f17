"""Fills numbers from `tests/bench/results/` into pages.

A page writes a figure as the number followed by a comment with the figure's name:
`14.8<!-- figure: NAME -->`. A table stands between `<!-- table: NAME -->` and `<!-- /table -->`.
`python docs/generate` brings both up to date. Figures are defined in `figures.toml`; tables in `tables.py`,
or by the name of a Markdown file in the results folder.
"""

import re

from figures import RESULTS, figure
from tables import TABLES

FIGURE = re.compile(r"(?P<value>[^\s|*(`]+)(?P<mark>\**<!-- figure: (?P<name>[^\s]+) -->)")
TABLE = re.compile(
    r"(?P<start><!-- table: (?P<name>[^\s]+) -->\n)(?P<body>.*?)(?P<end><!-- /table -->)", re.DOTALL
)


def filled(text: str) -> str:
    """The page with every figure and table as the results have them; `KeyError` for an unknown name."""
    text = FIGURE.sub(lambda match: figure(match["name"]) + match["mark"], text)
    return TABLE.sub(
        lambda match: match["start"] + "\n" + _table(match["name"]) + "\n\n" + match["end"], text
    )


def _table(name: str) -> str:
    if name.endswith(".md"):
        return _included(name)
    return "\n".join(TABLES[name]())


def _included(name: str) -> str:
    """The text of a results file, with headings one level down."""
    lines = (RESULTS / name).read_text(encoding="utf-8").strip().splitlines()
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)
