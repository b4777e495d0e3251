"""Panels and dashboards as Grafana's JSON has them.

The classic model with schema version 39, that of Grafana 10.4; newer ones, up to 13, migrate it as they load
it. Laws: every panel has a title, a description and a unit; where there was no traffic a panel says so, and
shows neither zero nor nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]

SCHEMA_VERSION = 39
GRID_WIDTH = 24
TAG = "laneway"
DATASOURCE: JSON = {"type": "prometheus", "uid": "${datasource}"}

SECONDS = "s"
RATIO = "percentunit"
BYTES = "bytes"
BYTES_A_SECOND = "Bps"
REQUESTS_A_SECOND = "reqps"
A_SECOND = "ops"
COUNT = "short"

_NO_TRAFFIC: JSON = {
    "type": "special",
    "options": {"match": "null+nan", "result": {"index": 0, "text": "No traffic"}},
}


# Parts of a panel ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One expression of a panel."""

    expression: str
    legend: str = "__auto"
    """As Grafana fills it in: ``{{lane}}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Colours of a value: green below ``warn``, red from ``bad`` on."""

    warn: float
    bad: float

    def to_json(self) -> JSON:
        """As thresholds."""
        bounds = {"green": None, "orange": self.warn, "red": self.bad}
        steps = [{"color": color, "value": bound} for color, bound in bounds.items()]
        return {"mode": "absolute", "steps": steps}


_NEUTRAL: JSON = {"mode": "absolute", "steps": [{"color": "blue", "value": None}]}


def _panel(kind: str, title: str, description: str, queries: Sequence[Query], *, is_instant: bool) -> JSON:
    targets: list[JSON] = [
        {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expression,
            "instant": is_instant,
            "legendFormat": query.legend,
            "range": not is_instant,
            "refId": chr(ord("A") + index),
        }
        for index, query in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": targets,
    }


def _override(name: str, **properties: Any) -> JSON:
    """What one series, or one column, has of its own."""
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _fixed(color: str) -> JSON:
    return {"fixedColor": color, "mode": "fixed"}


# Panels ----------------------------------------------------------------------------------------------------


def stat(
    title: str,
    description: str,
    expression: str,
    *,
    unit: str,
    steps: Steps | None = None,
    decimals: int | None = None,
    no_value: str = "No traffic",
) -> JSON:
    """One number with its recent past; without ``steps`` it judges nothing."""
    panel = _panel("stat", title, description, [Query(expression=expression)], is_instant=False)
    defaults: JSON = {
        "color": {"mode": "thresholds"},
        "mappings": [_NO_TRAFFIC],
        "noValue": no_value,
        "thresholds": steps.to_json() if steps else _NEUTRAL,
        "unit": unit,
    }
    defaults |= {"decimals": decimals} if decimals is not None else {}
    panel["fieldConfig"] = {"defaults": defaults, "overrides": []}
    panel["options"] = {
        "colorMode": "value" if steps else "none",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "value",
    }
    return panel


def timeseries(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    is_stacked: bool = False,
    is_logarithmic: bool = False,
    max_value: float | None = None,
    colors: Mapping[str, str] | None = None,
    right_axis: Mapping[str, str] | None = None,
) -> JSON:
    """Lines over time.

    Args:
        title: What is shown.
        description: What it means, and what to look at when it is bad.
        queries: The lines.
        unit: Of the left axis.
        is_stacked: Whether areas lie on one another, for parts of a whole.
        is_logarithmic: Whether the axis is, for latencies that span decades.
        max_value: The axis' end, where there is a natural one.
        colors: Of lines by legend.
        right_axis: Units of the lines, by legend, that have the axis on the right.
    """
    panel = _panel("timeseries", title, description, queries, is_instant=False)
    custom: JSON = {
        "drawStyle": "line",
        "fillOpacity": 30 if is_stacked else 8,
        "lineWidth": 1,
        "scaleDistribution": {"log": 10, "type": "log"} if is_logarithmic else {"type": "linear"},
        "showPoints": "never",
        "stacking": {"group": "A", "mode": "normal" if is_stacked else "none"},
    }
    defaults: JSON = {
        "color": {"mode": "palette-classic"},
        "custom": custom,
        "mappings": [_NO_TRAFFIC],
        "noValue": "No traffic",
        "unit": unit,
    }
    defaults |= {} if is_logarithmic else {"min": 0}
    defaults |= {"max": max_value} if max_value is not None else {}
    overrides = [_override(name, color=_fixed(color)) for name, color in (colors or {}).items()]
    overrides += [
        _override(name, unit=own, **{"custom.axisPlacement": "right", "custom.fillOpacity": 0})
        for name, own in (right_axis or {}).items()
    ]
    panel["fieldConfig"] = {"defaults": defaults, "overrides": overrides}
    panel["options"] = {
        "legend": {
            "calcs": ["mean", "max", "lastNotNull"],
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One number of each row of a table."""

    name: str
    expression: str
    unit: str


def table(title: str, description: str, labels: Mapping[str, str], columns: Sequence[Column]) -> JSON:
    """The latest values, joined on what the labels say.

    Args:
        title: What is shown.
        description: What it means.
        labels: Names of the first columns, by label; every expression is aggregated by exactly these.
        columns: The numbers.
    """
    queries = [Query(expression=column.expression, legend=column.name) for column in columns]
    panel = _panel("table", title, description, queries, is_instant=True)
    for target in panel["targets"]:
        target["format"] = "table"
    # A table of one query has a column "Value", one of several "Value #A", "Value #B".
    values = ["Value"] if len(columns) == 1 else [f"Value #{target['refId']}" for target in panel["targets"]]
    names = dict(labels) | {value: column.name for value, column in zip(values, columns, strict=True)}
    panel["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: index for index, name in enumerate(names)},
                "renameByName": names,
            },
        },
    ]
    panel["fieldConfig"] = {
        "defaults": {
            "custom": {"align": "auto", "cellOptions": {"type": "auto"}},
            "mappings": [_NO_TRAFFIC],
            "noValue": "No traffic",
            "unit": COUNT,
        },
        "overrides": [_override(column.name, unit=column.unit) for column in columns],
    }
    panel["options"] = {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True}
    return panel


def facts(
    title: str, description: str, info: str, columns: Mapping[str, str], *, no_value: str = "No data"
) -> JSON:
    """The labels of an info metric as a table; ``columns`` gives the names, by label, in order."""
    panel = _panel("table", title, description, [Query(expression=info)], is_instant=True)
    panel["targets"][0]["format"] = "table"
    panel["transformations"] = [
        {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {},
                "indexByName": {name: index for index, name in enumerate(columns)},
                "renameByName": dict(columns),
            },
        },
    ]
    panel["fieldConfig"] = {
        "defaults": {
            "custom": {"align": "auto", "cellOptions": {"type": "auto"}},
            "noValue": no_value,
            "unit": "string",
        },
        "overrides": [],
    }
    panel["options"] = {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True}
    return panel


# Dashboards ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Layout:
    """Places panels from left to right, line after line, in rows that may be closed."""

    panels: list[JSON] = field(default_factory=list[JSON])
    _num_ids: int = 0
    _x: int = 0
    _y: int = 0
    _line_height: int = 0
    _closed_row: JSON | None = None

    def row(self, title: str, *, is_closed: bool = False) -> None:
        """Begin a row; the panels of a closed one are asked for when somebody opens it."""
        self._end_line()
        if self._closed_row is not None:
            # Closed panels take no room: what follows comes right below their row's title.
            self._y = self._closed_row["gridPos"]["y"] + 1
        row: JSON = {
            "type": "row",
            "title": title,
            "collapsed": is_closed,
            "gridPos": {"h": 1, "w": GRID_WIDTH, "x": 0, "y": self._y},
            "id": self._new_id(),
            "panels": [],
        }
        self.panels.append(row)
        self._y += 1
        self._closed_row = row if is_closed else None

    def add(self, *panels: JSON, width: int, height: int = 8) -> None:
        """Place panels of one size beside each other."""
        for panel in panels:
            if self._x + width > GRID_WIDTH:
                self._end_line()
            panel["gridPos"] = {"h": height, "w": width, "x": self._x, "y": self._y}
            panel["id"] = self._new_id()
            self._x += width
            self._line_height = max(self._line_height, height)
            (self.panels if self._closed_row is None else self._closed_row["panels"]).append(panel)

    def _end_line(self) -> None:
        self._y += self._line_height
        self._x = self._line_height = 0

    def _new_id(self) -> int:
        self._num_ids += 1
        return self._num_ids


def datasource_variable() -> JSON:
    """Which Prometheus is asked."""
    return {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "type": "datasource",
    }


def label_variable(label: str, *, series: str) -> JSON:
    """The values that a label has among some series, some or all of them."""
    query = f"label_values({series}, {label})"
    return {
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "definition": query,
        "hide": 0,
        "includeAll": True,
        "label": label.capitalize(),
        "multi": True,
        "name": label,
        "options": [],
        "query": query,
        # On every change of the time range: what was gone an hour ago is found in the hour before.
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "type": "query",
    }


def moments(name: str, expression: str, *, text: str, color: str) -> JSON:
    """Marks in every panel of a dashboard.

    Args:
        name: What they are of.
        expression: Its values are the moments, in milliseconds since 1970.
        text: What a mark says, as Grafana fills it in: ``{{instance}}``.
        color: Of the marks.
    """
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": expression,
        "hide": False,
        "iconColor": color,
        "name": name,
        "step": "60s",
        "tagKeys": "",
        "textFormat": text,
        "titleFormat": name,
        "useValueForTime": True,
    }


def dashboard(
    uid: str,
    title: str,
    description: str,
    layout: Layout,
    variables: Sequence[JSON],
    *,
    marks: Sequence[JSON] = (),
) -> JSON:
    """A whole dashboard, linked with every other one that bears the tag."""
    return {
        "annotations": {
            "list": [
                {
                    "builtIn": 1,
                    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
                    "enable": True,
                    "hide": True,
                    "iconColor": "rgba(0, 211, 255, 1)",
                    "name": "Annotations & Alerts",
                    "type": "dashboard",
                },
                *marks,
            ]
        },
        "description": description,
        # The file is the source; copies made in Grafana are editable.
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [
            {
                "asDropdown": False,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "tags": [TAG],
                "targetBlank": False,
                "title": "Laneway",
                "tooltip": "",
                "type": "dashboards",
                "url": "",
            }
        ],
        "panels": layout.panels,
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": [TAG],
        "templating": {"list": list(variables)},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "title": title,
        "uid": uid,
        "version": 1,
        "weekStart": "",
    }
