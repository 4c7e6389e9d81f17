"""Whether each configured model can be used, as a gauge. This file knows no HTTP and no files."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class ModelGauges(Collector):
    """`framefit_model_available`: 0 for a model in `faults()`, which maps models to reasons."""

    def __init__(self, models: Iterable[str], faults: Callable[[], Mapping[str, str]]) -> None:
        self._models = tuple(models)
        self._faults = faults

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering looks at no files."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Look at the models' files."""
        text = "Whether the model's files can be loaded, as far as their headers show."
        family = GaugeMetricFamily("framefit_model_available", text, labels=["model"])
        faults = self._faults()
        for name in self._models:
            family.add_metric([name], 0 if name in faults else 1)
        yield family
