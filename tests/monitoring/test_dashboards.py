"""The dashboards keep the rules of Grafana's dashboard-linter, and a few of our own.

The linter is a Go program that its project does not release; the names of its rules stand at the tests.
"""

import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest

from deploy.monitoring.catalogue import defined_series
from deploy.monitoring.generate import dashboards, marks, panels, rule_files, rules, variable_parts
from deploy.monitoring.panels import GRID_WIDTH, TAG
from deploy.monitoring.promql import plain, selectors, walk

PAGES = dashboards()
UNITS = {
    "s", "percentunit", "bytes", "Bps", "reqps", "ops", "short", "watt", "celsius", "string", "bool_yes_no",
}  # fmt: skip
"""Those of Grafana's that we use; a misspelt one is shown as a suffix."""

every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def expressions(page: dict[str, Any]) -> Iterator[str]:
    yield from (target["expr"] for panel in panels(page) for target in panel["targets"])
    yield from (mark["expr"] for mark in marks(page))


def variables(page: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in page["templating"]["list"]}


@every_page
def test_the_data_source_can_be_chosen(page: dict[str, Any]) -> None:
    """template-datasource-rule"""
    chosen = variables(page)["datasource"]
    assert (chosen["type"], chosen["query"], chosen["label"]) == ("datasource", "prometheus", "Data source")


@every_page
def test_job_instance_and_model_can_be_chosen(page: dict[str, Any]) -> None:
    """template-job-rule, template-instance-rule, template-on-time-change-reload-rule"""
    for name in ("job", "instance", "model"):
        variable = variables(page)[name]
        assert variable["type"] == "query"
        assert variable["label"] == name.capitalize()
        assert variable["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert variable["multi"]
        assert variable["includeAll"]
        assert variable["allValue"] == ".+"
        assert variable["refresh"] == 2


@every_page
def test_variables_are_read_by_valid_selectors_and_narrow_each_other(page: dict[str, Any]) -> None:
    """template-label-promql-rule"""
    earlier: list[str] = []
    for variable in page["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = variable_parts(variable)
            assert label == variable["name"]
            named = {matcher.name for matcher in selectors(selector)[0].matchers.matchers}
            assert named <= set(earlier)
            assert {"job", "instance"} & set(earlier) <= named
            earlier.append(label)


@every_page
def test_every_variable_is_used(page: dict[str, Any]) -> None:
    text = str(page["panels"])
    assert [name for name in variables(page) if f"${name}" not in text and f"${{{name}}}" not in text] == []


@every_page
def test_a_dashboard_cannot_be_edited_in_place(page: dict[str, Any]) -> None:
    """uneditable-dashboard-rule: the files are the source."""
    assert page["editable"] is False


@every_page
def test_dashboards_lead_to_each_other(page: dict[str, Any]) -> None:
    assert TAG in page["tags"]
    (link,) = page["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
        "dashboards",
        [TAG],
        True,
        True,
    )


def test_what_fires_is_the_first_thing_that_is_seen() -> None:
    first = PAGES["laneway-overview.json"]["panels"][0]
    assert (first["title"], first["gridPos"]["y"], first["gridPos"]["w"]) == ("Firing alerts", 0, GRID_WIDTH)
    assert first["fieldConfig"]["defaults"]["noValue"] == "Nothing fires"
    shown = set(first["transformations"][1]["options"]["renameByName"])
    texts = [str(alert["annotations"]) for alert in rules(rule_files()["alerts.yml"])]
    named = {label for text in texts for label in re.findall(r"\$labels\.(\w+)", text)}
    assert {"alertname", "severity"} | named <= shown


@every_page
def test_the_start_of_a_gateway_is_marked_when_it_was(page: dict[str, Any]) -> None:
    """After an outage of an hour, the change of a gauge would be in no window."""
    (mark,) = marks(page)
    assert (mark["name"], mark["enable"], mark["useValueForTime"]) == ("Start", True, True)
    assert plain(mark["expr"]) == 'process_start_time_seconds{job=~".+", instance=~".+"} * 1000'


@every_page
def test_no_two_panels_have_one_title(page: dict[str, Any]) -> None:
    """Runbooks and people name panels by their titles."""
    titles = [panel["title"] for panel in panels(page)]
    assert sorted(titles) == sorted(set(titles))


@every_page
def test_panels_lie_on_the_grid_without_covering_each_other(page: dict[str, Any]) -> None:
    for group in (page["panels"], *(row["panels"] for row in page["panels"] if row["type"] == "row")):
        taken: set[tuple[int, int]] = set()
        for panel in group:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < GRID_WIDTH
            taken |= cells


@every_page
def test_ids_are_unique(page: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in (*page["panels"], *panels(page)) if panel["type"] == "row"]
    ids += [panel["id"] for panel in panels(page)]
    assert len(ids) == len(set(ids))


def test_the_gpu_row_of_the_overview_is_closed() -> None:
    """Most machines that try this have none."""
    closed = {row["title"]: row for row in PAGES["laneway-overview.json"]["panels"] if row.get("collapsed")}
    assert list(closed) == ["GPUs (NVML)"]
    assert closed["GPUs (NVML)"]["panels"]


@every_page
def test_a_panel_has_the_chosen_data_source_and_something_to_show(page: dict[str, Any]) -> None:
    """panel-datasource-rule, panel-no-targets-rule"""
    for panel in panels(page):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[: len(panel["targets"])]


@every_page
def test_a_panel_has_a_title_and_says_what_it_means(page: dict[str, Any]) -> None:
    """panel-title-description-rule"""
    for panel in panels(page):
        assert panel["title"]
        assert panel["description"].endswith(".")


@every_page
def test_a_panel_has_a_unit_that_grafana_knows(page: dict[str, Any]) -> None:
    """panel-units-rule"""
    for panel in panels(page):
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        own = [
            one["value"]
            for override in panel["fieldConfig"]["overrides"]
            for one in override["properties"]
            if one["id"] == "unit"
        ]
        assert set(own) <= UNITS


@every_page
def test_overrides_are_of_lines_that_the_panel_has(page: dict[str, Any]) -> None:
    """A legend that was renamed would lose its axis in silence."""
    for panel in panels(page):
        legends = {target["legendFormat"] for target in panel["targets"]}
        fills_in = any("{{" in legend for legend in legends)
        names = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
        assert fills_in or names <= legends


@every_page
def test_what_is_said_to_be_on_the_right_is_there(page: dict[str, Any]) -> None:
    for panel in panels(page):
        placements = {
            one["value"]
            for override in panel["fieldConfig"]["overrides"]
            for one in override["properties"]
            if one["id"] == "custom.axisPlacement"
        }
        if "on the right" in panel["description"]:
            assert placements == {"right"}, panel["title"]


@every_page
def test_a_line_is_in_the_unit_that_its_series_is_named_by(page: dict[str, Any]) -> None:
    """Degrees on an axis of watts look like a number all the same."""
    for panel in panels(page):
        units = {"watt": "_watts", "celsius": "_celsius"}
        unit = panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            for own, ending in units.items():
                assert (unit == own) == bool(re.search(rf"{ending}\b", target["expr"])), panel["title"]


@every_page
def test_legends_are_of_labels_that_are_left(page: dict[str, Any]) -> None:
    for panel in panels(page):
        for target in panel["targets"]:
            left = {
                label
                for clause in re.findall(r"by \(([^)]*)\)", target["expr"])
                for label in clause.replace(",", " ").split()
            }
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= left, target


@every_page
def test_quiet_is_told_in_words(page: dict[str, Any]) -> None:
    for panel in panels(page):
        if panel["type"] == "stat":
            assert panel["fieldConfig"]["defaults"]["noValue"] in ("No traffic", "No data")
            assert [one["options"]["match"] for one in panel["fieldConfig"]["defaults"]["mappings"]] == [
                "null+nan"
            ]


@every_page
def test_an_expression_is_promql(page: dict[str, Any]) -> None:
    """target-promql-rule"""
    for expression in expressions(page):
        assert promql_parser.parse(plain(expression))


@every_page
def test_every_selector_is_within_job_and_instance(page: dict[str, Any]) -> None:
    """target-job-rule, target-instance-rule"""
    for expression in expressions(page):
        for selector in selectors(expression):
            scope = {(matcher.name, matcher.value) for matcher in selector.matchers.matchers}
            # An alert on a whole job has no instance.
            instance = ".+|" if selector.name == "ALERTS" else ".+"
            assert {("job", ".+"), ("instance", instance)} <= scope, selector.prettify()


@every_page
def test_what_belongs_to_a_model_is_within_the_chosen_models(page: dict[str, Any]) -> None:
    defined = defined_series()
    for expression in expressions(page):
        for selector in selectors(expression):
            series = defined.get(selector.name)
            if series is not None and "model" in series.labels:
                assert "model" in {matcher.name for matcher in selector.matchers.matchers}, (
                    selector.prettify()
                )


@every_page
def test_rates_are_over_grafanas_interval(page: dict[str, Any]) -> None:
    """target-rate-interval-rule; a table counts over the whole range that is shown."""
    for expression in expressions(page):
        assert set(re.findall(r"\[([^]]+)\]", expression)) <= {"$__rate_interval", "$__range"}
        assert not re.search(r"rate\([^[]*\[\$__range\]", expression)


@every_page
def test_counters_are_rated_and_gauges_are_not(page: dict[str, Any]) -> None:
    """target-counter-agg-rule"""
    defined = defined_series()
    for expression in expressions(page):
        for node, above in walk(expression):
            if isinstance(node, promql_parser.VectorSelector) and node.name in defined:
                functions = [one.func.name for one in above[:2] if isinstance(one, promql_parser.Call)]
                is_rated = functions[:1] in (["rate"], ["increase"])
                assert is_rated == (defined[node.name].kind in ("counter", "histogram")), node.prettify()


@every_page
def test_buckets_are_for_quantiles(page: dict[str, Any]) -> None:
    """target-histogram-rule"""
    for expression in expressions(page):
        for node, above in walk(expression):
            if isinstance(node, promql_parser.VectorSelector) and node.name.endswith("_bucket"):
                functions = {one.func.name for one in above if isinstance(one, promql_parser.Call)}
                assert "histogram_quantile" in functions
                (aggregate,) = (one for one in above if isinstance(one, promql_parser.AggregateExpr))
                assert "le" in aggregate.modifier.labels


@every_page
def test_nothing_is_divided_by_zero(page: dict[str, Any]) -> None:
    for expression in expressions(page):
        for node, _ in walk(expression):
            if isinstance(node, promql_parser.BinaryExpr) and node.op == "/":
                assert re.search(r"> 0\s*\)$", node.rhs.prettify()), node.prettify()
