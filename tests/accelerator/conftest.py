"""Tests on pretended cards (`pretended/`). What is in `on_card/` runs in a process of its own, which
`test_on_cards.py` starts: a process's torch either has such cards from its import on, or never.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pretended import unavailable

collect_ignore = [] if "PRETENDED_CARDS" in os.environ else ["on_card"]


@pytest.fixture(scope="session", autouse=True)
def _can_be_pretended() -> None:
    if "PRETENDED_CARDS" not in os.environ and (reason := unavailable()):
        pytest.skip(reason)
