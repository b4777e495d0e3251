"""Writes the Grafana dashboards, and holds every expression to the metrics that there are.

    python deploy/monitoring/generate.py           write them
    python deploy/monitoring/generate.py --check   fail if the files are not what they should be

Both fail where a dashboard, one of its variables or a rule names a series that neither the application's
registry nor a recording rule has, or a label that the series does not carry.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.monitoring.catalogue import Series, defined_series
from deploy.monitoring.drilldown import drilldown
from deploy.monitoring.overview import overview
from deploy.monitoring.panels import JSON
from deploy.monitoring.promql import groupings, selectors

HERE = Path(__file__).parent
DASHBOARDS = HERE / "grafana" / "dashboards"
RULES = HERE / "rules"

SCRAPED_LABELS = frozenset({"job", "instance", "__name__"})
"""What Prometheus adds to everything that it scrapes."""
SCRAPED_SERIES = {
    "up": Series(kind="gauge", labels=SCRAPED_LABELS),
    "ALERTS": Series(kind="gauge", labels=None),
}
"""What Prometheus knows of a target, and of alerts, by itself."""

_LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")


def dashboards() -> Mapping[str, JSON]:
    """Every dashboard by its file's name."""
    pages = (overview(), drilldown())
    return {f"{page['uid']}.json": page for page in pages}


def panels(page: JSON) -> Iterator[JSON]:
    """The panels of a dashboard that show something, those of closed rows among them."""
    for panel in page["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def marks(page: JSON) -> Iterator[JSON]:
    """What a dashboard marks in its panels, Grafana's own notes apart."""
    return (mark for mark in page["annotations"]["list"] if "expr" in mark)


def expressions(page: JSON) -> Iterator[tuple[str, str]]:
    """Where each expression of a dashboard stands, and the expression; of variables, what they select."""
    for panel in panels(page):
        for target in panel["targets"]:
            yield f'panel "{panel["title"]}"', target["expr"]
    for mark in marks(page):
        yield f'mark "{mark["name"]}"', mark["expr"]
    for variable in page["templating"]["list"]:
        if variable["type"] == "query":
            series, label = variable_parts(variable)
            name, _, matchers = series.rstrip("}").partition("{")
            yield f"variable {variable['name']}", f'{name}{{{label}!="", {matchers}}}'


def variable_parts(variable: JSON) -> tuple[str, str]:
    """The series that a variable is read from, and the label whose values it takes."""
    match = _LABEL_VALUES.fullmatch(variable["query"])
    assert match is not None, variable["query"]
    return match[1], match[2]


def rules(text: str) -> Iterator[dict[str, Any]]:
    """Every rule of a file."""
    for group in yaml.safe_load(text)["groups"]:
        yield from group["rules"]


def recorded_series(texts: Mapping[str, str]) -> Mapping[str, Series]:
    """The series that recording rules make; which labels they have is not known here."""
    records = (rule["record"] for text in texts.values() for rule in rules(text) if "record" in rule)
    return {record: Series(kind="gauge", labels=None) for record in records}


def complaints(expression: str, defined: Mapping[str, Series]) -> Iterator[str]:
    """What an expression names that there is not.

    Args:
        expression: PromQL, with Grafana's variables in it or not.
        defined: Every series that may be named.

    Yields:
        One sentence for each series or label.
    """
    for selector in selectors(expression):
        series = defined.get(selector.name or "")
        if series is None:
            yield f"there is no series {selector.name}"
        elif series.labels is not None:
            named = {matcher.name for matcher in selector.matchers.matchers}
            for label in sorted(named - series.labels - SCRAPED_LABELS):
                yield f"{selector.name} has no label {label}"
    for labels, names, made in groupings(expression):
        carried = [defined[name].labels for name in names if name in defined]
        known = [series_labels for series_labels in carried if series_labels is not None]
        if len(known) == len(names):
            for label in sorted(labels - made - SCRAPED_LABELS - frozenset().union(*known)):
                yield f"nothing has the label {label} that {', '.join(sorted(names))} is grouped by"


def all_complaints(pages: Mapping[str, JSON], texts: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with dashboards and with rule files, both by name."""
    defined = {**defined_series(), **SCRAPED_SERIES, **recorded_series(texts)}
    for name, page in pages.items():
        for place, expression in expressions(page):
            yield from (f"{name}, {place}: {complaint}" for complaint in complaints(expression, defined))
    for name, text in texts.items():
        for rule in rules(text):
            place = rule.get("alert") or rule["record"]
            yield from (f"{name}, {place}: {complaint}" for complaint in complaints(rule["expr"], defined))


def rule_files() -> Mapping[str, str]:
    """The text of each file of rules, by its name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(RULES.glob("*.yml"))}


def as_text(page: JSON) -> str:
    """A dashboard as it stands in its file."""
    return json.dumps(page, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write, or check."""
    pages = dashboards()
    if wrong := list(all_complaints(pages, rule_files())):
        sys.exit("\n".join(wrong))
    texts = {name: as_text(page) for name, page in pages.items()}
    if "--check" in sys.argv[1:]:
        old = {path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS.glob("*.json")}
        sys.exit(0 if old == texts else "The dashboards are old; run: python deploy/monitoring/generate.py")
    DASHBOARDS.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (DASHBOARDS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
