"""The loops of this process and its data folder, as metrics. This file knows no HTTP and no database."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.loops import LoopState


class LoopGauges(Collector):
    """Reads the loops' states, and why nothing can be stored (None: it can), at each scrape."""

    def __init__(
        self, states: Callable[[], Sequence[LoopState]], storage_fault: Callable[[], str | None]
    ) -> None:
        self._states = states
        self._storage_fault = storage_fault

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering looks at nothing."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Look at the loops."""
        since = GaugeMetricFamily(
            "framefit_loop_last_turn_seconds",
            "Time since a loop of the API process last succeeded.",
            labels=["loop"],
        )
        silent = GaugeMetricFamily(
            "framefit_loop_silent", "Whether that time is too long: /healthz answers 503.", labels=["loop"]
        )
        failures = CounterMetricFamily(
            "framefit_loop_failures",
            "Turns of a loop that failed since the process started.",
            labels=["loop"],
        )
        for state in self._states():
            since.add_metric([state.name], round(state.last_turn_seconds, 3))
            silent.add_metric([state.name], int(state.is_silent))
            failures.add_metric([state.name], state.failures)
        yield from (since, silent, failures)
        yield GaugeMetricFamily(
            "framefit_data_folder_usable",
            "Whether jobs can be stored in the data folder: it is there, writable, and not full.",
            value=int(self._storage_fault() is None),
        )
