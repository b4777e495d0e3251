"""Every series that the application can have, with its type and its labels.

Law: nothing is listed here. Laneway's own come from the table that the registry is made of, and those of the
process from a registry as the application builds it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.metric_families import FAMILIES, Family, Kind
from app.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All series of one name."""

    kind: str
    """``counter``, ``gauge``, or ``histogram`` for the three names that a histogram has."""
    labels: frozenset[str] | None
    """Without those that Prometheus adds; ``None``: nobody knows."""


def defined_series() -> Mapping[str, Series]:
    """The series by the name that expressions use."""
    return {**dict(_series_of_the_process()), **dict(_series_of_families())}


def _series_of_families() -> Iterator[tuple[str, Series]]:
    for family in FAMILIES:
        labels = frozenset(family.labels)
        if family.kind is Kind.HISTOGRAM:
            yield from _series_of_histogram(family, labels)
        else:
            yield family.name, Series(kind=family.kind, labels=labels)


def _series_of_histogram(family: Family, labels: frozenset[str]) -> Iterator[tuple[str, Series]]:
    yield f"{family.name}_bucket", Series(kind=family.kind, labels=labels | {"le"})
    for suffix in ("sum", "count"):
        yield f"{family.name}_{suffix}", Series(kind=family.kind, labels=labels)


def _series_of_the_process() -> Iterator[tuple[str, Series]]:
    """What prometheus_client tells of any Python process; on Linux, where there is a /proc."""
    for metric in Metrics().registry.collect():
        for sample in metric.samples:
            yield sample.name, Series(kind=metric.type, labels=frozenset(sample.labels))
