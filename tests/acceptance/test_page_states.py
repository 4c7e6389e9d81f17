"""Every state of the page in one of the windows: nothing is cut, refusals are in view and read out.

`page_states.py` makes the pictures of all windows.
"""

from collections.abc import Iterator

import pytest
from browser import CHROMIUM
from page_states import STATES, WINDOWS, State, Tour, Window

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
VISITS = [(state, WINDOWS[number % len(WINDOWS)]) for number, state in enumerate(STATES)]


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tour]:
    pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    made = Tour(tmp_path_factory.mktemp("tour"))
    yield made
    made.close()


@pytest.mark.parametrize(("state", "window"), VISITS, ids=[f"{one.name}-{two.name}" for one, two in VISITS])
def test_a_state_of_the_page_can_be_read(tour: Tour, state: State, window: Window) -> None:
    ((_, faults),) = tour.visit(state, [window])
    assert faults == []
