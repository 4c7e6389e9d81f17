"""The committed figures of models on cards (tests/bench/cards.py) are what the code computes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
import cards

from app.models.profiles import library_versions

COMMITTED: dict[str, Any] = json.loads((cards.OUT / "cards.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.skipif(
    COMMITTED["versions"] != dict(library_versions()), reason="profiles of other versions are traced anew"
)


@pytest.mark.parametrize("model", ["ltx-video", "hunyuanvideo15-i2v-480p"])
def test_the_committed_cards_are_those_of_the_code(model: str) -> None:
    committed = [row for row in COMMITTED["cards"] if row["model"] == model]
    assert list(cards.planned([model])) == committed


def test_the_committed_decodes_are_those_of_the_code() -> None:
    assert list(cards.traced()) == COMMITTED["decodes"]


def test_the_committed_page_is_made_of_the_committed_figures() -> None:
    assert cards.as_markdown(COMMITTED) == (cards.OUT / "cards.md").read_text(encoding="utf-8")
