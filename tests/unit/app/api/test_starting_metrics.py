"""A process that still counts past events answers /metrics without counters; scrapers choose the format."""

from collections.abc import Callable
from typing import Any

import pytest
from scraped import total
from starlette.testclient import TestClient
from waiting import wait_for

from app.config import Settings
from app.service.processes import open_store
from app.store.upkeep.counters import COUNTERS

ELSEWHERE = "another machine/1/1"  # a process that cannot be seen from here


def test_a_starting_process_answers_without_counters_until_it_may_show_them(
    settings: Settings, client_of: Callable[..., TestClient]
) -> None:
    store = open_store(settings)
    store.migrate()
    store.hold_exports([COUNTERS], "other", process=ELSEWHERE, seconds=60, ended=[])
    client = client_of(settings)
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert total(answer.text, "framefit_starting") == 1
    assert total(answer.text, "framefit_exporter") == 0
    assert "framefit_jobs_total" not in answer.text
    assert "process_resident_memory_bytes" in answer.text
    store.give_up_exports("other")
    store.close()
    wait_for(lambda: "framefit_jobs_total" in client.get("/metrics").text, 120)
    assert total(client.get("/metrics").text, "framefit_starting") == 0


def test_no_scrape_says_that_all_is_counted_and_misses_the_counters(
    settings: Settings, client_of: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(settings)
    store.migrate()
    store.hold_exports([COUNTERS], "other", process=ELSEWHERE, seconds=60, ended=[])
    client = client_of(settings)
    service = client.app.state.service  # type: ignore[attr-defined]
    workers = service.store.workers

    def becomes_the_exporter_in_the_middle(**options: Any) -> Any:
        store.give_up_exports("other")
        wait_for(lambda: service.exporter.exports_counters, 120)
        return workers(**options)

    monkeypatch.setattr(service.store, "workers", becomes_the_exporter_in_the_middle)
    text = client.get("/metrics").text
    store.close()
    assert ("framefit_jobs_total" in text) == (total(text, "framefit_starting") == 0)


def test_a_scraper_gets_the_format_that_it_prefers(client: TestClient) -> None:
    plain = client.get("/metrics", headers={"Accept": "*/*"})
    assert plain.headers["content-type"].startswith("text/plain")
    assert not plain.text.endswith("# EOF\n")
    full = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert full.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert full.text.endswith("# EOF\n")
    assert full.headers["vary"] == "Accept"
