"""Writes the generated parts of the documentation: tables of settings, measurements, metrics and fields.

    python docs/generate.py           write them
    python docs/generate.py --check   fail if they are not what they should be

Generated parts stand between two marker comments; everything else in a file is left alone.
"""

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from app.metric_families import LABELS, SECTIONS, Family
from app.settings import Settings
from batching import LaneStatistics
from model.worker import WorkerStatistics

README = Path(__file__).parents[1] / "README.md"
METRICS = Path(__file__).parent / "metrics.md"
CHOOSING_TAU = Path(__file__).parent / "choosing-tau.md"
MONITORING = Path(__file__).parent / "monitoring.md"
RESULTS = Path(__file__).parents[1] / "bench" / "results"

MEASUREMENTS = [
    ("Packed passes over padded batches, as the texts come", "packing-cpu-float32", "packed over padded"),
    ("... over padded batches of texts sorted by length", "packing-cpu-float32", "packed over sorted padded"),
    (
        "... over `SentenceTransformer.encode`, from text",
        "packing-cpu-float32",
        "prepare + packed over encode",
    ),
    (
        "Packing alone, without prepacked layers, over sorted padded",
        "packing-cpu-float32",
        "packed, plain layers over sorted padded",
    ),
    ("Documents over HTTP over the bare workers", "gateway-cpu", "http_over_raw_throughput"),
]
"""What each row says, the stored result it comes from, and the ratio's name there."""

LANE_RATIOS = [
    ("A query's 99th percentile among documents over that of queries alone", "MIX / Q, p99"),
    ("... with two in a hundred documents of 8,192 tokens, over that without them", "MIX+long / MIX, p99"),
    ("... in one line for all, without a bound on passes, over that in lanes", "FIFO / MIX, p99"),
    ("... in passes of 16 inputs that wait 50 ms for company, over that in lanes", "SEED / MIX, p99"),
    ("All tokens a second, queries among documents, over the bare worker's", "MIX / RAW, useful tokens"),
    ("Documents alone over the bare worker", "D / RAW, useful tokens"),
]
PEER_RATIOS = [
    ("A query's 99th percentile among documents: infinity's over that in lanes", "PEER MIX / MIX, p99"),
    ("All tokens a second, queries among documents, over infinity's", "MIX / PEER MIX, useful tokens"),
    ("Documents alone over infinity's", "D / PEER D, useful tokens"),
]


def settings_table() -> str:
    """Every setting with its default and its meaning, as a Markdown table."""
    rows = ["| Setting | Default | Meaning |", "|---|---|---|"]
    for group in fields(Settings):
        group_type = type(getattr(Settings(), group.name))
        docstrings = dict(field_docstrings(group_type))
        rows += (
            f"| `{field.name}` | {default_of(field)} | {docstrings[field.name]} |"
            for field in fields(group_type)
        )
    return "\n".join(rows)


def measurements_table() -> str:
    """The stored ratios with their intervals, as a Markdown table."""
    rows = ["| Throughput ratio | Median | 95 % interval |", "|---|---|---|"]
    for text, name, key in MEASUREMENTS:
        result = json.loads((RESULTS / f"{name}.json").read_text())
        rows.append(measurement_row(text, result.get("throughput_ratios", result)[key]))
    return "\n".join(rows)


def lanes_table(engine: str) -> str:
    """The stored ratios of the lanes with their intervals, as a Markdown table."""
    ratios = json.loads((RESULTS / f"lanes-{engine}-cpu.json").read_text())["ratios"]
    rows = [measurement_row(text, ratios[key]) for text, key in LANE_RATIOS + PEER_RATIOS if key in ratios]
    return "\n".join(["| Ratio | Median | 95 % interval |", "|---|---|---|", *rows])


def varied_table(engine: str, setting: str) -> str:
    """Lanes with several values of a setting, from one stored run, as a Markdown table."""
    result = json.loads((RESULTS / f"lanes-{engine}-cpu-{setting}.json").read_text())
    name = setting.replace("-", "_")
    rows = [
        f"| `{name}` | p50, ms | p99, ms | p99 over that of queries alone | tokens over the bare workers' |",
        "|---|---|---|---|---|",
    ]
    for arm, told in result["arms"].items():
        if not arm.startswith(setting):
            continue
        latency = told["latency_ms"]
        times = f"{latency['p50']:.0f} | {latency['p99']:.0f}"
        ratios = (result["ratios"][f"{arm} / {other}"] for other in ("Q, p99", "RAW, useful tokens"))
        cells = (f"{one['median']:.2f} ({one['ci95'][0]:.2f} to {one['ci95'][1]:.2f})" for one in ratios)
        rows.append(f"| {arm.removeprefix(f'{setting}=')} | {times} | {' | '.join(cells)} |")
    return "\n".join(rows)


def measurement_row(text: str, ratio: Mapping[str, Any]) -> str:
    """One ratio: two digits behind the point, one from ten upwards."""
    digits = 2 if ratio["median"] < 10 else 1
    low, high = ratio["ci95"]
    return f"| {text} | **{ratio['median']:.{digits}f}** | {low:.{digits}f} to {high:.{digits}f} |"


def fields_table(group: type) -> str:
    """The fields of a snapshot and their meaning, as a Markdown table."""
    rows = [f"| `{name}` | {text} |" for name, text in field_docstrings(group)]
    return "\n".join(["| Field | Meaning |", "|---|---|", *rows])


def metrics_tables() -> str:
    """Every metric with its type and labels, a Markdown table for each section."""
    return "\n\n".join(
        "\n".join(
            [
                f"## {section.title}",
                "",
                "| Metric | Type | Labels | Meaning |",
                "|---|---|---|---|",
                *map(metric_row, section.families),
            ]
        )
        for section in SECTIONS
    )


def metric_row(family: Family) -> str:
    """One metric, as a row of a Markdown table."""
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.text} |"


def values_table() -> str:
    """What the labels ``outcome`` and ``reason`` may hold, metric by metric, as a Markdown table."""
    rows = [
        f"| `{family.name}` | `{value}` | {text} |"
        for section in SECTIONS
        for family in section.families
        for value, text in family.values.items()
    ]
    return "\n".join(["| Metric | Value | Meaning |", "|---|---|---|", *rows])


def labels_table() -> str:
    """What each label of a metric may hold, as a Markdown table."""
    rows = [f"| `{name}` | {text} |" for name, text in LABELS.items()]
    return "\n".join(["| Label | Holds |", "|---|---|", *rows])


GENERATED = {
    README: {
        "settings": settings_table,
        "lanes": partial(lanes_table, "sleeping-7b"),
        "lanes with MiniLM": partial(lanes_table, "minilm"),
        "measurements": measurements_table,
    },
    CHOOSING_TAU: {
        "tau": partial(varied_table, "sleeping-7b", "max-pass-ms"),
        "share": partial(varied_table, "minilm", "interruption-share"),
    },
    MONITORING: {
        "queues": partial(fields_table, LaneStatistics),
        "workers": partial(fields_table, WorkerStatistics),
    },
    METRICS: {"metrics": metrics_tables, "labels": labels_table, "values": values_table},
}
"""What stands between the markers of each name, in each file."""


def default_of(field: Field[Any]) -> str:
    """The default as one would type it."""
    value = field.default if field.default is not MISSING else ()
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def field_docstrings(group: type) -> Iterator[tuple[str, str]]:
    """The string under each field of a dataclass, on one line."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    assert isinstance(definition, ast.ClassDef)
    body = definition.body
    for statement, following in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(following, ast.Expr), f"{group.__name__}.{statement.target.id} has no docstring"
            assert isinstance(following.value, ast.Constant)
            yield statement.target.id, " ".join(str(following.value.value).split()).replace("``", "`")


def with_generated_parts(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """A file's text with the generated parts as they should be."""
    for name, generate in parts.items():
        begin, end = f"<!-- {name}: generated by docs/generate.py -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{generate()}\n{end}{after}"
    return text


def main() -> None:
    """Write, or check."""
    for file, parts in GENERATED.items():
        text = file.read_text()
        wanted = with_generated_parts(text, parts)
        if "--check" not in sys.argv[1:]:
            file.write_text(wanted)
        elif text != wanted:
            sys.exit(f"{file.name} has old generated parts; run: python docs/generate.py")


if __name__ == "__main__":
    main()
