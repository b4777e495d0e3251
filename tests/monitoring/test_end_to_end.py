"""A real Prometheus scrapes a real server under load, and every expression that is shipped finds data.

What a GPU alone has is served by a stand-in beside it. Nothing else is excused: what needs a failure gets one.
"""

import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.metric_families import REQUEST_FAILURES
from deploy.monitoring.generate import dashboards, marks, panels, rule_files, rules, variable_parts
from deploy.monitoring.promql import selectors
from tests.monitoring import standin
from tests.monitoring.prometheus import Prometheus, running_prometheus
from tests.monitoring.standin import running_standin
from tests.monitoring.traffic import BATCH_QUEUE, ask_too_early, kill_children, traffic
from tests.servers import GOLDEN_CHECKPOINT, RunningServer, launch_server, wait_until, wait_until_ready

JOB = "laneway"
MODEL = "monitored"
NEEDS_GPU = re.compile(r"laneway_gpu_|laneway_torch_|gpu_uuid")
"""Series that exist only where there is a GPU."""
FIRING = Path(__file__).with_name("firing.yml")
"""An alert that fires at once: those that are shipped are silent for a minute at least, and on a good day for ever."""
TEXTS = rule_files()
PAGES = dashboards()


@dataclass(frozen=True)
class Watched:
    """A server under load, one with a GPU that does not exist, and the Prometheus that watches both."""

    prometheus: Prometheus
    server: str
    standin: str

    def of(self, expression: str) -> str:
        """The instance that can have data for an expression."""
        return self.standin if NEEDS_GPU.search(expression) else self.server

    def fill_in(self, expression: str) -> str:
        """As Grafana sends it: one job and instance chosen, all of the rest."""
        for variable, value in {
            "$job": JOB,
            "$instance": re.escape(self.of(expression)).replace("\\", "\\\\"),
        }.items():
            expression = expression.replace(variable, value)
        expression = re.sub(r'=~"\$\w+(\|?)"', r'=~".+\1"', expression)
        return expression.replace("$__rate_interval", "30s").replace("$__range", "1m")


@pytest.fixture(scope="module")
def watched(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    server = launch_server(
        str(GOLDEN_CHECKPOINT),
        "--served-name",
        MODEL,
        "--workers",
        "1",
        "--max-batch-queue",
        str(BATCH_QUEUE),
    )
    try:
        ask_too_early(server, model=MODEL)
        instance = f"127.0.0.1:{server.port}"
        folder = tmp_path_factory.mktemp("prometheus")
        with (
            running_standin() as standin_instance,
            running_prometheus(
                programs["prometheus"],
                folder,
                targets=[instance, standin_instance],
                extra_rules=["rules/compat.yml", str(FIRING)],
            ) as prometheus,
        ):
            wait_until_ready(server)
            up = f'up{{instance="{instance}"}} == 1'
            wait_until(lambda: prometheus.query(up), "the server was scraped before anybody used it")
            with traffic(server, model=MODEL):
                break_everything_once(server, prometheus)
                yield Watched(prometheus, instance, standin_instance)
    finally:
        server.stop()


def break_everything_once(server: RunningServer, prometheus: Prometheus) -> None:
    """Kill the worker and the decoders as soon as Prometheus has seen them work."""
    documents = 'laneway_request_duration_seconds_count{lane="document", status_class="2xx"} > 0'
    wait_until(lambda: prometheus.query(documents), "documents were answered")
    wait_until(
        lambda: prometheus.query('laneway_image_decodes_total{outcome="decoded"} > 0'), "an image was decoded"
    )
    assert kill_children(server) >= 2
    wait_until(lambda: prometheus.query("laneway_worker_restarts_total > 0"), "the restart was scraped")


def find_data(watched: Watched, queries: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What every query returns, as soon as all of them return something."""
    found: dict[str, list[dict[str, Any]]] = {}

    def all_found() -> bool:
        for name in queries.keys() - found.keys():
            if samples := watched.prometheus.query(queries[name]):
                found[name] = samples
        return len(found) == len(queries)

    try:
        wait_until(all_found, "everything has data")
    except AssertionError:
        missing = {name: queries[name] for name in queries.keys() - found.keys()}
        pytest.fail(
            "no data for:\n" + "\n".join(f"{name}: {query}" for name, query in sorted(missing.items()))
        )
    return found


def test_every_expression_of_every_panel_has_data(watched: Watched) -> None:
    targets = {
        f"{page['uid']}, {panel['title']}, {target['refId']}": (panel, target)
        for page in PAGES.values()
        for panel in panels(page)
        for target in panel["targets"]
    }
    found = find_data(
        watched, {name: watched.fill_in(target["expr"]) for name, (_, target) in targets.items()}
    )
    for name, (panel, target) in targets.items():
        labels = found[name][0]["metric"].keys()
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels, name
        assert set(columns_of(panel)) <= labels, name


def columns_of(panel: dict[str, Any]) -> Iterator[str]:
    """The labels that a table makes columns of."""
    for one in panel.get("transformations", ()):
        if one["id"] == "organize":
            yield from (name for name in one["options"]["renameByName"] if not name.startswith("Value"))


def test_every_mark_has_a_moment(watched: Watched) -> None:
    expressions = {
        f"{page['uid']}, {mark['name']}": watched.fill_in(mark["expr"])
        for page in PAGES.values()
        for mark in marks(page)
    }
    for name, samples in find_data(watched, expressions).items():
        milliseconds = float(samples[0]["value"][1])
        assert 0 < time.time() - milliseconds / 1000 < 3_600, name
        assert samples[0]["metric"]["instance"] == watched.server


def test_what_is_counted_from_the_start_was_there_at_the_first_scrape(watched: Watched) -> None:
    """Or the first burst of failures would be invisible to every alert."""
    queries = {
        reason: f'min_over_time(laneway_request_failures_total{{instance="{watched.server}", reason="{reason}"}}[1h]) == 0'
        for reason in REQUEST_FAILURES.values
        if reason != "unavailable"  # asked too early, on purpose, and before the first scrape
    }
    find_data(watched, queries)


def test_a_deadline_that_is_missed_is_seen_from_the_first_on(watched: Watched) -> None:
    """In the lane that it was missed in; the ratio is what wakes people."""
    of_queries = f'instance="{watched.server}", lane="query"'
    find_data(
        watched,
        {
            "misses": f"increase(laneway_deadline_misses_total{{{of_queries}}}[1h]) > 0",
            "0 before": f"min_over_time(laneway_deadline_misses_total{{{of_queries}}}[1h]) == 0",
            "ratio": f'0 < job_model_lane:laneway_deadline_misses:ratio_rate5m{{model="{MODEL}", lane="query"}} < 1',
        },
    )


def test_every_variable_has_values(watched: Watched) -> None:
    for page in PAGES.values():
        for variable in page["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = variable_parts(variable)
                values = watched.prometheus.label_values(label, watched.fill_in(selector))
                expected = {
                    "job": JOB,
                    "instance": watched.server,
                    "model": MODEL,
                    "worker": "0",
                    "gpu": "0",
                }
                assert expected[label] in values, variable["query"]


def test_every_recording_rule_records(watched: Watched) -> None:
    records = {rule["record"]: rule for text in TEXTS.values() for rule in rules(text) if "record" in rule}
    find_data(watched, {name: f"{{__name__={name!r}}}".replace("'", '"') for name in records})


def test_every_selector_of_every_alert_finds_its_series(watched: Watched) -> None:
    """An alert is silent while all is well, and no less when it looks for what does not exist."""
    queries = {
        f"{rule['alert']}: {selector.prettify()}": selector.prettify()
        for rule in rules(TEXTS["alerts.yml"])
        for selector in selectors(rule["expr"])
    }
    find_data(watched, queries)


def test_prometheus_evaluates_every_rule_without_a_complaint(watched: Watched) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = watched.prometheus.get("rules")["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    found = wait_until(evaluated, "every rule was evaluated")
    assert {rule["name"]: rule["lastError"] for rule in found if rule["health"] != "ok"} == {}
    assert len(found) == sum(len(list(rules(text))) for text in (*TEXTS.values(), FIRING.read_text()))


def test_compatible_names_count_what_laneway_counts(watched: Watched) -> None:
    """A dashboard made for another server shows the same numbers, under its own names and labels."""

    def value(expression: str) -> float:
        (sample,) = watched.prometheus.query(expression)
        return float(sample["value"][1])

    of_server = f'instance="{watched.server}"'
    for theirs, ours in {
        f"te_embed_success{{{of_server}}}": f'laneway_queue_outcomes_total{{{of_server}, outcome="done"}}',
        f"te_batch_next_size_sum{{{of_server}}}": f"laneway_pass_items_sum{{{of_server}}}",
        f'vllm:prompt_tokens_total{{{of_server}, model_name="{MODEL}", engine="0"}}': f"laneway_tokens_total{{{of_server}}}",
    }.items():
        # A rule says what was true at the scrape before it: some scrape of the last seconds.
        before = value(f"sum({ours} offset 5s)")
        assert before <= value(theirs) <= value(f"sum({ours})"), theirs
    slow = watched.prometheus.query(
        f"histogram_quantile(0.99, rate(te_request_duration_bucket{{{of_server}}}[30s]))"
    )
    assert 0 < float(slow[0]["value"][1]) < 30


def test_promtool_finds_nothing_wrong_with_the_metrics(watched: Watched, promtool: Path) -> None:
    """Names, types and help texts as Prometheus' own conventions have them."""
    with urllib.request.urlopen(f"http://{watched.server}/metrics", timeout=10) as response:
        text = response.read()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def test_the_gpu_is_joined_with_the_worker_that_computes_on_it(watched: Watched) -> None:
    (expression,) = (
        target["expr"]
        for panel in panels(PAGES["laneway-workers.json"])
        for target in panel["targets"]
        if "label_replace" in target["expr"]
    )
    (sample,) = find_data(watched, {"join": watched.fill_in(expression)})["join"]
    assert sample["metric"] == {"instance": watched.standin, "uuid": standin.UUID}
