"""Parts that both boards share: label matchers, PromQL over the window, common panels, annotations, colours.

`$window` is the range of rates and quantiles. Jobs last minutes, so the range of a few scrapes is too short.
"""

from panels import Annotation, Draw, Kind, Panel, Query, Style, Variable

SITE = 'instance=~"$instance"'
MODEL = f'{SITE},model=~"$model"'
GPU = f'{SITE},gpu=~"$gpu"'

INSTANCE = Variable("instance", "Instance", "label_values(framefit_jobs_queued, instance)")
WINDOW = Variable("window", "Window", choices=("5m", "15m", "1h", "6h"))
ANNOTATIONS = (
    Annotation(
        "Service starts",
        'process_start_time_seconds{job="framefit"} * 1000',
        "{{instance}} started",
        "blue",
        at_value=True,
    ),
    Annotation(
        "Alerts",
        'ALERTS{alertstate="firing",alertname=~"Framefit.*"}',
        "{{alertname}} {{gpu}}{{device}}",
        "red",
    ),
)

OUTCOMES = (
    Style("succeeded", "green"),
    Style("failed", "red"),
    Style("canceled", "yellow"),
)
STRATEGIES = (
    Style("batched", "green"),
    Style("chunked", "yellow"),
    Style("per_frame", "orange"),
    Style("tiled", "red"),
    Style("approximate_chunked", "light-purple"),
    Style("approximate_tiled", "purple"),
)
UP_DOWN = (("1", "up", "green"), ("0", "down", "red"))


def rate(metric: str, by: str, matchers: str = SITE) -> str:
    """Return PromQL for the per-second rate over the window, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[$window]))"


def gained(metric: str, by: str, matchers: str = SITE, span: str = "$window") -> str:
    """Return PromQL for a counter's increase in the span, summed by labels."""
    return f"sum by ({by}) (increase({metric}{{{matchers}}}[{span}]))"


def gained_exactly(metric: str, by: str, matchers: str = SITE, span: str = "$__range") -> str:
    """Return PromQL for a counter's increase in the span, including the first value of a new series.

    `increase` misses the value with which a series starts. The counters never fall, not even at a restart, so
    a difference is right. If the series is younger than the span, its whole value is the increase.
    """
    series = f"{metric}{{{matchers}}}"
    return f"sum by ({by}) ({series} - ({series} offset {span} or {series} * 0))"


def quantile(share: float, histogram: str, by: str = "", matchers: str = SITE) -> str:
    """Return PromQL for a quantile of a histogram over the window."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', labels, matchers)})"


def mean(histogram: str, by: str) -> str:
    """Return PromQL for the mean of a histogram over the window, by labels; no value without observations."""
    return f"{rate(histogram + '_sum', by)} / ({rate(histogram + '_count', by)} > 0)"


def stat(
    title: str,
    description: str,
    expr: str,
    unit: str = "short",
    thresholds: tuple[tuple[float, str], ...] = (),
    decimals: int | None = 0,
) -> Panel:
    """Return a panel with one number; six fit in a row."""
    return Panel(
        Kind.STAT,
        title,
        description,
        (Query(expr, title),),
        unit=unit,
        thresholds=thresholds,
        width=4,
        height=4,
        decimals=decimals,
    )


def series(
    title: str,
    description: str,
    *queries: tuple[str, str],
    unit: str = "short",
    draw: Draw = Draw.LINE,
    width: int = 8,
    height: int = 8,
    thresholds: tuple[tuple[float, str], ...] = (),
    styles: tuple[Style, ...] = (),
    maximum: float | None = None,
) -> Panel:
    """Return a panel of lines or areas over time, from (expression, legend) pairs."""
    return Panel(
        Kind.TIMESERIES,
        title,
        description,
        tuple(Query(expr, legend) for expr, legend in queries),
        unit=unit,
        draw=draw,
        width=width,
        height=height,
        thresholds=thresholds,
        styles=styles,
        maximum=maximum,
    )
