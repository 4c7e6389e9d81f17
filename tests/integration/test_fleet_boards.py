"""Every panel of every board shows the fleet's true numbers: of one card, one host, or all.

A real Prometheus scrapes the pages of a fake fleet. Counts must be exact. Rates depend on when it scraped;
they must be within a third, which a wrong filter or label misses by factors.

Longer than 300 lines: it says what each panel must show.
"""

import http.server
import random
import shutil
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import mean
from typing import Any

import grafana_boards
import pytest
from fake_fleet import HANDOVER, HOSTS, MODELS, PHASES, FakeCard, FakeFleet, FakeJob
from grafana_boards import Prometheus, Span
from prometheus_server import prometheus_server
from waiting import wait_for

from app.service.exposition.metrics import BYTES, RATIOS, SECONDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is not installed (Debian: apt install prometheus)",
    ),
]

SEED = random.SystemRandom().randrange(10**6)
WINDOW_SECONDS = 300  # all phases are within it, however slow the machine
SCRAPE_SECONDS = 2
PHASE_SECONDS = 240
SAMPLES = 12
Numbers = dict[str, float]


class Pages:
    """Serves the fleet's pages, each process's on a port of its own."""

    def __init__(self, names: Sequence[str], stack: ExitStack) -> None:
        self.pages: dict[str, bytes] = {}
        self.targets: list[str] = []
        for name in names:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler(name))
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.targets.append(f"127.0.0.1:{server.server_address[1]}")

    def _handler(self, name: str) -> type[http.server.BaseHTTPRequestHandler]:
        pages = self.pages

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(pages[name])

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


@dataclass(frozen=True)
class Shown:
    """The fleet, and the Prometheus that has seen all of it."""

    fleet: FakeFleet
    prometheus: Prometheus
    end: float

    def panel(self, panel: dict[str, Any], chosen: dict[str, str]) -> dict[str, list[float]]:
        """What a panel shows: the values of its series by legend."""
        start = self.end - 60
        span = Span(start, self.end, 1, WINDOW_SECONDS, SCRAPE_SECONDS, chosen)
        found = grafana_boards.answers(self.prometheus, panel, span)
        assert len({one.legend for one in found}) == len(found), "two series have one name"
        return {one.legend: [value for _, value in one.points] for one in found}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("fleet")
    fleet = FakeFleet(folder, SEED)
    with ExitStack() as stack:
        served = Pages([api.name for api in fleet.apis], stack)
        served.pages.update(fleet.pages(0))
        prometheus = stack.enter_context(
            prometheus_server(folder, free_port(), served.targets, scrape_seconds=SCRAPE_SECONDS)
        )
        for phase in range(len(PHASES)):
            if phase:
                served.pages.update(fleet.pages(phase))
            seen = f"count(fake_phase == {phase})"
            wait_for(
                lambda seen=seen: [one["value"][1] for one in prometheus.now(seen)] == [str(len(fleet.apis))],
                PHASE_SECONDS,
                lambda: str(prometheus.now("fake_phase")),
                every=0.2,
            )
        # Prometheus extrapolates over the ends of a series: with few samples, by more than the tests allow.
        samples = f"min(count_over_time(fake_phase[{WINDOW_SECONDS}s]))"
        wait_for(
            lambda: any(int(one["value"][1]) >= SAMPLES for one in prometheus.now(samples)),
            PHASE_SECONDS,
            every=0.2,
        )
        ratio = 'count(framefit:gpu_memory_free:ratio{host!=""})'
        wait_for(lambda: prometheus.now(ratio), PHASE_SECONDS, every=0.2)
        yield Shown(fleet, prometheus, time.time())


def free_port() -> int:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as probe:
        return int(probe.server_address[1])


# What each panel must show of some jobs and cards.


@dataclass(frozen=True)
class Part:
    """The cards and jobs that the variables choose."""

    cards: list[FakeCard]
    jobs: list[FakeJob]

    @property
    def done(self) -> list[FakeJob]:
        return [job for job in self.jobs if job.succeeded]


@dataclass(frozen=True)
class Rate:
    """An expected number that depends on the moments of scrapes."""

    value: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and self.value == pytest.approx(other, rel=0.34)

    __hash__ = None  # type: ignore[assignment]


Expected = Callable[[Part], "dict[str, Any]"]


def total(title: str, count: Callable[[Part], Any]) -> tuple[str, Expected]:
    return title, lambda part: {title: count(part)}


def by(
    key: Callable[[FakeJob], str], value: Callable[[list[FakeJob]], Any], only_done: bool = False
) -> Expected:
    def expected(part: Part) -> dict[str, Any]:
        groups: defaultdict[str, list[FakeJob]] = defaultdict(list)
        for job in part.done if only_done else part.jobs:
            groups[key(job)].append(job)
        return {name: value(group) for name, group in groups.items()}

    return expected


def of_cards(value: Callable[[FakeCard], Any]) -> Expected:
    return lambda part: {card.name: value(card) for card in part.cards}


def of_hosts(value: Callable[[list[FakeCard]], Any]) -> Expected:
    return lambda part: {
        host: value(cards) for host in HOSTS if (cards := [one for one in part.cards if one.host == host])
    }


def quantile(share: float, values: Sequence[float], bounds: Sequence[float]) -> float:
    """What Prometheus makes of a histogram: it interpolates within the bucket of the rank."""
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    rank, below = share * len(values), 0
    for index, count in enumerate(counts):
        if below + count >= rank and count:
            if index == len(bounds):
                return bounds[-1]
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * (rank - below) / count
        below += count
    raise AssertionError("no values")


def quantiles(
    values: Callable[[FakeJob], list[float]],
    key: Callable[[FakeJob], str] = lambda _: "",
    names: Sequence[tuple[float, str]] = ((0.5, "median"), (0.95, "95th"), (0.99, "99th")),
    bounds: Sequence[float] = SECONDS,
) -> Expected:
    def expected(part: Part) -> dict[str, Any]:
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for job in part.jobs:
            groups[key(job)] += values(job)
        return {
            f"{group} {name}".strip(): Rate(quantile(share, found, bounds))
            for group, found in groups.items()
            for share, name in names
        }

    return expected


def per_second(value: float) -> Rate:
    return Rate(value / WINDOW_SECONDS)


def host_of(job: FakeJob) -> str:
    return job.card.host


def card_of(job: FakeJob) -> str:
    return job.card.name


def model_of(job: FakeJob) -> str:
    return job.model


def stage_seconds(jobs: Sequence[FakeJob]) -> float:
    return sum(sum(job.stages.values()) for job in jobs)


def stages(value: Callable[[list[float]], Any]) -> Expected:
    def expected(part: Part) -> dict[str, Any]:
        names = part.jobs[0].stages
        return {name: value([job.stages[name] for job in part.jobs]) for name in names}

    return expected


def stage_quantiles(part: Part) -> dict[str, Any]:
    found = {}
    for name in part.jobs[0].stages:
        one = quantiles(lambda job, name=name: [job.stages[name]], lambda _, name=name: name)
        found |= one(part)
    return found


def stages_of_models(part: Part) -> dict[str, Any]:
    found = {}
    for name in part.jobs[0].stages:
        one = quantiles(
            lambda job, name=name: [job.stages[name]],
            lambda job, name=name: f"{job.model} {name}",
            ((0.95, ""),),
        )
        found |= one(part)
    return found


def free_ratio(card: FakeCard) -> float:
    return card.free_bytes / card.total_bytes


def cumulative(values: Callable[[FakeJob], list[float]]) -> Expected:
    """The last buckets of a heat map: all values are in the one without a bound."""
    return lambda part: {"+Inf": float(sum(len(values(job)) for job in part.jobs))}


def memory(part: Part) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for host in HOSTS:
        cards = [card for card in part.cards if card.host == host]
        if cards:
            found[f"free {host}"] = sum(card.free_bytes for card in cards)
            found[f"own {host}"] = sum(card.own_bytes for card in cards if card.is_up)
            found[f"other {host}"] = sum(
                card.other_bytes + (0 if card.is_up else card.own_bytes) for card in cards
            )
            found[f"predicted peak {host}"] = PEAK
            found[f"measured peak {host}"] = PEAK
    return found


class _Peak:
    """The mean of the peaks of a second claim's decodes; checked by its own test."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and other > 0

    __hash__ = None  # type: ignore[assignment]


PEAK: Any = _Peak()
ANY: Any = type("Any", (), {"__eq__": lambda _, __: True, "__hash__": None})()
THE_FLEETS = {  # panels of the whole queue or of API processes: cards do not filter them
    "Queued": lambda: {"Queued": 9.0},
    "Running": lambda: {"Running": 6.0},
    "Oldest queued job": lambda: {"Oldest queued job": 102.0},
    "Queued and running": lambda: {"queued": 9.0, "running": 6.0},
    "GPUs without a worker": None,
    "Models": lambda: {"ltx": 1.0, "wan": 0.0},
    "Disk free": None,
    "Alerts": None,
    "Alerts firing": None,
    "What runs": None,
    "Budget left of the service levels": None,
    "Requests by status": lambda: {"200": per_second(8), "503": per_second(8)},
    "Requests by route": lambda: {"/generate": per_second(16)},
    "Time until the response begins, 95th percentile": None,
}
OPERATIONS: dict[str, Expected] = dict(
    [
        total("Workers up", lambda part: sum(card.is_up for card in part.cards)),
        total("Workers down", lambda part: sum(not card.is_up for card in part.cards)),
        total("Jobs failed", lambda part: 1 - len(part.done) / len(part.jobs)),
    ]
) | {
    "Throughput by outcome": by(lambda job: job.outcome, lambda jobs: Rate(12 * len(jobs))),
    "Videos an hour, by model": by(model_of, lambda jobs: Rate(12 * len(jobs)), only_done=True),
    "GPU-seconds a video": lambda part: {
        model: Rate(
            stage_seconds([job for job in part.jobs if job.model == model])
            / len([job for job in part.done if job.model == model])
        )
        for model in MODELS
    },
    "Frames a second": by(model_of, lambda jobs: per_second(sum(job.frames for job in jobs)), only_done=True),
    "Megapixels a second": by(
        model_of,
        lambda jobs: per_second(sum(job.frames * job.width * job.height for job in jobs) / 1e6),
        only_done=True,
    ),
    "Job duration by model": quantiles(lambda job: [job.seconds], model_of),
    "Time by stage": stage_quantiles,
    "Time by model and stage, 95th percentile": stages_of_models,
    "Mean time by stage": stages(lambda values: Rate(mean(values))),
    "Decode share of a job": by(
        model_of, lambda jobs: Rate(sum(job.stages["decoding"] for job in jobs) / stage_seconds(jobs))
    ),
    "Jobs not succeeded": lambda part: by(lambda job: f"{job.outcome}: {job.model}", len)(
        Part(part.cards, [job for job in part.jobs if not job.succeeded])
    ),
    "Failures by code": lambda part: {"out_of_memory": len(part.jobs) - len(part.done)},
    "Jobs back in the queue": by(lambda _: "worker_lost", len),
    "Decodes left to other devices": by(lambda _: "kept", len),
    "Out of memory": by(lambda _: "decoding", len),
    "Values that are not finite": by(lambda _: "latents", len),
    "Decodes that spill into host memory": by(lambda _: "slow_chunk", len),
    "Workers": of_cards(lambda card: float(card.is_up)),
    "Device saturation": lambda part: {card.name: ANY for card in part.cards if card.is_up},
    "GPU utilisation": of_cards(lambda card: card.utilization),
    "Worker restarts": lambda part: {card.name: 1.0 for card in part.cards if card.restarts and card.is_up},
}
OF_THE_QUEUE: dict[str, Expected] = {  # of all cards
    "Queue wait, 95th percentile": quantiles(
        lambda job: [job.queued_seconds] * 2, names=((0.95, "Queue wait, 95th percentile"),)
    ),
    "Queue wait": quantiles(lambda job: [job.queued_seconds] * 2),
    "Queue wait of each job": cumulative(lambda job: [job.queued_seconds] * 2),
    "Webhooks": lambda part: {"delivered": float(len(part.jobs))},
}
FLEET: dict[str, Expected] = dict(
    [
        total("Hosts", lambda part: len({card.host for card in part.cards if card.is_up}) or None),
        total("Workers up", lambda part: sum(card.is_up for card in part.cards)),
        total("Workers down", lambda part: sum(not card.is_up for card in part.cards)),
        total("Memory free", lambda part: min(free_ratio(card) for card in part.cards)),
    ]
) | {
    "Memory used": of_cards(lambda card: 1 - free_ratio(card)),
    "GPU-seconds a video": lambda part: (
        by(card_of, stage_seconds)(part)
        and {
            card.name: stage_seconds(jobs) / sum(job.succeeded for job in jobs)
            for card in part.cards
            if (jobs := [job for job in part.jobs if job.card == card])
        }
    ),
    "Busy workers": of_hosts(lambda _: ANY),
    "GPU utilisation": of_hosts(lambda cards: mean(card.utilization for card in cards)),
    "Videos an hour": by(host_of, lambda jobs: Rate(12 * len(jobs)), only_done=True),
    "Mean job duration": by(host_of, lambda jobs: Rate(mean(job.seconds for job in jobs))),
    "Measured / predicted peak, 95th percentile": quantiles(
        lambda job: [job.measured_bytes / job.predicted_bytes], host_of, ((0.95, ""),), RATIOS
    ),
    "Out of memory": by(card_of, len),
    "Jobs back in the queue": by(lambda job: f"{job.card.host}: worker_lost", len),
    "Worker restarts": OPERATIONS["Worker restarts"],
    "Workers": OPERATIONS["Workers"],
}
# Two panels of this board have the same title, so that each is one of these.
FLEET_TWICE: dict[tuple[str, str], Expected] = {
    ("Videos", "stat"): lambda part: {"Videos": len(part.done)},
    ("Videos", "bargauge"): by(card_of, len, only_done=True),
    ("Busy", "stat"): lambda _: {"Busy": ANY},
    ("Busy", "bargauge"): lambda part: {card.name: ANY for card in part.cards if card.is_up},
    ("Memory free", "timeseries"): of_hosts(lambda cards: sum(card.free_bytes for card in cards)),
}
MEMORY: dict[str, Expected] = dict(
    [
        total("Memory free", lambda part: min(free_ratio(card) for card in part.cards)),
        total("Decodes", lambda part: len(part.jobs)),
        total(
            "Decoded in one call",
            lambda part: sum(job.strategy == "batched" for job in part.jobs) / len(part.jobs),
        ),
    ]
) | {
    "Memory of $gpu, and what decodes needed": memory,
    "Strategy share": lambda part: by(lambda job: job.strategy, lambda jobs: len(jobs) / len(part.jobs))(
        part
    ),
    "Decodes by strategy and reason": by(lambda job: f"{job.strategy}: fastest_that_fits", len),
    "Chunk sizes": lambda part: {"+Inf": len(part.jobs)},
    "Measured / predicted peak": quantiles(
        lambda job: [job.measured_bytes / job.predicted_bytes],
        names=((0.05, "5th percentile"), (0.5, "median"), (0.95, "95th percentile")),
        bounds=RATIOS,
    ),
    "Measured / predicted": quantiles(
        lambda job: [job.measured_bytes / job.predicted_bytes],
        names=((0.5, "Measured / predicted"),),
        bounds=RATIOS,
    ),
    "Fallbacks": by(lambda job: f"{job.strategy} → tiled", len),
    "Decode time by strategy": quantiles(
        lambda job: [job.stages["decoding"]], lambda job: job.strategy, ((0.5, ""),)
    ),
}
MEMORY_TWICE: dict[tuple[str, str], Expected] = {
    ("Out of memory", "stat"): lambda part: {"Out of memory": len(part.jobs)},
    ("Out of memory", "timeseries"): by(lambda _: "decoding", len),
    ("Regret", "stat"): lambda part: {"Regret": sum(job.regret_seconds for job in part.jobs)},
    ("Regret", "timeseries"): by(host_of, lambda jobs: Rate(12 * sum(job.regret_seconds for job in jobs))),
}
KNOWN = {
    "operations": ({**OPERATIONS, **OF_THE_QUEUE}, {}),
    "fleet": (FLEET, FLEET_TWICE),
    "memory": (MEMORY, MEMORY_TWICE),
}


def expected_of(board: str, panel: dict[str, Any]) -> Expected:
    by_title, by_kind = KNOWN[board]
    found = by_kind.get((panel["title"], panel["type"])) or by_title.get(panel["title"])
    assert found, f"nobody says what the panel {panel['title']!r} of {board} must show"
    return found


PANELS = [
    pytest.param(name, panel, id=f"{name}: {panel['title']} ({panel['type']})")
    for name, board in grafana_boards.boards()
    for panel in grafana_boards.panels(board)
    if panel["type"] != "text"
]


@pytest.mark.parametrize(("board", "panel"), PANELS)
def test_a_panel_shows_the_true_number_of_a_card_of_a_host_and_of_all(
    shown: Shown, board: str, panel: dict[str, Any]
) -> None:
    fleet = shown.fleet
    title = panel["title"]
    of_service = board == "operations" and title in THE_FLEETS
    card = random.Random(f"{SEED} {title}").choice([one for one in fleet.cards if one.is_up])
    chosen = [
        ({"host": card.host, "gpu": card.uuid}, [card]),
        ({"host": card.host}, fleet.cards_of(card.host)),
        ({}, fleet.cards),
    ]
    for variables, cards in chosen:
        found = shown.panel(panel, variables)
        last = {legend: values[-1] for legend, values in found.items()}
        where = f"seed {SEED}, {variables}: {last}"
        if panel["type"] == "timeseries":
            assert all(any(values) for values in found.values()), f"always zero: {where}"
        if of_service:
            exact = THE_FLEETS[title]
            assert last or title in ("Alerts",), where
            wanted = None if exact is None else exact()
        else:
            everything = title in OF_THE_QUEUE and board == "operations"
            part_cards = fleet.cards if everything else cards
            part = Part(part_cards, [job for job in fleet.jobs if job.card in part_cards])
            wanted = expected_of(board, panel)(part)
        if wanted is None:
            continue
        if panel["type"] == "heatmap":
            last = {legend: value for legend, value in last.items() if legend in wanted}
        assert last.keys() == wanted.keys(), where
        for legend, value in last.items():
            near = wanted[legend]
            assert (near == value) if not isinstance(near, int | float) else near == pytest.approx(value), (
                legend,
                near,
                where,
            )


def test_each_mark_of_the_memory_picture_is_a_peak_of_that_card(shown: Shown) -> None:
    (panel,) = (
        panel
        for name, board in grafana_boards.boards()
        if name == "memory"
        for panel in grafana_boards.panels(board)
        if panel.get("repeat") == "gpu"
    )
    for card in shown.fleet.cards:
        found = shown.panel(panel, {"gpu": card.uuid})
        jobs = [job for job in shown.fleet.jobs if job.card == card]
        for name in ("predicted", "measured"):
            peaks = [getattr(job, f"{name}_bytes") for job in jobs]
            marks = found[f"{name} peak {card.host}"]
            assert min(peaks) * 0.99 <= min(marks), (SEED, card)
            assert max(marks) <= max(peaks) * 1.01, (SEED, card)
        assert len(found) == (5 if card.is_up else 4), "no other card is in the picture"


def test_a_gpu_is_chosen_by_the_name_that_people_know_and_filtered_by_its_uuid(shown: Shown) -> None:
    for _, board in grafana_boards.boards():
        (variable,) = (one for one in board["templating"]["list"] if one["name"] == "gpu")
        found = grafana_boards.values_of(shown.prometheus, variable)
        assert found == {card.name: card.uuid for card in shown.fleet.cards}


def test_the_handover_between_two_api_processes_is_in_no_number(shown: Shown) -> None:
    first, second = (f'fake_phase{{instance="{one}"}}' for one in instances(shown)[:2])
    assert HANDOVER == 3
    assert shown.prometheus.now(first)
    assert shown.prometheus.now(second)
    jobs = 'sum(framefit_jobs_total{host="alpha"})'
    assert [one["value"][1] for one in shown.prometheus.now(jobs)] == [str(len(shown.fleet.of_host("alpha")))]
    exporters = "sum(framefit_exporter)"
    assert [one["value"][1] for one in shown.prometheus.now(exporters)] == ["3"]


def instances(shown: Shown) -> list[str]:
    return [one["metric"]["instance"] for one in shown.prometheus.now("fake_phase")]


def test_the_marks_need_buckets_that_reach_the_largest_card(shown: Shown) -> None:
    assert max(job.measured_bytes for job in shown.fleet.jobs) <= max(BYTES)
