"""Parts that the boards share: label matchers, PromQL over the window, common panels, annotations, colours.

`$window` is the range of rates and quantiles. Jobs last minutes, so the range of a few scrapes is too short.
A series without a value above zero is left out, so that a legend names only what happened.
"""

from panels import Annotation, Draw, Kind, Panel, Query, Style, Variable

SITE = 'instance=~"$instance"'
MODEL = f'{SITE},model=~"$model"'
CARD = f'{SITE},host=~"$host",gpu=~"$gpu"'
JOB = f'{CARD},model=~"$model"'  # what a job did on a device

INSTANCE = Variable("instance", "Instance", "label_values(framefit_exporter, instance)")
HOST = Variable("host", "Host", "label_values(framefit_device_info, host)")
# A card's value is its UUID, which is unique; it is shown as the host's name and the device's.
GPU = Variable(
    "gpu",
    "GPU",
    'query_result(label_join(group by (host, gpu, device) (framefit_device_info{host=~"$host"}),'
    ' "card", " ", "host", "device"))',
    pattern='/card="(?<text>[^"]+)|gpu="(?<value>[^"]+)/g',
)
MODEL_NAME = Variable("model", "Model", "label_values(framefit_jobs_total, model)")
PAGE = Variable("page", "Address of the service", text="http://127.0.0.1:8000")
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
        "{{alertname}} {{host}} {{device}} {{instance}}",
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


JOBS_LINKS = (
    ("The page's list of jobs", "${page}/"),
    ("Queued jobs, as JSON", "${page}/jobs?status=queued"),
)
FAILED_LINKS = (
    ("The page's list of jobs", "${page}/"),
    ("Failed jobs, as JSON", "${page}/jobs?status=failed"),
)


def rate(metric: str, by: str, matchers: str = SITE) -> str:
    """Return PromQL for the per-second rate over the window, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[$window])) > 0"


def gained(metric: str, by: str, matchers: str = SITE, span: str = "$window") -> str:
    """Return PromQL for a counter's increase in the span, summed by labels, where it is above zero."""
    return f"sum by ({by}) ({_gains(metric, matchers, span)}) > 0"


def gained_in_all(metric: str, matchers: str = SITE, span: str = "$window") -> str:
    """Return PromQL for the sum of a counter's increase in the span."""
    return f"sum({_gains(metric, matchers, span)})"


def _gains(metric: str, matchers: str, span: str) -> str:
    """Return PromQL for each series' increase in the span, including the first value of a new series.

    `increase` misses the value with which a series starts. The counters never fall, not even at a restart,
    so a difference is right. If the series is younger than the span, its whole value is the increase. If no
    process showed the counters at the span's beginning, their last value in the five minutes before is
    taken. Of several API processes another one may have shown them then, so the instance is left out.
    """
    now = f"sum without (instance) ({metric}{{{matchers}}})"
    then = f"sum without (instance) ({metric}{{{matchers}}} offset {span})"
    before = f"max_over_time(({now})[5m:30s] offset {span})"
    return f"{now} - ({then} or {before} or {now} * 0)"


def share(metric: str, by: str, matchers: str) -> str:
    """Return PromQL for each label's part, 0 to 1, of a counter's increase in the window."""
    return f"({gained(metric, by, matchers)}) / scalar({gained_in_all(metric, matchers)})"


def quantile(part: float, histogram: str, by: str = "", matchers: str = SITE) -> str:
    """Return PromQL for a quantile of a histogram over the window; no value without observations."""
    labels = f"le, {by}" if by else "le"
    buckets = f"sum by ({labels}) (rate({histogram}_bucket{{{matchers}}}[$window]))"
    return f"histogram_quantile({part}, {buckets}) >= 0"


def mean(histogram: str, by: str, matchers: str = SITE) -> str:
    """Return PromQL for the mean of a histogram over the window, by labels; no value without observations."""
    return f"({rate(histogram + '_sum', by, matchers)}) / ({rate(histogram + '_count', by, matchers)})"


def by_card(expr: str) -> str:
    """Return PromQL that gives the name of its device to each value of `expr`, which has host and gpu."""
    return (
        f"({expr}) * on (host, gpu) group_left (device)"
        f" group by (host, gpu, device) (framefit_device_info{{{CARD}}})"
    )


NEUTRAL = "text"  # the colour of a number that is neither good nor bad


# A restart may be seen by one API process before it and by another after it.
_STARTS = f"max by (host, device) (framefit_worker_start_time_seconds{{{CARD}}})"
RESTARTS = f"changes(({_STARTS})[$window:]) > 0"


def stat(
    title: str,
    description: str,
    expr: str,
    unit: str = "short",
    thresholds: tuple[tuple[float, str], ...] = (),
    decimals: int | None = 0,
    base: str = "green",
    links: tuple[tuple[str, str], ...] = (),
    width: int = 4,
) -> Panel:
    """Return a panel with one number."""
    return Panel(
        Kind.STAT,
        title,
        description,
        (Query(expr, title),),
        unit=unit,
        thresholds=thresholds,
        width=width,
        height=4,
        decimals=decimals,
        base=base,
        links=links,
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
    links: tuple[tuple[str, str], ...] = (),
    exemplars: bool = False,
    repeat: str = "",
) -> Panel:
    """Return a panel of lines or areas over time, from (expression, legend) pairs."""
    return Panel(
        Kind.TIMESERIES,
        title,
        description,
        tuple(Query(expr, legend, exemplars=exemplars) for expr, legend in queries),
        unit=unit,
        draw=draw,
        width=width,
        height=height,
        thresholds=thresholds,
        styles=styles,
        maximum=maximum,
        links=links,
        repeat=repeat,
    )


def bars(
    title: str,
    description: str,
    expr: str,
    legend: str,
    unit: str = "short",
    maximum: float | None = None,
    width: int = 6,
    height: int = 12,
    styles: tuple[Style, ...] = (),
    decimals: int | None = None,
) -> Panel:
    """Return a panel with one bar for each series, of now."""
    return Panel(
        Kind.BARGAUGE,
        title,
        description,
        (Query(expr, legend, instant=True),),
        unit=unit,
        width=width,
        height=height,
        styles=styles,
        maximum=maximum,
        decimals=decimals,
    )


def workers_up(width: int = 4) -> Panel:
    """Return the number of workers that are up."""
    return stat(
        "Workers up",
        "Workers with a recent heartbeat; one for each device.",
        f"sum(framefit_worker_up{{{CARD}}})",
        base="red",
        thresholds=((1, "green"),),
        width=width,
    )


def workers_down(width: int = 4) -> Panel:
    """Return the number of devices whose worker is down."""
    return stat(
        "Workers down",
        "Devices whose worker sent no heartbeat, but did within a day.",
        f"sum(1 - framefit_worker_up{{{CARD}}})",
        thresholds=((1, "red"),),
        width=width,
    )


def heat(title: str, description: str, expr: str, width: int = 8) -> Panel:
    """Return a heat map of a histogram's buckets."""
    return Panel(Kind.HEATMAP, title, description, (Query(expr, "{{le}}", exemplars=True),), width=width)


def states(title: str, description: str, expr: str, legend: str, width: int = 8, height: int = 6) -> Panel:
    """Return a panel with a line of up and down for each series."""
    return Panel(
        Kind.STATE,
        title,
        description,
        (Query(expr, legend),),
        mappings=UP_DOWN,
        width=width,
        height=height,
        maximum=1,
    )
