"""Writes the generated pages, and the generated parts of the others: `python docs/generate`.

With --check it writes nothing and names the pages that are stale.

`docs/http-api.md`, `docs/cli.md` and `docs/settings.md` are generated as a whole, from the OpenAPI document,
the commands and the `Settings` class; `app/api/static/operating.html` from `docs/operating.md` and the alert
rules. In README.md and every other page the figures and tables from
`tests/bench/results/` are filled in (see `results.py`).
"""

import sys
from pathlib import Path

import commands
import http_api
import results
import runbooks
import settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {"http-api.md": http_api.page, "cli.md": commands.page, "settings.md": settings.page}
NOTE = "<!-- Written by `python docs/generate`: edit the source of each text, not this page. -->"


def texts() -> dict[Path, str]:
    """Each page's path and what its text has to be."""
    generated = {DOCS / name: _noted(page()) for name, page in PAGES.items()}
    written = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
    filled = {
        path: results.filled(path.read_text(encoding="utf-8")) for path in written if path not in generated
    }
    return {**filled, **generated, runbooks.OPERATING: runbooks.page(filled[DOCS / "operating.md"])}


def _noted(text: str) -> str:
    """The page with a note for its editors after the title, which stays the first line."""
    title, _, rest = text.rstrip().partition("\n")
    return f"{title}\n\n{NOTE}\n{rest}\n"


def main() -> int:
    """Write or check every page; the exit status is 1 where a page was stale."""
    check_only = "--check" in sys.argv[1:]
    stale = []
    for path, text in texts().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not check_only:
            path.write_text(text, encoding="utf-8")
    if check_only and stale:
        sys.stderr.write(f"stale: {', '.join(map(str, stale))}; run python docs/generate\n")
    return check_only and len(stale) > 0


if __name__ == "__main__":
    sys.exit(main())
