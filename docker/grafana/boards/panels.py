"""The types that describe boards: panels, queries, variables. Knows no metric and no JSON."""

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """The panel types of Grafana that the boards use."""

    TIMESERIES = "timeseries"
    STAT = "stat"
    HEATMAP = "heatmap"
    BARGAUGE = "bargauge"
    STATE = "state-timeline"
    TABLE = "table"
    TEXT = "text"


class Draw(StrEnum):
    """How a time series panel draws its lines."""

    LINE = "line"
    STACK = "stack"  # areas on top of each other
    SHARE = "share"  # areas on top of each other, in percent of their sum
    BARS = "bars"  # stacked bars


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression; `legend` is Grafana's legend template. `exemplars`: show jobs behind points."""

    expr: str
    legend: str
    instant: bool = False
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Style:
    """Style of series whose name starts with `name`. `over_stack` draws marks over stacked areas."""

    name: str
    color: str
    over_stack: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `thresholds` are ascending (start value, colour); below the first it is `base`.

    `repeat` names the variable of which each chosen value gets a panel of its own, `per_row` in a row.
    `links` are pairs of title and address. `hidden` are the columns that a table leaves out.
    """

    kind: Kind
    title: str
    description: str
    queries: tuple[Query, ...] = ()
    unit: str = "short"
    draw: Draw = Draw.LINE
    width: int = 8
    height: int = 8
    base: str = "green"
    thresholds: tuple[tuple[float, str], ...] = ()
    styles: tuple[Style, ...] = ()
    mappings: tuple[tuple[str, str, str], ...] = ()  # (value, text, colour)
    minimum: float | None = 0
    maximum: float | None = None
    decimals: int | None = None
    content: str = ""  # of a text panel, in Markdown
    repeat: str = ""
    per_row: int = 3
    links: tuple[tuple[str, str], ...] = ()
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """A template variable: what `query` finds, one of `choices`, or a `text` that may be edited.

    `pattern` takes names and values out of what a query finds, with the groups `text` and `value`.
    """

    name: str
    label: str
    query: str = ""
    choices: tuple[str, ...] = ()
    pattern: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Annotation:
    """Marks on the time axis. With `at_value`, the expression's value is the time in ms since 1970."""

    name: str
    expr: str
    title: str
    color: str
    at_value: bool = False


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard: rows of panels, laid out left to right, top to bottom."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...] = field(default=())
