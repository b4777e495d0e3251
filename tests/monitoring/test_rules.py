"""Rules as promtool reads them, and what people need who are woken by one."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.generate import RULES, dashboards, panels, rule_files, rules

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
UNIT_TESTS = Path(__file__).with_name("alerts.test.yml")
ALERTS = [rule for rule in rules((RULES / "alerts.yml").read_text()) if "alert" in rule]

every_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


def check(promtool: Path, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_every_file_of_rules(promtool: Path) -> None:
    check(promtool, "check", "rules", "--lint=all", "--lint-fatal", *map(str, sorted(RULES.glob("*.yml"))))


def test_promtool_accepts_the_configuration(promtool: Path) -> None:
    check(promtool, "check", "config", str(MONITORING / "prometheus.yml"))


def test_alerts_fire_when_they_should_and_not_when_they_are_near(promtool: Path) -> None:
    check(promtool, "test", "rules", str(UNIT_TESTS))


@every_alert
def test_every_alert_is_tested_both_ways(alert: dict[str, Any]) -> None:
    tests = [
        one
        for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for one in test["alert_rule_test"]
        if one["alertname"] == alert["alert"]
    ]
    assert {bool(one["exp_alerts"]) for one in tests} == {True, False}


@every_alert
def test_every_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert re.fullmatch(r"Laneway([A-Z][a-z]+)+", name)
    assert alert["for"]
    assert alert["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    # Where something is measured, its number is told; what is there or not has none.
    is_state = name in ("LanewayTargetDown", "LanewayAbsent", "LanewayModelNotReady", "LanewayWorkerDown")
    assert is_state or "$value" in alert["annotations"]["description"]
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert anchor == name.lower()
    assert f"\n## {name}\n" in (ROOT / page).read_text()


def test_every_runbook_is_of_an_alert() -> None:
    headings = re.findall(r"^## (Laneway\w+)$", (ROOT / "docs" / "alerts.md").read_text(), flags=re.M)
    assert headings == [alert["alert"] for alert in ALERTS]


def test_a_runbook_names_panels_that_there_are_and_says_where() -> None:
    """Those of the Overview by their titles alone; a panel of the other page with that page's name."""
    titles = {page["title"]: {panel["title"] for panel in panels(page)} for page in dashboards().values()}
    rows = {panel["title"] for panel in dashboards()["laneway-overview.json"]["panels"]}
    text = (ROOT / "docs" / "alerts.md").read_text().split("\n## ", maxsplit=1)[1]
    found = 0
    for paragraph in re.split(r"\n\n|\n *- ", text):
        named = {" ".join(name.split()) for name in re.findall(r"\*([A-Z][^*]+)\*", paragraph)}
        pages = {"Laneway / Overview"} | (named & set(titles))
        assert named - set(titles) <= rows.union(*(titles[page] for page in pages)), paragraph
        found += len(named)
    assert found > 20


def test_recorded_names_say_what_is_left_and_what_was_done() -> None:
    """level:metric:operation, as Prometheus' documentation asks for; compat.yml has the names of others."""
    for rule in rules((RULES / "recording.yml").read_text()):
        level, metric, operation = rule["record"].split(":")
        assert metric.startswith("laneway_")
        assert re.fullmatch(r"(sum|((avg|ratio|p50|p99)_)?rate\d+[mh]|increase\d+[mh])", operation)
        aggregated = re.findall(r"by \(([^)]*)\)", rule["expr"])
        labels = level.split("_")
        assert all([one for one in clause.split(", ") if one != "le"] == labels for clause in aggregated)


def test_the_configuration_loads_every_file_but_the_optional_one() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    assert {Path(name).name for name in config["rule_files"]} == set(rule_files()) - {"compat.yml"}
    assert "# - rules/compat.yml" in (MONITORING / "prometheus.yml").read_text()


@pytest.mark.parametrize(
    "path", sorted((MONITORING / "grafana" / "provisioning").rglob("*.yml")), ids=lambda path: path.name
)
def test_grafana_is_told_where_things_are(path: Path) -> None:
    provisioned = yaml.safe_load(path.read_text())
    assert provisioned["apiVersion"] == 1
    if path.parent.name == "datasources":
        (source,) = provisioned["datasources"]
        scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
        # $__rate_interval is computed from it.
        assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scraped)
    else:
        (provider,) = provisioned["providers"]
        assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
