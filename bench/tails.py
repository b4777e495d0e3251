"""What the logs of blocks say: percentiles with their misses, useful tokens, ratios of two arms.

Law: a miss is a latency without end. It is never left out, or a server that drops what it cannot answer in time
would have the best percentiles of all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.openloop import Log, Sent
from bench.report import MIN_P99_SAMPLES, Ratio

MIN_P999_SAMPLES = 10_000
MAX_LATENESS = 0.10
"""Of the 99th percentile: a block that was sent less punctually measured its own sender."""
NUM_RESAMPLES = 2_000


def percentile(samples: Sequence[float] | npt.NDArray[np.float64], share: float) -> float:
    """The sample that at least this share of all samples is not above (nearest rank)."""
    return float(np.quantile(np.asarray(samples), share, method="inverted_cdf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """How one arm's queries were answered, in milliseconds; infinite where the share was missed."""

    num_queries: int
    num_missed: int
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    """``None`` of fewer than ``MIN_P99_SAMPLES`` queries."""
    p999_ms: float | None
    """``None`` of fewer than ``MIN_P999_SAMPLES`` queries."""
    max_ms: float

    def as_json(self) -> dict[str, object]:
        """Plain values; what was missed is called so, since JSON has no infinity."""
        values = {
            "p50": self.p50_ms,
            "p90": self.p90_ms,
            "p99": self.p99_ms,
            "p99.9": self.p999_ms,
            "max": self.max_ms,
        }
        shown = {
            name: value if value is None else "missed" if math.isinf(value) else round(value, 2)
            for name, value in values.items()
        }
        return {"queries": self.num_queries, "missed": self.num_missed, **shown}


def tail_of(latencies_s: Sequence[float]) -> Tail:
    """Percentiles of all queries of an arm; those that were missed are infinite."""
    count = len(latencies_s)

    def at(share: float) -> float:
        return percentile(latencies_s, share) * 1e3

    return Tail(
        num_queries=count,
        num_missed=sum(map(math.isinf, latencies_s)),
        p50_ms=at(0.5),
        p90_ms=at(0.9),
        p99_ms=at(0.99) if count >= MIN_P99_SAMPLES else None,
        p999_ms=at(0.999) if count >= MIN_P999_SAMPLES else None,
        max_ms=max(latencies_s) * 1e3,
    )


def tail_ratio(
    numerators: Sequence[Sequence[float]], denominators: Sequence[Sequence[float]], *, seed: int = 0
) -> Ratio | None:
    """The ratio of two arms' 99th percentiles, from the latencies of the same rounds.

    A round has too few queries for a percentile of its own. So the percentiles are those of all rounds together,
    and the interval comes from drawing whole rounds again, the same ones for both arms.

    Returns:
        ``None`` if an arm has fewer than ``MIN_P99_SAMPLES`` queries, or misses more than one in a hundred.
    """
    pairs = list(zip(numerators, denominators, strict=True))
    if min(sum(map(len, arm)) for arm in (numerators, denominators)) < MIN_P99_SAMPLES:
        return None
    random = np.random.default_rng(seed)

    def ratio_of(chosen: Sequence[int]) -> float:
        above = np.concatenate([np.asarray(pairs[index][0]) for index in chosen])
        below = np.concatenate([np.asarray(pairs[index][1]) for index in chosen])
        return percentile(above, 0.99) / percentile(below, 0.99)

    whole = ratio_of(range(len(pairs)))
    if not math.isfinite(whole) or whole == 0:
        return None
    resampled = sorted(
        ratio_of(random.integers(0, len(pairs), len(pairs)).tolist()) for _ in range(NUM_RESAMPLES)
    )
    return Ratio(
        median=whole,
        low=resampled[round(0.025 * NUM_RESAMPLES)],
        high=resampled[round(0.975 * NUM_RESAMPLES) - 1],
        num_rounds=len(pairs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Punctuality:
    """How late the queries of a block were sent, beside how late they were answered."""

    lateness_p99_s: float
    latency_p99_s: float
    """Of the answered ones: misses are endless, and beside them everything would be on time. Endless if none was
    answered; then the arm has nothing that lateness could spoil."""
    num_never_sent: int = 0
    """For want of a connection of ours."""

    @property
    def is_good(self) -> bool:
        """Whether the block measured the server rather than its sender."""
        return not self.num_never_sent and self.lateness_p99_s <= MAX_LATENESS * self.latency_p99_s

    def __str__(self) -> str:
        if self.num_never_sent:
            return f"had no connection for {self.num_never_sent} queries"
        lateness_ms, latency_ms = self.lateness_p99_s * 1e3, self.latency_p99_s * 1e3
        return f"went out {lateness_ms:.1f} ms late and came back after {latency_ms:.1f} ms (p99)"


def punctuality(queries: Sequence[Sent]) -> Punctuality:
    """Of one block."""
    answered_s = [one.latency_s for one in queries if one.status == 200]
    return Punctuality(
        lateness_p99_s=percentile([one.lateness_s for one in queries], 0.99),
        latency_p99_s=percentile(answered_s, 0.99) if answered_s else math.inf,
        num_never_sent=sum(not one.was_sent for one in queries),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Tokens that came back as vectors, a second."""

    documents_per_s: float
    queries_per_s: float

    @property
    def useful_per_s(self) -> float:
        """Of documents and queries together."""
        return self.documents_per_s + self.queries_per_s


def answered_tokens(sent: Sequence[Sent], num_tokens: Callable[[int], int]) -> int:
    """Tokens of all requests that were answered with vectors."""
    return sum(num_tokens(one.body) for one in sent if one.status == 200)


def rates_of_passes(
    log: Log, *, count_tokens: Callable[[bytes], float], query_tokens: Callable[[int], int]
) -> Rates | None:
    """Tokens a second between the two scrapes of a block, by the passes that the gateway counted.

    Answers would tell less: a request is answered when its last input is, so after a start with all requests at
    once they come in clusters, and in a block of seconds a cluster is a good part. What the gateway counts is
    held against the answers of the whole block, by ``Bench``.

    Args:
        log: Of one block.
        count_tokens: Tokens of all passes, from a scrape.
        query_tokens: Tokens of a query body.

    Returns:
        ``None`` of a block that was not scraped.
    """
    if len(log.scrapes) < 2:
        return None
    first, last = log.scrapes
    elapsed_s = last.at_s - first.at_s
    tokens = count_tokens(last.content) - count_tokens(first.content)
    within = [one for one in (*log.warm_queries, *log.queries) if first.at_s < one.done_s <= last.at_s]
    queries = answered_tokens(within, query_tokens)
    return Rates(documents_per_s=(tokens - queries) / elapsed_s, queries_per_s=queries / elapsed_s)


def cores_of(log: Log, cpu_seconds: Callable[[bytes], float]) -> dict[str, float]:
    """Cores that were not the workers', between the two scrapes of a block: 0.1 is a tenth of one.

    Args:
        log: Of one block.
        cpu_seconds: Processor time of the gateway's own process, from a scrape.

    Returns:
        Nothing of a block that was not scraped.
    """
    if len(log.scrapes) < 2:
        return {}
    first, last = log.scrapes
    elapsed_s = last.at_s - first.at_s
    return {
        "gateway": (cpu_seconds(last.content) - cpu_seconds(first.content)) / elapsed_s,
        "load": (last.load_cpu_s - first.load_cpu_s) / elapsed_s,
    }


def rates_of_drained(
    log: Log, *, document_tokens: Callable[[int], int], query_tokens: Callable[[int], int]
) -> Rates | None:
    """Tokens a second of a whole block, from its start to its last answer, where every document was waited for.

    For servers that count nothing for us, and for the gateway beside them. It is less than what they do in between:
    at the start and at the end they are not full, and the last documents have no queries beside them.

    Returns:
        ``None`` if no document was answered.
    """
    elapsed_s = max((one.done_s for one in log.documents if one.status == 200), default=0.0)
    if not elapsed_s:
        return None
    return Rates(
        documents_per_s=answered_tokens(log.documents, document_tokens) / elapsed_s,
        queries_per_s=answered_tokens([*log.warm_queries, *log.queries], query_tokens) / elapsed_s,
    )


def answers_per_s(log: Log) -> float | None:
    """Document requests answered a second after the warm-up, from answer to answer.

    Returns:
        ``None`` if fewer than two moments with answers lie in the window.
    """
    moments_s = sorted(
        one.done_s for one in log.documents if one.status == 200 and log.warm_s <= one.done_s <= log.end_s
    )
    if not moments_s or moments_s[0] == moments_s[-1]:
        return None
    # The first one only starts the clock: when its work began is not known.
    num_later = sum(moment_s > moments_s[0] for moment_s in moments_s)
    return num_later / (moments_s[-1] - moments_s[0])


def count_statuses(sent: Sequence[Sent]) -> dict[str, int]:
    """How many requests ended in what way."""
    counts: dict[str, int] = {}
    for one in sent:
        name = str(one.status) if one.status else "no answer"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def header_values(sent: Sequence[Sent], name: str) -> list[float]:
    """A numeric header of all answers that have it."""
    values = (one.header(name) for one in sent if one.status == 200)
    return [float(value) for value in values if value is not None]


def lane_shares(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Each lane's part of the device time spent between two scrapes."""
    spent = {lane: after[lane] - before.get(lane, 0.0) for lane in after}
    total = sum(spent.values())
    return {lane: seconds / total for lane, seconds in spent.items()} if total else {}
