"""Converts boards to Grafana's JSON, schema 39 of Grafana 11. Later versions migrate it automatically."""

from collections.abc import Sequence
from typing import Any

from panels import Annotation, Board, Draw, Kind, Panel, Query, Style, Variable

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
GRID_COLUMNS = 24


def board_json(board: Board) -> Json:
    """Return the board as JSON that Grafana imports and provisions."""
    return {
        "annotations": {"list": [_annotation(item) for item in board.annotations]},
        "description": board.description,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "links": [_link()],
        "panels": _layout(board.rows),
        "refresh": "10s",
        "schemaVersion": 39,
        "tags": ["framefit"],
        "templating": {"list": [_datasource(), *map(_variable, board.variables)]},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": board.title,
        "uid": board.uid,
        "version": 1,
    }


def _layout(rows: Sequence[tuple[str, tuple[Panel, ...]]]) -> list[Json]:
    placed: list[Json] = []
    top = 0
    for title, panels in rows:
        row = {"type": "row", "title": title, "collapsed": False, "panels": []}
        placed.append(
            {**row, "id": len(placed) + 1, "gridPos": {"h": 1, "w": GRID_COLUMNS, "x": 0, "y": top}}
        )
        top += 1
        left = line_height = 0
        for panel in panels:
            if left + panel.width > GRID_COLUMNS:
                top, left, line_height = top + line_height, 0, 0
            grid = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            placed.append({**_panel(panel), "id": len(placed) + 1, "gridPos": grid})
            left += panel.width
            line_height = max(line_height, panel.height)
        top += line_height
    return placed


def _panel(panel: Panel) -> Json:
    base: Json = {"type": panel.kind.value, "title": panel.title, "description": panel.description}
    if panel.kind is Kind.TEXT:
        return {**base, "options": {"mode": "markdown", "content": panel.content}}
    if panel.repeat:
        base |= {"repeat": panel.repeat, "repeatDirection": "h", "maxPerRow": panel.per_row}
    if panel.links:
        base["links"] = [{"title": title, "url": url, "targetBlank": True} for title, url in panel.links]
    if panel.kind is Kind.TABLE:
        excluded = dict.fromkeys(("Time", "Value", *panel.hidden), True)
        base["transformations"] = [{"id": "organize", "options": {"excludeByName": excluded}}]
    return {
        **base,
        "datasource": DATASOURCE,
        "targets": [_target(query, chr(65 + i), panel.kind) for i, query in enumerate(panel.queries)],
        "fieldConfig": {
            "defaults": _field_defaults(panel),
            "overrides": [_override(style) for style in panel.styles],
        },
        "options": _OPTIONS[panel.kind],
    }


def _target(query: Query, ref: str, kind: Kind) -> Json:
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": {Kind.HEATMAP: "heatmap", Kind.TABLE: "table"}.get(kind, "time_series"),
        "instant": query.instant,
        "range": not query.instant,
        "exemplar": query.exemplars,
    }


_LEGEND: Json = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
_REDUCE: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[Kind, Json] = {
    Kind.TIMESERIES: {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    Kind.STAT: {
        "reduceOptions": _REDUCE,
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
    },
    Kind.HEATMAP: {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Greens",
            "steps": 32,
            "exponent": 0.5,
            "fill": "dark-green",
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False},
    },
    Kind.BARGAUGE: {
        "reduceOptions": _REDUCE,
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
        "minVizHeight": 14,
        "minVizWidth": 8,
        "maxVizHeight": 28,
        "namePlacement": "auto",
        "sizing": "auto",
        "valueMode": "color",
    },
    Kind.TABLE: {"showHeader": True, "cellHeight": "sm"},
    Kind.STATE: {
        "alignValue": "left",
        "legend": _LEGEND,
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "tooltip": {"mode": "single", "sort": "none"},
    },
}


def _field_defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": panel.base, "value": None}]
    steps += [{"color": color, "value": value} for value, color in panel.thresholds]
    by_value = panel.kind in (Kind.STAT, Kind.STATE)
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if by_value else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "color": color, "index": index}}}
            for index, (value, text, color) in enumerate(panel.mappings)
        ],
        "custom": _custom(panel),
    }
    limits = {"min": panel.minimum, "max": panel.maximum, "decimals": panel.decimals}
    return defaults | {name: value for name, value in limits.items() if value is not None}


def _custom(panel: Panel) -> Json:
    if panel.kind is Kind.STATE:
        return {"fillOpacity": 80, "lineWidth": 0}
    if panel.kind is not Kind.TIMESERIES:
        return {}
    stacking = {Draw.LINE: "none", Draw.SHARE: "percent"}.get(panel.draw, "normal")
    return {
        "drawStyle": "bars" if panel.draw is Draw.BARS else "line",
        "fillOpacity": {Draw.LINE: 8, Draw.BARS: 80}.get(panel.draw, 55),
        "lineInterpolation": "stepAfter" if panel.draw in (Draw.STACK, Draw.SHARE) else "linear",
        "lineWidth": 1 if panel.draw is not Draw.LINE else 2,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": stacking},
        "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
    }


def _override(style: Style) -> Json:
    properties: list[Json] = [{"id": "color", "value": {"mode": "fixed", "fixedColor": style.color}}]
    if style.over_stack:
        properties += [
            {"id": "custom.stacking", "value": {"group": "A", "mode": "none"}},
            {"id": "custom.fillOpacity", "value": 0},
            {"id": "custom.lineWidth", "value": 4},
            {"id": "custom.showPoints", "value": "always"},
            {"id": "custom.pointSize", "value": 8},
        ]
    return {"matcher": {"id": "byRegexp", "options": f"/^{style.name}/"}, "properties": properties}


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def _variable(variable: Variable) -> Json:
    common: Json = {"name": variable.name, "label": variable.label, "hide": 0, "skipUrlSync": False}
    if variable.choices:
        options = [
            {"selected": index == 0, "text": choice, "value": choice}
            for index, choice in enumerate(variable.choices)
        ]
        values = ",".join(variable.choices)
        return {
            **common,
            "type": "custom",
            "query": values,
            "current": options[0],
            "options": options,
            "multi": False,
            "includeAll": False,
        }
    if variable.text:
        chosen = {"selected": False, "text": variable.text, "value": variable.text}
        return {
            **common,
            "type": "textbox",
            "query": variable.text,
            "current": chosen,
            "options": [chosen],
        }
    return {
        **common,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": variable.query,
        "query": {"query": variable.query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "refresh": 2,
        "regex": variable.pattern,
        "sort": 1,
    }


def _annotation(annotation: Annotation) -> Json:
    return {
        "name": annotation.name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": annotation.color,
        "expr": annotation.expr,
        "titleFormat": annotation.title,
        "useValueForTime": annotation.at_value,
        "step": "15s",
    }


def _link() -> Json:
    return {
        "title": "Framefit boards",
        "type": "dashboards",
        "tags": ["framefit"],
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }
