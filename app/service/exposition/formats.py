"""The two text formats of metrics, and which of them a scraper asks for. This file knows no metric.

Only OpenMetrics has exemplars: the id of a job beside what it counted.
"""

from collections.abc import Callable
from enum import StrEnum

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS_CONTENT_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector


class Exposition(StrEnum):
    """A format, by its media type."""

    PLAIN = "text/plain"
    OPENMETRICS = "application/openmetrics-text"

    @property
    def content_type(self) -> str:
        """The value of the header Content-Type."""
        return OPENMETRICS_CONTENT_TYPE if self is Exposition.OPENMETRICS else CONTENT_TYPE_LATEST

    @property
    def write(self) -> Callable[[Collector], bytes]:
        """The function that writes the metrics of a collector in this format."""
        return generate_openmetrics if self is Exposition.OPENMETRICS else generate_latest


def asked_for(accept: str) -> Exposition:
    """Return the format that a header Accept prefers: OpenMetrics only if it is named."""
    weights = {Exposition.PLAIN: 0.0, Exposition.OPENMETRICS: 0.0}
    for part in accept.split(","):
        name, *parameters = (each.strip() for each in part.split(";"))
        for known in weights:
            if name.lower() == known:
                weights[known] = max(weights[known], _weight(parameters))
    preferred = weights[Exposition.OPENMETRICS] >= weights[Exposition.PLAIN]
    return Exposition.OPENMETRICS if weights[Exposition.OPENMETRICS] > 0 and preferred else Exposition.PLAIN


def _weight(parameters: list[str]) -> float:
    for each in parameters:
        name, _, value = each.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
