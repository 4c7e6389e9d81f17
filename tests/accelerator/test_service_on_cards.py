"""The campaign of `tests/bench/service_on_cards.py`, in small: ten jobs on two cards beside a neighbour."""

import pytest

from tests.bench import service_on_cards
from tests.bench.card_models import FEW_MODELS


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_job_is_lost_on_two_cards_whose_memory_moves() -> None:
    report = service_on_cards.campaign(10, seed=1, cards_gb=(16, 24), models=FEW_MODELS, measured=False)
    assert report.jobs == 10
    assert report.clean, report
    assert sum(report.devices.values()) == 10
    assert set(service_on_cards.STRATEGIES) <= set(report.strategies), report
    assert report.neighbour_moves > 0
