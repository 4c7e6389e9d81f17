"""Fixtures for pytest in a process on pretended cards: `-p pretended.plugin`, in an environment of
`pretended.environment`. Such a process also runs `tests/gpu`, unchanged.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from pretended.machine import Card, CardSpec
from pretended.start import visible_cards


@pytest.fixture
def cards() -> Iterator[list[Card]]:
    """The pretended cards, as at the start: empty, healthy, without neighbours."""
    _restore()
    yield visible_cards()
    _restore()


@pytest.fixture
def card(cards: list[Card]) -> Card:
    """The first card. Its fields steer it; see `pretended.machine.Card`."""
    return cards[0]


@pytest.fixture
def device(card: Card) -> str:  # noqa: ARG001 - restored before and after
    """Name of the first card for torch."""
    return f"{os.environ['PRETENDED_DEVICE']}:0"


def _restore() -> None:
    import torch

    for card in visible_cards():
        card.capacity_bytes, card.ballast_bytes, card.fail_in = CardSpec().capacity_bytes, 0, -1
        card.fault = card.lost = card.poison = card.hides_processes = 0
    gc.collect()
    torch.accelerator.empty_cache()
