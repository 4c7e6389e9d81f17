"""The boards as Grafana asks them: panels, their queries with variables filled in, and the answers."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

FOLDER = Path(__file__).parents[2] / "docker" / "grafana" / "dashboards"


@dataclass(frozen=True, slots=True)
class Span:
    """A time range in seconds since 1970, seen every `step_seconds`; rates are over `window_seconds`."""

    start: float
    end: float
    step_seconds: float
    window_seconds: int
    scrape_seconds: float
    chosen: Mapping[str, str] = field(default_factory=dict)

    def fill(self, template: str) -> str:
        """The template with Grafana's and the boards' variables replaced.

        `chosen` has the values of those that filter; others filter nothing.
        """
        rate_seconds = max(4 * self.scrape_seconds, self.step_seconds + self.scrape_seconds)
        values = {
            "window": f"{self.window_seconds}s",
            "__range": f"{max(1, round(self.end - self.start))}s",
            "__rate_interval": f"{round(rate_seconds)}s",
            **dict.fromkeys(("instance", "host", "gpu", "model"), ".*"),
            **self.chosen,
        }
        filled = re.sub(r"\$(\w+)", lambda match: values[match[1]], template)
        assert "$" not in filled
        return filled


@dataclass(frozen=True, slots=True)
class Series:
    """One line of an answer: its legend, and (seconds since 1970, value) points."""

    legend: str
    points: tuple[tuple[float, float], ...]


class Prometheus:
    """A running Prometheus, asked over HTTP."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=300)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def now(self, expr: str) -> list[dict[str, Any]]:
        """Samples of an instant query at this moment."""
        return self._ask("query", {"query": expr})

    def at(self, expr: str, time: float) -> list[dict[str, Any]]:
        """Samples of an instant query at `time`."""
        return self._ask("query", {"query": expr, "time": str(time)})

    def over(self, expr: str, span: Span) -> list[dict[str, Any]]:
        """Series of a range query."""
        limits = {"start": str(span.start), "end": str(span.end), "step": str(span.step_seconds)}
        return self._ask("query_range", {"query": expr, **limits})

    def get(self, path: str) -> Any:
        """Data of any other API path."""
        answer = self._http.get(f"/api/v1/{path}")
        answer.raise_for_status()
        return answer.json()["data"]

    def _ask(self, path: str, fields: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = self._http.post(f"/api/v1/{path}", data=dict(fields))
        body = answer.json()
        assert body["status"] == "success", (fields["query"], body)
        result: list[dict[str, Any]] = body["data"]["result"]
        return result


def boards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and content of every board."""
    for path in sorted(FOLDER.glob("*.json")):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The board's panels without its row headings."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def values_of(prometheus: Prometheus, variable: Mapping[str, Any]) -> dict[str, str]:
    """What a variable may be set to, by the text that Grafana shows for it."""
    query: str = variable["query"]["query"]
    if query.startswith("label_values("):
        metric, label = query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        found = prometheus.now(f"group by ({label}) ({metric})")
        return {sample["metric"][label]: sample["metric"][label] for sample in found}
    text, value = (re.search(rf'(\w+)="\(\?<{name}>', variable["regex"]) for name in ("text", "value"))
    assert text, variable["regex"]
    assert value, variable["regex"]
    expr = query.removeprefix("query_result(").removesuffix(")").replace('host=~"$host"', "")
    return {sample["metric"][text[1]]: sample["metric"][value[1]] for sample in prometheus.now(expr)}


def answers(prometheus: Prometheus, panel: Mapping[str, Any], span: Span) -> list[Series]:
    """What the panel would show: its queries' series, in order, each finite point."""
    found = []
    for target in panel.get("targets", ()):
        expr = span.fill(target["expr"])
        if target["instant"] or panel["type"] in ("stat", "table"):
            samples = [{**sample, "values": [sample["value"]]} for sample in prometheus.at(expr, span.end)]
        else:
            samples = prometheus.over(expr, span)
        for sample in samples:
            points = tuple(
                (float(at), float(value)) for at, value in sample["values"] if value not in _NOT_FINITE
            )
            if points:
                found.append(Series(_legend(target["legendFormat"], sample["metric"]), points))
    return found


_NOT_FINITE = {"NaN", "+Inf", "-Inf"}


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), template)
