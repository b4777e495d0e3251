"""A run in words and numbers: the table, the stored result, the curve over a setting."""

import math
from collections.abc import Mapping, Sequence

from bench.arms import Arm
from bench.comparison import TARGETS, Overload, Run
from bench.plot import Axis, Line, chart, decades
from bench.report import Ratio
from bench.scrape import is_number
from bench.tails import percentile, tail_of


def print_arms(run: Run, arms: Sequence[Arm]) -> None:
    """One line an arm."""
    print(
        f"  {'arm':<24} {'queries':>8} {'missed':>7} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'most ms':>9}"
        f" {'queue p99':>10} {'doc tok/s':>10} {'query tok/s':>11} {'gateway':>8} {'load':>6} (% of a core)"
    )
    for arm in arms:
        blocks = run.blocks[arm.name]
        tail = tail_of(run.all_latencies_s(arm.name)) if arm.has_queries else None
        queue_ms = [one for block in blocks for one in block.queue_ms]
        cells = (
            f"{tail.num_queries:>8,} {tail.num_missed:>7,} {tail.p50_ms:>9.1f} {tail.p90_ms:>9.1f}"
            f" {'< 1,000' if tail.p99_ms is None else f'{tail.p99_ms:.1f}':>9} {tail.max_ms:>9.1f}"
            f" {f'{percentile(queue_ms, 0.99):.1f}' if queue_ms else '-':>10}"
            if tail
            else f"{'-':>8} {'-':>7} {'-':>9} {'-':>9} {'-':>9} {'-':>9} {'-':>10}"
        )
        rates = [one for block in blocks if (one := block.rates or block.drained_rates) is not None]
        documents, queries = (
            (
                f"{sum(one.documents_per_s for one in rates) / len(rates):,.0f}",
                f"{sum(one.queries_per_s for one in rates) / len(rates):,.0f}",
            )
            if rates
            else ("-", "-")
        )
        gateway, load = (_percent(_mean_cores(run, arm, whose)) for whose in ("gateway", "load"))
        print(f"  {arm.name:<24} {cells} {documents:>10} {queries:>11} {gateway:>8} {load:>6}")


def _mean_cores(run: Run, arm: Arm, whose: str) -> float | None:
    told = [block.cores[whose] for block in run.blocks[arm.name] if whose in block.cores]
    return sum(told) / len(told) if told else None


def _percent(cores: float | None) -> str:
    return "-" if cores is None else f"{cores:.1%}"


def print_ratios(ratios: Mapping[str, Ratio | None]) -> None:
    for name, ratio in ratios.items():
        target = f"   (target {TARGETS[name]})" if name in TARGETS else ""
        shown = "not known: too few queries, or too many missed" if ratio is None else str(ratio)
        print(f"  {name:<40} {shown}{target}")


def print_overload(overload: Overload) -> None:
    shares = ", ".join(f"{lane} {share:.0%}" for lane, share in overload.lane_shares.items())
    answered = overload.answered_tail
    print(
        f"  overload: {overload.offered_per_s:.0f} queries/s offered, {overload.capacity_per_s:.0f} are the most; "
        f"answers {dict(overload.statuses)}"
    )
    print(f"    the device's time went to: {shares or 'not told'}")
    print(f"    accepted queries: p50 {answered.p50_ms:.0f} ms, most {answered.max_ms:.0f} ms")
    print(
        f"    refused ones that came again when told (at most {overload.longest_retry_after_s * 1e3:.0f} ms later), "
        f"while the others went on: answers {dict(overload.retry_statuses)}"
    )
    print(f"    those that were told to come after that: answers {dict(overload.late_retry_statuses)}")
    if overload.num_untold:
        print(f"    refused without a moment to come again: {overload.num_untold}")
    if not overload.is_every_request_answered:
        print(f"    documents: answers {dict(overload.document_statuses)}")


def as_json(
    run: Run, arms: Sequence[Arm], ratios: Mapping[str, Ratio | None], overload: Overload | None
) -> dict[str, object]:
    """Everything that is told, plain."""
    told: dict[str, object] = {
        "arms": {arm.name: _arm_as_json(run, arm) for arm in arms},
        "raw_tokens_per_s": [[round(one) for one in blocks] for blocks in run.raw_per_s],
        "rounds_left_out": run.num_invalid_rounds,
        "ratios": dict(ratios),
    }
    if overload is not None:
        told["overload"] = {
            "capacity_per_s": round(overload.capacity_per_s, 1),
            "offered_per_s": round(overload.offered_per_s, 1),
            "statuses": dict(overload.statuses),
            "accepted_ms": overload.answered_tail.as_json(),
            "device_time_shares": {lane: round(s, 3) for lane, s in overload.lane_shares.items()},
            "document_statuses": dict(overload.document_statuses),
            "retry_statuses": dict(overload.retry_statuses),
            "late_retry_statuses": dict(overload.late_retry_statuses),
            "refused_untold": overload.num_untold,
            "longest_retry_after_s": round(overload.longest_retry_after_s, 3),
        }
    return told


def _arm_as_json(run: Run, arm: Arm) -> dict[str, object]:
    blocks = run.blocks[arm.name]
    told: dict[str, object] = {"policy": arm.policy}
    if arm.has_queries:
        told["latency_ms"] = tail_of(run.all_latencies_s(arm.name)).as_json()
        told["lateness_p99_ms"] = [
            round(block.punctuality.lateness_p99_s * 1e3, 2) for block in blocks if block.punctuality
        ]
        queue_ms = [one for block in blocks for one in block.queue_ms]
        if queue_ms:
            told["queue_ms"] = tail_of([one / 1e3 for one in queue_ms]).as_json()
    if arm.has_documents:
        for name, rates in (
            ("tokens_per_s", [block.rates for block in blocks]),
            ("drained_tokens_per_s", [block.drained_rates for block in blocks]),
        ):
            if any(rates):
                told[name] = [None if one is None else round(one.useful_per_s) for one in rates]
    cores = {
        whose: round(taken, 4)
        for whose in ("gateway", "load")
        if (taken := _mean_cores(run, arm, whose)) is not None
    }
    if cores:
        told["cores_taken"] = cores
    names = {name for block in blocks for name in block.histograms}
    told |= {
        f"{name}_p99": max(block.histograms.get(name, 0.0) for block in blocks) for name in sorted(names)
    }
    return told


def curve_of(run: Run, name: str, values: Sequence[str]) -> str | None:
    """The p99 over a setting that is a number or a percentage; ``None`` for others, or of too few queries."""
    if 0 < sum(value.endswith("%") for value in values) < len(values):
        return None  # They have no axis in common.
    if (
        not all(is_number(value.removesuffix("%")) and _number(value) > 0 for value in values)
        or len(values) < 2
    ):
        return None
    tails = [tail_of(run.all_latencies_s(f"{name}={value}")) for value in values]
    p99s = [
        (_number(value), tail.p99_ms)
        for value, tail in zip(values, tails, strict=True)
        if tail.p99_ms is not None and math.isfinite(tail.p99_ms)
    ]
    if len(p99s) < len(values):
        return None
    p50s = [(_number(value), tail.p50_ms) for value, tail in zip(values, tails, strict=True)]
    ratios = [run.over_raw(f"{name}={value}") for value in values]
    ticks = [
        (_number(value), value if ratio is None else f"{value} ({ratio.median:.2f} of RAW)")
        for value, ratio in sorted(zip(values, ratios, strict=True), key=lambda pair: _number(pair[0]))
    ]
    return chart(
        f"A query's p50 and p99 over {name}, and useful tokens",
        Axis(label=name, ticks=ticks),
        decades("milliseconds", [y for _, y in p99s + p50s]),
        [Line(name="p99", points=sorted(p99s)), Line(name="p50", points=sorted(p50s))],
    )


def _number(text: str) -> float:
    return float(text.removesuffix("%"))
