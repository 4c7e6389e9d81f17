"""What MkDocs calls while it builds the site: see `hooks` in .mkdocs.yml.

Pages link to files of the repository outside docs/, so that the links work where the repository is read. In
the site a picture of those is copied, and of any other such link the text and the path remain.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)#\s]+)(?:#[^)]*)?\)")
PICTURES = (".png", ".jpg", ".svg")
FAVICON = "app/api/static/favicon.svg"
# Where the theme's script would load a polyfill and a diagram library from. Neither is used; without the
# address, neither can be.
OTHER_HOST = "https://unpkg.com/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures that pages show from outside docs/."""
    wanted = {FAVICON}
    for page in files.documentation_pages():
        text = Path(page.abs_src_path or "").read_text(encoding="utf-8")
        wanted |= {match["path"][3:] for match in OUTSIDE.finditer(text) if match["path"].endswith(PICTURES)}
    for path in sorted(wanted):
        files.append(File.generated(config, _in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point pictures at their copies; make links that leave the site plain text."""

    def inside(match: re.Match[str]) -> str:
        path = match["path"][3:]
        if path.endswith(PICTURES):
            return f"{match['image']}[{match['text']}]({_in_site(path)})"
        text = match["text"]
        return text if path in text else f"{text} (`{path}`)"

    return OUTSIDE.sub(inside, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Take the addresses of other hosts out of the theme's script."""
    for path in Path(config.site_dir).glob("assets/javascripts/*.js"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(OTHER_HOST, ""), encoding="utf-8")


def _in_site(path: str) -> str:
    return "pictures/favicon.svg" if path == FAVICON else f"pictures/{Path(path).name}"
