"""The generator writes what lies in the repository, and refuses what names nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.monitoring.catalogue import Series, defined_series
from deploy.monitoring.generate import all_complaints, complaints, dashboards, rule_files
from deploy.monitoring.promql import Scope, divide, plain, selectors

ROOT = Path(__file__).parents[2]
DEFINED = {
    "items_total": Series(kind="counter", labels=frozenset({"lane"})),
    "recorded": Series(kind="gauge", labels=None),
}


def test_the_dashboards_in_the_repository_are_those_that_are_generated() -> None:
    command = [sys.executable, str(ROOT / "deploy" / "monitoring" / "generate.py"), "--check"]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(itmes_total[5m])", "there is no series itmes_total"),
        ("sum(rate(items_total[5m])) / (sum(up) > 0)", "there is no series up"),
        ('items_total{lanes="query"}', "items_total has no label lanes"),
        ('items_total{job="a", instance=~"$instance", lane="query"}', None),
        ('recorded{anything="x"}', None),
        (
            "sum by (lanes) (rate(items_total[5m]))",
            "nothing has the label lanes that items_total is grouped by",
        ),
        ("sum by (job, lane) (rate(items_total[5m]))", None),
        ("sum by (anything) (recorded)", None),
        ('sum by (way) (label_replace(rate(items_total[5m]), "way", "$1", "lane", "(.+)"))', None),
    ],
)
def test_what_does_not_exist_is_named(expression: str, complaint: str | None) -> None:
    assert list(complaints(expression, DEFINED)) == ([complaint] if complaint else [])


def test_a_metric_that_is_renamed_is_missed_by_dashboards_and_rules_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What generating is worth: nobody has to look at a panel that stays empty."""
    defined = {name: one for name, one in defined_series().items() if name != "laneway_queue_items"}
    monkeypatch.setattr("deploy.monitoring.generate.defined_series", lambda: defined)
    found = list(all_complaints(dashboards(), rule_files()))
    assert 'laneway-overview.json, panel "Inputs waiting": there is no series laneway_queue_items' in found
    assert "compat.yml, te_queue_size: there is no series laneway_queue_items" in found


def test_the_catalogue_knows_kinds_and_labels() -> None:
    defined = defined_series()
    assert defined["laneway_items_total"] == Series(
        kind="counter", labels=frozenset({"model", "modality", "lane"})
    )
    assert defined["laneway_queue_items"] == Series(kind="gauge", labels=frozenset({"model", "lane"}))
    assert defined["laneway_pass_items_bucket"] == Series(kind="histogram", labels=frozenset({"model", "le"}))
    assert defined["laneway_gpu_power_watts"] == Series(kind="gauge", labels=frozenset({"gpu", "uuid"}))
    assert defined["process_open_fds"] == Series(kind="gauge", labels=frozenset())
    assert "laneway_pass_items" not in defined


def test_a_scope_writes_selectors_that_the_parser_reads_back() -> None:
    scope = Scope(matchers=('job=~"$job"',))
    expression = divide(scope.mean("laneway_pass_items", 'model="m"'), scope.sum_rate("x_total", by="lane"))
    assert plain("$__rate_interval") == "5m"
    assert [one.name for one in selectors(expression)] == [
        "x_total",
        "laneway_pass_items_count",
        "laneway_pass_items_sum",
    ]
