"""What a gateway tells of itself under ``/metrics``, and how that grew over a block."""

import json
import math
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, dict[tuple[str, ...], float]]
"""By the sample's name and its label values, those of the model and of the worker left out."""


def scrape(port: int) -> Samples:
    """Everything under ``/metrics``, added up over models and workers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return samples_of(answer.read().decode())


def num_running_passes(port: int) -> int:
    """Passes that the workers of a gateway are at."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as answer:
        return json.load(answer)["batching"]["running_passes"]


def samples_of(text: str) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(
                value for name, value in sorted(sample.labels.items()) if name not in ("model", "worker")
            )
            values = samples.setdefault(sample.name, {})
            values[labels] = values.get(labels, 0.0) + sample.value
    return samples


def device_seconds(samples: Samples) -> dict[str, float]:
    """Device time of each lane so far."""
    return {lane: s for (lane,), s in samples.get("laneway_lane_device_seconds_total", {}).items()}


def pass_tokens(samples: Samples) -> float:
    """Tokens of all passes that came back with rows so far."""
    return sum(samples.get("laneway_pass_tokens_sum", {}).values())


def cpu_seconds(samples: Samples) -> float:
    """Processor time of the gateway's own process so far; that of its workers is not in it."""
    return sum(samples.get("process_cpu_seconds_total", {}).values())


def histogram_p99(before: Samples, after: Samples, name: str) -> float | None:
    """The bucket's bound under which 99 of 100 observations between two scrapes lie; ``None`` without any."""
    old = before.get(f"{name}_bucket", {})
    grown: dict[float, float] = {}
    for labels, count in after.get(f"{name}_bucket", {}).items():
        bound = next((float(label) for label in labels if is_number(label)), math.inf)
        grown[bound] = grown.get(bound, 0.0) + count - old.get(labels, 0.0)
    total = grown.get(math.inf, 0.0)
    if not total:
        return None
    return min(bound for bound, count in grown.items() if count >= 0.99 * total)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
