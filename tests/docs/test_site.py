"""The built site is whole, and loads nothing from other hosts."""

import re
import shutil
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pages import DOCS

# Attributes whose address a browser fetches by itself; a link in the text is followed by the reader alone.
FETCHED = {
    "img": ("src", "srcset"),
    "script": ("src",),
    "link": ("href",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "iframe": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "use": ("href",),
    "image": ("href",),
}
CHROMIUM = shutil.which("chromium")
OTHER_HOST = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)


class Fetches(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in FETCHED.get(tag, ()) and value:
                self.addresses.append(value)
            elif name == "style" and value:
                self.addresses += addresses_in_css(value)


def addresses_in_css(text: str) -> list[str]:
    """What a style sheet makes a browser fetch."""
    urls = re.findall(r"url\(\s*[\"']?([^\"')]+)", text)
    return urls + re.findall(r"@import\s+[\"']([^\"']+)", text)


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        assert (site / page.with_suffix(".html").name).is_file(), page.name


def test_no_page_or_style_fetches_from_another_host(site: Path) -> None:
    looked_at = 0
    for path in site.rglob("*.html"):
        fetches = Fetches()
        fetches.feed(path.read_text(encoding="utf-8"))
        assert not [each for each in fetches.addresses if OTHER_HOST.match(each)], path.name
        looked_at += len(fetches.addresses)
    for path in site.rglob("*.css"):
        found = addresses_in_css(path.read_text(encoding="utf-8"))
        assert not [each for each in found if OTHER_HOST.match(each)], path.name
    assert looked_at > 20


def test_no_script_names_a_host_to_load_from(site: Path) -> None:
    for path in site.rglob("*.js"):
        for host in ("unpkg.com", "cdn.jsdelivr.net", "cdnjs.cloudflare.com", "fonts.g"):
            assert host not in path.read_text(encoding="utf-8"), f"{path.name}: {host}"


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_reads_every_page_from_this_host_alone(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            with playwright.sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                page = browser.new_page()
                asked: list[str] = []
                page.on("request", lambda request: asked.append(request.url))
                for file in sorted(site.glob("*.html")):
                    page.goto(here + file.name)
                page.wait_for_load_state("networkidle")
                browser.close()
        finally:
            server.shutdown()
    assert len(asked) > len(list(site.glob("*.html")))
    assert not [url for url in asked if not url.startswith((here, "data:", "blob:"))]
