"""A Prometheus of one's own, on loopback, that scrapes twice a second."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.servers import free_port, is_answered, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy" / "monitoring"
INTERVAL = "500ms"


@dataclass(frozen=True)
class Prometheus:
    """A server that answers."""

    root: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant vector, now, but for those that are no number."""
        answer = self.get("query", query=expression)
        assert answer["resultType"] == "vector", (expression, answer["resultType"])
        return [sample for sample in answer["result"] if sample["value"][1] != "NaN"]

    def label_values(self, label: str, selector: str) -> list[str]:
        return self.get(f"label/{label}/values", **{"match[]": selector})

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self.root}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert answer["status"] == "success", answer
        return answer["data"]


@contextmanager
def running_prometheus(
    program: Path, folder: Path, *, targets: Sequence[str], extra_rules: Sequence[str] = ()
) -> Generator[Prometheus]:
    """Run it with the configuration that is shipped, but for targets, intervals and where files lie."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {
        "scrape_interval": INTERVAL,
        "scrape_timeout": INTERVAL,
        "evaluation_interval": INTERVAL,
    }
    config["rule_files"] = [str(DEPLOY / name) for name in (*config["rule_files"], *extra_rules)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    process = subprocess.Popen(
        [
            str(program),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
    )
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: is_answered(f"{prometheus.root}/-/ready"), "Prometheus is ready")
        yield prometheus
    finally:
        process.terminate()
        process.wait(20)
