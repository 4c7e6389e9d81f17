"""The page for operators that the service serves: whole, on its own, and with a runbook for each alert."""

import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
import runbooks
from pages import DOCS
from starlette.testclient import TestClient

from app.api import create_app
from app.config import Settings

KEY = "k" * 16


class Page(HTMLParser):
    """The anchors, the links and what a browser fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.fetched += [given["href"]] if tag == "link" else []
        self.fetched += [given["src"]] if "src" in given else []
        self.inline += [tag] if tag in ("script", "style") or "style" in given else []


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return TestClient(create_app(Settings(data_dir=tmp_path, api_keys=KEY)))  # type: ignore[arg-type]


def test_each_alert_has_its_runbook_under_its_name_in_kebab_case() -> None:
    anchors = Page(runbooks.OPERATING.read_text()).anchors
    assert {runbooks.anchor(rule["alert"]) for rule in runbooks.alerts()} <= set(anchors)
    assert len(anchors) == len(set(anchors))


@pytest.mark.parametrize(
    ("alert", "anchor"),
    [
        ("FramefitDown", "framefit-down"),
        ("FramefitGPULost", "framefit-gpu-lost"),
        ("FramefitQueueSlo99Burn", "framefit-queue-slo99-burn"),
    ],
)
def test_the_anchor_is_the_name_in_kebab_case(alert: str, anchor: str) -> None:
    assert runbooks.anchor(alert) == anchor


def test_the_service_serves_the_page_without_a_key_and_without_other_hosts(client: TestClient) -> None:
    answer = client.get("/docs/operating")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page(answer.text)
    assert page.inline == [], "the policy allows none"
    for address in page.fetched:
        assert client.get(f"/docs/{address}").status_code == 200, address
    for link in page.links:
        inside = link.removeprefix("#") in page.anchors if link.startswith("#") else None
        assert inside or link.startswith(("../", "https://")), link


def test_every_command_of_the_runbooks_names_its_file_and_its_key(client: TestClient) -> None:
    text = runbooks.OPERATING.read_text()
    assert "docker compose -f docker/compose.yaml exec framefit framefit doctor" in text
    assert not re.findall(r"docker compose (?!-f )[^<]*", text)
    commands = [line for line in runbooks.FIRST_LOOK.splitlines() if line.startswith("curl")]
    for command in commands:
        _, flag, header, address = shlex.split(command.replace("$KEY", KEY))
        assert flag == "-H"
        path = address.removeprefix("http://127.0.0.1:8000")
        name, _, value = header.partition(": ")
        with client:
            assert client.get(path, headers={name: value}).status_code in (200, 503), command
    assert len(commands) >= 3


def test_no_page_of_the_documentation_names_compose_without_its_file() -> None:
    for path in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        assert not re.findall(r"^docker compose (?!-f ).*", path.read_text(), flags=re.M), path.name
