"""Draws the boards from a running Prometheus as PNG, in their own layout and colours, without Grafana.

    python tests/integration/draw_boards.py --prometheus http://127.0.0.1:9090 --minutes 10

    python tests/integration/draw_boards.py --fleet

Writes `board-NAME.png` into `docs/pictures`, or into the folder that `--out` names. It follows the panels'
drawing styles, not Grafana's pixels. With `--fleet` it draws the hour of a fake fleet of 24 cards, of which
the memory board shows one. Needs matplotlib.
"""

import argparse
import math
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from grafana_boards import Prometheus, Series, Span, answers, boards, panels

mpl.use("Agg")
from matplotlib import dates, ticker
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLORS = {
    "text": "#444444",
    "green": "#56a64b",
    "yellow": "#e0b400",
    "orange": "#ff780a",
    "red": "#e02f44",
    "blue": "#3274d9",
}
PALETTE = ("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0")
COLUMN_INCHES, ROW_INCHES = 0.72, 0.36
ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"


def draw(name: str, board: dict[str, Any], prometheus: Prometheus, span: Span, out: Path) -> Path:
    """Draw one board; returns the file.

    A panel that is repeated for each device is drawn once, for the devices that `span` chooses.
    """
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    width, height = 24 * COLUMN_INCHES, (rows + 2) * ROW_INCHES
    figure = plt.figure(figsize=(width, height), facecolor="#f4f5f5")
    figure.text(0.01, 1 - 0.9 * ROW_INCHES / height, board["title"], fontsize=15, weight="bold", va="center")
    for heading in (panel for panel in board["panels"] if panel["type"] == "row"):
        y = 1 - (heading["gridPos"]["y"] + 2.6) * ROW_INCHES / height
        figure.text(0.01, y, heading["title"], fontsize=10, weight="bold", va="center", color="#444444")
    for panel in panels(board):
        grid = panel["gridPos"]
        left = (grid["x"] + 0.85) / 24
        bottom = 1 - (grid["y"] + 2 + grid["h"] - 1.1) * ROW_INCHES / height
        box = (left, bottom, (grid["w"] - 1.2) / 24, (grid["h"] - 2.1) * ROW_INCHES / height)
        axes = figure.add_axes(box)
        title = re.sub(r"\$(\w+)", lambda match: span.chosen.get(match[1], "each card"), panel["title"])
        axes.set_title(title, fontsize=9, loc="left", weight="bold")
        _DRAW[panel["type"]](axes, panel, answers(prometheus, panel, span), span)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"board-{name}.png"
    figure.savefig(path, dpi=80, facecolor=figure.get_facecolor())
    plt.close(figure)
    return path


def _color(panel: dict[str, Any], legend: str, index: int) -> str:
    for override in panel["fieldConfig"]["overrides"]:
        if re.match(override["matcher"]["options"].strip("/"), legend):
            fixed: str = override["properties"][0]["value"]["fixedColor"]
            return COLORS.get(fixed, fixed)
    return PALETTE[index % len(PALETTE)]


def _is_mark(panel: dict[str, Any], legend: str) -> bool:
    overrides = panel["fieldConfig"]["overrides"]
    marks = [
        item for item in overrides if any(prop["id"] == "custom.pointSize" for prop in item["properties"])
    ]
    return any(re.match(item["matcher"]["options"].strip("/"), legend) for item in marks)


def _timeseries(axes: Axes, panel: dict[str, Any], found: Sequence[Series], span: Span) -> None:
    custom = panel["fieldConfig"]["defaults"]["custom"]
    stacking = custom["stacking"]["mode"]
    areas = [item for item in found if stacking != "none" and not _is_mark(panel, item.legend)]
    _areas(axes, panel, areas, span, in_percent=stacking == "percent")
    for index, item in enumerate(found):
        if item not in areas:
            clock, values = _clock([at for at, _ in item.points]), [value for _, value in item.points]
            look = {"marker": "o", "ls": "", "ms": 6} if _is_mark(panel, item.legend) else {"lw": 1.8}
            axes.plot(
                clock, values, color=_color(panel, item.legend, index), label=item.legend, zorder=3, **look
            )
    _scales(axes, panel, span)
    if found:
        many = len(found) > 8
        axes.legend(fontsize=5 if many else 7, ncol=3 if many else 1, loc="upper left", framealpha=0.7)
    else:
        _no_data(axes)


def _areas(
    axes: Axes, panel: dict[str, Any], found: Sequence[Series], span: Span, *, in_percent: bool
) -> None:
    """Areas on top of each other on the span's own steps; a missing point counts as nothing."""
    steps = range(int((span.end - span.start) / span.step_seconds) + 1)
    clock = _clock([span.start + step * span.step_seconds for step in steps])
    heights = []
    for item in found:
        by_step = {round((at - span.start) / span.step_seconds): value for at, value in item.points}
        heights.append([by_step.get(step, 0.0) for step in steps])
    totals = [sum(column) for column in zip(*heights, strict=True)]
    floor = [0.0] * len(clock)
    for index, (item, height) in enumerate(zip(found, heights, strict=True)):
        if in_percent:
            height = [part / whole if whole else 0.0 for part, whole in zip(height, totals, strict=True)]
        top = [low + part for low, part in zip(floor, height, strict=True)]
        color = _color(panel, item.legend, index)
        axes.fill_between(clock, floor, top, color=color, alpha=0.75, label=item.legend, step="post", lw=0)
        floor = top


def _scales(axes: Axes, panel: dict[str, Any], span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    axes.set_ylim(0, defaults.get("max"))
    for step in defaults["thresholds"]["steps"][1:]:
        if axes.get_ylim()[1] > step["value"] > 0:
            axes.axhline(step["value"], color=COLORS["red"], ls="--", lw=1)
    if defaults["unit"] == "bytes":
        axes.yaxis.set_major_locator(ticker.MultipleLocator(2 ** round(math.log2(axes.get_ylim()[1] / 5))))
    axes.yaxis.set_major_formatter(lambda value, _at: _text(value, defaults["unit"]))
    axes.set_xlim(*_clock([span.start, span.end]))
    _time_axis(axes)
    axes.grid(alpha=0.3)


def _time_axis(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=5))
    axes.tick_params(labelsize=7)


def _clock(times: Sequence[float]) -> list[datetime]:
    return [datetime.fromtimestamp(at, UTC) for at in times]


def _stat(axes: Axes, panel: dict[str, Any], found: Sequence[Series], _span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    axes.axis("off")
    if not found:
        _no_data(axes)
        return
    value = found[0].points[-1][1]
    steps = [
        step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]
    ]
    text = _text(value, defaults["unit"], defaults.get("decimals"))
    axes.text(0.5, 0.5, text, fontsize=22, ha="center", va="center", color=COLORS[steps[-1]["color"]])


def _bars(axes: Axes, panel: dict[str, Any], found: Sequence[Series], _span: Span) -> None:
    ordered = sorted(found, key=lambda item: item.points[-1][1])
    axes.axis("off")
    largest = max((item.points[-1][1] for item in ordered), default=1.0)
    for index, item in enumerate(ordered):
        value = item.points[-1][1]
        axes.barh(index, value, height=0.6, color=_color(panel, item.legend, index), alpha=0.8)
        text = _text(value, panel["fieldConfig"]["defaults"]["unit"], 0)
        size = 6 if len(ordered) > 12 else 8
        axes.text(largest * 0.01, index, f"{item.legend}: {text}", fontsize=size, va="center")
    axes.set_ylim(min(-0.5, len(ordered) - 5.5), len(ordered) - 0.5)
    if not ordered:
        _no_data(axes)


def _heatmap(axes: Axes, _panel: dict[str, Any], found: Sequence[Series], _span: Span) -> None:
    ordered = sorted(found, key=lambda item: float(item.legend))
    if not ordered:
        _no_data(axes)
        return
    times = sorted({at for item in ordered for at, _ in item.points})
    rows, below = [], dict.fromkeys(times, 0.0)
    for item in ordered:
        level = dict(item.points)
        rows.append([max(0.0, level.get(at, 0.0) - below[at]) for at in times])
        below = {at: level.get(at, below[at]) for at in times}
    axes.pcolormesh(_clock(times), range(len(rows)), rows, cmap="Greens", shading="nearest")
    axes.set_yticks(range(len(rows)), [item.legend for item in ordered], fontsize=7)
    _time_axis(axes)


def _states(axes: Axes, panel: dict[str, Any], found: Sequence[Series], span: Span) -> None:
    options = panel["fieldConfig"]["defaults"]["mappings"]
    colors = {value: known["color"] for item in options for value, known in item["options"].items()}
    for index, item in enumerate(found):
        for at, value in item.points:
            axes.barh(index, span.step_seconds, left=at, color=COLORS[colors[f"{value:g}"]], alpha=0.8)
    axes.set_yticks([])
    for index, item in enumerate(found):
        axes.text(span.start, index, f" {item.legend}", fontsize=7, va="center")
    axes.set_xlim(span.start, span.end)
    axes.set_xticks([])
    if not found:
        _no_data(axes)


def _table(axes: Axes, _panel: dict[str, Any], found: Sequence[Series], _span: Span) -> None:
    axes.axis("off")
    lines = [one.legend for one in found] or ["none"]
    axes.text(0, 1, "\n".join(lines[:12]), fontsize=8, va="top", transform=axes.transAxes)


def _words(axes: Axes, panel: dict[str, Any], _found: Sequence[Series], _span: Span) -> None:
    axes.axis("off")
    paragraphs = panel["options"]["content"].replace("*", "").split("\n\n")
    lines = [
        textwrap.fill(" ".join(item.split()), 62)
        for text in paragraphs
        for item in re.split(r"\n(?=- )", text)
    ]
    axes.text(0, 1, "\n".join(lines), fontsize=7.5, va="top", transform=axes.transAxes)


def _no_data(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", ha="center", va="center", color="#999999", transform=axes.transAxes)


def _text(value: float, unit: str, decimals: int | None = None) -> str:
    if unit == "bytes":
        return f"{value / 2**30:.1f} GiB" if abs(value) >= 2**30 else f"{value / 2**20:.0f} MiB"
    if unit == "percentunit":
        return f"{value * 100:.{decimals or 0}f} %"
    number = f"{value:g}" if decimals is None else f"{value:.{decimals}f}"
    return f"{number} s" if unit == "s" else number


_DRAW = {
    "timeseries": _timeseries,
    "stat": _stat,
    "bargauge": _bars,
    "heatmap": _heatmap,
    "state-timeline": _states,
    "table": _table,
    "text": _words,
}


def draw_fleet(out: Path) -> None:
    """Draw the boards of a fake fleet from a real Prometheus that holds an hour of it."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from fleet_hour import fleet_hour  # needs the service's own packages

    with fleet_hour() as (prometheus, end, card):
        whole = Span(end - 3600, end, 15, 900, 15)
        for name, board in boards():
            span = replace(whole, chosen={"gpu": card.uuid}) if name == "memory" else whole
            draw(name, board, prometheus, span, out)


def main() -> None:
    """Draw every board of a running Prometheus."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--window", type=int, default=300, help="seconds that rates are taken over")
    parser.add_argument("--scrape", type=float, default=5, help="scrape interval in seconds")
    parser.add_argument("--fleet", action="store_true", help="draw a fake fleet of its own")
    parser.add_argument("--out", type=Path, default=PICTURES)
    given = parser.parse_args()
    if given.fleet:
        draw_fleet(given.out)
        return
    end = time.time()
    seconds = given.minutes * 60
    span = Span(end - seconds, end, max(given.scrape, seconds / 400), given.window, given.scrape)
    with closing(Prometheus(given.prometheus)) as prometheus:
        for name, board in boards():
            draw(name, board, prometheus, span, given.out)


if __name__ == "__main__":
    main()
